"""Mask losses, and the loss of a batch that is made of them.

A mask loss takes logits, not probabilities, and returns one value for each mask. `logits`, `target` and `valid` are
(N, H, W). `target` is in [0, 1] (on the edge, the fraction of the pixel that the object covers); `valid` is 1 on the
image and 0 on the padding, which never counts.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_lora.model.batches import Batch
from sam_lora.model.encode import frame_mask, image_embeddings
from sam_lora.model.finder import finder_of
from sam_lora.model.meta import Sam
from sam_lora.model.prompts import decode_all, upscale_to_frame
from sam_lora.training.corrections import corrective_clicks
from sam_lora.training.finder_loss import finder_loss

EPSILON = 1e-6
FINDER_LOSS_WEIGHT = 1.0
IOU_LOSS_WEIGHT = 1.0   # of the IoU head's squared error, as in SAM
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


def batch_loss(sam: Sam, batch: Batch, mask_loss: MaskLoss, multimask_weight: float) -> tuple[Tensor, Tensor]:
    """(loss to minimise, mean IoU of the single masks) of a batch on the model's device.

    Each row is decoded from its prompt, then once more for each corrective round that the batch has draws for: a click
    in the error joins the earlier ones, and the logits so far are given as mask prompt, as SamPredictor's users do. The
    first round counts as much as all corrective ones together; the IoU is that of the first. The encoder runs once.

    The single mask, which SAM gives for several points or a box, is compared in the model frame. Of the three ambiguity
    masks of the first round the best one is, at their own low resolution, with weight `multimask_weight`. The IoU head
    learns the true IoU of all of them. With cells the finder learns too, a photo counting as often as its rows.
    """
    side = batch.targets.shape[-1]
    of_images = image_embeddings(sam, batch)                                                # (B, C, h, w)
    embeddings = of_images[batch.image_index]                                               # (N, C, h, w)
    target = batch.targets.float() / 255                                                   # (N, S, S)
    valid = frame_mask(batch.input_sizes, side)[batch.image_index, 0].float()
    draws = () if batch.correction_draws is None else batch.correction_draws.unbind(dim=1)
    prompts = batch.prompts
    masks, predicted_iou = decode_all(sam, embeddings, prompts)                             # (N, 4, 4h, 4w), (N, 4)
    with torch.autocast(batch.targets.device.type, enabled=False):
        single = upscale_to_frame(masks[:, :1].float(), side)[:, 0]
        iou = frame_iou(single, target, valid)
        rounds = [_single_loss(single, predicted_iou, target, valid, mask_loss)]
        best_of_three = 0.0
        if multimask_weight:
            best_of_three = multimask_weight * _multimask_loss(masks[:, 1:].float(), predicted_iou[:, 1:].float(),
                                                               target, valid, mask_loss)
    for round_draws in draws:
        prompts = prompts.with_click(*corrective_clicks(single.detach(), target, valid, round_draws))
        masks, predicted_iou = decode_all(sam, embeddings, prompts, masks[:, :1].detach())
        with torch.autocast(batch.targets.device.type, enabled=False):
            single = upscale_to_frame(masks[:, :1].float(), side)[:, 0]
            rounds.append(_single_loss(single, predicted_iou, target, valid, mask_loss))
    loss, *corrections = rounds
    if corrections:
        loss = loss + torch.stack(corrections).mean(dim=0)
    loss = loss + best_of_three
    mean_iou = iou.mean()
    if batch.counted is not None:   # photos without objects teach the finder alone
        loss, mean_iou = loss * batch.counted, (iou * batch.counted).sum() / batch.counted.sum().clamp(min=1)
    if batch.cells is not None:
        found = finder_of(sam)(of_images, side // batch.cells.classes.shape[-1])
        with torch.autocast(batch.targets.device.type, enabled=False):
            loss = loss + FINDER_LOSS_WEIGHT * finder_loss(found, batch.cells)[batch.image_index]
    return loss.mean(), mean_iou


def _single_loss(single: Tensor, predicted_iou: Tensor, target: Tensor, valid: Tensor, mask_loss: MaskLoss) -> Tensor:
    """(N,): the loss of the single masks, logits (N, S, S) in the model frame, and the IoU head's error on them."""
    error = predicted_iou[:, 0].float() - frame_iou(single, target, valid)
    return mask_loss(single, target, valid) + IOU_LOSS_WEIGHT * error ** 2


def _multimask_loss(masks: Tensor, predicted_iou: Tensor, target: Tensor, valid: Tensor, mask_loss: MaskLoss) -> Tensor:
    """(N,): of three masks (N, 3, 4h, 4w) the loss of the best, and the IoU head's error on all of them."""
    small = [F.interpolate(x[:, None], masks.shape[-2:], mode="area").expand(-1, 3, -1, -1).flatten(0, 1)
             for x in (target, valid)]
    three = masks.flatten(0, 1)                                                            # (3N, 4h, 4w)
    best = mask_loss(three, *small).unflatten(0, (-1, 3)).min(dim=1).values
    iou_error = (predicted_iou - frame_iou(three, *small).unflatten(0, (-1, 3))) ** 2
    return best + IOU_LOSS_WEIGHT * iou_error.mean(dim=1)
