"""Predict a table's masks and score them: validation in train.py and both inference scripts come through here."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora import contracts, figures
from sam_lora.data import imaging
from sam_lora.data.clicks import random_points
from sam_lora.data.manifest import class_names, source_photos
from sam_lora.data.samples import Sample, check_samples, read_samples
from sam_lora.errors import UserError
from sam_lora.files import refuse_replacing, staged_folder
from sam_lora.model.batches import Batch, PromptedImages, batches, make_loader
from sam_lora.model.encode import frame_mask, image_embeddings
from sam_lora.model.meta import ResizeLongestSide, Sam
from sam_lora.model.prompts import MASK_THRESHOLD, Prompts, decode, postprocess_masks, upscale_to_frame
from sam_lora.results import comparison, metrics, report
from sam_lora.tables import write_tables
from sam_lora.training.losses import MaskLoss
from sam_lora.workers import map_in_threads

PROMPTS_PER_IMAGE = 64       # rows of one image that travel together where their true masks do, at full size
PROMPTS_PER_DECODE = 32      # bounds the decoder's memory
POOR_IOU = 0.5


# ---- predicting -------------------------------------------------------------------------------------------

@dataclass
class Prediction:
    """The mask predicted for one row, at its image's own resolution."""

    row: int
    mask: np.ndarray            # (H, W) bool
    predicted_iou: float        # what the model itself thinks of it
    truth: np.ndarray | None    # (H, W) bool
    loss: float | None = None   # in the model frame, where a loss was asked for
    trial_ious: Sequence[float] = ()    # with other points, where those were asked for and there is a truth


@dataclass(frozen=True)
class PromptTrials:
    """Score each mask with `count` other sets of foreground points too."""

    count: int
    seed: int


@torch.inference_mode()
def predict(sam: Sam, batches: Iterable[Batch], device: torch.device,
            autocast: AbstractContextManager, mask_loss: MaskLoss | None = None,
            trials: PromptTrials | None = None) -> Iterator[Prediction]:
    """One Prediction per prompt, batch by batch. Each image is encoded once however many prompts and trials it has;
    batches may come with features instead (`FeatureCache.attach`).

    Logits are brought to the image's own resolution first and thresholded last, as SamPredictor does.
    """
    side = sam.image_encoder.img_size
    for batch in batches:
        moved = batch.to(device)
        input_sizes = batch.input_sizes.tolist()
        with autocast:
            embeddings = image_embeddings(sam, moved)
        for start in range(0, len(batch.rows), PROMPTS_PER_DECODE):
            chunk = slice(start, start + PROMPTS_PER_DECODE)
            image_index, prompts = moved.image_index[chunk], moved.prompts[chunk]
            with autocast:
                low_res_masks, predicted_iou = decode(sam, embeddings[image_index], prompts)
            low_res_masks, predicted_iou = low_res_masks.float(), predicted_iou.float().cpu()
            losses = None
            if mask_loss is not None:
                valid = frame_mask(moved.input_sizes, side)[image_index, 0].float()
                targets = moved.targets[chunk].float() / 255
                losses = mask_loss(upscale_to_frame(low_res_masks, side)[:, 0], targets, valid).tolist()
            others = []
            for points in other_points(batch, chunk, side, trials) if trials else ():
                with autocast:
                    others.append(decode(sam, embeddings[image_index], points.to(device))[0].float())

            for i, place in enumerate(range(start, start + len(low_res_masks))):
                image, truth = int(batch.image_index[place]), batch.masks[place] if batch.masks else None
                sizes = input_sizes[image], batch.original_sizes[image]
                tried = others if _can_vary(batch, place) else ()
                yield Prediction(batch.rows[place], _full_size(low_res_masks[i], side, *sizes),
                                 float(predicted_iou[i, 0]), truth, losses[i] if losses else None,
                                 [metrics.iou(_full_size(other[i], side, *sizes), truth) for other in tried])


def _full_size(low_res_masks: Tensor, side: int, input_size: Sequence[int], original_size: Sequence[int]) -> np.ndarray:
    """Logits (1, 4h, 4w) of one prompt -> its mask, (H, W) bool."""
    logits = postprocess_masks(low_res_masks[None], side, input_size, original_size)
    return (logits[0, 0] > MASK_THRESHOLD).cpu().numpy()


def other_points(batch: Batch, rows: slice, side: int, trials: PromptTrials) -> list[Prompts]:
    """For each trial the prompts of these rows with other foreground points: as many, anywhere in the true mask.

    Background points, boxes, and rows that cannot vary stay. The points, pixels of the image, depend on the seed, the
    row's number and its mask only, so that every model is tried with the same.
    """
    own = batch.prompts[rows]
    coords = [own.point_coords.clone() for _ in range(trials.count)]
    transform = ResizeLongestSide(side)
    for i, place in enumerate(range(len(batch.rows))[rows]):
        if _can_vary(batch, place):
            foreground = (own.point_labels[i] == 1).numpy()
            points = random_points(batch.masks[place], trials.count, int(foreground.sum()),
                                   np.random.default_rng((trials.seed, batch.rows[place])))
            points = transform.apply_coords(points, batch.original_sizes[int(batch.image_index[place])])
            for trial, drawn in zip(coords, points):
                trial[i, foreground] = torch.from_numpy(drawn).float()
    return [Prompts(trial, own.point_labels, own.boxes) for trial in coords]


def _can_vary(batch: Batch, place: int) -> bool:
    """Has the row a mask to draw points from, and foreground points to draw anew?"""
    return (bool(batch.masks) and batch.masks[place] is not None and bool(batch.masks[place].any())
            and bool((batch.prompts.point_labels[place] == 1).any()))


# ---- a whole table ----------------------------------------------------------------------------------------

def evaluate_table(load_model: Callable[[], Sam], test_csv: str | Path, output_dir: str | Path, prefix: str, *,
                   batch_size: int | None, num_pictures: int, num_workers: int, device: torch.device, seed: int,
                   overwrite: bool, compare_to: str | Path | None = None, tuned: bool = True, prompt_trials: int = 0,
                   model: str = "", training_folder: str | Path | None = None) -> pd.DataFrame:
    """Predict and score every row of `test_csv`, write the results folder, print the summary; returns the results.

    Writes predictions.jpg, samples/, masks/, {prefix}_results.csv, report.html and, where there are labels, summaries
    by class and by size; with `compare_to` (the results of the other model, base if this one is `tuned`) comparison.csv
    and its pictures; with `prompt_trials` {prefix}_prompt_trials.csv. `load_model` is called once the table and the
    folder are known to be usable. The report names the `model` and shows what train.py left in `training_folder`.
    Raises UserError.
    """
    samples = read_samples(test_csv)
    check_samples(samples, test_csv, need_labels=False)
    other = None if compare_to is None else comparison.read_other_results(compare_to, samples, test_csv)
    names, photos = class_names(samples), source_photos(samples)
    trials = PromptTrials(prompt_trials, seed) if prompt_trials else None
    owned = contracts.results_entries(prefix)
    read = {path.parent for sample in samples for path in (sample.image, sample.label) if path is not None}
    refuse_replacing([*sorted(read), *([] if compare_to is None else [Path(compare_to)])], output_dir, owned)
    with staged_folder(output_dir, owned, overwrite) as folder:
        sam = load_model()
        results, trial_ious = _predict_table(sam, samples, names, folder, batch_size, num_workers, device, trials)
        if num_pictures:
            _draw(results, samples, folder, num_pictures, seed, f"{prefix}: {Path(test_csv).name}")
        tables, sentences, notes = {contracts.results_table(prefix): results}, [], []
        scored = results[results["label"] != ""]
        if len(scored):
            tables[contracts.class_summary_table(prefix)] = summarise(scored)
            tables[contracts.size_summary_table(prefix)] = summarise_sizes(scored)
        if len(scored) < len(results):
            notes.append(f"{len(results) - len(scored)} of {len(results)} rows have no label: predicted, not scored")
        if other is not None:
            this, rows = scored["iou"].to_numpy(float), scored.index
            compared = comparison.compare(scored["class_name"].tolist(), [photos[row] for row in rows],
                                          *((other.iou, this) if tuned else (this, other.iou)), seed)
            tables[contracts.COMPARISON_TABLE] = compared
            sentences.append(comparison.verdict(compared))
            notes += comparison.draw(scored, [samples[row] for row in rows], other, folder, tuned, compared)
        if trials:
            if trial_ious:
                tables[contracts.prompt_trials_table(prefix)] = trials_table(results, trial_ious)
            sentences.append(trials_sentence(results, trial_ious))
        write_tables({folder / name: table for name, table in tables.items()})
        facts = {"model": model, "test table": str(test_csv), "objects": len(results), "photos": len(set(photos))}
        notes += report.write_report(folder, prefix, facts, tables, sentences, notes, training_folder)
    shown = [as_text(table) + "\n" for name, table in tables.items() if name not in
             (contracts.results_table(prefix), contracts.prompt_trials_table(prefix))]
    print("\n".join([*shown, *notes, *sentences, f"results: {output_dir}, all on one page: "
                     f"{Path(output_dir) / contracts.REPORT_PAGE}"]))
    return results


def _predict_table(sam: Sam, samples: Sequence[Sample], names: Sequence[str], folder: Path, batch_size: int | None,
                   num_workers: int, device: torch.device, trials: PromptTrials | None
                   ) -> tuple[pd.DataFrame, dict[int, Sequence[float]]]:
    """Predict all rows and write their masks -> the results in table order, no pictures yet; rows' IoUs of trials."""
    masks_folder = folder / contracts.PREDICTED_MASKS_FOLDER
    masks_folder.mkdir()
    trial_ious: dict[int, Sequence[float]] = {}

    def finish(prediction: Prediction) -> dict:
        sample = samples[prediction.row]
        mask_name = f"{_unique_name(prediction.row, sample)}.png"
        (masks_folder / mask_name).write_bytes(imaging.encode_png(prediction.mask))
        if prediction.trial_ious:
            trial_ious[prediction.row] = prediction.trial_ious
        truth_area = "" if prediction.truth is None else int(np.count_nonzero(prediction.truth))
        return {"class_name": names[prediction.row], "image": sample.image_text,
                "label": sample.label_text, **score(prediction.mask, prediction.truth),
                "predicted_iou": round(prediction.predicted_iou, 6),
                "mask_area": int(np.count_nonzero(prediction.mask)),
                "truth_area": truth_area, "size": "" if truth_area == "" else size_of(truth_area),
                "mask": f"{contracts.PREDICTED_MASKS_FOLDER}/{mask_name}", "picture": ""}

    rows = predict_rows(sam, samples, finish, batch_size, num_workers, device, with_masks=True, trials=trials)
    return pd.DataFrame(rows, columns=contracts.RESULT_COLUMNS), trial_ious


def predict_rows(sam: Sam, samples: Sequence[Sample], finish: Callable[[Prediction], Any], batch_size: int | None,
                 num_workers: int, device: torch.device, *, with_masks: bool,
                 trials: PromptTrials | None = None) -> list[Any]:
    """What `finish` makes of each row's Prediction, in the rows' order; it runs in threads.

    `with_masks`: predictions come with the truth. Raises UserError.
    """
    side = sam.image_encoder.img_size
    together = PROMPTS_PER_IMAGE if with_masks else len(samples)
    dataset = PromptedImages(samples, side, together, with_targets=False, with_masks=with_masks)
    batch_size = batch_size or default_batch_size(side, device)
    # On a CPU, cores that take images of their own do not wait for one another, as those that share a batch do
    cores = torch.get_num_threads()
    threads = min(cores, batch_size) if device.type == "cpu" else 1
    loader = make_loader(dataset, side, batch_size // threads, num_workers, pin_memory=device.type == "cuda")

    def numbered(prediction: Prediction) -> tuple[int, Any]:
        return prediction.row, finish(prediction)

    def of_batch(batch: Batch) -> list[tuple[int, Any]]:
        torch.set_num_threads(cores // threads)  # this thread's share; PyTorch keeps the number for each
        return [numbered(prediction) for prediction in
                predict(sam, [batch], device, contextlib.nullcontext(), trials=trials)]

    if threads > 1:
        found = chain.from_iterable(map_in_threads(of_batch, batches(loader), threads))
    else:
        predictions = predict(sam, batches(loader), device, contextlib.nullcontext(), trials=trials)
        found = map_in_threads(numbered, predictions)
    try:
        by_row = dict(tqdm(found, "predicting", len(samples), unit="mask", disable=None))
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory with {batch_size} images of {side} px together; "
                        "give a smaller --batch_size") from error
    finally:
        torch.set_num_threads(cores)
    return [by_row[row] for row in range(len(samples))]


def default_batch_size(side: int, device: torch.device) -> int:
    """Images that go through the encoder together, from 1 to 32: fewer the larger the model frame."""
    pixels = 8 * 256 ** 2 if device.type == "cpu" else 4 * 1024 ** 2
    return min(32, max(1, pixels // side ** 2))


def score(mask: np.ndarray, truth: np.ndarray | None) -> dict[str, float | str]:
    """IoU, Dice and boundary IoU at full resolution, as the results table has them: empty without a truth."""
    if truth is None:
        return {"iou": "", "dice": "", "boundary_iou": ""}
    return {name: round(function(mask, truth), 6) for name, function in
            (("iou", metrics.iou), ("dice", metrics.dice), ("boundary_iou", metrics.boundary_iou))}


def _unique_name(row: int, sample: Sample) -> str:
    """A file name without suffix that no other row has: the row's number, then the image's stem for the reader."""
    stem = re.sub(r"[^\w.-]+", "_", sample.image.stem)[:50]
    return f"{row + 1:05d}_{stem}"


# ---- summaries ----------------------------------------------------------------------------------------------

def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """SUMMARY_COLUMNS for each class, then all classes by object (n objects) and by class (n classes)."""
    classes = pd.DataFrame([{"class_name": name, **_figures_of(part)}
                            for name, part in results.groupby("class_name", sort=True)])
    by_object = {"class_name": contracts.BY_OBJECT, **_figures_of(results)}
    by_class = {"class_name": contracts.BY_CLASS, "n": len(classes), **classes.drop(columns=["class_name", "n"]).mean()}
    return pd.DataFrame([*classes.to_dict("records"), by_object, by_class], columns=contracts.SUMMARY_COLUMNS).round(6)


def summarise_sizes(results: pd.DataFrame) -> pd.DataFrame:
    """SIZE_SUMMARY_COLUMNS for small, medium and large objects; all but n is empty for a size that no object has.

    A table of its own, for the summary by class holds classes and two rows of all of them, and a class may be called
    large.
    """
    rows = []
    for size, (low, high) in contracts.SIZES.items():
        pixels = f"under {high}" if low == 0 else f"{low} and more" if high is None else f"{low} to {high - 1}"
        rows.append({"size": size, "pixels": pixels, **_figures_of(results[results["size"] == size])})
    return pd.DataFrame(rows, columns=contracts.SIZE_SUMMARY_COLUMNS).round(6)


def size_of(area: int) -> str:
    """COCO's word for an object of `area` pixels. Crops are cut unscaled, so that is its size in the photo too."""
    return next(size for size, (low, high) in contracts.SIZES.items() if area >= low and (high is None or area < high))


def _figures_of(part: pd.DataFrame) -> dict[str, float]:
    """What both summaries say of some samples."""
    iou = part["iou"].astype(float)
    return {"n": len(part), "mean_iou": iou.mean(), "median_iou": iou.median(), "p5_iou": iou.quantile(0.05),
            "mean_dice": part["dice"].astype(float).mean(),
            "mean_boundary_iou": part["boundary_iou"].astype(float).mean(),
            "share_below_0.5": (iou < POOR_IOU).mean()}


def trials_table(results: pd.DataFrame, trial_ious: Mapping[int, Sequence[float]]) -> pd.DataFrame:
    """PROMPT_TRIALS_COLUMNS of the rows that were tried; the spread is empty where there is one trial only."""
    rows = sorted(trial_ious)
    ious = np.array([trial_ious[row] for row in rows])                            # (samples, trials)
    spread = ious.std(axis=1, ddof=1) if ious.shape[1] > 1 else np.full(len(ious), np.nan)
    table = results.loc[rows, ["class_name", "image", "label", "iou"]].reset_index(drop=True)
    return table.assign(trials=ious.shape[1], mean_iou=ious.mean(axis=1).round(6), std_iou=spread.round(6),
                        min_iou=ious.min(axis=1).round(6), max_iou=ious.max(axis=1).round(6))


def trials_sentence(results: pd.DataFrame, trial_ious: Mapping[int, Sequence[float]]) -> str:
    """What other clicks change, in one plain sentence."""
    if not trial_ious:
        return "No row has both a mask and foreground points, so no other points were tried."
    rows = sorted(trial_ious)
    own = results.loc[rows, "iou"].astype(float).mean()
    ious = np.array([trial_ious[row] for row in rows])
    count = ious.shape[1]
    text = (f"With {count} other random set{'s' * (count > 1)} of points in each mask, mean IoU is {ious.mean():.3f} "
            f"against {own:.3f} with the table's own points ({ious.mean() - own:+.3f}) on {len(rows)} "
            f"object{'s' * (len(rows) > 1)}")
    if count > 1:
        text += (f"; from set to set the mean varies by {ious.mean(axis=0).std(ddof=1):.3f} and one object's IoU by "
                 f"{ious.std(axis=1, ddof=1).mean():.3f} (standard deviations)")
    return text + "."


def as_text(table: pd.DataFrame) -> str:
    """A table for the terminal."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-")


# ---- pictures -----------------------------------------------------------------------------------------------

def choose_pictures(names: Sequence[str], count: int, seed: int) -> list[int]:
    """Numbers of the rows to draw, ascending: classes (`names`, of each row) take turns, rows of a class by lot.

    The choice depends on the table and the seed only, so base and tuned show the same samples.
    """
    turns: Counter[str] = Counter()
    ranked = []
    for row in np.random.default_rng(seed).permutation(len(names)).tolist():
        turns[names[row]] += 1
        ranked.append((turns[names[row]], len(ranked), row))
    return sorted(row for _, _, row in sorted(ranked)[:count])


def _draw(results: pd.DataFrame, samples: Sequence[Sample], folder: Path, count: int, seed: int, title: str) -> None:
    """Write samples/ and predictions.jpg; fill in the results' column `picture`."""
    (folder / contracts.SAMPLES_FOLDER).mkdir()
    names = results["class_name"].tolist()
    chosen = choose_pictures(names, count, seed)
    iou = pd.to_numeric(results["iou"], errors="coerce")
    ranked = iou.dropna().sort_values(kind="stable").index.tolist()
    shown = figures.SHEET_COLUMNS
    middle = (len(ranked) - shown) // 2
    sections = [("lowest IoU", ranked[:shown]), ("median IoU", ranked[middle:middle + shown]),
                ("highest IoU", ranked[::-1][:shown])]
    if len(ranked) < 3 * shown:
        extremes = dict.fromkeys(ranked[place] for place in (0, len(ranked) // 2, -1) if ranked)
        sections = [("lowest, median and highest IoU", list(extremes))] if ranked else []
    chosen_title = f"all {len(results)}" if len(chosen) == len(results) else f"{len(chosen)} drawn by lot"
    sections.append((f"{chosen_title}, by class", sorted(chosen, key=lambda row: (names[row], row))))
    drawn = set(chosen)

    def draw(row: int) -> tuple[int, np.ndarray]:
        sample, result = samples[row], results.loc[row]
        truth = None if sample.label is None else imaging.load_mask(sample.label)
        example = figures.Example(imaging.load_image(sample.image), sample.points, sample.point_labels, sample.box,
                                  imaging.load_mask(folder / result["mask"]), truth)
        scores = [] if truth is None else [
            f"{name} {result[column]:.2f}" for name, column in
            (("IoU", "iou"), ("Dice", "dice"), ("boundary IoU", "boundary_iou"))]
        if row in drawn:
            estimate = f"model's own estimate {result['predicted_iou']:.2f}"
            picture = figures.panel(example, " · ".join([names[row], *scores, estimate]),
                                    f"no. {row + 1}: {sample.image_text}")
            imaging.write_jpeg(folder / _picture_name(row, sample), picture)
        return row, figures.sheet_cell(example, " · ".join([names[row], *scores[:1], f"no. {row + 1}"]))

    wanted = sorted({row for _, rows in sections for row in rows})
    cells = dict(tqdm(map_in_threads(draw, wanted), "drawing", len(wanted), unit="picture", disable=None))
    if ranked:
        title += f", mean IoU {iou.mean():.3f} over {len(ranked)} objects"
    sheet = figures.contact_sheet(title, [(heading, [cells[row] for row in rows]) for heading, rows in sections])
    imaging.write_jpeg(folder / contracts.PREDICTIONS_PICTURE, sheet)
    results.loc[chosen, "picture"] = [_picture_name(row, samples[row]) for row in chosen]


def _picture_name(row: int, sample: Sample) -> str:
    return f"{contracts.SAMPLES_FOLDER}/{_unique_name(row, sample)}.jpg"
