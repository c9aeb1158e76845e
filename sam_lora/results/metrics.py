"""How similar two masks are: the same functions for training, validation and both inference scripts.

Masks are (H, W) bool at the image's own resolution. Empty against empty counts as 1: nothing to find, nothing found.
"""

import cv2
import numpy as np

BOUNDARY_FRACTION = 0.02  # of the image diagonal, as in Cheng et al. 2021


def iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union (Jaccard index), 0 to 1."""
    union = np.count_nonzero(predicted | truth)
    return float(np.count_nonzero(predicted & truth) / union) if union else 1.0


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient (F1 of the pixels), 0 to 1."""
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(predicted & truth) / total) if total else 1.0


def boundary_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """IoU of the bands inside both outlines, 2 % of the image diagonal wide (Cheng et al. 2021)."""
    return iou(boundary_band(predicted), boundary_band(truth))


def boundary_band(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that lie within 2 % of the image diagonal of its outline: (H, W) bool."""
    height, width = mask.shape
    distance = max(1, round(BOUNDARY_FRACTION * float(np.hypot(height, width))))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return mask & (eroded[1:-1, 1:-1] == 0)
