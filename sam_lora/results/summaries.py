"""From masks to numbers: the scores of one object, and summaries of many by class and by size."""

import numpy as np
import pandas as pd

from sam_lora import contracts
from sam_lora.results import metrics

POOR_IOU = 0.5


def score(mask: np.ndarray, truth: np.ndarray | None) -> dict[str, float | str]:
    """IoU, Dice and boundary IoU at full resolution, as the results table has them: empty without a truth."""
    if truth is None:
        return {"iou": "", "dice": "", "boundary_iou": ""}
    return {name: round(function(mask, truth), 6) for name, function in
            (("iou", metrics.iou), ("dice", metrics.dice), ("boundary_iou", metrics.boundary_iou))}


def size_of(area: int) -> str:
    """COCO's word for an object of `area` pixels. Crops are cut unscaled, so that is its size in the photo too."""
    return next(size for size, (low, high) in contracts.SIZES.items() if area >= low and (high is None or area < high))


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """SUMMARY_COLUMNS for each class, then all classes by object (n objects) and by class (n classes)."""
    classes = pd.DataFrame([{"class_name": name, **_statistics(part)}
                            for name, part in results.groupby("class_name", sort=True)])
    by_object = {"class_name": contracts.BY_OBJECT, **_statistics(results)}
    by_class = {"class_name": contracts.BY_CLASS, "n": len(classes), **classes.drop(columns=["class_name", "n"]).mean()}
    return pd.DataFrame([*classes.to_dict("records"), by_object, by_class], columns=contracts.SUMMARY_COLUMNS).round(6)


def summarise_sizes(results: pd.DataFrame) -> pd.DataFrame:
    """SIZE_SUMMARY_COLUMNS for small, medium and large objects; all but n is empty for a size that no object has.

    A table of its own, because the summary by class holds classes and two rows of all of them, and a class may be
    called "large".
    """
    rows = []
    for size, (low, high) in contracts.SIZES.items():
        pixels = f"under {high}" if low == 0 else f"{low} and more" if high is None else f"{low} to {high - 1}"
        rows.append({"size": size, "pixels": pixels, **_statistics(results[results["size"] == size])})
    return pd.DataFrame(rows, columns=contracts.SIZE_SUMMARY_COLUMNS).round(6)


def _statistics(part: pd.DataFrame) -> dict[str, float]:
    """The statistics that both summaries share, of the objects in `part`."""
    iou = part["iou"].astype(float)
    return {"n": len(part), "mean_iou": iou.mean(), "median_iou": iou.median(), "p5_iou": iou.quantile(0.05),
            "mean_dice": part["dice"].astype(float).mean(),
            "mean_boundary_iou": part["boundary_iou"].astype(float).mean(),
            "share_below_0.5": (iou < POOR_IOU).mean()}


def as_text(table: pd.DataFrame) -> str:
    """A table for the terminal."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-")
