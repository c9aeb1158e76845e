"""Class folders -> the rows of the split tables: images paired with masks, three points each, a split; then the files.

The folders are the truth. The manifest, where there is one, says what belongs together and which photo, class and
split a pair comes from; pairs deleted by hand are gone, and files it does not know are paired by name.
"""

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sam_lora import contracts, workers
from sam_lora.data import splits
from sam_lora.data.class_folders import OBJECT_NUMBER, TILE_PLACE, printable
from sam_lora.data.imaging import IMAGE_SUFFIXES, ImageError, load_image, load_mask
from sam_lora.errors import UserError
from sam_lora.tables import read_table, write_tables

if TYPE_CHECKING:
    import pandas as pd

CONVERTERS = "process_yolo_to_classwise.py (YOLO) or process_coco_dataset.py (COCO)"
SHOWN = 5                                     # names given for each reason

Strategy = Callable[[np.ndarray], np.ndarray]  # (H, W) bool -> (3, 2) integer xy


class Pair(NamedTuple):
    """One object: an image, its mask, and where they come from. Paths as written from the current folder, with /."""
    image_path: str
    mask_path: str
    class_id: str
    class_name: str
    source_image: str
    source_split: str      # train, val, test, or "" where the data set does not say
    source_digest: str = ""    # of the photo's file; "" where the manifest does not say


class Skipped(NamedTuple):
    path: str
    reason: str


class ClassFolders(NamedTuple):
    pairs: list[Pair]
    class_names: list[str]   # of every class known, with or without a pair
    skipped: list[Skipped]
    notes: list[str]


# ---- reading ----------------------------------------------------------------------------------------------

def read_class_folders(dataset_dir: str | Path, class_of_folder: Callable[[str], tuple[str | None, str]]
                       ) -> ClassFolders:
    """Pair the images and masks of every class folder, sorted by path.

    `class_of_folder`: what follows `Class_` in a folder's name -> (class id, class name), used where the manifest does
    not know the folder; an id of None becomes the folder's place in sort order. Raises UserError.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        what = "is a file, expected the folder of the class folders" if root.exists() else "no such folder"
        raise UserError(f"{root}: {what}; make it with {CONVERTERS}")
    folders = sorted((entry for entry in root.iterdir()
                      if entry.is_dir() and entry.name.startswith(contracts.CLASS_FOLDER_PREFIX)),
                     key=lambda folder: folder.name)
    if not folders:
        found = sorted(entry.name for entry in root.iterdir())
        raise UserError(f"{root}: no {contracts.CLASS_FOLDER_PREFIX}<name> folders; found "
                        f"{', '.join(found[:SHOWN]) + (' …' if len(found) > SHOWN else '') if found else 'nothing'}; "
                        f"make them with {CONVERTERS}")
    manifest = _read_manifest(root)
    pairs, skipped = [], []
    listed = {folder.name: (_list(folder / contracts.IMAGES_FOLDER, skipped),
                            _list(folder / contracts.MASKS_FOLDER, skipped)) for folder in folders}
    unused = {f"{name}/{contracts.IMAGES_FOLDER}/{image}" for name, (images, _) in listed.items() for image in images}
    every_image = frozenset(unused)
    row_of_mask = {row["mask_path"]: row for row in manifest}
    row_of_photo = {photo_stem(row["image_path"], row["mask_path"]): row for row in manifest}
    classes = {row["mask_path"].split("/")[0]: (row["class_id"], row["class_name"]) for row in reversed(manifest)}

    for position, folder in enumerate(folders):
        images, masks = listed[folder.name]
        image_of_stem = {PurePosixPath(image).stem: image for image in reversed(images)}
        image_of_stem |= {image: image for image in images}  # the very same name goes first
        if folder.name not in classes:
            class_id, class_name = class_of_folder(printable(folder.name.removeprefix(contracts.CLASS_FOLDER_PREFIX)))
            classes[folder.name] = (str(position) if class_id is None else class_id, class_name)
        for mask in masks:
            mask_path = f"{folder.name}/{contracts.MASKS_FOLDER}/{mask}"
            row = row_of_mask.get(mask_path)
            image_path = (row["image_path"] if row else
                          f"{folder.name}/{contracts.IMAGES_FOLDER}/{_image_for(mask, image_of_stem)}")
            if image_path not in every_image:
                skipped.append(Skipped((root / mask_path).as_posix(), "mask without its image"))
                continue
            unused.discard(image_path)
            photo = photo_stem(image_path, mask_path)
            origin = row or row_of_photo.get(photo)
            class_id, class_name = (row["class_id"], row["class_name"]) if row else classes[folder.name]
            pairs.append(Pair((root / image_path).as_posix(), (root / mask_path).as_posix(), class_id, class_name,
                              *((origin["source_image"], origin["source_split"], origin["source_digest"]) if origin
                                else (photo, ""))))
    skipped += [Skipped((root / path).as_posix(), "image without a mask") for path in unused]
    class_names = sorted({name for _, name in classes.values()} | {row["class_name"] for row in manifest})
    notes = []
    if not manifest:
        notes.append(f"no {root / contracts.MANIFEST_FILE}: classes go by folder name and photos by file name, where "
                     f"<photo>_0003 is an object of <photo>: {len({pair.source_image for pair in pairs})} photos")
    return ClassFolders(sorted(pairs), class_names, sorted(skipped), notes)


def _read_manifest(root: Path) -> list[dict[str, str]]:
    """Rows of the manifest, none where there is no manifest."""
    path = root / contracts.MANIFEST_FILE
    if not path.exists():
        return []
    columns = ("image_path", "mask_path", "class_id", "class_name", "source_image", "source_split")
    table = read_table(path, columns, CONVERTERS)
    odd = table.index[~table["source_split"].isin(("", *contracts.SPLITS))]
    if len(odd):
        raise UserError(f"{path}: row {odd[0] + 1}, source_split: found {table['source_split'][odd[0]]!r}, expected "
                        f"{', '.join(contracts.SPLITS)} or nothing")
    if "source_digest" not in table:  # a manifest of an earlier version
        table["source_digest"] = ""
    return table[[*columns, "source_digest"]].to_dict("records")


def _list(folder: Path, skipped: list[Skipped]) -> list[str]:
    """Names of the image files in `folder`, sorted; a folder that is not there has none. Others go to `skipped`."""
    if not folder.is_dir():
        return []
    images = []
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")):
        text = path.as_posix()
        if printable(text) != text:
            skipped.append(Skipped(printable(text), "file name is not UTF-8, as a table must be"))
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append(Skipped(text, "not an image file by its name"))
        else:
            images.append(path.name)
    return images


def _image_for(mask: str, images: Mapping[str, str]) -> str | None:
    """The image of that name, of that stem, or of the longest stem that `mask` starts with up to a _ - . or blank."""
    ends = [len(mask), *(index for index in range(len(mask) - 1, 0, -1) if mask[index] in "_-. ")]
    return next((images[mask[:end]] for end in ends if mask[:end] in images), None)


def photo_stem(image_path: str, mask_path: str) -> str:
    """What the names say of the photo: a crop, named as its mask, is <photo>_<number>; else the image is the photo or,
    as <photo>.tile.<x0>.<y0>, a tile of it."""
    image, mask = PurePosixPath(image_path).stem, PurePosixPath(mask_path).stem
    return OBJECT_NUMBER.sub("", image) if image == mask else TILE_PLACE.sub("", image)


# ---- points -----------------------------------------------------------------------------------------------

def place_points(folders: ClassFolders, strategy: Strategy, num_workers: int) -> tuple["pd.DataFrame", list[Skipped]]:
    """Three points for each pair -> (table, everything that was skipped).

    The table has SPLIT_COLUMNS, source_image, source_split and `group`, which names what must stay on one side: copies
    of one photo, and photos of identical content. Raises UserError if no pair is usable.
    """
    import pandas as pd
    masks_of_image = defaultdict(list)
    for pair in folders.pairs:
        masks_of_image[pair.image_path].append(pair.mask_path)
    digests, found, skipped = {}, {}, list(folders.skipped)
    points_of_image = functools.partial(_points_of_image, strategy=strategy)
    jobs = list(masks_of_image.items())
    with closing(workers.map_in_order(points_of_image, jobs, num_workers, "points")) as results:
        for (image_path, mask_paths), (digest, outcomes) in zip(jobs, results):
            digests[image_path] = digest
            for mask_path, outcome in zip(mask_paths, outcomes):
                if isinstance(outcome, str):
                    skipped.append(Skipped(mask_path, outcome))
                else:
                    found[mask_path] = outcome
    if not found:
        reasons = "; ".join(f"{len(paths)} skipped: {reason} (e.g. {paths[0]})"
                            for reason, paths in _by_reason(skipped).items())
        raise UserError(f"no usable pair of image and mask in the class folders{': ' if reasons else ''}{reasons}; "
                        f"make them with {CONVERTERS}")
    kept = [pair for pair in folders.pairs if pair.mask_path in found]
    rows = [(pair.image_path, pair.mask_path, pair.class_id, pair.class_name, *found[pair.mask_path],
             pair.source_image, pair.source_split) for pair in kept]
    table = pd.DataFrame(rows, columns=[*contracts.SPLIT_COLUMNS, contracts.SOURCE_COLUMN, "source_split"])
    groups = [splits.source_group(pair.source_image if PurePosixPath(pair.source_image).suffix.lower() in IMAGE_SUFFIXES
                                  else pair.source_image + ".png") for pair in kept]
    groups = splits.merge_groups(groups, [digests[pair.image_path] for pair in kept])
    table["group"] = splits.merge_groups(groups, [pair.source_digest or group for pair, group in zip(kept, groups)])
    return table, skipped


def _points_of_image(image_and_masks: tuple[str, Sequence[str]], strategy: Strategy
                     ) -> tuple[str, list[list[int] | str]]:
    """Digest of the image file; for each mask its points [x1, y1, x2, …], or the reason why not."""
    image_path, mask_paths = image_and_masks
    try:
        shape = load_image(image_path).shape[:2]
    except ImageError as error:
        return "", [f"image: {error.reason}"] * len(mask_paths)
    outcomes: list[list[int] | str] = []
    for mask_path in mask_paths:
        try:
            mask = load_mask(mask_path)
        except ImageError as error:
            outcomes.append(f"mask: {error.reason}")
            continue
        if mask.shape != shape:
            outcomes.append("mask of another size than its image")
        elif not mask.any():
            outcomes.append("empty mask")
        else:
            outcomes.append(strategy(mask).ravel().tolist())
    return hashlib.blake2b(Path(image_path).read_bytes(), digest_size=16).hexdigest(), outcomes


# ---- splitting --------------------------------------------------------------------------------------------

def split_rows(table: "pd.DataFrame", fractions: Sequence[float], seed: int, resplit: bool
               ) -> tuple["pd.DataFrame", list[str]]:
    """Add the column `split` to what `place_points` gave -> (table, what happened, in words)."""
    groups, class_ids = table["group"].tolist(), table["class_id"].tolist()
    own = table["source_split"].tolist()
    if resplit:
        split = splits.random_split(groups, class_ids, fractions, seed)
        notes = ["split anew" + (", the data set's own split put aside" if any(own) else "")]
    else:
        split, notes = splits.complete_split(own, groups, class_ids, fractions, seed)
    table = table.assign(**{contracts.SPLIT_COLUMN: split})
    leak = splits.find_leak(groups, split)
    notes.append(f"source images in more than one split: {len(leak.groups)} of {len(set(groups))} "
                 "(copies of one photo count once)")
    if leak.groups:
        spoilt = ", ".join(f"{count} of {split.count(side)} {side} rows" for side, count in leak.rows.items() if count)
        notes.append(f"warning: the data set's own split leaks: {spoilt} come from photos that another split has too "
                     f"(e.g. {leak.groups[0]}), so scores on them flatter; --resplit puts each photo on one side")
    return table, notes


# ---- telling and writing ----------------------------------------------------------------------------------

def summary(table: "pd.DataFrame", folders: ClassFolders, skipped: Sequence[Skipped]) -> str:
    """Rows for each class and split, classes without an instance, and what was skipped by reason, as text."""
    classes = sorted(set(zip(table["class_id"], table["class_name"])), key=lambda key: (len(key[0]), key))
    count = Counter(zip(table["class_id"], table["class_name"], table[contracts.SPLIT_COLUMN]))
    lines = [("class", *contracts.SPLITS, "all")]
    for key in classes:
        numbers = [count[(*key, side)] for side in contracts.SPLITS]
        lines.append((f"{key[0]} {key[1]}", *map(str, numbers), str(sum(numbers))))
    by_split = table.groupby(contracts.SPLIT_COLUMN)
    for label, numbers in (("rows", by_split.size()), ("source images", by_split["group"].nunique())):
        lines.append((label, *(str(numbers.get(side, 0)) for side in contracts.SPLITS),
                      str(len(table) if label == "rows" else table["group"].nunique())))
    width = max(len(line[0]) for line in lines)
    text = [f"{line[0]:<{width}}" + "".join(f"{cell:>8}" for cell in line[1:]) for line in lines]
    without = sorted(set(folders.class_names) - set(table["class_name"]))
    if without:
        text.append(f"classes without an instance, skipped: {', '.join(without)}")
    for reason, paths in _by_reason(skipped).items():
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        text.append(f"skipped {len(paths)}: {reason}: {', '.join(paths[:SHOWN])}{more}")
    return "\n".join(text)


def write(table: "pd.DataFrame", paths: Sequence[Path]) -> list[str]:
    """Write the tables named by `paths` -> what was written, in words.

    output.csv takes all rows and their split, {split}.csv the rows of one. A split without rows gets no file, and an
    old file of that name goes, so that no later step takes it for one of these.
    """
    columns = [*contracts.SPLIT_COLUMNS, contracts.SOURCE_COLUMN]
    tables, empty = {}, []
    for path in paths:
        if path.name == contracts.OUTPUT_TABLE:
            tables[path] = table[[*columns, contracts.SPLIT_COLUMN]]
        else:
            rows = table.loc[table[contracts.SPLIT_COLUMN] == path.stem, columns]
            if len(rows):
                tables[path] = rows
            else:
                empty.append(path)
    write_tables(tables)
    notes = [f"wrote {path} ({len(rows)} rows)" for path, rows in tables.items()]
    for path in empty:
        old = path.exists()
        path.unlink(missing_ok=True)
        notes.append(f"no {path.stem} rows, so no {path}" + (": the old one was removed" if old else ""))
    return notes


def _by_reason(skipped: Sequence[Skipped]) -> dict[str, list[str]]:
    paths = defaultdict(list)
    for path, reason in skipped:
        paths[reason].append(path)
    return dict(sorted(paths.items()))
