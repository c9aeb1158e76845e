"""The manifest that the converters write beside the class folders: where each crop comes from.

The one place that says which class, photo and split a crop belongs to: to splitting (`Manifest`, used by `pairing`), to
scoring (`class_names`, `source_photos`), and to whoever pastes a mask back into its photo (`mask_in_source`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from sam_lora import contracts
from sam_lora.data.names import photo_stem
from sam_lora.data.photo_groups import group_by_name, merge_groups
from sam_lora.errors import UserError
from sam_lora.tables import read_table, row_lines, table_writer

if TYPE_CHECKING:
    import numpy as np

    from sam_lora.data.samples import Sample

NO_CLASS = "(no class)"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One crop; `contracts.MANIFEST_COLUMNS` says what each field means.

    As read, `class_id` is text, and what the file does not say is "" (of numbers None).
    """
    image_path: str
    mask_path: str
    class_id: int | str = ""
    class_name: str = ""
    source_image: str = ""
    source_split: str = ""
    source_id: str = ""
    source_width: int | None = None
    source_height: int | None = None
    crop_x0: int | None = None
    crop_y0: int | None = None
    crop_x1: int | None = None
    crop_y1: int | None = None
    mask_area: int | None = None
    rasteriser: str = ""
    source_digest: str = ""
    photo: str = ""        # only where a user has added the column

    @classmethod
    def from_cells(cls, cells: Mapping[str, object]) -> "ManifestRow":
        """{column: cell} -> row; cells as text or numbers, columns of other names left out."""
        known = {name: cells[name] for name in (*contracts.MANIFEST_COLUMNS, contracts.PHOTO_COLUMN) if name in cells}
        numbers = {name: _whole_number(known[name]) for name in _NUMBERS if name in known}
        return cls(**{"image_path": "", **known, **numbers})

    @property
    def folder(self) -> str:
        """The class folder, e.g. Class_crack."""
        return self.mask_path.split("/")[0]


def _whole_number(cell: object) -> int | None:
    try:
        number = float(cell)
    except (ValueError, TypeError):
        return None
    return int(number) if number.is_integer() else None


_NUMBERS = ("source_width", "source_height", "crop_x0", "crop_y0", "crop_x1", "crop_y1", "mask_area")
_cells = attrgetter(*contracts.MANIFEST_COLUMNS)


# ---- writing and reading ----------------------------------------------------------------------------------

@contextmanager
def manifest_writer(root: Path, name: str = contracts.MANIFEST_FILE) -> Iterator[Callable[[ManifestRow], None]]:
    """Write the manifest of `root`, or a file like it, row by row, by the function that is yielded."""
    with table_writer(root / name, contracts.MANIFEST_COLUMNS) as table:
        yield lambda row: table.writerow(_cells(row))


class Manifest:
    """The rows of a manifest, found by the paths that they are about. There may be none."""

    def __init__(self, rows: Sequence[ManifestRow]):
        self.rows = rows
        self._of_image = {row.image_path: row for row in rows if row.image_path}
        self._of_mask = {row.mask_path: row for row in rows}
        self._of_photo = {photo_stem(row.image_path, row.mask_path): row for row in rows}
        # the class folder's (class id, class name)
        self.class_of_folder = {row.folder: (str(row.class_id), row.class_name) for row in reversed(rows)}

    def of_mask(self, mask_path: str) -> ManifestRow | None:
        return self._of_mask.get(mask_path)

    def of_photo(self, stem: str) -> ManifestRow | None:
        """A row of the photo with that stem; what it says of the photo holds for all of the photo's objects."""
        return self._of_photo.get(stem)

    def of_any(self, *paths: str) -> ManifestRow | None:
        """The row of the first of `paths`, masks or images, that has one."""
        rows = (self._of_mask.get(path) or self._of_image.get(path) for path in paths)
        return next((row for row in rows if row), None)


def read_manifest(root: Path, columns: Sequence[str] = ("mask_path",), name: str = contracts.MANIFEST_FILE) -> Manifest:
    """The manifest of `root`, or a file like it, without rows where there is none.

    Raises UserError where one of `columns` is missing, or `source_split` is among them and not a split.
    """
    path = root / name
    if not path.is_file():
        return Manifest([])
    table = read_table(path, columns, contracts.MADE_BY["class folders"])
    if "source_split" in columns:
        for row, split in enumerate(table["source_split"]):
            if split not in ("", *contracts.SPLITS):
                raise UserError(f"{path}: row {row_lines(path, len(table))[row]}, source_split: found {split!r}, "
                                f"expected {', '.join(contracts.SPLITS)} or nothing")
    return Manifest([ManifestRow.from_cells(cells) for cells in table.to_dict("records")])


# ---- class and photo of samples ---------------------------------------------------------------------------

def class_names(samples: Sequence["Sample"]) -> list[str]:
    """The class of each sample: from the class folder its mask (without one, its image) lies in.

    The true name comes from the manifest or classes.json beside the class folders, else from the folder's own name.
    """
    names_of_root: dict[Path, dict[str, str]] = {}
    names = []
    for sample in samples:
        folder = _class_folder(sample)
        if folder is None:
            names.append(NO_CLASS)
            continue
        if folder.parent not in names_of_root:
            names_of_root[folder.parent] = _true_class_names(folder.parent)
        slug = re.sub(r"^\d+_(?=.)", "", folder.name.removeprefix(contracts.CLASS_FOLDER_PREFIX))
        names.append(names_of_root[folder.parent].get(folder.name) or slug or NO_CLASS)
    return names


def source_photos(samples: Sequence["Sample"]) -> list[str]:
    """The photo of each sample, copies of one photo counted as one, as when the tables were split.

    From the manifest beside the class folders; where that does not know a sample, from its name in the class folder;
    elsewhere the image itself.
    """
    manifests: dict[Path, Manifest] = {}
    photos: list[tuple[Path | None, str]] = []      # the folder of the class folders, the photo's file
    named, contents = [], []
    for sample in samples:
        folder, image, label = _class_folder(sample), sample.image.absolute(), sample.label or sample.image
        if folder is None:
            photos.append((None, str(image)))
            named.append("")
            contents.append("")
            continue
        root = folder.parent
        if root not in manifests:
            manifests[root] = read_manifest(root)
        row = manifests[root].of_any(*(path.absolute().relative_to(root).as_posix() for path in (label, image)
                                       if path.absolute().is_relative_to(root)))
        photos.append((root, (row and row.source_image) or photo_stem(image.name, label.name)))
        named.append((row and row.photo) or "")
        contents.append((row and row.source_digest) or "")
    by_name = {root: group_by_name(photo for its_root, photo in photos if its_root == root) for root in manifests}
    groups = [f"{root}/{name or by_name[root][photo].photo}" if root else photo
              for (root, photo), name in zip(photos, named)]
    return merge_groups(groups, [content or group for content, group in zip(contents, groups)])


def _class_folder(sample: "Sample") -> Path | None:
    """The class folder that a sample's mask (without one, its image) lies in."""
    path = (sample.label or sample.image).absolute()
    return next((parent for parent in path.parents if parent.name.startswith(contracts.CLASS_FOLDER_PREFIX)), None)


def _true_class_names(root: Path) -> dict[str, str]:
    """Class folder -> true name, as far as the files beside the class folders say."""
    if (root / contracts.MANIFEST_FILE).is_file():
        manifest = read_manifest(root, ("mask_path", "class_name"))
        return {folder: name for folder, (_, name) in manifest.class_of_folder.items()}
    classes = root / contracts.CLASSES_FILE
    if not classes.is_file():
        return {}
    try:
        content = json.loads(classes.read_text(encoding="utf-8"))
        return {folder: str(entry["class_name"]) for folder, entry in content.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{classes}: cannot be read as the converter's list of classes; "
                        "make it again with the converter, or remove it") from error


# ---- back into the photo ----------------------------------------------------------------------------------

def mask_in_source(mask: "np.ndarray", row: ManifestRow | Mapping[str, object]) -> "np.ndarray":
    """A crop's mask, predicted or true, (H, W) bool, in the frame of its photo: (source_height, source_width) bool.

    `row` is the crop's row of the manifest; as a mapping, its cells are numbers or text. The photo is as
    `imaging.load_image` gives it. Where tiles cut an object, the union of its pieces' masks is the whole. Raises
    ValueError for a mask of another size than the crop.
    """
    from sam_lora.data import geometry
    row = row if isinstance(row, ManifestRow) else ManifestRow.from_cells(row)
    frame = (row.crop_x0, row.crop_y0, row.crop_x1, row.crop_y1)
    if None in (*frame, row.source_width, row.source_height):
        raise ValueError(f"{row.mask_path}: the manifest does not say where in its photo the crop lies")
    size_wh = (frame[2] - frame[0], frame[3] - frame[1])
    if mask.shape != size_wh[::-1]:
        raise ValueError(f"{row.mask_path}: the crop has {size_wh[0]} x {size_wh[1]} pixels, the mask "
                         f"{' x '.join(map(str, mask.shape[::-1]))}")
    return geometry.paste(mask, frame, (0, 0, row.source_width, row.source_height))
