"""Decomposed relative positions (Li et al. 2022, MViTv2) in the logits of the image encoder's attention.

The logit of a query and a key, each a place in a grid, is
    scale * q @ k + rel_h[q, row of k] + rel_w[q, column of k]
where rel_h[q] = q @ table_h[row of q], and likewise for rel_w.

Shapes: N is batch x windows x heads, h and w are the grid's sides, d is a head's width. `table_h` (h, h, d) and
`table_w` (w, w, d) are indexed by the row, or column, of the query and then of the key.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def position_table(learned: Tensor, side: int) -> Tensor:
    """(side, side, d) by places of query and key, of learned vectors (L, d) by distance.

    Equal to segment_anything's `get_rel_pos`, whose indices come from the CPU: there the host waits for the GPU.
    """
    distances = 2 * side - 1
    if len(learned) != distances:
        learned = F.interpolate(learned.T[None], size=distances, mode="linear")[0].T
    return learned.flip(0).unfold(0, side, 1).flip(0).transpose(1, 2)   # [q, k] is learned[q - k + side - 1]


def relative_logits(q: Tensor, table_h: Tensor, table_w: Tensor) -> tuple[Tensor, Tensor]:
    """What positions add to the logits of queries (N, h*w, d): rel_h (N, h*w, h) and rel_w (N, h*w, w)."""
    grid = q.unflatten(1, (len(table_h), len(table_w)))
    return (torch.einsum("nhwc,hkc->nhwk", grid, table_h).flatten(1, 2),
            torch.einsum("nhwc,wkc->nhwk", grid, table_w).flatten(1, 2))


def fold(q: Tensor, table_h: Tensor, table_w: Tensor, scale: float = 1.0,
         multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Queries (N, h*w, D), and the columns (h*w, D - d) to append to each key so that products are the logits.

    [scale * q, rel_h, rel_w, 0] @ [k, one-hot row of k, one-hot column of k, 0]
    D is d + h + w, rounded up to `multiple`.
    """
    height, width = len(table_h), len(table_w)
    unused = q.new_zeros(1, 1, -(q.shape[-1] + height + width) % multiple)
    rows, columns = (torch.eye(side, dtype=q.dtype, device=q.device) for side in (height, width))
    one_hot = torch.cat([rows.repeat_interleave(width, dim=0), columns.repeat(height, 1),
                         unused[0].expand(height * width, -1)], dim=1)
    scaled = q if scale == 1 else q * scale
    return torch.cat([scaled, *relative_logits(q, table_h, table_w), unused.expand(*q.shape[:2], -1)], dim=-1), one_hot
