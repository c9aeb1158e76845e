"""Class folders: one picture's objects -> crops, masks and manifest rows; many processes; the conversion report.

    processed_dataset/Class_<name>/images/<stem>_<index>.png   the crop, RGB
    processed_dataset/Class_<name>/masks/<stem>_<index>.png    its mask, 0 or 255, same name and size
    processed_dataset/instances.csv                            the manifest: a row per object
    processed_dataset/classes.json                             folder -> class_id, class_name
    processed_dataset/conversion_report.csv                    a row per skipped label row or annotation

`<stem>` is the photo's file name without suffix, `<index>` the object's line or place among the photo's objects, four
digits or more. With `no_crop` the photo stands once in each of its classes' folders as images/<stem>.png and its
masks are masks/<stem>_<index>.png. No stem is another stem followed by `_` and four or more digits, so the mask's name
without `_<index>` names the photo.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from sam_lora import contracts
from sam_lora.errors import UserError
from sam_lora.files import atomic_path, staged_folder

# numpy, OpenCV and Pillow come in with the functions that need them: both converters import this module for --help

OWNED = (f"{contracts.CLASS_FOLDER_PREFIX}*", contracts.MANIFEST_FILE, contracts.CLASSES_FILE,
         contracts.CONVERSION_REPORT_FILE)
REPORT_COLUMNS = ("source_file", "source_id", "reason", "detail")
SPLIT_ALIASES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}
IMAGES_PER_WORKER = 8  # starting a process takes as long as converting about so many pictures

BOX_ONLY = "only a box, no outline (--boxes rectangle takes it)"
IMAGE_BROKEN = "picture cannot be read"
IMAGE_MISSING = "picture not found"
NO_PIXEL = "covers no pixel of the picture"
TOO_SMALL = "smaller than --min_size"
RLE_SIZE = "RLE of another size than its picture"
RLE_RESIZED = "RLE scaled to its picture's size"


@dataclass(frozen=True)
class ObjectClass:
    """`folder` is the class's safe folder name, `class_name` its true name."""
    class_id: int | str
    class_name: str
    folder: str


@dataclass(frozen=True)
class SourceObject:
    """One object as the data set outlines it: polygons or an RLE.

    `index` is unique within the picture. `polygons`: flat [x, y, x, y, …] each, finite, three points or more, in the
    picture's `frame_wh`. `rle`: as in COCO, not checked yet.
    """
    index: int
    source_id: str
    class_key: str
    polygons: Sequence[Sequence[float]] = ()
    rle: dict | None = None
    is_rectangle: bool = False


@dataclass(frozen=True)
class SourceImage:
    """A photo and its objects.

    `name` is its path below the data set's folder, with /. `frame_wh` is the size of the frame that polygons are in:
    (1, 1) for shares of width and height, None for the photo's own pixels. `upright` off: the frame is the stored
    picture, before the EXIF turn.
    """
    path: Path
    name: str
    split: str
    objects: Sequence[SourceObject]
    label_file: str
    frame_wh: tuple[float, float] | None = None
    upright: bool = True
    stem: str = ""


@dataclass(frozen=True)
class CropSettings:
    padding: float = 0.1
    min_size: int = 10
    no_crop: bool = False


@dataclass
class ConversionReport:
    """What came in, what came out, and why the rest did not: `total` = `crops` + len(`skipped`)."""
    unit: str              # "label rows", "annotations"
    strict: bool = False
    total: int = 0
    crops: int = 0
    skipped: list[tuple[str, str, str, str]] = field(default_factory=list)   # REPORT_COLUMNS
    notes: Counter = field(default_factory=Counter)
    images: dict[str, int] = field(default_factory=dict)
    classes: Counter = field(default_factory=Counter)

    def skip(self, source_file: str, source_id: str, reason: str, detail: str = "") -> None:
        """Count one label row or annotation as skipped. Raises UserError with `strict`."""
        if self.strict:
            raise UserError(f"{source_file}: {source_id}: {reason}{f' ({detail})' if detail else ''}; --strict is on")
        self.skipped.append((printable(source_file), printable(source_id), reason, detail))

    def lines(self) -> Iterator[str]:
        """The summary, a line at a time."""
        yield f"{self.unit}: {self.total} = {self.crops} crops + {len(self.skipped)} skipped"
        reasons = Counter(reason for _, _, reason, _ in self.skipped)
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            yield f"  skipped {count}: {reason}"
        yield "pictures: " + ", ".join(f"{count} {what}" for what, count in self.images.items())
        if self.classes:
            yield "classes: " + ", ".join(f"{name} {count}" for name, count in self.classes.items())
        for note, count in self.notes.items():
            yield f"note: {note}" + (f" ({count} times)" if count > 1 else "")


@contextmanager
def staged_output(output_dir: str | Path, overwrite: bool, dry_run: bool) -> Iterator[Path | None]:
    """The folder to write class folders to, moved to `output_dir` when all is done; None for a dry run."""
    if dry_run:
        yield None
        return
    with staged_folder(output_dir, OWNED, overwrite) as staging:
        yield staging


def write_class_folders(images: Sequence[SourceImage], classes: Mapping[str, ObjectClass], staging: Path | None,
                        settings: CropSettings, num_workers: int, report: ConversionReport) -> None:
    """Convert every object of `images` into `staging`, and add crops, skips and pictures to `report`.

    The result does not depend on `num_workers`. `staging` None: convert, but write nothing. Raises UserError if not
    one crop came out.
    """
    images = with_stems(sorted(images, key=lambda image: (image.name, image.split)))
    if len({image.split for image in images}) == 1:  # one split is no split
        images = [replace(image, split="") for image in images]
    with_objects = [image for image in images if image.objects]
    convert = functools.partial(convert_image, classes=classes, settings=settings, staging=staging)
    rows = []
    with closing(_map(convert, with_objects, num_workers)) as results:
        for image, result in zip(with_objects, results):
            rows += result.rows
            report.crops += len(result.rows)
            for source_id, reason, detail in result.skipped:
                report.skip(image.label_file, source_id, reason, detail)
            report.notes.update(result.notes)
    _check(report)
    column = {name: place for place, name in enumerate(contracts.MANIFEST_COLUMNS)}
    counts = Counter((row[column["image_path"]].split("/")[0]) for row in rows)
    used = [object_class for object_class in classes.values() if object_class.folder in counts]
    report.classes.update({object_class.class_name: counts[object_class.folder] for object_class in used})
    if staging is None:
        return
    import pandas as pd
    contracts.write_table(pd.DataFrame(rows, columns=contracts.MANIFEST_COLUMNS), staging / contracts.MANIFEST_FILE)
    contracts.write_table(pd.DataFrame(report.skipped, columns=REPORT_COLUMNS),
                          staging / contracts.CONVERSION_REPORT_FILE)
    with atomic_path(staging / contracts.CLASSES_FILE) as temporary:
        content = {object_class.folder: {"class_id": object_class.class_id, "class_name": object_class.class_name}
                   for object_class in used}
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(report: ConversionReport) -> None:
    if report.total != report.crops + len(report.skipped):
        raise AssertionError(f"{report.total} {report.unit}, but {report.crops} crops + {len(report.skipped)} skipped")
    if report.crops == 0:
        reasons = Counter(reason for _, _, reason, _ in report.skipped).most_common()
        why = "; ".join(f"{count} {reason}" for reason, count in reasons) or "every picture is background"
        raise UserError(f"nothing to convert: {report.total} {report.unit}, no crop ({why})")


def _map(convert: functools.partial, images: Sequence[SourceImage], num_workers: int) -> "Iterator[ImageResult]":
    """The results in the order of `images`."""
    from tqdm import tqdm
    progress = functools.partial(tqdm, total=len(images), desc="pictures", unit="", disable=None)
    num_workers = min(num_workers, len(images) // IMAGES_PER_WORKER)
    if num_workers <= 1:
        yield from progress(map(convert, images))
        return
    # spawn everywhere: a forked process may inherit a lock that a thread of OpenCV holds
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        with _interrupt_ignored():  # what the workers inherit: Ctrl-C is the parent's to answer
            results = pool.map(convert, images, chunksize=4)
        yield from progress(results)
    except BrokenProcessPool as error:
        raise UserError("a worker process died, most likely for want of memory; give a smaller --num_workers, "
                        "0 for none") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # no worker may write once the staging folder goes


@contextmanager
def _interrupt_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others may not set signals
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # not inherited on Windows
    import cv2
    cv2.setNumThreads(1)


# ---- one picture ------------------------------------------------------------------------------------------

@dataclass
class ImageResult:
    """`rows` in the order of MANIFEST_COLUMNS; `skipped`: (source_id, reason, detail)."""
    rows: list[tuple] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)


def convert_image(image: SourceImage, classes: Mapping[str, ObjectClass], settings: CropSettings,
                  staging: Path | None) -> ImageResult:
    """Read one photo, once, and write a crop and a mask for each of its objects."""
    from sam_lora import geometry, imaging
    result = ImageResult()
    try:
        pixels = imaging.load_image(image.path, image.upright)
    except imaging.ImageError as error:
        result.skipped = [(item.source_id, IMAGE_BROKEN, error.reason) for item in image.objects]
        return result
    height, width = pixels.shape[:2]
    whole = (0, 0, width, height)
    photo_in: set[str] = set()  # with no_crop: the class folders that hold this photo already
    for item in image.objects:
        try:
            outlined = _mask_of(item, image.frame_wh, (width, height), result.notes)
        except ValueError as error:
            result.skipped.append((item.source_id, str(error), ""))
            continue
        if outlined is None:
            result.skipped.append((item.source_id, NO_PIXEL, ""))
            continue
        mask, box = outlined
        longer_side = max(box[2] - box[0], box[3] - box[1])
        if longer_side < settings.min_size:
            result.skipped.append((item.source_id, TOO_SMALL, f"{box[2] - box[0]} x {box[3] - box[1]} px"))
            continue
        frame = whole if settings.no_crop else geometry.pad_box(box, settings.padding, (width, height))
        object_class = classes[item.class_key]
        mask_name = f"{image.stem}_{item.index:04d}.png"
        image_name = f"{image.stem}.png" if settings.no_crop else mask_name
        image_path = f"{object_class.folder}/{contracts.IMAGES_FOLDER}/{image_name}"
        mask_path = f"{object_class.folder}/{contracts.MASKS_FOLDER}/{mask_name}"
        if staging is not None:
            if not (settings.no_crop and object_class.folder in photo_in):
                _write(staging / image_path, imaging.encode_png(geometry.crop(pixels, frame)))
                photo_in.add(object_class.folder)
            _write(staging / mask_path, imaging.encode_png(geometry.paste(mask, box, frame)))
        rasteriser = (geometry.RECTANGLE_RASTERISER if item.is_rectangle
                      else geometry.RLE_RASTERISER if item.rle is not None else geometry.POLYGON_RASTERISER)
        result.rows.append((
            image_path, mask_path, object_class.class_id, object_class.class_name, printable(image.name), image.split,
            printable(item.source_id), width, height, *frame, int(mask.sum()), rasteriser))
    return result


def _mask_of(item: SourceObject, frame_wh: tuple[float, float] | None, resolution_wh: tuple[int, int], notes: Counter):
    """(mask, box) as `geometry.polygons_to_mask` gives it; None where empty. Raises ValueError, the reason."""
    import cv2
    import numpy as np

    from sam_lora import geometry
    width, height = resolution_wh
    if item.rle is None:
        scale = (1.0, 1.0) if frame_wh is None else (width / frame_wh[0], height / frame_wh[1])
        polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) * scale for polygon in item.polygons]
        return geometry.polygons_to_mask(polygons, resolution_wh)
    mask = geometry.rle_to_mask(item.rle)
    if mask.shape != (height, width):
        if not same_aspect((mask.shape[1], mask.shape[0]), resolution_wh):
            raise ValueError(RLE_SIZE)
        notes[RLE_RESIZED] += 1
        mask = cv2.resize(mask.astype(np.uint8), resolution_wh, interpolation=cv2.INTER_NEAREST).astype(bool)
    return geometry.tighten(mask)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def same_aspect(first_wh: tuple[float, float], second_wh: tuple[float, float]) -> bool:
    """Is one size the other one scaled, to 1 % or a pixel of rounding?"""
    (w1, h1), (w2, h2) = sorted((first_wh, second_wh))
    return abs(w2 * h1 / h2 - w1) <= max(1.0, 0.01 * w1)


# ---- source files and names ---------------------------------------------------------------------------------

def source_files(root: Path, output_dir: Path, more_suffixes: Sequence[str] = ()) -> list[PurePosixPath]:
    """Picture files (and those with `more_suffixes`) below `root`, by suffix in any case; relative to it, sorted.

    Left out: hidden ones, class folders made earlier, and links that lead out of `root`.
    """
    from sam_lora.imaging import IMAGE_SUFFIXES
    suffixes = {*IMAGE_SUFFIXES, *more_suffixes}
    found = []
    inside, output = root.resolve(), output_dir.resolve()
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")
                         and (here / name).resolve() != output
                         and not (here / name / contracts.MANIFEST_FILE).is_file()]
        for name in files:
            path = here / name
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            if not path.is_symlink() or path.resolve().is_relative_to(inside):
                found.append(PurePosixPath(path.relative_to(root).as_posix()))
    return sorted(found)


def class_slug(name: str) -> str:
    """A class name as a safe part of a folder name: NFC, letters, digits, - _ . of any script, 80 bytes at most."""
    name = unicodedata.normalize("NFC", name)
    kept = "".join(letter if letter in "-_." or unicodedata.category(letter)[0] in "LMN" else "_" for letter in name)
    return _shortened(kept, 80).strip("._") or "unnamed"


def class_folder_names(labels: Mapping[str, str]) -> dict[str, str]:
    """{key: label} -> {key: folder name}, safe and different even where case does not count."""
    folders, taken = {}, set()
    for key, label in labels.items():
        base = folder = contracts.CLASS_FOLDER_PREFIX + class_slug(label)
        number = 2
        while folder.casefold() in taken:
            folder = f"{base}-{number}"
            number += 1
        taken.add(folder.casefold())
        folders[key] = folder
    return folders


def with_stems(images: Sequence[SourceImage]) -> list[SourceImage]:
    """Give every picture a stem that starts with its file name's stem and is no other picture's.

    Where two pictures would share one, or one is another followed by `_0001`, a hash of the picture's path is added.
    """
    stems = [_safe_stem(image.path.stem) for image in images]
    count = Counter(stem.casefold() for stem in stems)
    result = []
    for image, stem in zip(images, stems):
        indexed = re.fullmatch(r"(.+)_\d{4,}", stem, re.DOTALL)
        if count[stem.casefold()] > 1 or len(stem.encode()) > 160 or (indexed and indexed[1].casefold() in count):
            digest = hashlib.sha256(f"{image.name}|{image.split}".encode(errors="surrogateescape")).hexdigest()[:8]
            stem = f"{_shortened(stem, 160)}-{digest}"
        result.append(replace(image, stem=stem))
    return result


def normalise_split(text: str) -> str:
    """train, val or test for any of their usual names, in any case; "" for other text."""
    return SPLIT_ALIASES.get(text.strip().casefold(), "")


def merge_same_names(names: Mapping[str, str]) -> dict[str, list[str]]:
    """{key: class name} -> {class name: its keys, in order}."""
    merged = defaultdict(list)
    for key, name in names.items():
        merged[name].append(key)
    return dict(merged)


def printable(text: str) -> str:
    """A path that can be printed and written as UTF-8: bytes of a file name that are no UTF-8 become _."""
    return re.sub("[\ud800-\udfff]", "_", text)


def _safe_stem(stem: str) -> str:
    stem = unicodedata.normalize("NFC", stem)
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", stem)
    stem = printable(stem)
    return "_" + stem if stem.startswith(".") else stem


def _shortened(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore")
