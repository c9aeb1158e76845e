"""SAM's everything mode as released: masks all over a grid of clicks, of no class. What finding is compared with."""

import numpy as np

from sam_lora.model.meta import Sam
from sam_lora.results.found import FoundObject, encode_mask

NO_CLASS = "object"
DEFAULT_THRESHOLD = 0.88        # predicted IoU from which on segment_anything keeps a mask
LOWEST_STABILITY = 0.7          # below segment_anything's own 0.95, which leaves a small or tuned SAM hardly any mask


def find_everything(sam: Sam, pixels: np.ndarray, points_per_side: int, lowest_score: float) -> list[FoundObject]:
    """The masks of segment_anything's SamAutomaticMaskGenerator, best predicted IoU first, which is their score.

    `pixels` (H, W, 3) uint8 RGB; `lowest_score` is its pred_iou_thresh.
    """
    from segment_anything import SamAutomaticMaskGenerator
    generator = SamAutomaticMaskGenerator(sam, points_per_side=points_per_side, pred_iou_thresh=lowest_score,
                                          stability_score_thresh=LOWEST_STABILITY)
    found = []
    for mask in generator.generate(pixels):
        left, top, width, height = map(int, mask["bbox"])
        found.append(FoundObject(NO_CLASS, float(np.clip(mask["predicted_iou"], 0, 1)),
                                 encode_mask(mask["segmentation"]), (left, top, left + width, top + height)))
    return sorted(found, key=lambda thing: -thing.score)
