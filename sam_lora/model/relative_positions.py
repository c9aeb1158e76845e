"""Decomposed relative positions (Li et al. 2022, MViTv2) in the logits of the image encoder's attention.

The logit of a query and a key, each a place in a grid, is
    scale * q @ k + rel_h[q, row of k] + rel_w[q, column of k]
where rel_h[q] = q @ table_h[row of q], and likewise for rel_w.

Shapes: N is batch x windows x heads, h and w are the grid's sides, d is a head's width. `table_h` (h, h, d) and
`table_w` (w, w, d) are indexed by the row, or column, of the query and then of the key.
"""

import torch
from torch import Tensor


def by_pair(table: Tensor, side: int) -> Tensor:
    """A table (2 * side - 1, d) by distance -> (side, side, d), indexed by the place of the query and of the key.

    What segment_anything's `get_rel_pos` returns where the table fits, without indices that the host has to copy to
    the GPU, which it would wait for.
    """
    return table.flip(0).unfold(0, side, 1).flip(0).transpose(1, 2)


def relative_logits(q: Tensor, table_h: Tensor, table_w: Tensor) -> tuple[Tensor, Tensor]:
    """What positions add to the logits of queries (N, h*w, d): rel_h (N, h*w, h) and rel_w (N, h*w, w)."""
    grid = q.unflatten(1, (len(table_h), len(table_w)))
    return (torch.einsum("nhwc,hkc->nhwk", grid, table_h).flatten(1, 2),
            torch.einsum("nhwc,wkc->nhwk", grid, table_w).flatten(1, 2))


def fold(q: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries (N, h*w, d + h + w), and the columns (h*w, h + w) to append to each key so that products are the logits.

    [scale * q, rel_h, rel_w] @ [k, one-hot row of k, one-hot column of k]
    """
    height, width = len(table_h), len(table_w)
    one_hot = torch.cat([torch.eye(height, dtype=q.dtype, device=q.device).repeat_interleave(width, dim=0),
                        torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1)], dim=1)
    return torch.cat([q * scale, *relative_logits(q, table_h, table_w)], dim=-1), one_hot
