"""What a training step minimises: mask losses for prompts of several kinds, each corrected by further clicks."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from prompting import KINDS, Kind, corrected, draw_prompts
from torch import Tensor

from sam_lora.model.encode import preprocess
from sam_lora.model.meta import Sam
from sam_lora.model.prompts import decode_all, upscale_to_frame

CORRECTIONS = (0.4, 0.27, 0.2, 0.13)  # share of the prompts with no, one, two, three correcting clicks
CORRECTION_WEIGHT = 0.5               # of the loss after a correcting click
SHARP_STEP = 1500        # from this step on the loss is mostly focal + Dice; it begins as balanced BCE + Dice
SHARPENING_STEPS = 1000  # that the transition takes


def sharpness_at(step: int) -> float:
    """Between 0 and 1, for `mask_losses`."""
    return min(1.0, max(0.0, (step + SHARPENING_STEPS - SHARP_STEP) / SHARPENING_STEPS))


@dataclass(frozen=True)
class Chance:
    """The random numbers of a step: those that the host acts on, and those that stay on the model's device."""

    host: np.random.Generator
    device: torch.Generator



def mask_losses(logits: Tensor, masks: Tensor, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """(N, M, h, w) logits against (N, h, w) masks: (loss (N, M), IoU (N, M) of the thresholded logits).

    `sharpness` 0 is balanced BCE + Dice, which gets away from all-background masks at once; 1 is mostly focal + Dice.
    """
    truth = masks[:, None].to(logits.dtype).expand_as(logits)
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    error = (probability - truth).abs()
    focal = (error ** 2 * cross).mean(dim=(2, 3))
    share = truth.mean(dim=(2, 3), keepdim=True).clamp(1e-3, 1 - 1e-3)
    balanced = (cross * (truth / share + (1 - truth) / (1 - share))).mean(dim=(2, 3)) / 2
    dice = 1 - (2 * (probability * truth).sum(dim=(2, 3)) + 1) / ((probability + truth).sum(dim=(2, 3)) + 1)
    return dice + sharpness * 5 * focal + (1 - 0.9 * sharpness) * balanced, mask_iou(logits, masks)


def mask_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """(N, M, h, w) logits and (N, h, w) masks -> (N, M), without gradient."""
    predicted, inside = logits.detach() > 0, masks[:, None].bool()
    return (predicted & inside).sum(dim=(2, 3)) / (predicted | inside).sum(dim=(2, 3)).clamp(min=1)


def training_loss(sam: Sam, batch: dict[str, Tensor], chance: Chance, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """(loss, IoU of each row's single mask) for a batch as `scene_batches.collate` makes it.

    The two halves of the images get prompts of two kinds, because rows decode together only if they are of one kind.
    """
    images, count = batch["images"], len(batch["masks"])
    embeddings = sam.image_encoder(preprocess(images, batch["input_sizes"], sam))
    each = count // len(images)
    middle = (len(images) + 1) // 2
    loss, ious = 0.0, []
    for part in (slice(0, middle), slice(middle, None)):
        encoded = embeddings[part]
        if len(encoded):
            rows = slice(part.start * each, None if part.stop is None else part.stop * each)
            of_row = encoded[:, None].expand(-1, each, -1, -1, -1).flatten(0, 1)
            regions = {name: batch[name][rows] for name in ("masks", "positive", "negative", "boxes")}
            part_loss, iou = prompted_loss(sam, of_row, regions, chance, sharpness)
            loss = loss + part_loss * (len(of_row) / count)
            ious.append(iou)
    return loss, torch.cat(ious)


def prompted_loss(sam: Sam, embeddings: Tensor, rows: dict[str, Tensor], chance: Chance,
                  sharpness: float) -> tuple[Tensor, Tensor]:
    """(mean loss, IoU of each row's single mask) of rows with prompts of one kind, and of their corrections."""
    kind: Kind = KINDS[chance.host.choice(len(KINDS), p=[kind.share for kind in KINDS])]
    masks, size = rows["masks"], rows["masks"].shape[-1]
    prompts = draw_prompts(rows, kind, chance.device)
    low_res, predicted = decode_all(sam, embeddings, prompts)
    logits = upscale_to_frame(low_res.float(), size)
    judged = logits if kind.is_single_click else logits[:, :1]  # the ambiguity masks learn from single clicks
    losses, iou = mask_losses(judged, masks, sharpness)
    single_iou = iou[:, 0]
    loss = losses[:, 0].mean() + F.mse_loss(predicted, mask_iou(logits, masks))
    if kind.is_single_click:
        loss = loss + losses[:, 1:].min(dim=1).values.mean()
    for _ in range(chance.host.choice(len(CORRECTIONS), p=CORRECTIONS)):
        before = low_res[:, :1].detach().float()
        prompts = corrected(logits[:, 0].detach(), masks, prompts, chance.host, chance.device)
        low_res, predicted = decode_all(sam, embeddings, prompts, before)
        logits = upscale_to_frame(low_res[:, :1].float(), size)
        losses, iou = mask_losses(logits, masks, sharpness)
        loss = loss + CORRECTION_WEIGHT * (losses.mean() + F.mse_loss(predicted[:, :1], iou))
    return loss, single_iou
