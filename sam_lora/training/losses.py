"""Mask losses. Each takes logits, not probabilities, and returns one value per mask.

Shapes: `logits`, `target` and `valid` are (N, H, W). `target` is in [0, 1] (a soft edge is the share of the pixel that
the object covers), `valid` is 1 on the picture and 0 on the padding, which never counts.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6
MaskLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def bce_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over valid pixels: (N,)."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _mean(loss, valid)


def soft_iou_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - soft intersection over union (Rahman & Wang 2016): (N,)."""
    probability = logits.sigmoid() * valid
    intersection = (probability * target).sum(dim=(-2, -1))
    union = (probability + target * valid).sum(dim=(-2, -1)) - intersection
    return 1 - (intersection + EPSILON) / (union + EPSILON)


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - soft Dice (Milletari et al. 2016, without the squares), smoothed by 1 as SAM's training is: (N,)."""
    probability = logits.sigmoid() * valid
    intersection = (probability * target).sum(dim=(-2, -1))
    total = (probability + target * valid).sum(dim=(-2, -1))
    return 1 - (2 * intersection + 1) / (total + 1)


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), the mean over valid pixels: (N,)."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_true = probability * target + (1 - probability) * (1 - target)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return _mean(weight * (1 - p_true) ** gamma * cross_entropy, valid)


def _mean(loss: Tensor, valid: Tensor) -> Tensor:
    return (loss * valid).sum(dim=(-2, -1)) / valid.sum(dim=(-2, -1)).clamp(min=1)


def bce_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return bce_loss(logits, target, valid) + soft_iou_loss(logits, target, valid)


def bce_dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return bce_loss(logits, target, valid) + dice_loss(logits, target, valid)


def focal_dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """20 x focal + Dice, SAM's own mixture (Kirillov et al. 2023)."""
    return 20 * focal_loss(logits, target, valid) + dice_loss(logits, target, valid)


MASK_LOSSES: dict[str, MaskLoss] = {
    "bce_iou": bce_iou, "focal_dice": focal_dice, "bce_dice": bce_dice,
}


@torch.no_grad()
def frame_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """IoU of thresholded logits against the target at one half, on valid pixels: (N,). Empty against empty is 1."""
    predicted = (logits > 0) & (valid > 0)
    truth = (target >= 0.5) & (valid > 0)
    intersection = (predicted & truth).sum(dim=(-2, -1)).float()
    union = (predicted | truth).sum(dim=(-2, -1)).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))
