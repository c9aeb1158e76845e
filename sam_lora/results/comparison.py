"""Base against tuned on the same samples: pairing, an interval that resamples whole photos, verdict, pictures.

Differences are tuned - base, whichever of the two runs now.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sam_lora import contracts, plots
from sam_lora.data import imaging
from sam_lora.data.samples import Sample
from sam_lora.drawing import Example
from sam_lora.errors import UserError
from sam_lora.results import pictures
from sam_lora.tables import read_table

BOOTSTRAP_DRAWS = 5000
MOST_CHANGED = 10    # samples on improved.jpg and on regressed.jpg
MADE_BY = "run_base_sam_inference.py or run_inference.py"


# ---- the other model's results ------------------------------------------------------------------------------

@dataclass(frozen=True)
class OtherResults:
    """What the other run's results table says of each labelled sample, in the samples' order."""

    table: Path
    iou: np.ndarray
    masks: list[str]    # paths below the table's folder, as the table has them; "" where it has none

    def mask(self, position: int, shape: tuple[int, int]) -> np.ndarray:
        """(H, W) bool, the other model's prediction. UserError unless it is in the table's folder and has `shape`."""
        folder, text = self.table.parent.resolve(), self.masks[position]
        if not text:
            raise UserError(f"{self.table} names no mask")
        path = (folder / text).resolve()
        if not path.is_relative_to(folder):
            raise UserError(f"{self.table} names a mask outside its own folder ({text})")
        mask = imaging.load_mask(path)
        if mask.shape != shape:
            raise UserError(f"{path} is {mask.shape[1]}x{mask.shape[0]} px, its image {shape[1]}x{shape[0]} px")
        return mask


def read_other_results(path: str | Path, samples: Sequence[Sample], test_csv: str | Path) -> OtherResults:
    """Another run's results, paired with the labelled samples by image and label.

    Raises UserError unless that table scored exactly these pairs.
    """
    table = read_table(path, ("image", "label", "iou"), MADE_BY)
    table = table[table["label"] != ""].reset_index(drop=True)
    theirs = {key: row for row, key in enumerate(_keys(zip(table["image"], table["label"])))}
    ours = _keys((sample.image_text, sample.label_text) for sample in samples if sample.label is not None)
    if not ours:
        raise UserError(f"{test_csv}: no row has a label, so there is nothing to compare with {path}")
    only_ours, only_theirs = [key for key in ours if key not in theirs], theirs.keys() - set(ours)
    if only_ours or only_theirs:
        example = only_ours[0][0] if only_ours else min(only_theirs)[0]
        raise UserError(f"{path}: scored other samples than {test_csv} has ({len(only_ours)} only in {test_csv}, "
                        f"{len(only_theirs)} only in {path}, e.g. {example}); run both models on the same table")
    table = table.iloc[[theirs[key] for key in ours]]
    iou = pd.to_numeric(table["iou"], errors="coerce").to_numpy(float)
    if not np.all((iou >= 0) & (iou <= 1)):
        raise UserError(f"{path}: column iou holds values that are no IoU; make it with {MADE_BY}")
    return OtherResults(Path(path), iou, table["mask"].tolist() if "mask" in table else [""] * len(ours))


def _keys(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str, int]]:
    """Image, label and a count, which tells rows apart that differ in their points only."""
    seen: dict[tuple[str, str], int] = {}
    keys = []
    for pair in pairs:
        seen[pair] = seen.get(pair, 0) + 1
        keys.append((*pair, seen[pair]))
    return keys


# ---- the difference -----------------------------------------------------------------------------------------

def compare(names: Sequence[str], photos: Sequence[str], base: np.ndarray, tuned: np.ndarray, seed: int
            ) -> pd.DataFrame:
    """COMPARISON_COLUMNS for each class, then all by object and by class; `base` and `tuned` are paired IoUs.

    The 95 % interval of the mean difference is a percentile bootstrap that draws whole photos, since objects of one
    photo are not independent; empty where there is one photo only.
    """
    rng = np.random.default_rng(seed)
    difference = tuned - base
    classes, class_of = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    _, photo_of = np.unique(np.asarray(photos, dtype=object), return_inverse=True)
    sums, counts = np.zeros((2, photo_of.max() + 1, len(classes)))
    np.add.at(sums, (photo_of, class_of), difference)
    np.add.at(counts, (photo_of, class_of), 1)

    def row(name: str, place: np.ndarray, means: np.ndarray, photo_count: int) -> dict:
        low, high = np.percentile(means, (2.5, 97.5)) if photo_count > 1 else (np.nan, np.nan)
        return {"class_name": name, "n": len(place), "photos": photo_count, "base_iou": base[place].mean(),
                "tuned_iou": tuned[place].mean(), "mean_difference": difference[place].mean(), "ci95_low": low,
                "ci95_high": high, "wins": int((difference[place] > 0).sum()),
                "losses": int((difference[place] < 0).sum())}

    rows = []
    for number, name in enumerate(classes):
        has = counts[:, number] > 0
        means = _resampled_means(sums[has, number, None], counts[has, number, None], rng)
        rows.append(row(str(name), np.flatnonzero(class_of == number), means, int(has.sum())))
    everything = np.arange(len(difference))
    means = _resampled_means(sums.sum(axis=1, keepdims=True), counts.sum(axis=1, keepdims=True), rng)
    by_object = row(contracts.BY_OBJECT, everything, means, len(sums))
    by_class = row(contracts.BY_CLASS, everything, _resampled_means(sums, counts, rng), len(sums))
    by_class |= {"n": len(rows)} | {column: np.mean([entry[column] for entry in rows])
                                    for column in ("base_iou", "tuned_iou", "mean_difference")}
    return pd.DataFrame([*rows, by_object, by_class], columns=contracts.COMPARISON_COLUMNS).round(6)


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


# ---- pictures -----------------------------------------------------------------------------------------------

def most_changed(difference: np.ndarray) -> dict[str, list[int]]:
    """Picture's file name -> places of the samples on it, the largest change first; at most MOST_CHANGED each."""
    order = np.argsort(-difference, kind="stable")
    return {contracts.IMPROVED_PICTURE: [int(i) for i in order if difference[i] > 0][:MOST_CHANGED],
            contracts.REGRESSED_PICTURE: [int(i) for i in order[::-1] if difference[i] < 0][:MOST_CHANGED]}


def draw(scored: pd.DataFrame, samples: Sequence[Sample], other: OtherResults, folder: Path, tuned: bool,
         comparison: pd.DataFrame) -> list[str]:
    """Write comparison.png, improved.jpg and regressed.jpg; returns what there is to say about pictures left out.

    `scored`: the results of the labelled samples, which `samples` and `other` have in the same order. `tuned`: they are
    the tuned model's, and `other` the base model's.
    """
    this = scored["iou"].to_numpy(float)
    base, after = (other.iou, this) if tuned else (this, other.iou)
    overall = comparison.loc[comparison["class_name"] == contracts.BY_OBJECT].to_dict("records")[0]
    plots.comparison_plot(base, after, overall["mean_difference"], (overall["ci95_low"], overall["ci95_high"]),
                            folder / contracts.COMPARISON_PICTURE)
    chosen = most_changed(after - base)
    results = scored.reset_index()     # column index: the row in the table
    cells: dict[int, np.ndarray] = {}
    for place in sorted({place for places in chosen.values() for place in places}):
        sample = samples[place]
        truth = imaging.load_mask(sample.label)
        try:
            masks = [imaging.load_mask(folder / results["mask"][place]), other.mask(place, truth.shape)]
        except UserError as error:
            return [f"no {contracts.IMPROVED_PICTURE} nor {contracts.REGRESSED_PICTURE}, which need the other model's "
                    f"masks: {error}"]
        image = imaging.load_image(sample.image)
        both = [Example(image, sample.points, sample.point_labels, sample.box, mask, truth)
                for mask in (masks[::-1] if tuned else masks)]
        change = f"base IoU {base[place]:.2f}, tuned {after[place]:.2f} ({after[place] - base[place]:+.2f})"
        cells[place] = pictures.change_cell(*both, f"{results['class_name'][place]} · {change}",
                                           f"no. {results['index'][place] + 1}: {results['image'][place]}")
    notes = []
    for name, places in chosen.items():
        what = Path(name).stem
        if not places:
            notes.append(f"no sample {what}: no {name}")
            continue
        of_all = int(overall["wins" if name == contracts.IMPROVED_PICTURE else "losses"])
        sheet = pictures.change_sheet(f"{what} most by tuning: {len(places)} of {of_all}",
                                     [cells[place] for place in places])
        imaging.write_jpeg(folder / name, sheet)
    return notes
