"""Class folders: one picture's objects -> crops, masks and manifest rows; many processes; the conversion report.

    processed_dataset/Class_<name>/images/<stem>_<index>.png   the crop, RGB
    processed_dataset/Class_<name>/masks/<stem>_<index>.png    its mask, 0 or 255, same name and size
    processed_dataset/instances.csv                            the manifest: a row per object
    processed_dataset/classes.json                             folder -> class_id, class_name
    processed_dataset/conversion_report.csv                    a row per skipped label row or annotation
    processed_dataset/preview.jpg                              some of the crops with their masks' outlines

`<stem>` is the photo's file name without suffix, `<index>` the object's line or place among the photo's objects, four
digits or more. With `no_crop` the photo stands once in each of its classes' folders as images/<stem>.png and its
masks are masks/<stem>_<index>.png; with `tile` a tile of it is images/<stem>.tile.<x0>.<y0>.png, its masks likewise.
No stem is another stem followed by `.tile.<x0>.<y0>`, by `_` and four or more digits, or by both, so the mask's name
without them names the photo.
"""

import functools
import hashlib
import heapq
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sam_lora import contracts
from sam_lora.errors import UserError
from sam_lora.files import atomic_path, staged_folder
from sam_lora.tables import table_writer
from sam_lora.workers import map_in_order

if TYPE_CHECKING:
    import numpy as np

    from sam_lora.data import geometry

# numpy, OpenCV and Pillow come in with the functions that need them: both converters import this module for --help

OWNED = (f"{contracts.CLASS_FOLDER_PREFIX}*", contracts.MANIFEST_FILE, contracts.CLASSES_FILE,
         contracts.CONVERSION_REPORT_FILE, contracts.PREVIEW_FILE)
REPORT_COLUMNS = ("source_file", "source_id", "reason", "detail")
SPLIT_ALIASES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}

TEXT_SUFFIXES = {".txt", ".json", ".yaml", ".yml", ".md", ".csv", ".xml", ".cache", ".py"}  # need no word

PREVIEW_CROPS = 36
OBJECT_NUMBER = re.compile(r"_\d{4,}$")                # <photo>_0003: an object of <photo>
TILE_PLACE = re.compile(r"\.tile\.\d+\.\d+$")          # <photo>.tile.768.0: a tile of it

BOX_ONLY = "only a box, no outline (--boxes rectangle takes it)"
IMAGE_BROKEN = "picture cannot be read"
IMAGE_MISSING = "picture not found"
NO_PIXEL = "covers no pixel of the picture"
TOO_SMALL = "smaller than --min_size"
TOO_SMALL_IN_TILES = "smaller than --min_size in every tile"
RLE_SIZE = "RLE of another size than its picture"
RLE_RESIZED = "RLE scaled to its picture's size"


@dataclass(frozen=True)
class ObjectClass:
    """`folder` is the class's safe folder name, `class_name` its true name."""
    class_id: int | str
    class_name: str
    folder: str


@dataclass(frozen=True, slots=True)
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
    square: bool = False
    tile: int | None = None    # pixels; at most one of these three


@dataclass
class ConversionReport:
    """What came in, what came out, and why the rest did not: `total` = `crops` + len(`skipped`).

    `crops` counts objects: one that tiles cut into several pieces is one, and counts in `cut`, its pieces in `pieces`.
    """
    unit: str              # "label rows", "annotations"
    strict: bool = False
    total: int = 0
    crops: int = 0
    cut: int = 0
    pieces: int = 0
    skipped: list[tuple[str, str, str, str]] = field(default_factory=list)   # REPORT_COLUMNS
    notes: Counter = field(default_factory=Counter)
    images: dict[str, int] = field(default_factory=dict)
    classes: Counter = field(default_factory=Counter)

    def skip(self, source_file: str, source_id: str, reason: str, detail: str = "") -> None:
        """Count one label row or annotation as skipped. Raises UserError with `strict`."""
        if self.strict:
            raise UserError(f"{source_file}: {source_id}: {reason}{f' ({detail})' if detail else ''}; --strict is on")
        self.skipped.append((printable(source_file), printable(source_id), reason, printable(detail)))

    def lines(self) -> Iterator[str]:
        """The summary, a line at a time."""
        yield f"{self.unit}: {self.total} = {self.crops} crops + {len(self.skipped)} skipped"
        reasons = Counter(reason for _, _, reason, _ in self.skipped)
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            yield f"  skipped {count}: {reason}"
        if self.cut:
            yield (f"  {self.cut} of these crops were too large for a tile and came out in {self.pieces} pieces: "
                   f"{self.crops - self.cut + self.pieces} pairs of image and mask")
        yield "pictures: " + ", ".join(f"{count} {what}" for what, count in self.images.items())
        if self.classes:
            yield "classes: " + ", ".join(f"{name} {count}" for name, count in self.classes.items())
        for note, count in self.notes.items():
            yield f"note: {printable(note)}" + (f" ({count} times)" if count > 1 else "")


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
    counts: Counter = Counter()
    sample = _PreviewSample()
    with ExitStack() as stack:
        manifest = None if staging is None else stack.enter_context(
            table_writer(staging / contracts.MANIFEST_FILE, contracts.MANIFEST_COLUMNS))
        results = stack.enter_context(closing(map_in_order(convert, with_objects, num_workers, "pictures")))
        for image, result in zip(with_objects, results):
            for row in result.rows:  # on disk at once: a million of them are not kept
                folder = row[0].split("/")[0]
                counts[folder] += 1
                sample.add(folder, row)
                if manifest is not None:
                    manifest.writerow(row)
            report.crops += result.objects
            report.cut += result.cut
            report.pieces += result.pieces
            for source_id, reason, detail in result.skipped:
                report.skip(image.label_file, source_id, reason, detail)
            report.notes.update(result.notes)
    _check(report)
    used = [object_class for object_class in classes.values() if object_class.folder in counts]
    report.classes.update({object_class.class_name: counts[object_class.folder] for object_class in used})
    if staging is None:
        return
    with table_writer(staging / contracts.CONVERSION_REPORT_FILE, REPORT_COLUMNS) as table:
        table.writerows(report.skipped)
    with atomic_path(staging / contracts.CLASSES_FILE) as temporary:
        content = {object_class.folder: {"class_id": object_class.class_id, "class_name": object_class.class_name}
                   for object_class in used}
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_preview(staging, sample.rows(), sum(counts.values()))


def _check(report: ConversionReport) -> None:
    if report.total != report.crops + len(report.skipped):
        raise AssertionError(f"{report.total} {report.unit}, but {report.crops} crops + {len(report.skipped)} skipped")
    if report.crops == 0:
        reasons = Counter(reason for _, _, reason, _ in report.skipped).most_common()
        why = "; ".join(f"{count} {reason}" for reason, count in reasons) or "every picture is background"
        raise UserError(f"nothing to convert: {report.total} {report.unit}, no crop ({why})")


# ---- preview ----------------------------------------------------------------------------------------------

class _PreviewSample:
    """A random choice from a stream of manifest rows, the same in every run; every class, as far as there is room."""

    def __init__(self) -> None:
        import numpy as np
        self.random = np.random.default_rng(0).random
        self.found = defaultdict(list)  # class folder -> the rows with the lowest draws, as a heap, highest first

    def add(self, folder: str, row: tuple) -> None:
        heap, draw = self.found[folder], self.random()
        if len(heap) < PREVIEW_CROPS:
            heapq.heappush(heap, (-draw, row))
        elif draw < -heap[0][0]:
            heapq.heapreplace(heap, (-draw, row))

    def rows(self) -> list[tuple]:
        """First one row of each class, then a second; sorted by class."""
        ranked = [(rank, -draw, folder, row) for folder, heap in self.found.items()
                  for rank, (draw, row) in enumerate(sorted(heap, reverse=True))]
        return [row for *_, row in sorted(sorted(ranked)[:PREVIEW_CROPS], key=lambda item: (item[2], item[0]))]


def _write_preview(staging: Path, rows: Sequence[tuple], count: int) -> None:
    """A sheet of crops with their masks' outlines; of a whole image or tile the part around the object."""
    from sam_lora import figures
    from sam_lora.data import geometry, imaging
    cells = []
    for row in rows:
        named = dict(zip(contracts.MANIFEST_COLUMNS, row))
        image, mask = imaging.load_image(staging / named["image_path"]), imaging.load_mask(staging / named["mask_path"])
        name = PurePosixPath(named["mask_path"]).name
        name = name if len(name) <= 32 else f"{name[:17]}…{name[-14:]}"
        size_wh = mask.shape[::-1]
        window = geometry.square_box(geometry.pad_box(geometry.mask_to_xyxy(mask), 0.5, size_wh), size_wh)
        cells.append(figures.crop_cell(geometry.crop(image, window), geometry.crop(mask, window),
                                       str(named["class_name"]), name))
    imaging.write_jpeg(staging / contracts.PREVIEW_FILE, figures.crop_sheet(
        f"{len(rows)} of {count} crops, at random; the line is the mask's outline", cells))


# ---- one picture ------------------------------------------------------------------------------------------

@dataclass
class ImageResult:
    """`rows` in the order of MANIFEST_COLUMNS; `skipped`: (source_id, reason, detail); counts as in the report."""
    rows: list[tuple] = field(default_factory=list)
    objects: int = 0
    cut: int = 0
    pieces: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)


def convert_image(image: SourceImage, classes: Mapping[str, ObjectClass], settings: CropSettings,
                  staging: Path | None) -> ImageResult:
    """Read one photo, once, and write a crop and a mask for each of its objects."""
    from sam_lora.data import geometry, imaging
    result = ImageResult()
    try:
        pixels = imaging.load_image(image.path, image.upright, result.notes)
    except imaging.ImageError as error:
        result.skipped = [(item.source_id, IMAGE_BROKEN, error.reason) for item in image.objects]
        return result
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(image.path.read_bytes(), digest_size=16).hexdigest()
    grid = geometry.tile_grid((width, height), settings.tile) if settings.tile else []
    written: set[str] = set()  # images that several masks share
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
        if geometry.longer_side(box) < settings.min_size:
            result.skipped.append((item.source_id, TOO_SMALL, f"{box[2] - box[0]} x {box[3] - box[1]} px"))
            continue
        framed = _framed(mask, box, (width, height), settings, grid)
        if not framed:
            result.skipped.append((item.source_id, TOO_SMALL_IN_TILES, ""))
            continue
        result.objects += 1
        if len(framed) > 1:
            result.cut += 1
            result.pieces += len(framed)
        object_class = classes[item.class_key]
        rasteriser = (geometry.RECTANGLE_RASTERISER if item.is_rectangle
                      else geometry.RLE_RASTERISER if item.rle is not None else geometry.POLYGON_RASTERISER)
        for piece, piece_box, frame in framed:
            stem = f"{image.stem}.tile.{frame[0]}.{frame[1]}" if settings.tile else image.stem
            mask_name = f"{stem}_{item.index:04d}.png"
            image_name = f"{stem}.png" if settings.tile or settings.no_crop else mask_name
            image_path = f"{object_class.folder}/{contracts.IMAGES_FOLDER}/{image_name}"
            mask_path = f"{object_class.folder}/{contracts.MASKS_FOLDER}/{mask_name}"
            if staging is not None:
                if image_path not in written:
                    _write(staging / image_path, imaging.encode_png(geometry.crop(pixels, frame)))
                    written.add(image_path)
                _write(staging / mask_path, imaging.encode_png(geometry.paste(piece, piece_box, frame)))
            result.rows.append((
                image_path, mask_path, object_class.class_id, object_class.class_name, printable(image.name),
                image.split, printable(item.source_id), width, height, *frame, int(piece.sum()), rasteriser,
                digest))
    return result


def _framed(mask: "np.ndarray", box: "geometry.Box", resolution_wh: tuple[int, int], settings: CropSettings,
            grid: Sequence) -> list[tuple]:
    """An object's (mask, its box, the part of the photo to be cut out): one, unless tiles cut it; none: too small."""
    from sam_lora.data import geometry
    if grid:
        return geometry.cut_into_tiles(mask, box, grid, settings.min_size)
    if settings.no_crop:
        return [(mask, box, (0, 0, *resolution_wh))]
    frame = geometry.pad_box(box, settings.padding, resolution_wh)
    return [(mask, box, geometry.square_box(frame, resolution_wh) if settings.square else frame)]


def _mask_of(item: SourceObject, frame_wh: tuple[float, float] | None, resolution_wh: tuple[int, int], notes: Counter):
    """(mask, box) as `geometry.polygons_to_mask` gives it; None where empty. Raises ValueError, the reason."""
    import cv2
    import numpy as np

    from sam_lora.data import geometry
    width, height = resolution_wh
    if item.rle is None:
        scale = (1.0, 1.0) if frame_wh is None else (width / frame_wh[0], height / frame_wh[1])
        polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) * scale for polygon in item.polygons]
        return geometry.polygons_to_mask(polygons, resolution_wh)
    rle_height, rle_width = geometry.rle_size(item.rle)
    if (rle_width, rle_height) != resolution_wh and not same_aspect((rle_width, rle_height), resolution_wh):
        raise ValueError(RLE_SIZE)  # before decoding: fifty bytes of RLE can hold a quarter of a gigabyte
    mask = geometry.rle_to_mask(item.rle)
    if mask.shape != (height, width):
        notes[RLE_RESIZED] += 1
        mask = cv2.resize(mask.astype(np.uint8), resolution_wh, interpolation=cv2.INTER_NEAREST).astype(bool)
    return geometry.tighten(mask)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except FileNotFoundError:  # a class's first: looking each time would be a fifth of the work
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def same_aspect(first_wh: tuple[float, float], second_wh: tuple[float, float]) -> bool:
    """Is one size the other one scaled, to 1 % or a pixel of rounding?"""
    (w1, h1), (w2, h2) = sorted((first_wh, second_wh))
    return abs(w2 * h1 / h2 - w1) <= max(1.0, 0.01 * w1)


# ---- source files and names ---------------------------------------------------------------------------------

def source_files(root: Path, output_dir: Path, more_suffixes: Sequence[str] = (), notes: Counter | None = None
                 ) -> list[PurePosixPath]:
    """Picture files (and those with `more_suffixes`) below `root`, by suffix in any case; relative to it, sorted.

    Left out: hidden ones, class folders made earlier, pipes and the like, and links that lead out of `root`. Suffixes
    that are no picture's (.gif, .heic) are counted in `notes`.
    """
    from sam_lora.data.imaging import IMAGE_SUFFIXES
    suffixes = {*IMAGE_SUFFIXES, *more_suffixes}
    found, others = [], Counter()
    inside, output = root.resolve(), output_dir.resolve()
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")
                         and (here / name).resolve() != output
                         and not (here / name / contracts.MANIFEST_FILE).is_file()]
        for name in files:
            path = here / name
            suffix = path.suffix.lower()
            if name.startswith(".") or suffix in TEXT_SUFFIXES - suffixes:
                continue
            if suffix not in suffixes:
                others[printable(suffix)] += 1
            elif path.is_file() and (not path.is_symlink() or path.resolve().is_relative_to(inside)):
                found.append(PurePosixPath(path.relative_to(root).as_posix()))
    if others and notes is not None:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(others.items()))
        notes[f"{root}: files that are not taken as pictures: {kinds[:200]}"] += 1
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

    Where two pictures would share one, or one is another followed by `_0001`, `.tile.0.0` or both, a hash of the
    picture's path is added.
    """
    stems = [_safe_stem(image.path.stem) for image in images]
    count = Counter(stem.casefold() for stem in stems)
    result = []
    for image, stem in zip(images, stems):
        without_number = OBJECT_NUMBER.sub("", stem)
        shorter = {without_number, TILE_PLACE.sub("", without_number)} - {stem}
        if count[stem.casefold()] > 1 or len(stem.encode()) > 160 or any(base.casefold() in count for base in shorter):
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
    """A path or id that can be printed on one line and written as UTF-8: control characters, and bytes of a file name
    that are no UTF-8, become _."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "_", text)


def clean_name(name: object) -> str:
    """A class name as text, on one line; "" for what is no name."""
    if name is None or isinstance(name, list | dict | set) or (isinstance(name, int) and abs(name) > 10**18):
        return ""
    return printable(str(name)).strip()


def _safe_stem(stem: str) -> str:
    stem = unicodedata.normalize("NFC", stem)
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", stem)
    stem = printable(stem)
    return "_" + stem if stem.startswith(".") else stem


def _shortened(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore")
