"""Base against tuned on the same samples: the difference, its interval over whole photos, and the verdict.

Differences are tuned - base, whichever of the two runs now.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sam_lora import contracts

BOOTSTRAP_DRAWS = 5000


def compare(names: Sequence[str], photos: Sequence[str], base: np.ndarray, tuned: np.ndarray, seed: int
            ) -> pd.DataFrame:
    """COMPARISON_COLUMNS for each class, then all by object and by class; `base` and `tuned` are paired IoUs.

    The 95 % interval of the mean difference is a percentile bootstrap over whole photos, since objects in one photo
    are not independent; it is empty for a single photo.
    """
    rng = np.random.default_rng(seed)
    difference = tuned - base
    classes, class_of = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    _, photo_of = np.unique(np.asarray(photos, dtype=object), return_inverse=True)
    sums, counts = np.zeros((2, photo_of.max() + 1, len(classes)))
    np.add.at(sums, (photo_of, class_of), difference)
    np.add.at(counts, (photo_of, class_of), 1)

    def row(name: str, rows: np.ndarray, means: np.ndarray, photo_count: int) -> dict:
        low, high = np.percentile(means, (2.5, 97.5)) if photo_count > 1 else (np.nan, np.nan)
        return {"class_name": name, "n": len(rows), "photos": photo_count, "base_iou": base[rows].mean(),
                "tuned_iou": tuned[rows].mean(), "mean_difference": difference[rows].mean(), "ci95_low": low,
                "ci95_high": high, "wins": int((difference[rows] > 0).sum()),
                "losses": int((difference[rows] < 0).sum())}

    by_name = []
    for number, name in enumerate(classes):
        has = counts[:, number] > 0
        means = _resampled_means(sums[has, number, None], counts[has, number, None], rng)
        by_name.append(row(str(name), np.flatnonzero(class_of == number), means, int(has.sum())))
    everything = np.arange(len(difference))
    means = _resampled_means(sums.sum(axis=1, keepdims=True), counts.sum(axis=1, keepdims=True), rng)
    by_object = row(contracts.BY_OBJECT, everything, means, len(sums))
    by_class = row(contracts.BY_CLASS, everything, _resampled_means(sums, counts, rng), len(sums))
    by_class |= {"n": len(by_name)} | {column: np.mean([entry[column] for entry in by_name])
                                       for column in ("base_iou", "tuned_iou", "mean_difference")}
    return pd.DataFrame([*by_name, by_object, by_class], columns=contracts.COMPARISON_COLUMNS).round(6)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of BOOTSTRAP_DRAWS resamples of whole photos with replacement, a few at a time to bound memory.

    `sums` and `counts` (photos, classes): of the differences. The mean is over the objects of a class, then over the
    classes that a resample holds.
    """
    photos = len(sums)
    step = max(1, 1_000_000 // photos)
    means = []
    for start in range(0, BOOTSTRAP_DRAWS, step):
        draws = min(step, BOOTSTRAP_DRAWS - start)
        drawn = rng.integers(0, photos, (draws, photos)) + photos * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * photos).reshape(draws, photos).astype(float)
        number = times @ counts                                       # (draws, classes): objects
        held = number > 0
        means.append((times @ sums / np.where(held, number, 1)).sum(axis=1) / held.sum(axis=1))
    return np.concatenate(means)


def verdict(comparison: pd.DataFrame) -> str:
    """One plain sentence about the row of all objects."""
    row = comparison.loc[comparison["class_name"] == contracts.BY_OBJECT].to_dict("records")[0]
    objects = f"{row['n']} object{'s' * (row['n'] > 1)} of {row['photos']} photo{'s' * (row['photos'] > 1)}"
    scores = (f"mean IoU {row['tuned_iou']:.3f} tuned against {row['base_iou']:.3f} base "
              f"on the same {objects}, {row['mean_difference']:+.3f}")
    counted = f"better on {row['wins']} and worse on {row['losses']}."
    if row["photos"] < 2:
        return f"One photo is too few to tell base and tuned apart: {scores}, {counted}"
    scores += f" (95 % interval {row['ci95_low']:+.3f} to {row['ci95_high']:+.3f}), {counted}"
    if row["ci95_low"] > 0:
        return f"The tuned model is better than the base model: {scores}"
    if row["ci95_high"] < 0:
        return f"The tuned model is WORSE than the base model: {scores}"
    return f"No clear difference between the tuned and the base model: {scores}"
