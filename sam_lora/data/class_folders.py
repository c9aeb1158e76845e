"""Class folders: photos and their objects -> crops, masks and the manifest, by many processes.

    processed_dataset/Class_<name>/images/<stem>_<index>.png   the crop, RGB
    processed_dataset/Class_<name>/masks/<stem>_<index>.png    its mask, 0 or 255, same name and size
    processed_dataset/instances.csv                            the manifest: a row per crop
    processed_dataset/classes.json                             folder -> class_id, class_name
    processed_dataset/conversion_report.csv                    a row per skipped label row or annotation
    processed_dataset/preview.jpg                              some of the crops with their masks' outlines

`<stem>` is the photo's file name without suffix (see `names`), `<index>` the object's line or position among its
photo's objects. With `no_crop` the photo is written once to each of its classes' folders as images/<stem>.png and its
masks are masks/<stem>_<index>.png; with `tile` a tile of it is images/<stem>.tile.<x0>.<y0>.png, its masks likewise.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam_lora import contracts
from sam_lora.data.conversion_report import (
    NO_PIXEL,
    PHOTO_UNREADABLE,
    RLE_RESIZED,
    RLE_SIZE,
    TOO_SMALL,
    TOO_SMALL_IN_TILES,
    ConversionReport,
)
from sam_lora.data.manifest import ManifestRow, manifest_writer
from sam_lora.data.names import printable, unique_stems
from sam_lora.data.sources import ObjectClass, SourceImage, SourceObject
from sam_lora.files import atomic_path, staged_folder
from sam_lora.workers import map_in_order

if TYPE_CHECKING:
    import numpy as np

    from sam_lora.data.geometry import Box

# numpy, OpenCV and Pillow come in with the functions that need them: both converters import this module for --help

OWNED = (f"{contracts.CLASS_FOLDER_PREFIX}*", contracts.MANIFEST_FILE, contracts.CLASSES_FILE,
         contracts.CONVERSION_REPORT_FILE, contracts.PREVIEW_FILE, contracts.BACKGROUND_FOLDER,
         contracts.BACKGROUND_FILE)


EMPTY_TILES = 2     # of a photo without objects


@dataclass(frozen=True)
class CropSettings:
    padding: float = 0.1
    min_size: int = 10
    no_crop: bool = False
    square: bool = False
    tile: int | None = None    # pixels; at most one of these three


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
    """Convert every object of `images` into `staging`; crops, skips and notes go to `report`, which is then closed.

    The result does not depend on `num_workers`. `staging` None: convert, but write nothing. Raises UserError if there
    is not a single crop.
    """
    from sam_lora.data.preview import PreviewSample, write_preview
    images = _named(images)
    whole = settings.no_crop or settings.tile
    with_objects = [image for image in images if image.objects or (whole and image.complete)]
    convert = functools.partial(convert_image, classes=classes, settings=settings, staging=staging)
    pairs: Counter = Counter()  # of image and mask, by class folder
    sample, background = PreviewSample(), []
    with ExitStack() as stack:
        write_row = None if staging is None else stack.enter_context(manifest_writer(staging))
        results = stack.enter_context(closing(map_in_order(convert, with_objects, num_workers, "photos")))
        for image, result in zip(with_objects, results):
            for rows in result.crops:  # on disk at once: a million of them are not kept
                report.crop(len(rows))
                for row in rows:
                    pairs[row.folder] += 1
                    sample.add(row)
                    if write_row is not None:
                        write_row(row)
            background += result.background
            for source_id, reason, detail in result.skipped:
                report.skip(image.label_file, source_id, reason, detail)
            report.notes.update(result.notes)
            for text, source_id in result.doubts:
                report.doubt(text, source_id)
    report.close()
    if background:
        report.notes[f"{len(background)} {'tiles' if settings.tile else 'photos'} without objects are in "
                     f"{contracts.BACKGROUND_FOLDER}/"] += 1
    used = [object_class for object_class in classes.values() if object_class.folder in pairs]
    report.classes.update({object_class.class_name: pairs[object_class.folder] for object_class in used})
    if staging is not None:
        report.write(staging)
        if background:
            with manifest_writer(staging, contracts.BACKGROUND_FILE) as write_row:
                for row in background:
                    write_row(row)
        _write_classes(staging, used)
        write_preview(staging, sample.rows(), sample.count)


def _named(images: Sequence[SourceImage]) -> list[SourceImage]:
    """The photos in the order of their names, each with its stem."""
    images = sorted(images, key=lambda image: (image.name, image.split))
    stems = unique_stems([(image.name, image.split) for image in images])
    one_split = len({image.split for image in images}) == 1  # which is no split
    return [replace(image, stem=stem, split="" if one_split else image.split) for image, stem in zip(images, stems)]


def _write_classes(staging: Path, classes: Sequence[ObjectClass]) -> None:
    content = {object_class.folder: {"class_id": object_class.class_id, "class_name": object_class.class_name}
               for object_class in classes}
    with atomic_path(staging / contracts.CLASSES_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- one photo --------------------------------------------------------------------------------------------

@dataclass
class ImageResult:
    """`crops`: for each converted object its manifest rows, several where tiles cut it; `skipped`: (source_id, reason,
    detail); `background`: whole photos or tiles without objects; `doubts`: (what may be wrong, source_id)."""
    crops: list[list[ManifestRow]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    background: list[ManifestRow] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)
    doubts: list[tuple[str, str]] = field(default_factory=list)


class UnusableObject(ValueError):
    """Why an object is no crop: (reason, detail)."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def convert_image(image: SourceImage, classes: Mapping[str, ObjectClass], settings: CropSettings,
                  staging: Path | None) -> ImageResult:
    """Read one photo, once, and write a crop and a mask for each of its objects."""
    from sam_lora.data import boxes, geometry, imaging
    result = ImageResult()
    try:
        pixels = imaging.load_image(image.path, image.upright, result.notes)
    except imaging.ImageError as error:
        result.skipped = [(item.source_id, PHOTO_UNREADABLE, error.reason) for item in image.objects]
        if not image.objects:
            result.doubts = [("photos without objects cannot be read", f"{image.name}: {error.reason}")]
        return result
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(image.path.read_bytes(), digest_size=16).hexdigest()
    grid = geometry.tile_grid((width, height), settings.tile) if settings.tile else []
    written: set[str] = set()  # images that several masks share
    for item in image.objects:
        try:
            mask, box = _mask_of(item, image.frame_wh, (width, height), result.notes)
            pieces = _framed(mask, box, (width, height), settings, grid)
        except UnusableObject as error:
            result.skipped.append((item.source_id, error.reason, error.detail))
            continue
        if doubt := boxes.doubt(item, box, image.frame_wh, (width, height)):
            result.doubts.append((doubt, item.source_id))
        object_class, rows = classes[item.class_key], []
        for piece, piece_box, frame in pieces:
            image_path, mask_path = _crop_paths(image.stem, item.index, object_class.folder, frame, settings)
            if staging is not None:
                if image_path not in written:
                    _write(staging / image_path, imaging.encode_png(geometry.crop(pixels, frame)))
                    written.add(image_path)
                _write(staging / mask_path, imaging.encode_png(geometry.paste(piece, piece_box, frame)))
            rows.append(ManifestRow(
                image_path, mask_path, object_class.class_id, object_class.class_name, printable(image.name),
                image.split, printable(item.source_id), width, height, *frame, int(piece.sum()), _rasteriser(item),
                digest))
        result.crops.append(rows)
    if (settings.no_crop or settings.tile) and image.complete and not result.skipped:
        result.background = _background(image, pixels, result.crops, grid, digest, staging)
    return result


def _background(image: SourceImage, pixels: "np.ndarray", crops: Sequence[Sequence[ManifestRow]],
                grid: Sequence[tuple["Box", "Box"]], digest: str, staging: Path | None) -> list[ManifestRow]:
    """Write what of a photo is without objects: all of it, or tiles, no more than it has tiles with objects.

    Of a photo without objects EMPTY_TILES are taken. Returns their rows of the manifest, without a mask.
    """
    from sam_lora.data import geometry, imaging
    height, width = pixels.shape[:2]
    frames, most = [(0, 0, width, height)] * (not crops), 1
    if grid:
        taken = [(row.crop_x0, row.crop_y0, row.crop_x1, row.crop_y1) for rows in crops for row in rows]
        boxes = [_object_box(rows) for rows in crops]
        frames = [tile for tile, _ in grid if not any(_overlap(tile, box) for box in boxes)]
        most = len(set(taken)) if crops else EMPTY_TILES
    rows = []
    for frame in frames[::max(1, -(-len(frames) // most))]:
        name = f"{image.stem}.tile.{frame[0]}.{frame[1]}.png" if grid else f"{image.stem}.png"
        path = f"{contracts.BACKGROUND_FOLDER}/{contracts.IMAGES_FOLDER}/{name}"
        if staging is not None:
            _write(staging / path, imaging.encode_png(geometry.crop(pixels, frame)))
        rows.append(ManifestRow(path, "", "", "", printable(image.name), image.split, "", width, height, *frame,
                                source_digest=digest))
    return rows


def _object_box(rows: Sequence[ManifestRow]) -> "Box":
    """Around all tiles that show an object, which is somewhere in them."""
    return (min(row.crop_x0 for row in rows), min(row.crop_y0 for row in rows), max(row.crop_x1 for row in rows),
            max(row.crop_y1 for row in rows))


def _overlap(one: "Box", other: "Box") -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _crop_paths(stem: str, index: int, folder: str, frame: "Box", settings: CropSettings) -> tuple[str, str]:
    """The image's and the mask's path below the class folders; several masks of a photo or tile share its image."""
    stem = f"{stem}.tile.{frame[0]}.{frame[1]}" if settings.tile else stem
    mask_name = f"{stem}_{index:04d}.png"
    image_name = f"{stem}.png" if settings.tile or settings.no_crop else mask_name
    return f"{folder}/{contracts.IMAGES_FOLDER}/{image_name}", f"{folder}/{contracts.MASKS_FOLDER}/{mask_name}"


def _rasteriser(item: SourceObject) -> str:
    from sam_lora.data import geometry, rle
    if item.is_rectangle:
        return geometry.RECTANGLE_RASTERISER
    return geometry.POLYGON_RASTERISER if item.rle is None else rle.RASTERISER


def _framed(mask: "np.ndarray", box: "Box", resolution_wh: tuple[int, int], settings: CropSettings,
            grid: Sequence[tuple["Box", "Box"]]) -> list[tuple["np.ndarray", "Box", "Box"]]:
    """(mask, its box, the part of the photo to cut out), for each piece where tiles cut it. Raises UnusableObject."""
    from sam_lora.data import geometry
    if geometry.longer_side(box) < settings.min_size:
        raise UnusableObject(TOO_SMALL, f"{box[2] - box[0]} x {box[3] - box[1]} px")
    if grid:
        pieces = geometry.cut_into_tiles(mask, box, grid, settings.min_size)
        if not pieces:
            raise UnusableObject(TOO_SMALL_IN_TILES)
        return pieces
    if settings.no_crop:
        return [(mask, box, (0, 0, *resolution_wh))]
    frame = geometry.pad_box(box, settings.padding, resolution_wh)
    return [(mask, box, geometry.square_box(frame, resolution_wh) if settings.square else frame)]


def _mask_of(item: SourceObject, frame_wh: tuple[float, float] | None, resolution_wh: tuple[int, int], notes: Counter
             ) -> tuple["np.ndarray", "Box"]:
    """(mask, box) as `geometry.polygons_to_mask` gives it. Raises UnusableObject."""
    import numpy as np

    from sam_lora.data import geometry
    width, height = resolution_wh
    try:
        if item.rle is not None:
            outlined = _mask_of_rle(item.rle, resolution_wh, notes)
        else:
            scale = (1.0, 1.0) if frame_wh is None else (width / frame_wh[0], height / frame_wh[1])
            polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) * scale for polygon in item.polygons]
            outlined = geometry.polygons_to_mask(polygons, resolution_wh)
    except UnusableObject:
        raise
    except ValueError as error:
        raise UnusableObject(str(error)) from None
    if outlined is None:
        raise UnusableObject(NO_PIXEL)
    return outlined


def _mask_of_rle(encoded: dict, resolution_wh: tuple[int, int], notes: Counter) -> tuple["np.ndarray", "Box"] | None:
    import cv2
    import numpy as np

    from sam_lora.data import geometry, rle
    rle_height, rle_width = rle.rle_size(encoded)
    if (rle_width, rle_height) != resolution_wh and not geometry.same_aspect((rle_width, rle_height), resolution_wh):
        # before decoding: fifty bytes of RLE can hold a quarter of a gigabyte
        raise UnusableObject(RLE_SIZE, f"{rle_width} x {rle_height}, the photo {resolution_wh[0]} x {resolution_wh[1]}")
    mask = rle.rle_to_mask(encoded)
    if mask.shape[::-1] != resolution_wh:
        notes[RLE_RESIZED] += 1
        mask = cv2.resize(mask.astype(np.uint8), resolution_wh, interpolation=cv2.INTER_NEAREST).astype(bool)
    return geometry.tighten(mask)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except FileNotFoundError:  # a class's first: looking each time would be a fifth of the work
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
