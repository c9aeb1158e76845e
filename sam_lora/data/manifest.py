"""The manifest that the converters write beside the class folders: where each crop comes from.

Class, photo and split of a sample come from here, and so does the way of a mask back into its photo.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sam_lora import contracts
from sam_lora.data.samples import Sample
from sam_lora.data.split_tables import photo_stem
from sam_lora.data.splits import merge_groups, source_group
from sam_lora.errors import UserError
from sam_lora.tables import read_table

if TYPE_CHECKING:
    import numpy as np

NO_CLASS = "(no class)"


def class_names(samples: Sequence[Sample]) -> list[str]:
    """The class of each sample: from the class folder its mask (without one, its image) lies in.

    The true name comes from the manifest or classes.json beside the class folders, else from the folder's own name.
    """
    names_of_root: dict[Path, dict[str, str]] = {}
    found = []
    for sample in samples:
        folder = _class_folder(sample)
        if folder is None:
            found.append(NO_CLASS)
            continue
        if folder.parent not in names_of_root:
            names_of_root[folder.parent] = _true_class_names(folder.parent)
        slug = re.sub(r"^\d+_(?=.)", "", folder.name.removeprefix(contracts.CLASS_FOLDER_PREFIX))
        found.append(names_of_root[folder.parent].get(folder.name) or slug or NO_CLASS)
    return found


def source_photos(samples: Sequence[Sample]) -> list[str]:
    """What tells the photo of each sample apart, copies of one photo counted as one, as when the tables were split.

    From the manifest beside the class folders; where that does not know a sample, from its name in the class folder;
    elsewhere the image itself.
    """
    manifests: dict[Path, dict[str, dict[str, str]]] = {}
    groups, contents = [], []
    for sample in samples:
        folder, image, label = _class_folder(sample), sample.image.absolute(), sample.label or sample.image
        if folder is None:
            groups.append(str(image))
            contents.append(groups[-1])
            continue
        root = folder.parent
        if root not in manifests:
            manifests[root] = _manifest_rows(root)
        rows = [manifests[root].get(path.absolute().relative_to(root).as_posix()) for path in (label, image)
                if path.absolute().is_relative_to(root)]
        row = next((row for row in rows if row), {})
        photo = row.get("source_image") or photo_stem(image.name, label.name)
        groups.append(f"{root}/{source_group(photo)}")
        contents.append(row.get("source_digest") or groups[-1])
    return merge_groups(groups, contents)


def _class_folder(sample: Sample) -> Path | None:
    """The class folder that a sample's mask (without one, its image) lies in."""
    path = (sample.label or sample.image).absolute()
    return next((parent for parent in path.parents if parent.name.startswith(contracts.CLASS_FOLDER_PREFIX)), None)


def _manifest_rows(root: Path) -> dict[str, dict[str, str]]:
    """Path of a mask or image below `root` -> its row of the manifest; empty without one that names photos."""
    manifest = root / contracts.MANIFEST_FILE
    if not manifest.is_file():
        return {}
    rows = read_table(manifest, ("mask_path",), "the converter").to_dict("records")
    return ({row["image_path"]: row for row in rows if "image_path" in row} | {row["mask_path"]: row for row in rows})


def _true_class_names(root: Path) -> dict[str, str]:
    """Class folder -> true name, as far as the files beside the class folders tell."""
    manifest, classes = root / contracts.MANIFEST_FILE, root / contracts.CLASSES_FILE
    if manifest.is_file():
        table = read_table(manifest, ("mask_path", "class_name"), "the converter")
        return {mask.split("/")[0]: name for mask, name in zip(table["mask_path"], table["class_name"])}
    if classes.is_file():
        try:
            content = json.loads(classes.read_text(encoding="utf-8"))
            return {folder: str(entry["class_name"]) for folder, entry in content.items()}
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{classes}: cannot be read as the converter's list of classes; "
                            "make it again with the converter, or remove it") from error
    return {}


def mask_in_source(mask: "np.ndarray", row: Mapping[str, object]) -> "np.ndarray":
    """A crop's mask, predicted or true, (H, W) bool, in the frame of its photo: (source_height, source_width) bool.

    `row` is the crop's row of the manifest, cells as numbers or text. The photo is as `imaging.load_image` gives it.
    Of an object that tiles cut, the union of its pieces' masks is the whole. Raises ValueError for a mask of another
    size than the crop.
    """
    from sam_lora.data import geometry
    frame = tuple(int(row[f"crop_{corner}"]) for corner in ("x0", "y0", "x1", "y1"))
    size_wh = (frame[2] - frame[0], frame[3] - frame[1])
    if mask.shape != size_wh[::-1]:
        raise ValueError(f"{row['mask_path']}: the crop has {size_wh[0]} x {size_wh[1]} pixels, the mask "
                         f"{' x '.join(map(str, mask.shape[::-1]))}")
    return geometry.paste(mask, frame, (0, 0, int(row["source_width"]), int(row["source_height"])))
