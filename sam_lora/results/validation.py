"""Loss and IoU of each row of a labelled table, and the finder's threshold, for validation during training."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.data.samples import Sample
from sam_lora.model.batches import Batch
from sam_lora.model.meta import Sam
from sam_lora.results import metrics
from sam_lora.results.detection import best_threshold, scores_at
from sam_lora.results.find import FindSettings, scan_photos
from sam_lora.results.predict import MaskLoss, predict

LOWEST_SCORE = 0.02         # of the objects that are looked at to find the best threshold
FALLBACK_THRESHOLD = 0.3


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


def find_threshold(sam: Sam, samples: Sequence[Sample], find: Mapping[str, Any],
                   autocast: AbstractContextManager) -> tuple[float, str]:
    """The score at which the finder has its best F1 on a validation table, and what to say about it.

    `find`: the header's entry. Without a table it is FALLBACK_THRESHOLD.
    """
    if not samples:
        return FALLBACK_THRESHOLD, f"no validation table: objects are found from score {FALLBACK_THRESHOLD} on"
    settings = FindSettings(LOWEST_SCORE, None, find["photo_side"])
    photos = scan_photos(sam, samples, settings, autocast)
    threshold = best_threshold(photos)
    scores = scores_at(photos, threshold)
    return threshold, (f"found without a prompt on the validation photos: from score {threshold:.2f} on precision "
                       f"{scores.precision:.3f}, recall {scores.recall:.3f}, F1 {scores.f1:.3f}")
