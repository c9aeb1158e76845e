"""Loss and IoU of each row of a labelled table, for validation during training."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.model.batches import Batch
from sam_lora.model.meta import Sam
from sam_lora.results import metrics
from sam_lora.results.predict import MaskLoss, predict


def validation_scores(sam: Sam, batches: Iterable[Batch], rows: int, autocast: AbstractContextManager,
                      mask_loss: MaskLoss, quiet: bool = False) -> Tensor:
    """(rows, 2) float64: the loss in the model frame and the IoU at full resolution of each row.

    Rows that are not among the batches, because other processes have them, stay zero. `quiet`: no progress bar.
    """
    sam.eval()
    scores = torch.zeros(rows, 2, dtype=torch.float64)
    predictions = predict(sam, batches, autocast, mask_loss)
    for prediction in tqdm(predictions, "validation", unit="mask", leave=False, disable=True if quiet else None):
        scores[prediction.row] = torch.tensor([prediction.loss, metrics.iou(prediction.mask, prediction.truth)])
    return scores
