"""How much the result depends on the clicks: each object scored again with other foreground points in its mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from sam_lora.data.clicks import random_points
from sam_lora.model.batches import Batch
from sam_lora.model.meta import ResizeLongestSide
from sam_lora.model.prompts import Prompts


@dataclass(frozen=True)
class PromptTrials:
    """Score each mask with `count` further sets of foreground points."""

    count: int
    seed: int


def other_points(batch: Batch, rows: slice, side: int, trials: PromptTrials) -> list[Prompts]:
    """For each trial, the prompts of these rows with as many other foreground points, anywhere in the true mask.

    Background points, boxes and rows that cannot vary stay as they are. The new points, in pixels of the
    model frame, depend only on the seed, the row's number and its mask, so every model is tried with the same.
    """
    prompts = batch.prompts[rows]
    coords = [prompts.point_coords.clone() for _ in range(trials.count)]
    transform = ResizeLongestSide(side)
    for i, position in enumerate(range(len(batch.rows))[rows]):
        if can_vary(batch, position):
            foreground = (prompts.point_labels[i] == 1).numpy()
            points = random_points(batch.masks[position], trials.count, int(foreground.sum()),
                                   np.random.default_rng((trials.seed, batch.rows[position])))
            points = transform.apply_coords(points, batch.original_sizes[int(batch.image_index[position])])
            for trial, drawn in zip(coords, points):
                trial[i, foreground] = torch.from_numpy(drawn).float()
    return [Prompts(trial, prompts.point_labels, prompts.boxes) for trial in coords]


def can_vary(batch: Batch, position: int) -> bool:
    """Whether the row at this position of the batch has a mask to draw points from and foreground points to replace."""
    return (bool(batch.masks) and batch.masks[position] is not None and bool(batch.masks[position].any())
            and bool((batch.prompts.point_labels[position] == 1).any()))


def trials_table(results: pd.DataFrame, trial_ious: Mapping[int, Sequence[float]]) -> pd.DataFrame:
    """PROMPT_TRIALS_COLUMNS of the rows that were tried; the spread is empty where there is one trial only."""
    rows = sorted(trial_ious)
    ious = np.array([trial_ious[row] for row in rows])                            # (samples, trials)
    spread = ious.std(axis=1, ddof=1) if ious.shape[1] > 1 else np.full(len(ious), np.nan)
    table = results.loc[rows, ["class_name", "image", "label", "iou"]].reset_index(drop=True)
    return table.assign(trials=ious.shape[1], mean_iou=ious.mean(axis=1).round(6), std_iou=spread.round(6),
                        min_iou=ious.min(axis=1).round(6), max_iou=ious.max(axis=1).round(6))


def trials_sentence(results: pd.DataFrame, trial_ious: Mapping[int, Sequence[float]]) -> str:
    """How other clicks change the result, in one plain sentence."""
    if not trial_ious:
        return "No row has both a mask and foreground points, so no other points were tried."
    rows = sorted(trial_ious)
    with_table_points = results.loc[rows, "iou"].astype(float).mean()
    ious = np.array([trial_ious[row] for row in rows])
    count = ious.shape[1]
    text = (f"With {count} other random set{'s' * (count > 1)} of points in each mask, mean IoU is {ious.mean():.3f} "
            f"against {with_table_points:.3f} with the table's own points ({ious.mean() - with_table_points:+.3f}) on "
            f"{len(rows)} object{'s' * (len(rows) > 1)}")
    if count > 1:
        text += (f"; from set to set the mean varies by {ious.mean(axis=0).std(ddof=1):.3f} and one object's IoU by "
                 f"{ious.std(axis=1, ddof=1).mean():.3f} (standard deviations)")
    return text + "."
