"""The loss of a finder's map."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_lora.model.finder import Map
from sam_lora.model.finder_targets import UNDECIDED, Cells

BOX_WEIGHT = 2.0
CLASS_WEIGHT = 2.0


def box_overlaps(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """(IoU, generalised IoU (Rezatofighi et al. 2019)) of pairs of boxes, (..., 4) xyxy each."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = sum((b[..., 2:] - b[..., :2]).clamp(min=0).prod(dim=-1) for b in (boxes, others)) - shared
    low, high = torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    around = (high - low).clamp(min=0).prod(dim=-1)
    iou = shared / union.clamp(min=1e-6)
    return iou, iou - (around - union) / around.clamp(min=1e-6)


def finder_loss(found: Map, cells: Cells) -> Tensor:
    """(B,): how far the finder's map is from what is there.

    Objectness by the quality focal loss (Li et al. 2020): at an object's cells it is to be the IoU of the box found
    with the true one, elsewhere zero. Boxes by GIoU, classes by cross-entropy, both at objects' cells alone.
    """
    positive = cells.classes >= 0                                                             # (B, g, g)
    iou, giou = box_overlaps(found.boxes.movedim(1, -1), cells.boxes.movedim(1, -1))
    wanted = positive * iou.detach().clamp(0, 1)
    errors = F.binary_cross_entropy_with_logits(found.objectness, wanted, reduction="none")
    errors = errors * (wanted - found.objectness.sigmoid()) ** 2 * (cells.valid & (cells.classes != UNDECIDED))
    class_errors = F.cross_entropy(found.classes, cells.classes.clamp(min=0).long(), reduction="none")
    errors = errors + positive * (BOX_WEIGHT * (1 - giou) + CLASS_WEIGHT * class_errors)
    return errors.flatten(1).sum(dim=1) / positive.flatten(1).sum(dim=1).clamp(min=1)
