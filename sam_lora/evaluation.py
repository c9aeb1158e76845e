"""Predict a table's masks and score them: validation in train.py and both inference scripts come through here."""

import contextlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sam_lora import contracts, figures, imaging, metrics
from sam_lora.dataset import (
    Batch,
    PromptedImages,
    Sample,
    batches,
    check_samples,
    make_loader,
    read_samples,
    sample_problem,
)
from sam_lora.errors import UserError
from sam_lora.files import refuse_existing, staged_folder
from sam_lora.losses import MaskLoss
from sam_lora.sam import (
    MASK_THRESHOLD,
    Sam,
    decode,
    frame_mask,
    postprocess_masks,
    preprocess,
    upscale_to_frame,
)

PROMPTS_PER_IMAGE = 64       # rows of one image that travel together
PROMPTS_PER_DECODE = 32      # bounds the decoder's memory
WRITING_THREADS = 4          # PNG and JPEG coding and resizing let go of Python's lock
BOOTSTRAP_DRAWS = 5000
POOR_IOU = 0.5
NO_CLASS = "(no class)"


# ---- predicting -------------------------------------------------------------------------------------------

@dataclass
class Prediction:
    """The mask predicted for one row, at its image's own resolution."""

    row: int
    mask: np.ndarray            # (H, W) bool
    predicted_iou: float        # what the model itself thinks of it
    truth: np.ndarray | None    # (H, W) bool
    loss: float | None = None   # in the model frame, where a loss was asked for


@torch.inference_mode()
def predict(sam: Sam, batches: Iterable[Batch], device: torch.device,
            autocast: AbstractContextManager, mask_loss: MaskLoss | None = None) -> Iterator[Prediction]:
    """One Prediction per prompt, batch by batch. Each image is encoded once however many prompts it has.

    Logits are brought to the image's own resolution first and thresholded last, as SamPredictor does.
    """
    side = sam.image_encoder.img_size
    for batch in batches:
        moved = batch.to(device)
        input_sizes = batch.input_sizes.tolist()
        with autocast:
            embeddings = sam.image_encoder(preprocess(moved.images, moved.input_sizes, sam))
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
            for i, place in enumerate(range(start, start + len(low_res_masks))):
                image = int(batch.image_index[place])
                logits = postprocess_masks(low_res_masks[i:i + 1], side, input_sizes[image],
                                           batch.original_sizes[image])
                mask = (logits[0, 0] > MASK_THRESHOLD).cpu().numpy()
                yield Prediction(batch.rows[place], mask, float(predicted_iou[i, 0]),
                                 batch.masks[place] if batch.masks else None, losses[i] if losses else None)


# ---- a whole table ----------------------------------------------------------------------------------------

def evaluate_table(load_model: Callable[[], Sam], test_csv: str | Path, output_dir: str | Path, prefix: str, *,
                   batch_size: int | None, num_pictures: int, num_workers: int, device: torch.device, seed: int,
                   overwrite: bool, compare_to: str | Path | None = None, tuned: bool = True) -> pd.DataFrame:
    """Predict and score every row of `test_csv`, write the results folder, print the summary; returns the results.

    Writes predictions.jpg, samples/, masks/, {prefix}_results.csv and, where there are labels,
    {prefix}_class_iou_summary.csv; with `compare_to` (the results of the other model, base if this one is `tuned`) also
    comparison.csv. `load_model` is called once the table and the folder are known to be usable. Raises UserError.
    """
    samples = read_samples(test_csv)
    check_samples(samples, test_csv, need_labels=False)
    other = read_other_results(compare_to, samples, test_csv) if compare_to is not None else None
    names = class_names(samples)
    owned = (contracts.PREDICTIONS_PICTURE, contracts.SAMPLES_FOLDER, contracts.PREDICTED_MASKS_FOLDER,
             contracts.results_table(prefix), contracts.class_summary_table(prefix), contracts.COMPARISON_TABLE)
    lines = []
    with staged_folder(output_dir, owned, overwrite) as folder:
        sam = load_model()
        results = _predict_table(sam, samples, names, folder, batch_size, num_workers, device)
        if num_pictures:
            _draw(results, samples, folder, num_pictures, seed, f"{prefix}: {Path(test_csv).name}")
        contracts.write_table(results, folder / contracts.results_table(prefix))
        scored = results[results["label"] != ""]
        if len(scored):
            summary = summarise(scored)
            contracts.write_table(summary, folder / contracts.class_summary_table(prefix))
            lines += [as_text(summary), ""]
        if len(scored) < len(results):
            lines.append(f"{len(results) - len(scored)} of {len(results)} rows have no label: predicted, not scored")
        if other is not None:
            this = scored["iou"].to_numpy()
            base, tuned_ious = (other, this) if tuned else (this, other)
            comparison = compare(scored["class_name"].tolist(), base, tuned_ious, seed)
            contracts.write_table(comparison, folder / contracts.COMPARISON_TABLE)
            lines += [as_text(comparison), "", verdict(comparison)]
    print("\n".join([*lines, f"results: {output_dir}"]))
    return results


def _predict_table(sam: Sam, samples: Sequence[Sample], names: Sequence[str], folder: Path, batch_size: int | None,
                   num_workers: int, device: torch.device) -> pd.DataFrame:
    """Predict all rows and write their masks; the results table in table order, no pictures yet."""
    masks_folder = folder / contracts.PREDICTED_MASKS_FOLDER
    masks_folder.mkdir()
    side = sam.image_encoder.img_size
    dataset = PromptedImages(samples, side, PROMPTS_PER_IMAGE, with_targets=False, with_masks=True)
    batch_size = batch_size or default_batch_size(side, device)
    loader = make_loader(dataset, side, batch_size, num_workers, pin_memory=device.type == "cuda")

    def finish(prediction: Prediction) -> dict:
        sample = samples[prediction.row]
        mask_name = f"{_unique_name(prediction.row, sample)}.png"
        (masks_folder / mask_name).write_bytes(imaging.encode_png(prediction.mask))
        return {"row": prediction.row, "class_name": names[prediction.row], "image": sample.image_text,
                "label": sample.label_text, **score(prediction.mask, prediction.truth),
                "predicted_iou": round(prediction.predicted_iou, 6),
                "mask_area": int(np.count_nonzero(prediction.mask)),
                "truth_area": "" if prediction.truth is None else int(np.count_nonzero(prediction.truth)),
                "mask": f"{contracts.PREDICTED_MASKS_FOLDER}/{mask_name}", "picture": ""}

    predictions = predict(sam, batches(loader), device, contextlib.nullcontext())
    try:
        rows = list(tqdm(_in_threads(finish, predictions), "predicting", len(samples), unit="mask", disable=None))
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory with {batch_size} images of {side} px together; "
                        "give a smaller --batch_size") from error
    results = pd.DataFrame(rows).sort_values("row").reset_index(drop=True)
    return results[list(contracts.RESULT_COLUMNS)]


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


def _in_threads(function: Callable, items: Iterable) -> Iterator:
    """`function` of each item, in order, by a few threads; no more than a few results wait in memory."""
    with ThreadPoolExecutor(WRITING_THREADS) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * WRITING_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# ---- classes ----------------------------------------------------------------------------------------------

def class_names(samples: Sequence[Sample]) -> list[str]:
    """The class of each sample: from the class folder its mask (without one, its image) lies in.

    The true name comes from the manifest or classes.json beside the class folders, else from the folder's own name.
    """
    names_of_root: dict[Path, dict[str, str]] = {}
    found = []
    for sample in samples:
        path = (sample.label or sample.image).absolute()
        folder = next((parent for parent in path.parents
                       if parent.name.startswith(contracts.CLASS_FOLDER_PREFIX)), None)
        if folder is None:
            found.append(NO_CLASS)
            continue
        if folder.parent not in names_of_root:
            names_of_root[folder.parent] = _true_class_names(folder.parent)
        slug = re.sub(r"^\d+_(?=.)", "", folder.name.removeprefix(contracts.CLASS_FOLDER_PREFIX))
        found.append(names_of_root[folder.parent].get(folder.name) or slug or NO_CLASS)
    return found


def _true_class_names(root: Path) -> dict[str, str]:
    """Class folder -> true name, as far as the files beside the class folders tell."""
    manifest, classes = root / contracts.MANIFEST_FILE, root / contracts.CLASSES_FILE
    if manifest.is_file():
        table = contracts.read_table(manifest, ("mask_path", "class_name"), "the converter")
        return {mask.split("/")[0]: name for mask, name in zip(table["mask_path"], table["class_name"])}
    if classes.is_file():
        try:
            content = json.loads(classes.read_text(encoding="utf-8"))
            return {folder: str(entry["class_name"]) for folder, entry in content.items()}
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{classes}: cannot be read as the converter's list of classes; "
                            "make it again with the converter, or remove it") from error
    return {}


# ---- summary and comparison ---------------------------------------------------------------------------------

def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """SUMMARY_COLUMNS for each class, then all classes by object (n objects) and by class (n classes)."""
    def row(name: str, part: pd.DataFrame) -> dict:
        iou = part["iou"].astype(float)
        return {"class_name": name, "n": len(part), "mean_iou": iou.mean(), "median_iou": iou.median(),
                "p5_iou": iou.quantile(0.05), "mean_dice": part["dice"].astype(float).mean(),
                "mean_boundary_iou": part["boundary_iou"].astype(float).mean(),
                "share_below_0.5": (iou < POOR_IOU).mean()}
    classes = pd.DataFrame([row(name, part) for name, part in results.groupby("class_name", sort=True)])
    by_class = {"class_name": contracts.BY_CLASS, "n": len(classes), **classes.drop(columns=["class_name", "n"]).mean()}
    rows = [*classes.to_dict("records"), row(contracts.BY_OBJECT, results), by_class]
    return pd.DataFrame(rows, columns=contracts.SUMMARY_COLUMNS).round(6)


def read_other_results(path: str | Path, samples: Sequence[Sample], test_csv: str | Path) -> np.ndarray:
    """The IoU that another run's results table has for each labelled sample, in the samples' order.

    Raises UserError unless that table scored exactly these pairs of image and label.
    """
    made_by = "run_base_sam_inference.py or run_inference.py"
    table = contracts.read_table(path, ("image", "label", "iou"), made_by)
    table = table[table["label"] != ""]
    theirs = dict(zip(_keys(zip(table["image"], table["label"])), table["iou"]))
    ours = _keys((sample.image_text, sample.label_text) for sample in samples if sample.label is not None)
    if not ours:
        raise UserError(f"{test_csv}: no row has a label, so there is nothing to compare with {path}")
    only_ours, only_theirs = [key for key in ours if key not in theirs], theirs.keys() - set(ours)
    if only_ours or only_theirs:
        example = only_ours[0][0] if only_ours else min(only_theirs)[0]
        raise UserError(f"{path}: scored other samples than {test_csv} has ({len(only_ours)} only in {test_csv}, "
                        f"{len(only_theirs)} only in {path}, e.g. {example}); run both models on the same table")
    iou = pd.to_numeric(pd.Series([theirs[key] for key in ours]), errors="coerce").to_numpy()
    if not np.all((iou >= 0) & (iou <= 1)):
        raise UserError(f"{path}: column iou holds values that are no IoU; make it with {made_by}")
    return iou


def _keys(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str, int]]:
    """Image, label and a count, which tells rows apart that differ in their points only."""
    seen: dict[tuple[str, str], int] = {}
    keys = []
    for pair in pairs:
        seen[pair] = seen.get(pair, 0) + 1
        keys.append((*pair, seen[pair]))
    return keys


def compare(names: Sequence[str], base: np.ndarray, tuned: np.ndarray, seed: int) -> pd.DataFrame:
    """COMPARISON_COLUMNS for each class, then all by object and by class; `base` and `tuned` are paired IoUs.

    The 95 % interval of the mean difference is a percentile bootstrap over objects (over the objects of each class for
    the mean over classes); empty where there is one object only.
    """
    rng = np.random.default_rng(seed)
    names, difference = np.asarray(names), tuned - base
    places = {str(name): np.flatnonzero(names == name) for name in sorted(set(names.tolist()))}
    draws = {name: _bootstrap_means(difference[place], rng) for name, place in places.items()}

    def row(name: str, place: np.ndarray, means: np.ndarray) -> dict:
        low, high = np.percentile(means, (2.5, 97.5)) if len(place) > 1 else (np.nan, np.nan)
        return {"class_name": name, "n": len(place), "base_iou": base[place].mean(), "tuned_iou": tuned[place].mean(),
                "mean_difference": difference[place].mean(), "ci95_low": low, "ci95_high": high,
                "wins": int((difference[place] > 0).sum()), "losses": int((difference[place] < 0).sum())}

    rows = [row(name, place, draws[name]) for name, place in places.items()]
    everything = np.arange(len(names))
    by_object = row(contracts.BY_OBJECT, everything, _bootstrap_means(difference, rng))
    by_class = row(contracts.BY_CLASS, everything, np.mean(list(draws.values()), axis=0))
    by_class |= {"n": len(rows)} | {column: np.mean([entry[column] for entry in rows])
                                    for column in ("base_iou", "tuned_iou", "mean_difference")}
    return pd.DataFrame([*rows, by_object, by_class], columns=contracts.COMPARISON_COLUMNS).round(6)


def _bootstrap_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of BOOTSTRAP_DRAWS resamples with replacement, a few at a time to bound memory."""
    step = max(1, 1_000_000 // len(values))
    return np.concatenate([values[rng.integers(0, len(values), (min(step, BOOTSTRAP_DRAWS - start), len(values)))]
                           .mean(axis=1) for start in range(0, BOOTSTRAP_DRAWS, step)])


def verdict(comparison: pd.DataFrame) -> str:
    """One plain sentence about the row of all objects."""
    row = comparison.loc[comparison["class_name"] == contracts.BY_OBJECT].to_dict("records")[0]
    scores = (f"mean IoU {row['tuned_iou']:.3f} tuned against {row['base_iou']:.3f} base "
              f"on the same {row['n']} objects, {row['mean_difference']:+.3f}")
    if row["n"] < 2:
        return f"One object is too few to tell base and tuned apart: {scores}."
    scores += (f" (95 % interval {row['ci95_low']:+.3f} to {row['ci95_high']:+.3f}), "
               f"better on {row['wins']} and worse on {row['losses']}.")
    if row["ci95_low"] > 0:
        return f"The tuned model is better than the base model: {scores}"
    if row["ci95_high"] < 0:
        return f"The tuned model is WORSE than the base model: {scores}"
    return f"No clear difference between the tuned and the base model: {scores}"


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
    cells = dict(tqdm(_in_threads(draw, wanted), "drawing", len(wanted), unit="picture", disable=None))
    if ranked:
        title += f", mean IoU {iou.mean():.3f} over {len(ranked)} objects"
    sheet = figures.contact_sheet(title, [(heading, [cells[row] for row in rows]) for heading, rows in sections])
    imaging.write_jpeg(folder / contracts.PREDICTIONS_PICTURE, sheet)
    results.loc[chosen, "picture"] = [_picture_name(row, samples[row]) for row in chosen]


def _picture_name(row: int, sample: Sample) -> str:
    return f"{contracts.SAMPLES_FOLDER}/{_unique_name(row, sample)}.jpg"


# ---- one image ----------------------------------------------------------------------------------------------

def predict_image(load_model: Callable[[], Sam], image: str | Path, points: Sequence[tuple[float, float]] | None,
                  point_labels: Sequence[int] | None, box: tuple[float, float, float, float] | None,
                  output_dir: str | Path, device: torch.device, overwrite: bool) -> Prediction:
    """Predict one image from its prompt (xy pixels), without ground truth; writes its mask and an overlay picture.

    `point_labels` None takes every point for foreground.
    """
    points = points or ()
    point_labels = [1] * len(points) if point_labels is None else point_labels
    sample = Sample(Path(image), None, tuple(points), tuple(point_labels), box, str(image), "")
    problem = sample_problem(sample, {}, need_labels=False)
    if problem:
        raise UserError(problem)
    folder = Path(output_dir)
    mask_path = folder / contracts.single_mask(sample.image.stem)
    overlay_path = folder / contracts.single_overlay(sample.image.stem)
    refuse_existing([mask_path, overlay_path], overwrite)
    sam = load_model()
    side = sam.image_encoder.img_size
    dataset = PromptedImages([sample], side, 1, with_targets=False, with_masks=False)
    loader = make_loader(dataset, side, 1, 0, pin_memory=False)
    prediction = next(predict(sam, batches(loader), device, contextlib.nullcontext()))
    picture = figures.overlay(figures.Example(imaging.load_image(image), sample.points, sample.point_labels, box,
                                              prediction.mask, None))
    imaging.write_png(mask_path, prediction.mask)
    imaging.write_jpeg(overlay_path, picture)
    area = np.count_nonzero(prediction.mask)
    print(f"{mask_path} and {overlay_path}: mask of {area} px ({area / prediction.mask.size:.1%} of the image), "
          f"predicted IoU {prediction.predicted_iou:.2f}")
    return prediction
