"""Images without ground truth: prompts in, masks out, in the forms that annotation tools read.

`predict_image` takes one image with its prompts from the command line, `predict_folder` a folder of images with a table
of prompts. Masks as PNG are the whole truth; COCO's RLE holds the same pixels, a YOLO polygon nearly.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from sam_lora import contracts
from sam_lora.data import geometry, imaging
from sam_lora.data.names import clean_name
from sam_lora.data.samples import Sample, check_samples, read_prompt, sample_problem
from sam_lora.drawing import Example
from sam_lora.errors import UserError
from sam_lora.files import atomic_path, refuse_existing, refuse_replacing, staged_folder
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.results import pictures
from sam_lora.results.predict import Prediction, predict, predict_rows
from sam_lora.results.requests import Candidate, Destination, PhotoFolder, Runtime, SinglePhoto
from sam_lora.results.sample_pictures import choose_pictures
from sam_lora.tables import read_table
from sam_lora.workers import map_in_threads

MADE_BY = "any editor: columns image, points and/or box, and if you like point_labels, class_name"
ENTRIES = contracts.results_entries()
UNNAMED = "object"   # the class of rows that name none: annotation tools want one
NAMED_EMPTY = 3      # rows with an empty mask that the summary names


# ---- one image --------------------------------------------------------------------------------------------

def predict_image(candidate: Candidate, photo: SinglePhoto, destination: Destination) -> list[Prediction]:
    """Predict one or several objects of one photo, encoded once; writes a mask for each and one overlay picture.

    Raises UserError.
    """
    path = Path(photo.image)
    samples = [Sample(path, None, tuple(points or ()), tuple(labels or [1] * len(points or ())), box, photo.image,
                      "") for points, labels, box in photo.prompts]
    several = len(samples) > 1
    sizes = {}
    for number, sample in enumerate(samples, start=1):
        if problem := sample_problem(sample, sizes, need_labels=False):
            raise UserError(f"object {number}: {problem}" if several and not isinstance(sizes[path], str) else problem)
    folder = destination.folder
    mask_paths = [folder / contracts.single_mask(path.stem, number if several else None)
                  for number in range(1, len(samples) + 1)]
    overlay_path = folder / contracts.single_overlay(path.stem)
    refuse_existing([*mask_paths, overlay_path], destination.overwrite)
    sam = candidate.load()
    side = sam.image_encoder.img_size
    dataset = PromptedImages(samples, side, len(samples), with_targets=False, with_masks=False)
    loader = make_loader(dataset, side, 1, 0, pin_memory=False)
    predictions = list(predict(sam, batches(loader), contextlib.nullcontext()))
    pixels = imaging.load_image(path)
    examples = [_example(pixels, sample, prediction.mask) for sample, prediction in zip(samples, predictions)]
    overlay = pictures.numbered_overlay(examples) if several else pictures.overlay(examples[0])
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


def _example(pixels: np.ndarray, sample: Sample, mask: np.ndarray) -> Example:
    return Example(pixels, sample.points, sample.point_labels, sample.box, mask, None)


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


@dataclass(frozen=True)
class _Plan:
    """What is to be predicted: a row of the table each, and which rows share an image."""

    samples: Sequence[Sample]
    objects: Sequence[_Object]
    class_names: Sequence[str]              # of each row
    rows_of: Mapping[str, Sequence[int]]    # image -> its rows, in the order of the table

    @property
    def categories(self) -> dict[str, int]:
        """Class name -> number, from 1, in the order of the table."""
        return {name: number for number, name in enumerate(dict.fromkeys(self.class_names), start=1)}


def predict_folder(candidate: Candidate, photos: PhotoFolder, destination: Destination, runtime: Runtime) -> dict:
    """Predict every row of the table of prompts, each image encoded once; returns what predictions.json holds.

    Writes masks/<image>_<n>.png, overlays/<image>.jpg of some images, predictions.json (COCO, RLE) and, with
    `save_yolo`, the data set yolo/. An empty mask is only written as a PNG. Raises UserError.
    """
    plan = read_plan(photos)
    if Path(photos.images_dir).resolve() == destination.folder.resolve():
        raise UserError(f"{destination.folder}: holds the images of --images_dir; give another --output_dir")
    refuse_replacing(sorted({sample.image.parent for sample in plan.samples}), destination.folder, ENTRIES)
    with staged_folder(destination.folder, ENTRIES, destination.overwrite) as folder:
        def finish(prediction: Prediction) -> _Annotated:
            return _finish(prediction, plan.objects[prediction.row], folder, photos.save_yolo)

        annotated = predict_rows(candidate.load(), plan.samples, finish, runtime, with_masks=False)
        content = _coco(plan, annotated)
        with atomic_path(folder / contracts.COCO_PREDICTIONS) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
        drawn = _draw_overlays(plan, destination, folder)
        if photos.save_yolo:
            _write_yolo(plan, annotated, folder / contracts.YOLO_FOLDER)
    print(f"{len(plan.samples)} masks of {len(plan.rows_of)} images, {drawn} of them drawn")
    empty = [row for row, item in enumerate(annotated) if not item.annotation["area"]]
    if empty:
        more = ", …" if len(empty) > NAMED_EMPTY else ""
        lines = ", ".join(str(row + 2) for row in empty[:NAMED_EMPTY])  # line 1 of the file is the header
        print(f"{len(empty)} of these masks are empty and left out of the annotations: row {lines}{more} of "
              f"{photos.prompts_csv}")
    print(f"results: {destination.folder}")
    return content


def read_plan(photos: PhotoFolder) -> _Plan:
    """Read and check the table of prompts. Raises UserError."""
    samples, names = read_prompts(photos.prompts_csv, photos.images_dir)
    check_samples(samples, photos.prompts_csv, need_labels=False)
    rows_of: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        rows_of.setdefault(sample.image_text, []).append(row)
    stems, categories = output_stems(rows_of), _Plan(samples, [], names, rows_of).categories
    object_of = {row: _Object(image_id, categories[names[row]], number, stems[image])
                 for image_id, (image, rows) in enumerate(rows_of.items(), start=1)
                 for number, row in enumerate(rows, start=1)}
    objects = [object_of[row] for row in range(len(samples))]
    return _Plan(samples, objects, names, rows_of)


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


def _draw_overlays(plan: _Plan, destination: Destination, folder: Path) -> int:
    """One overlay for each of some images; returns how many."""
    if not destination.num_pictures:
        return 0
    groups = list(plan.rows_of.values())
    chosen = choose_pictures([plan.class_names[rows[0]] for rows in groups], destination.num_pictures, destination.seed)

    def draw(rows: Sequence[int]) -> None:
        pixels = imaging.load_image(plan.samples[rows[0]].image)
        examples = (_example(pixels, plan.samples[row], imaging.load_mask(folder / _mask_name(plan.objects[row])))
                    for row in rows)
        imaging.write_jpeg(folder / contracts.OVERLAYS_FOLDER / f"{plan.objects[rows[0]].stem}.jpg",
                           pictures.numbered_overlay(examples))
    drawn = map_in_threads(draw, [groups[position] for position in chosen])
    for _ in tqdm(drawn, "drawing", len(chosen), unit="picture", disable=None):
        pass
    return len(chosen)


# ---- COCO ---------------------------------------------------------------------------------------------------

def mask_to_coco(mask: np.ndarray) -> dict:
    """A mask, (H, W) bool, as COCO has it: segmentation (compressed RLE, counts as text), bbox [x, y, w, h], area."""
    from pycocotools import mask as coco_mask
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    x0, y0, x1, y1 = geometry.mask_to_xyxy(mask) or (0, 0, 0, 0)
    return {"segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
            "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(np.count_nonzero(mask))}


def _coco(plan: _Plan, annotated: Sequence[_Annotated]) -> dict:
    """What predictions.json holds: all images, and an annotation for each mask that is not empty."""
    sizes = [annotated[rows[0]].size_wh for rows in plan.rows_of.values()]
    kept = [item.annotation for item in annotated if item.annotation["area"]]
    return {"info": {"description": "masks predicted by SAM; score is the IoU that the model itself expects"},
            "licenses": [],
            "images": [{"id": number, "file_name": image, "width": width, "height": height}
                       for number, (image, (width, height)) in enumerate(zip(plan.rows_of, sizes), start=1)],
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(kept, start=1)],
            "categories": [{"id": number, "name": name, "supercategory": ""}
                           for name, number in plan.categories.items()]}


# ---- YOLO ---------------------------------------------------------------------------------------------------

def _write_yolo(plan: _Plan, annotated: Sequence[_Annotated], folder: Path) -> None:
    """A data set of its own: data.yaml, the images, and a label file for each, empty where it has no mask."""
    import yaml
    folder.mkdir()
    class_names = list(plan.categories)
    settings = {"train": contracts.IMAGES_FOLDER, "val": contracts.IMAGES_FOLDER, "nc": len(class_names),
                "names": dict(enumerate(class_names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def write(rows: Sequence[int]) -> None:
        source, stem = plan.samples[rows[0]].image, plan.objects[rows[0]].stem
        suffix = source.suffix if source.suffix.lower() in imaging.IMAGE_SUFFIXES else ".png"
        image, label = folder / contracts.IMAGES_FOLDER / f"{stem}{suffix}", folder / "labels" / f"{stem}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == source.suffix:
            shutil.copyfile(source, image)
        else:  # of a kind that YOLO tools pass over
            imaging.write_png(image, imaging.load_image(source))
        label.write_text("".join(yolo_row(item.annotation["category_id"] - 1, item.polygon, item.size_wh)
                                 for item in (annotated[row] for row in rows) if item.annotation["area"]),
                         encoding="utf-8")
    written = map_in_threads(write, plan.rows_of.values())
    for _ in tqdm(written, "labels", len(plan.rows_of), unit="image", disable=None):
        pass


def yolo_row(class_id: int, polygon: np.ndarray, size_wh: tuple[int, int]) -> str:
    """A label row with its line end: the class id, then x and y of each corner as fractions of width and height."""
    numbers = (polygon / size_wh).ravel()
    return f"{class_id} {' '.join(f'{number:.6f}' for number in numbers)}\n"
