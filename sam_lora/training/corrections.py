"""Simulated corrective clicks for training: one in each mask's error, chosen on the device; the host never waits.

Interactive segmentation models are trained like this (Sofiiuk et al. 2021, RITM; Kirillov et al. 2023, SAM). Clicks are
drawn at random, the likelier the thicker the error is there, for people click in the middle of what is wrong.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 9  # side in pixels of the model frame: a pixel counts as often as pixels are wrong in this square around it


def corrective_clicks(logits: Tensor, target: Tensor, valid: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """One click for each of N masks: (coords (N, 2) xy in pixels, labels (N,): 1 mask missing, 0 mask spilling over).

    `logits` (N, H, W); `target` and `valid` as for mask losses; `draws` (N,) in 0 to 1 decides which wrong pixel it
    is. Where nothing is wrong it lies in the object, and without an object anywhere on the image.
    """
    truth, valid = target >= 0.5, valid > 0
    wrong = ((logits > 0) != truth) & valid
    chosen = wrong
    for instead in (truth & valid, valid):
        chosen = torch.where(chosen.flatten(1).any(dim=1)[:, None, None], chosen, instead)
    weights = torch.where(chosen, _count_nearby(chosen), 0).flatten(1)          # whole numbers: their sums are exact
    sums = weights.cumsum(dim=1, dtype=torch.int32)
    wanted = (draws.double() * sums[:, -1]).int()[:, None]
    pixel = torch.searchsorted(sums, wanted, right=True)                        # (N, 1)
    pixel = pixel.clamp(max=sums.shape[1] - 1)
    width = logits.shape[-1]
    labels = truth.flatten(1).gather(1, pixel)[:, 0].int()
    return torch.cat([pixel % width, pixel // width], dim=1).float(), labels


def _count_nearby(mask: Tensor) -> Tensor:
    """(N, H, W) bool -> int32: how many pixels are set in the square of side WINDOW around each, by running sums."""
    sums = F.pad(mask.int(), (WINDOW // 2 + 1, WINDOW // 2) * 2).cumsum(dim=1, dtype=torch.int32)
    sums = sums.cumsum(dim=2, dtype=torch.int32)
    rows = sums[:, WINDOW:] - sums[:, :-WINDOW]
    return rows[:, :, WINDOW:] - rows[:, :, :-WINDOW]
