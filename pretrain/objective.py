"""What a training step minimises: prompts drawn for a batch, mask losses, and a round of correcting clicks."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_lora.model.encode import preprocess
from sam_lora.model.meta import Sam
from sam_lora.model.prompts import Prompts, decode_all, upscale_to_frame

# (points, with a box, share of the batches); a point alone trains the three ambiguity masks as well
PROMPT_KINDS = ((1, False, 0.30), (2, False, 0.10), (3, False, 0.24), (4, False, 0.05), (5, False, 0.09),
                (0, True, 0.14), (1, True, 0.04), (2, True, 0.04))
CORRECTION_SHARE = 0.35  # of the steps have a second round on half of their rows
SHARP_STEP = 1500        # from this step on the loss is mostly focal + Dice; it begins as balanced BCE + Dice
SHARPENING_STEPS = 1000  # that the transition takes


def sharpness_at(step: int) -> float:
    """Between 0 and 1, for `mask_losses`."""
    return min(1.0, max(0.0, (step + SHARPENING_STEPS - SHARP_STEP) / SHARPENING_STEPS))


# ---- prompts ------------------------------------------------------------------------------------------------

def draw_prompts(rng: np.random.Generator, batch: dict[str, Tensor]) -> tuple[Prompts, Tensor]:
    """Prompts for each row, of one kind for even and of another for odd rows; and which rows have a point alone."""
    count = len(batch["boxes"])
    coords, labels = batch["positive"].clone(), torch.ones(count, 5)
    boxes = batch["boxes"].clone()
    shares = [share for *_, share in PROMPT_KINDS]
    alone = torch.zeros(count, dtype=torch.bool)
    for start in (0, 1):
        points, boxed, _ = PROMPT_KINDS[rng.choice(len(PROMPT_KINDS), p=shares)]
        rows = torch.arange(start, count, 2)
        labels[rows, points:] = -1
        if not boxed:
            boxes[rows] = torch.nan
        if points >= 2 or (points == 1 and boxed):
            swap = torch.from_numpy(rng.random(len(rows)) < 0.25) & (batch["negative"][rows, 0, 0] >= 0)
            coords[rows[swap], points - 1] = batch["negative"][rows[swap], 0]
            labels[rows[swap], points - 1] = 0
        alone[rows] = points == 1 and not boxed
    return Prompts(coords, labels, boxes), alone


def correction(logits: Tensor, masks: Tensor, prompts: Prompts) -> Prompts:
    """The same prompts with one more click, at a random pixel where the prediction is wrong."""
    wrong = ((logits > 0) != masks.bool()).flatten(1).float() + 1e-8
    picked = torch.multinomial(wrong, 1)[:, 0]
    width = masks.shape[2]
    click = torch.stack([picked % width, picked // width], dim=1)[:, None] * 2.0 + 1
    label = masks.flatten(1).gather(1, picked[:, None]).float()
    counts = (prompts.point_labels >= 0).sum(dim=1)
    coords = torch.cat([prompts.point_coords, click], dim=1)
    labels = torch.cat([prompts.point_labels, -torch.ones_like(label)], dim=1)
    rows = torch.arange(len(counts))
    coords[rows, counts], labels[rows, counts] = click[:, 0], label[:, 0]
    return Prompts(coords, labels, prompts.boxes)


# ---- loss ---------------------------------------------------------------------------------------------------

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
    with torch.no_grad():
        predicted = logits > 0
        inside = masks[:, None].bool()
        iou = (predicted & inside).sum(dim=(2, 3)) / (predicted | inside).sum(dim=(2, 3)).clamp(min=1)
    return dice + sharpness * 5 * focal + (1 - 0.9 * sharpness) * balanced, iou


def training_loss(sam: Sam, batch: dict[str, Tensor], rng: np.random.Generator,
                  sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """(loss, IoU of each row's single mask) of one or two rounds of prompts."""
    side, count = batch["images"].shape[-1], batch["masks"].shape[0]
    embeddings = sam.image_encoder(preprocess(batch["images"], batch["input_sizes"], sam))
    embeddings = embeddings.repeat_interleave(count // len(embeddings), dim=0)
    prompts, alone = draw_prompts(rng, batch)
    prompts, alone = prompts.to(embeddings.device), alone.to(embeddings.device)
    low_res, predicted = decode_all(sam, embeddings, prompts)
    losses, iou = mask_losses(upscale_to_frame(low_res, side // 2), batch["masks"], sharpness)
    loss = losses[:, 0].mean() + F.mse_loss(predicted, iou)
    if alone.any():
        loss = loss + losses[alone, 1:].min(dim=1).values.sum() / count
    if rng.random() < CORRECTION_SHARE:
        rows = torch.arange(int(rng.integers(2)), count, 2, device=embeddings.device)
        first = Prompts(prompts.point_coords[rows], prompts.point_labels[rows], prompts.boxes[rows])
        loss = loss + 0.5 * correction_loss(sam, embeddings[rows], low_res[rows, :1].detach(), first,
                                            batch["masks"][rows], sharpness)
    return loss, iou[:, 0]


def correction_loss(sam: Sam, embeddings: Tensor, before: Tensor, prompts: Prompts, masks: Tensor,
                    sharpness: float) -> Tensor:
    """The loss of a second round: the mask of the first, (N, 1, 4h, 4w) logits `before`, and a correcting click."""
    better = correction(upscale_to_frame(before, masks.shape[-1])[:, 0], masks, prompts)
    low_res, predicted = decode_all(sam, embeddings, better, before)
    losses, iou = mask_losses(upscale_to_frame(low_res[:, :1], masks.shape[-1]), masks, sharpness)
    return losses.mean() + F.mse_loss(predicted[:, :1], iou)
