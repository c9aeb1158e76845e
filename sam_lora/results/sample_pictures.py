"""Which samples of a scored table are drawn, and how: samples/ one by one, predictions.jpg as a contact sheet."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from tqdm import tqdm

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.data.samples import Sample
from sam_lora.drawing import Example
from sam_lora.results import pictures
from sam_lora.workers import THREADS, map_in_threads


def choose_pictures(names: Sequence[str], count: int, seed: int) -> list[int]:
    """Positions of the rows to draw, ascending. Classes (`names`, one per row) take turns; lots decide within a class.

    The choice depends on the table and the seed only, so base and tuned show the same samples.
    """
    turns: Counter[str] = Counter()
    ranked = []
    for row in np.random.default_rng(seed).permutation(len(names)).tolist():
        turns[names[row]] += 1
        ranked.append((turns[names[row]], len(ranked), row))
    return sorted(row for _, _, row in sorted(ranked)[:count])


def draw(results: pd.DataFrame, samples: Sequence[Sample], folder: Path, title: str,
         drawn: Mapping[int, np.ndarray]) -> None:
    """Write samples/ and predictions.jpg into `folder`: of the rows that name a picture, and those with the lowest,
    median and highest IoU. `drawn`: by row, what `draw_sample` has returned already."""
    sections = sheet_sections(results, results.index[results["picture"] != ""].tolist())

    rows = sorted({row for _, rows in sections for row in rows} - drawn.keys())
    shown = dict(zip(rows, results.loc[rows].to_dict("records")))

    def draw_row(row: int) -> tuple[int, np.ndarray]:
        return row, draw_sample(samples[row], shown[row], row + 1, folder)

    newly_drawn = map_in_threads(draw_row, rows, min(THREADS, os.cpu_count() or 1))
    cells = {**drawn, **dict(tqdm(newly_drawn, "drawing", len(rows), unit="picture", disable=None))}
    iou = pd.to_numeric(results["iou"], errors="coerce")
    if iou.notna().any():
        title += f", mean IoU {iou.mean():.3f} over {iou.notna().sum()} objects"
    sheet = pictures.contact_sheet(title, [(heading, [cells[row] for row in rows]) for heading, rows in sections])
    imaging.write_jpeg(folder / contracts.PREDICTIONS_PICTURE, sheet)


def sheet_sections(results: pd.DataFrame, chosen: Sequence[int]) -> list[tuple[str, list[int]]]:
    """(heading, rows) of the contact sheet: the lowest, median and highest IoU, then the `chosen` rows by class."""
    names = results["class_name"].tolist()
    iou = pd.to_numeric(results["iou"], errors="coerce")
    ranked = iou.dropna().sort_values(kind="stable").index.tolist()
    shown = pictures.SHEET_COLUMNS
    if len(ranked) < 3 * shown:
        extremes = dict.fromkeys(ranked[position] for position in (0, len(ranked) // 2, -1) if ranked)
        sections = [("lowest, median and highest IoU", list(extremes))] if ranked else []
    else:
        middle = (len(ranked) - shown) // 2
        sections = [("lowest IoU", ranked[:shown]), ("median IoU", ranked[middle:middle + shown]),
                    ("highest IoU", ranked[::-1][:shown])]
    heading = f"all {len(results)}" if len(chosen) == len(results) else f"{len(chosen)} drawn by lot"
    return [*sections, (f"{heading}, by class", sorted(chosen, key=lambda row: (names[row], row)))]


def draw_sample(sample: Sample, result: Mapping[str, object], number: int, folder: Path) -> np.ndarray:
    """The contact sheet's cell for one row of the results; also writes its panel if the row names a picture."""
    truth = None if sample.label is None else imaging.load_mask(sample.label)
    example = Example(imaging.load_image(sample.image), sample.points, sample.point_labels, sample.box,
                      imaging.load_mask(folder / result["mask"]), truth)
    scores = [] if truth is None else [f"{name} {result[column]:.2f}" for name, column in
                                       (("IoU", "iou"), ("Dice", "dice"), ("boundary IoU", "boundary_iou"))]
    if result["picture"]:
        estimate = f"model's own estimate {result['predicted_iou']:.2f}"
        panel = pictures.panel(example, " · ".join([result["class_name"], *scores, estimate]),
                               f"no. {number}: {sample.image_text}")
        (folder / result["picture"]).write_bytes(imaging.encode_jpeg(panel))  # not atomic: the folder is staged
    return pictures.sheet_cell(example, " · ".join([result["class_name"], *scores[:1], f"no. {number}"]))


def picture_name(mask: str) -> str:
    """The panel has the file name of the row's mask."""
    return f"{contracts.SAMPLES_FOLDER}/{PurePosixPath(mask).stem}.jpg"
