"""All objects of a photo, put together again from the rows of a table, where each row has one.

A photo of several classes lies once in each of their class folders, under the same file name. Of a photo cut into
tiles, each object is in the table for one tile or in pieces for several, though its neighbours show it too; the
manifest says where. A row without label and prompt is a photo without objects.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sam_lora import contracts
from sam_lora.data.manifest import ManifestRow, class_names, read_manifest
from sam_lora.data.names import TILE_PLACE
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_Piece = tuple[Path, ManifestRow | None]    # a mask, and where it lies


def photo_key(sample: Sample) -> Hashable:
    """The same for all rows that show the same photo, or the same tile of one."""
    root = class_root(sample)
    return (root, sample.image.name) if root else sample.image.absolute()


def class_root(sample: Sample) -> Path | None:
    """The folder that holds the class folders, None for an image outside of any."""
    return next((parent.parent for parent in sample.image.absolute().parents
                 if parent.name.startswith(contracts.CLASS_FOLDER_PREFIX)
                 or parent.name == contracts.BACKGROUND_FOLDER), None)


def group_photos(samples: Sequence[Sample]) -> dict[Hashable, list[int]]:
    """{photo_key: its rows}, both in the order of the table."""
    rows: dict[Hashable, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(photo_key(sample), []).append(row)
    return rows


@dataclass(frozen=True)
class VisibleObject:
    """An object that an image shows: its class, and its masks with where their top left corners lie (xy) in it."""

    class_name: str
    pieces: tuple[tuple[Path, tuple[int, int]], ...]

    def mask(self, size_wh: tuple[int, int]) -> "np.ndarray":
        """(H, W) bool in the image's frame. UserError for a mask that does not fit the image."""
        import numpy as np

        from sam_lora.data import imaging
        width, height = size_wh
        whole = np.zeros((height, width), dtype=bool)
        for label, (left, top) in self.pieces:
            mask = imaging.load_mask(label)
            if not left and not top and len(self.pieces) == 1 and mask.shape != whole.shape:
                raise UserError(f"{label}: is {mask.shape[1]}x{mask.shape[0]} px, expected {width}x{height} px as its "
                                "image")
            x0, y0 = max(left, 0), max(top, 0)
            part = mask[y0 - top:height - top, x0 - left:width - left]
            whole[y0:y0 + part.shape[0], x0:x0 + part.shape[1]] |= part
        return whole


def visible_objects(samples: Sequence[Sample]) -> dict[Hashable, list[VisibleObject]]:
    """{photo_key: the objects that the photo or tile shows}, as far as the table has them; a tile's also where they
    belong to a neighbour that a split by area has left out. Raises UserError."""
    names, places = class_names(samples), _places(samples)
    of_source: dict[Hashable, dict[Hashable, list[_Piece]]] = {}      # photo -> object -> its pieces
    for row, (sample, name, place) in enumerate(zip(samples, names, places)):
        if sample.label is not None:
            objects = of_source.setdefault(_source(sample, place), {})
            objects.setdefault((name, (place.source_id if place else "") or row), []).append((sample.label, place))
    for source, name, piece in _left_out(samples, names, places):
        of_source.setdefault(source, {}).setdefault((name, piece[1].source_id or piece[0]), []).append(piece)
    visible = {}
    for key, rows in group_photos(samples).items():
        here = places[rows[0]]
        shown = []
        for (name, _), pieces in of_source.get(_source(samples[rows[0]], here), {}).items():
            placed = tuple((label, _offset(here, place)) for label, place in pieces
                           if here is None or _overlap(here, place))
            if placed:
                shown.append(VisibleObject(name, placed))
        visible[key] = shown
    return visible


def _left_out(samples: Sequence[Sample], names: Sequence[str], places: Sequence[ManifestRow | None]
              ) -> Iterator[tuple[Hashable, str, _Piece]]:
    """(photo, class name, piece) of objects in tiles beside those of the table, of its classes and not in it."""
    tiles: dict[Path, dict[Hashable, set[tuple]]] = {}      # folder of the class folders -> photo -> boxes in the table
    known = {sample.label.absolute() for sample in samples if sample.label}
    for sample, place in zip(samples, places):
        if place and TILE_PLACE.search(sample.image.stem):
            boxes = tiles.setdefault(class_root(sample), {}).setdefault(_source(sample, place), set())
            boxes.add((place.crop_x0, place.crop_y0, place.crop_x1, place.crop_y1))
    for root, boxes_of in tiles.items():
        for row in read_manifest(root).rows:
            source = (root, row.source_image, row.source_split)
            if (source in boxes_of and row.class_name in names and root / row.mask_path not in known and _is_placed(row)
                    and any(x0 < row.crop_x1 and row.crop_x0 < x1 and y0 < row.crop_y1 and row.crop_y0 < y1
                            for x0, y0, x1, y1 in boxes_of[source]) and _has_mask(root, row)):
                yield source, row.class_name, (root / row.mask_path, row)


def _has_mask(root: Path, row: ManifestRow) -> bool:
    """Is the mask still there, as large as its crop? Step 2 leaves others out."""
    from sam_lora.data import imaging
    try:
        size_wh = imaging.image_size(root / row.mask_path)
    except imaging.ImageError:
        return False
    return tuple(size_wh) == (row.crop_x1 - row.crop_x0, row.crop_y1 - row.crop_y0)


def count_whole(samples: Sequence[Sample]) -> int:
    """How many rows show, as far as is known, whole photos or tiles, all of whose objects are in the table.

    Of a crop around one object, or an image outside of class folders, that cannot be said.
    """
    return sum(_is_whole(sample, place) for sample, place in zip(samples, _places(samples)))


def _is_whole(sample: Sample, place: ManifestRow | None) -> bool:
    if class_root(sample) is None:
        return False
    if sample.label is None or TILE_PLACE.search(sample.image.stem):
        return True
    if place:
        return (place.crop_x0, place.crop_y0, place.crop_x1, place.crop_y1) == (0, 0, place.source_width,
                                                                                place.source_height)
    return sample.image.name != sample.label.name     # a crop and its mask have the same name


def _places(samples: Sequence[Sample]) -> list[ManifestRow | None]:
    """What the manifests say of each sample, None unless they say where in its photo it lies."""
    manifests = {}
    places = []
    for sample in samples:
        root = class_root(sample)
        if root is not None and root not in manifests:
            manifests[root] = read_manifest(root)
        paths = [path.absolute().relative_to(root).as_posix() for path in (sample.label, sample.image)
                 if root is not None and path is not None and path.absolute().is_relative_to(root)]
        row = manifests[root].of_any(*paths) if root is not None else None
        places.append(row if row and _is_placed(row) else None)
    return places


def _is_placed(row: ManifestRow) -> bool:
    return bool(row.source_image) and None not in (row.crop_x0, row.crop_y0, row.crop_x1, row.crop_y1)


def _source(sample: Sample, place: ManifestRow | None) -> Hashable:
    return (class_root(sample), place.source_image, place.source_split) if place else photo_key(sample)


def _offset(here: ManifestRow | None, there: ManifestRow | None) -> tuple[int, int]:
    return (there.crop_x0 - here.crop_x0, there.crop_y0 - here.crop_y0) if here and there else (0, 0)


def _overlap(here: ManifestRow, there: ManifestRow) -> bool:
    return (here.crop_x0 < there.crop_x1 and there.crop_x0 < here.crop_x1
            and here.crop_y0 < there.crop_y1 and there.crop_y0 < here.crop_y1)
