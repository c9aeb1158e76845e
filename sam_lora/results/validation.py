"""Loss and IoU of each row of a labelled table, and the finder's threshold, for validation during training."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.data.samples import Sample
from sam_lora.model.batches import Batch
from sam_lora.model.finder import finder_of
from sam_lora.model.meta import Sam
from sam_lora.model.processes import told_by_first
from sam_lora.ranks import ALONE, Ranks
from sam_lora.results import metrics
from sam_lora.results.detection import best_threshold, scores_at
from sam_lora.results.find import FindSettings, find_objects
from sam_lora.results.predict import MaskLoss, predict
from sam_lora.results.scan import scan_photos

LOWEST_THRESHOLD = 0.15     # of those that may be the best: objects below cost time
FALLBACK_THRESHOLD = 0.4


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


def validate_finder(sam: Sam, samples: Sequence[Sample], autocast: AbstractContextManager,
                    ranks: Ranks = ALONE) -> tuple[float, float]:
    """(score with the best F1, that F1) of finding a labelled table's objects, the same in all processes.

    Without a table (FALLBACK_THRESHOLD, NaN).
    """
    if not samples:
        return FALLBACK_THRESHOLD, math.nan
    sam.eval()
    settings = FindSettings(LOWEST_THRESHOLD, photo_side=finder_of(sam).photo_side)
    photos = scan_photos(samples, partial(find_objects, sam, settings=settings, autocast=autocast), ranks)
    threshold = best_threshold(photos, FALLBACK_THRESHOLD) if ranks.first else 0.0
    return tuple(told_by_first([threshold, scores_at(photos, threshold).f1] if ranks.first else None, ranks))
