"""Images without ground truth: prompts in, masks out, in the forms that annotation tools read.

`predict_image` takes one image with its prompts from the command line, `predict_folder` a folder of images with a table
of prompts. Masks as PNG are the whole truth; COCO's RLE holds the same pixels, a YOLO polygon nearly.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm

from sam_lora import contracts, figures
from sam_lora.data import geometry, imaging
from sam_lora.data.names import clean_name
from sam_lora.data.samples import Sample, check_samples, read_prompt, sample_problem
from sam_lora.errors import UserError
from sam_lora.files import atomic_path, refuse_existing, refuse_replacing, staged_folder
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.model.meta import Sam
from sam_lora.results.evaluation import Prediction, choose_pictures, predict, predict_rows
from sam_lora.tables import read_table
from sam_lora.workers import map_in_threads

MADE_BY = "any editor: columns image, points and/or box, and if you like point_labels, class_name"
OWNED = contracts.results_entries()
UNNAMED = "object"   # the class of rows that name none: annotation tools want one
NAMED_EMPTY = 3      # rows with an empty mask that the summary names


# ---- one image --------------------------------------------------------------------------------------------

def predict_image(load_model: Callable[[], Sam], image: str | Path, prompts: Sequence[tuple], output_dir: str | Path,
                  device: torch.device, overwrite: bool) -> list[Prediction]:
    """Predict one or several objects of one image, encoded once; writes a mask for each and one overlay picture.

    `prompts`: (points, point_labels, box) of each object, xy pixels of the image, None for what an object lacks;
    without point_labels every point is foreground. Raises UserError.
    """
    path = Path(image)
    samples = [Sample(path, None, tuple(points or ()), tuple(labels or [1] * len(points or ())), box, str(image), "")
               for points, labels, box in prompts]
    several = len(samples) > 1
    sizes = {}
    for number, sample in enumerate(samples, start=1):
        if problem := sample_problem(sample, sizes, need_labels=False):
            raise UserError(f"object {number}: {problem}" if several and not isinstance(sizes[path], str) else problem)
    folder = Path(output_dir)
    mask_paths = [folder / contracts.single_mask(path.stem, number if several else None)
                  for number in range(1, len(samples) + 1)]
    overlay_path = folder / contracts.single_overlay(path.stem)
    refuse_existing([*mask_paths, overlay_path], overwrite)
    sam = load_model()
    side = sam.image_encoder.img_size
    dataset = PromptedImages(samples, side, len(samples), with_targets=False, with_masks=False)
    loader = make_loader(dataset, side, 1, 0, pin_memory=False)
    predictions = list(predict(sam, batches(loader), device, contextlib.nullcontext()))
    pixels = imaging.load_image(image)
    examples = [_example(pixels, sample, prediction.mask) for sample, prediction in zip(samples, predictions)]
    overlay = figures.numbered_overlay(examples) if several else figures.overlay(examples[0])
    with contextlib.ExitStack() as stack:  # all in place, or none
        for mask_path, prediction in zip(mask_paths, predictions):
            stack.enter_context(atomic_path(mask_path)).write_bytes(imaging.encode_png(prediction.mask))
        imaging.write_jpeg(overlay_path, overlay)
    for mask_path, prediction in zip(mask_paths, predictions):
        area = np.count_nonzero(prediction.mask)
        where = mask_path if several else f"{mask_path} and {overlay_path}"
        print(f"{where}: mask of {area} px ({area / prediction.mask.size:.1%} of the image), "
              f"predicted IoU {prediction.predicted_iou:.2f}")
    if several:
        print(f"{overlay_path}: all {len(samples)}, numbered")
    return predictions


def _example(pixels: np.ndarray, sample: Sample, mask: np.ndarray) -> figures.Example:
    return figures.Example(pixels, sample.points, sample.point_labels, sample.box, mask, None)


# ---- a folder of images -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Object:
    """A row of the table of prompts."""

    image_id: int        # from 1, in the order of the table
    category_id: int     # likewise
    number: int          # among its image's objects, from 1
    stem: str            # path of its image's outputs without suffix


@dataclass(frozen=True)
class _Annotated:
    """What is kept of a mask."""

    annotation: dict            # of a COCO file, without id
    size_wh: tuple[int, int]
    polygon: np.ndarray | None  # (N, 2) xy, N 0 for an empty mask; None unless asked for


def predict_folder(load_model: Callable[[], Sam], images_dir: str | Path, prompts_csv: str | Path,
                   output_dir: str | Path, *, batch_size: int | None, num_pictures: int, num_workers: int,
                   device: torch.device, seed: int, overwrite: bool, save_yolo: bool) -> dict:
    """Predict every row of `prompts_csv`, each image encoded once; returns what predictions.json holds.

    Writes masks/<image>_<n>.png, overlays/<image>.jpg of `num_pictures` images, predictions.json (COCO, RLE) and, with
    `save_yolo`, the data set yolo/. An empty mask is a PNG only. `load_model` is called once the table and the folder
    are known to be usable. Raises UserError.
    """
    samples, names = read_prompts(prompts_csv, images_dir)
    check_samples(samples, prompts_csv, need_labels=False)
    if Path(images_dir).resolve() == Path(output_dir).resolve():
        raise UserError(f"{output_dir}: holds the images of --images_dir; give another --output_dir")
    refuse_replacing(sorted({sample.image.parent for sample in samples}), output_dir, OWNED)
    categories = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
    rows_of: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        rows_of.setdefault(sample.image_text, []).append(row)
    stems = output_stems(rows_of)
    objects = {row: _Object(image_id, categories[names[row]], number, stems[image])
               for image_id, (image, rows) in enumerate(rows_of.items(), start=1)
               for number, row in enumerate(rows, start=1)}
    with staged_folder(output_dir, OWNED, overwrite) as folder:
        sam = load_model()
        found = predict_rows(sam, samples, lambda prediction: _finish(prediction, objects[prediction.row], folder,
                                                                      save_yolo),
                             batch_size, num_workers, device, with_masks=False)
        empty = [row for row, item in enumerate(found) if not item.annotation["area"]]
        content = _coco(rows_of, found, categories)
        with atomic_path(folder / contracts.COCO_PREDICTIONS) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
        first_names = [names[rows[0]] for rows in rows_of.values()]
        drawn = choose_pictures(first_names, num_pictures, seed) if num_pictures else []
        _draw_overlays([list(rows_of.values())[place] for place in drawn], samples, objects, folder)
        if save_yolo:
            _write_yolo(rows_of, samples, objects, found, list(categories), folder / contracts.YOLO_FOLDER)
    print(f"{len(samples)} masks of {len(rows_of)} images, {len(drawn)} of them drawn")
    if empty:
        more = ", …" if len(empty) > NAMED_EMPTY else ""
        named = ", ".join(str(row + 2) for row in empty[:NAMED_EMPTY])  # row 1 of the file is the header
        print(f"{len(empty)} of these masks are empty, and no annotations: row {named}{more} of {prompts_csv}")
    print(f"results: {output_dir}")
    return content


def read_prompts(table_path: str | Path, images_dir: str | Path) -> tuple[list[Sample], list[str]]:
    """Read a table of prompts: a Sample and a class name for each row; `image_text` is the path below `images_dir`.

    Raises UserError for a missing folder, cells that are no prompt, and paths that lead out of the folder.
    """
    root = Path(images_dir)
    if not root.is_dir():
        raise UserError(f"{root}: {'is a file' if root.exists() else 'no such folder'}; expected the folder of the "
                        "images that the prompts are for")
    table = read_table(table_path, ("image",), MADE_BY)
    if not {"points", contracts.BOX_COLUMN} & {*table.columns}:
        raise UserError(f"{table_path}: neither a column points nor box; found {', '.join(table.columns)}; make it "
                        f"with {MADE_BY}")
    samples, names = [], []
    for number, row in enumerate(table.to_dict("records"), start=2):
        where = f"{table_path} row {number}"
        if row.get("label", "").strip():
            raise UserError(f"{where}: has a label; expected none. A table with ground truth goes to --test_csv")
        image = _path_below(row["image"], root, f"{where}, column image")
        samples.append(Sample(root / image, None, *read_prompt(row, where), image, ""))
        names.append(clean_name(row.get(contracts.CLASS_NAME_COLUMN)) or UNNAMED)
    return samples, names


def _path_below(text: str, root: Path, where: str) -> str:
    """The path as written, \\ for / too, below `root`, with /. Raises UserError where it or a link leads out of it."""
    if not text.strip():
        raise UserError(f"{where}: empty; expected the path of an image below {root}")
    try:
        path = root / text.strip().replace("\\", "/")
        inside = path.resolve().is_relative_to(root.resolve())
        below = Path(os.path.relpath(path, root))
    except (ValueError, RuntimeError) as error:  # a NUL in it, a circle of links
        raise UserError(f"{where}: {text!r} is no path") from error
    if not inside or ".." in below.parts:
        raise UserError(f"{where}: {text} lies outside {root}; expected a path below it")
    return below.as_posix()


def output_stems(images: Iterable[str]) -> dict[str, str]:
    """{path of an image: path of its outputs, no suffix}, each different even where case does not count.

    Folders called images are left out, for YOLO has the labels where the last of them was.
    """
    stems, taken = {}, set()
    for image in images:
        path = PurePosixPath(image)
        folders = [part for part in path.parts[:-1] if part.casefold() != contracts.IMAGES_FOLDER]
        stem = str(PurePosixPath(*folders, path.stem))
        if stem.casefold() in taken:
            stem += path.suffix.replace(".", "_")
        while stem.casefold() in taken:
            stem += "_"
        taken.add(stem.casefold())
        stems[image] = stem
    return stems


def _finish(prediction: Prediction, item: _Object, folder: Path, polygons: bool) -> _Annotated:
    """Write a mask, and keep what the annotations need of it."""
    mask, name = prediction.mask, _mask_name(item)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(imaging.encode_png(mask))
    annotation = {"image_id": item.image_id, "category_id": item.category_id, **mask_to_coco(mask), "iscrowd": 0,
                  "score": round(prediction.predicted_iou, 6), "mask": name}
    return _Annotated(annotation, mask.shape[::-1], geometry.mask_to_polygon(mask) if polygons else None)


def _mask_name(item: _Object) -> str:
    return f"{contracts.PREDICTED_MASKS_FOLDER}/{item.stem}_{item.number}.png"


def _draw_overlays(groups: Sequence[Sequence[int]], samples: Sequence[Sample], objects: dict[int, _Object],
                   folder: Path) -> None:
    """One overlay for each group of rows that share an image."""
    def draw(rows: Sequence[int]) -> None:
        pixels = imaging.load_image(samples[rows[0]].image)
        examples = (_example(pixels, samples[row], imaging.load_mask(folder / _mask_name(objects[row])))
                    for row in rows)
        imaging.write_jpeg(folder / contracts.OVERLAYS_FOLDER / f"{objects[rows[0]].stem}.jpg",
                           figures.numbered_overlay(examples))
    for _ in tqdm(map_in_threads(draw, groups), "drawing", len(groups), unit="picture", disable=None):
        pass


# ---- COCO ---------------------------------------------------------------------------------------------------

def mask_to_coco(mask: np.ndarray) -> dict:
    """A mask, (H, W) bool, as COCO has it: segmentation (compressed RLE, counts as text), bbox [x, y, w, h], area."""
    from pycocotools import mask as coco_mask
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    x0, y0, x1, y1 = geometry.mask_to_xyxy(mask) or (0, 0, 0, 0)
    return {"segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
            "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(np.count_nonzero(mask))}


def _coco(rows_of: dict[str, list[int]], found: Sequence[_Annotated], categories: dict[str, int]) -> dict:
    """What predictions.json holds: all images, and an annotation for each mask that is not empty."""
    sizes = [found[rows[0]].size_wh for rows in rows_of.values()]
    kept = [item.annotation for item in found if item.annotation["area"]]
    return {"info": {"description": "masks predicted by SAM; score is the IoU that the model itself expects"},
            "licenses": [],
            "images": [{"id": number, "file_name": image, "width": width, "height": height}
                       for number, (image, (width, height)) in enumerate(zip(rows_of, sizes), start=1)],
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(kept, start=1)],
            "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]}


# ---- YOLO ---------------------------------------------------------------------------------------------------

def _write_yolo(rows_of: dict[str, list[int]], samples: Sequence[Sample], objects: dict[int, _Object],
                found: Sequence[_Annotated], class_names: Sequence[str], folder: Path) -> None:
    """A data set of its own: data.yaml, the images, and a label file for each, empty where it has no mask."""
    import yaml
    folder.mkdir()
    settings = {"train": contracts.IMAGES_FOLDER, "val": contracts.IMAGES_FOLDER, "nc": len(class_names),
                "names": dict(enumerate(class_names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def write(rows: Sequence[int]) -> None:
        source, stem = samples[rows[0]].image, objects[rows[0]].stem
        suffix = source.suffix if source.suffix.lower() in imaging.IMAGE_SUFFIXES else ".png"
        image, label = folder / contracts.IMAGES_FOLDER / f"{stem}{suffix}", folder / "labels" / f"{stem}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == source.suffix:
            shutil.copyfile(source, image)
        else:  # of a kind that YOLO tools pass over
            imaging.write_png(image, imaging.load_image(source))
        label.write_text("".join(yolo_row(item.annotation["category_id"] - 1, item.polygon, item.size_wh)
                                 for item in (found[row] for row in rows) if item.annotation["area"]),
                         encoding="utf-8")
    for _ in tqdm(map_in_threads(write, rows_of.values()), "labels", len(rows_of), unit="image", disable=None):
        pass


def yolo_row(class_id: int, polygon: np.ndarray, size_wh: tuple[int, int]) -> str:
    """A label row with its line end: the class id, then x and y of each corner as shares of width and height."""
    numbers = (polygon / size_wh).ravel()
    return f"{class_id} {' '.join(f'{number:.6f}' for number in numbers)}\n"
