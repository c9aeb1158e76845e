"""Pictures of base against tuned: the plot of all objects, and the objects that changed most."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sam_lora import contracts, plots
from sam_lora.data import imaging
from sam_lora.data.samples import Sample
from sam_lora.drawing import Example
from sam_lora.errors import UserError
from sam_lora.results import pictures
from sam_lora.results.other_results import OtherResults

MOST_CHANGED = 10    # samples on improved.jpg and on regressed.jpg


def most_changed(difference: np.ndarray) -> dict[str, list[int]]:
    """{name of a picture: positions of the samples on it}, the largest change first; at most MOST_CHANGED each."""
    order = np.argsort(-difference, kind="stable")
    return {contracts.IMPROVED_PICTURE: [int(i) for i in order if difference[i] > 0][:MOST_CHANGED],
            contracts.REGRESSED_PICTURE: [int(i) for i in order[::-1] if difference[i] < 0][:MOST_CHANGED]}


def draw(scored: pd.DataFrame, samples: Sequence[Sample], other: OtherResults, folder: Path, tuned: bool,
         comparison: pd.DataFrame) -> list[str]:
    """Write comparison.png, improved.jpg and regressed.jpg; returns a note for each picture that was left out.

    `scored`: the results of the labelled samples, which `samples` and `other` have in the same order. `tuned`: they are
    the tuned model's, and `other` the base model's.
    """
    current_iou = scored["iou"].to_numpy(float)
    base, after = (other.iou, current_iou) if tuned else (current_iou, other.iou)
    overall = comparison.loc[comparison["class_name"] == contracts.BY_OBJECT].to_dict("records")[0]
    plots.comparison_plot(base, after, overall["mean_difference"], (overall["ci95_low"], overall["ci95_high"]),
                          folder / contracts.COMPARISON_PICTURE)
    chosen = most_changed(after - base)
    positions = sorted({position for shown in chosen.values() for position in shown})
    results = scored.reset_index().to_dict("records")     # index: the row in the table, from 0
    try:
        other_masks = {position: other.mask(position, imaging.image_size(folder / results[position]["mask"])[::-1])
                       for position in positions}
    except UserError as error:
        return [f"no {contracts.IMPROVED_PICTURE} nor {contracts.REGRESSED_PICTURE}, which need the other model's "
                f"masks: {error}"]
    cells = {}
    for position in positions:
        masks = imaging.load_mask(folder / results[position]["mask"]), other_masks[position]
        cells[position] = draw_change(samples[position], results[position], masks[::-1] if tuned else masks,
                                      (base[position], after[position]))
    notes = []
    for name, shown in chosen.items():
        direction = Path(name).stem
        if not shown:
            notes.append(f"no sample {direction}: no {name}")
            continue
        total = int(overall["wins" if name == contracts.IMPROVED_PICTURE else "losses"])
        sheet = pictures.change_sheet(f"{direction} most by tuning: {len(shown)} of {total}",
                                      [cells[position] for position in shown])
        imaging.write_jpeg(folder / name, sheet)
    return notes


def draw_change(sample: Sample, result: Mapping[str, object], masks: tuple[np.ndarray, np.ndarray],
                ious: tuple[float, float]) -> np.ndarray:
    """One object of a change sheet. `masks`, (H, W) bool, and `ious`: the base model's, then the tuned model's."""
    image, truth = imaging.load_image(sample.image), imaging.load_mask(sample.label)
    examples = [Example(image, sample.points, sample.point_labels, sample.box, mask, truth) for mask in masks]
    base, tuned = ious
    return pictures.change_cell(*examples, f"{result['class_name']} · base IoU {base:.2f}, tuned {tuned:.2f} "
                                           f"({tuned - base:+.2f})",
                                f"no. {result['index'] + 1}: {result['image']}")
