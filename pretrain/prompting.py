"""Prompts for the rows of a training batch, drawn where the masks are: on a GPU the host waits for nothing.

A row is one region: its mask (h, w) on the half-size grid, and clicks and a box from the scene's worker in pixels of
the model frame. All rows of a call get prompts of one kind, so that they decode together.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_lora.model.prompts import Prompts

REDRAWN = 0.25     # of the rows click at random pixels of the mask instead of where the worker clicked
NEGATIVE = 0.25    # of the rows, where a kind has more than one click, end in a click outside the mask
CENTRAL = 0.6      # of the corrections go to the middle of an error, as a person's do, the others anywhere in one
NEIGHBOURHOODS = (5, 11, 21)  # pixels of the half-size grid in which an error's middle is looked for


@dataclass(frozen=True)
class Kind:
    """A kind of prompt: how many clicks, with a box or not, and its share of the training."""

    points: int
    boxed: bool
    share: float

    @property
    def is_single_click(self) -> bool:
        """Has it several right answers? Such prompts train the three ambiguity masks as well."""
        return self.points == 1 and not self.boxed


KINDS = (Kind(1, False, 0.35), Kind(2, False, 0.09), Kind(3, False, 0.25), Kind(4, False, 0.04), Kind(5, False, 0.07),
         Kind(0, True, 0.12), Kind(1, True, 0.04), Kind(2, True, 0.04))


def draw_prompts(rows: dict[str, Tensor], kind: Kind, generator: torch.Generator) -> Prompts:
    """Prompts of one kind for N rows: `masks` (N, h, w), `positive` (N, P, 2), `negative` (N, Q, 2), `boxes` (N, 4)."""
    masks, count = rows["masks"], len(rows["masks"])
    coords = rows["positive"][:, :kind.points]
    labels = coords.new_ones(count, kind.points)
    if kind.points:
        anew = pixels_of(masks, kind.points, generator) * 2.0 + 1
        coords = torch.where(some_rows(REDRAWN, masks, generator)[:, None, None], anew, coords)
    if kind.points > 1 or (kind.points and kind.boxed):
        outside = rows["negative"][:, 0]
        swap = some_rows(NEGATIVE, masks, generator) & (outside[:, 0] >= 0)
        coords = torch.cat([coords[:, :-1], torch.where(swap[:, None], outside, coords[:, -1])[:, None]], dim=1)
        labels = torch.cat([labels[:, :-1], (~swap).to(labels.dtype)[:, None]], dim=1)
    return Prompts(coords, labels, rows["boxes"] if kind.boxed else None, [(kind.points, kind.boxed)] * count)


def corrected(logits: Tensor, masks: Tensor, prompts: Prompts, rng: np.random.Generator,
              generator: torch.Generator) -> Prompts:
    """The same prompts with one more click where the prediction, (N, h, w) logits, is wrong.

    Rows without an error get another click inside their mask. `rng` is the host's, `generator` the masks' device's.
    """
    truth = masks.bool()
    wrong = (logits > 0) != truth
    central = middle_of_error(wrong, truth, int(rng.choice(NEIGHBOURHOODS)))
    picked = torch.where(some_rows(CENTRAL, masks, generator)[:, None, None], central, pixels_of(wrong, 1, generator))
    flat = picked[..., 1] * masks.shape[2] + picked[..., 0]                                   # (N, 1)
    has_error = wrong.flatten(1).any(dim=1)[:, None, None]
    click = torch.where(has_error, picked, pixels_of(masks, 1, generator)) * 2.0 + 1
    label = (truth.flatten(1).gather(1, flat) | ~has_error[..., 0]).to(prompts.point_labels.dtype)
    return Prompts(torch.cat([prompts.point_coords, click], dim=1), torch.cat([prompts.point_labels, label], dim=1),
                   prompts.boxes, [(points + 1, boxed) for points, boxed in prompts.kinds])


def middle_of_error(wrong: Tensor, truth: Tensor, around: int) -> Tensor:
    """(N, h, w) bool -> (N, 1, 2) xy: the wrong pixel with the most errors of one sign in a square of side `around`."""
    signed = torch.where(truth, 1.0, -1.0) * wrong
    density = signed[:, None]
    for window in ((around, 1), (1, around)):  # a square's mean is that of its rows' means
        density = F.avg_pool2d(density, window, stride=1, padding=(window[0] // 2, window[1] // 2))
    density = density[:, 0].abs() * wrong
    picked = density.flatten(1).argmax(dim=1, keepdim=True)
    return torch.stack([picked % wrong.shape[2], picked // wrong.shape[2]], dim=2)


def pixels_of(masks: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(N, h, w) masks -> (N, count, 2) integer xy: random pixels of each, with repetition; (0, 0) in an empty mask."""
    running = masks.flatten(1).cumsum(dim=1, dtype=torch.int32)
    total = running[:, -1:]
    ranks = torch.rand(len(masks), count, device=masks.device, generator=generator) * total
    ranks = torch.minimum(ranks.to(torch.int32) + 1, total)
    picked = torch.searchsorted(running, ranks)
    return torch.stack([picked % masks.shape[2], picked // masks.shape[2]], dim=2)


def some_rows(share: float, masks: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) bool, true with probability `share`."""
    return torch.rand(len(masks), device=masks.device, generator=generator) < share
