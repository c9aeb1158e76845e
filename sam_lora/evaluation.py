"""Predict a table's masks and score them: validation in train.py and both inference scripts come through here."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from segment_anything.modeling import Sam

from sam_lora import metrics
from sam_lora.dataset import Batch
from sam_lora.sam import MASK_THRESHOLD, decode, postprocess_masks, preprocess


@dataclass
class Prediction:
    """The mask predicted for one row, at its image's own resolution."""

    row: int
    mask: np.ndarray            # (H, W) bool
    predicted_iou: float        # what the model itself thinks of it
    truth: np.ndarray | None    # (H, W) bool


@torch.inference_mode()
def predict(sam: Sam, batches: Iterable[Batch], device: torch.device,
            autocast: AbstractContextManager) -> Iterator[Prediction]:
    """One Prediction per prompt, batch by batch. Each image is encoded once however many prompts it has.

    Logits are brought to the image's own resolution first and thresholded last, as SamPredictor does.
    """
    side = sam.image_encoder.img_size
    for batch in batches:
        moved = batch.to(device)
        with autocast:
            embeddings = sam.image_encoder(preprocess(moved.images, moved.input_sizes, sam))
            low_res_masks, predicted_iou = decode(sam, embeddings[moved.image_index], moved.prompts)
        low_res_masks, predicted_iou = low_res_masks.float(), predicted_iou.float().cpu()
        input_sizes = batch.input_sizes.tolist()
        for i, (row, image) in enumerate(zip(batch.rows, batch.image_index.tolist())):
            logits = postprocess_masks(low_res_masks[i:i + 1], side, input_sizes[image], batch.original_sizes[image])
            mask = (logits[0, 0] > MASK_THRESHOLD).cpu().numpy()
            yield Prediction(row, mask, float(predicted_iou[i, 0]), batch.masks[i] if batch.masks else None)


def mean_iou(predictions: Iterable[Prediction]) -> float:
    """Mean IoU over objects, at full resolution."""
    return float(np.mean([metrics.iou(prediction.mask, prediction.truth) for prediction in predictions]))
