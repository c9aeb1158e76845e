"""Pairs -> the rows of the split tables: three points each, their photo, a split; then the files."""

import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sam_lora import contracts, workers
from sam_lora.data import near_duplicates, photo_groups, splits
from sam_lora.data.area_split import area_of, split_by_area
from sam_lora.data.imaging import ImageError, load_image, load_mask
from sam_lora.data.manifest import ManifestRow, read_manifest
from sam_lora.data.pairing import CONVERTERS, ClassFolders, Skipped
from sam_lora.errors import UserError
from sam_lora.tables import read_table, row_lines, write_tables

if TYPE_CHECKING:
    import pandas as pd

NO_OBJECTS = "(without objects)"
SHOWN = 5                                      # file names given for each reason

Strategy = Callable[[np.ndarray], np.ndarray]  # (H, W) bool -> (3, 2) integer xy


# ---- points -----------------------------------------------------------------------------------------------

def place_points(folders: ClassFolders, strategy: Strategy, num_workers: int) -> tuple["pd.DataFrame", list[Skipped]]:
    """Three points for each pair -> (table, everything that was skipped).

    The table has SPLIT_COLUMNS, source_image, source_split, and for `group_rows` and `split_rows` the digests of the
    photo (source_digest) and of the image (content), and the image's perceptual hashes (looks). Raises UserError if no
    pair is usable.
    """
    import pandas as pd
    masks_of_image = defaultdict(list)
    for pair in folders.pairs:
        masks_of_image[pair.image_path].append(pair.mask_path)
    for pair in folders.background:
        masks_of_image[pair.image_path] = []
    facts, points, skipped = {}, {}, list(folders.skipped)
    points_of_image = functools.partial(_points_of_image, strategy=strategy)
    jobs = list(masks_of_image.items())
    with closing(workers.map_in_order(points_of_image, jobs, num_workers, "points")) as results:
        for (image_path, mask_paths), (image, outcomes) in zip(jobs, results):
            facts[image_path] = image
            for mask_path, outcome in zip(mask_paths, outcomes):
                if isinstance(outcome, str):
                    skipped.append(Skipped(mask_path, outcome))
                else:
                    points[mask_path] = outcome
    if not points:
        reasons = "; ".join(f"{len(paths)} skipped: {reason} (e.g. {paths[0]})"
                            for reason, paths in _by_reason(skipped).items())
        raise UserError(f"no usable pair of image and mask in the class folders{': ' if reasons else ''}{reasons}; "
                        f"make them with {CONVERTERS}")
    kept = [pair for pair in folders.pairs if pair.mask_path in points] + [*folders.background]
    no_points = [""] * len(contracts.POINT_COLUMNS)
    rows = [(pair.image_path, pair.mask_path, pair.class_id, pair.class_name, *points.get(pair.mask_path, no_points),
             pair.source_image, pair.source_split, pair.source_digest, facts[pair.image_path].content)
            for pair in kept]
    table = pd.DataFrame(rows, columns=[*contracts.SPLIT_COLUMNS, contracts.SOURCE_COLUMN, "source_split",
                                        "source_digest", "content"])
    table["looks"] = pd.Series([facts[pair.image_path].looks for pair in kept], dtype=object)
    return table, skipped


def _points_of_image(image_and_masks: tuple[str, Sequence[str]], strategy: Strategy
                     ) -> tuple["_Image", list[list[int] | str]]:
    """What the image is; for each mask its points [x1, y1, x2, …], or the reason why not."""
    image_path, mask_paths = image_and_masks
    try:
        image = load_image(image_path)
    except ImageError as error:
        return _Image(""), [f"image: {error.reason}"] * len(mask_paths)
    shape = image.shape[:2]
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
    if near_duplicates.is_blank(image):     # black tiles of two orthomosaics do not make one of them
        return _Image(""), outcomes
    content = hashlib.blake2b(Path(image_path).read_bytes(), digest_size=16).hexdigest()
    return _Image(content, near_duplicates.perceptual_hashes(image) if near_duplicates.available() else None), outcomes


class _Image(NamedTuple):
    """Digest of the file ("" of a blank or broken image), and perceptual hashes."""
    content: str
    looks: np.ndarray | None = None


# ---- photos -----------------------------------------------------------------------------------------------

class Told(NamedTuple):
    """Which photo a file shows, as the user says: the first group of a pattern of paths, or a table."""
    pattern: re.Pattern[str] | None = None
    table: str | None = None


def group_rows(table: "pd.DataFrame", dataset_dir: str | Path, told: Told | None = None
               ) -> tuple["pd.DataFrame", list[str]]:
    """Add the columns `group` and `area` to what `place_points` gave -> (table, what was assumed, in words).

    `group` names what must stay on one side: the copies, tiles and frames of one photo, by what the user says (`told`,
    else a column `photo` of the manifest), else by their names; and photos of identical content. `area` (an `Area` or
    None) says where in it a row lies. Raises UserError.
    """
    row_of = _manifest_rows(Path(dataset_dir))
    rows = [row_of.get(mask or image) for mask, image in zip(table["mask_path"], table["image_path"])]
    files = table[contracts.SOURCE_COLUMN].tolist()
    named, notes = _photos_told(files, rows, told or Told())
    by_name = photo_groups.group_by_name(files)
    if others := [file for file, photo in zip(files, named) if not photo]:
        notes.append(photo_groups.describe(others, by_name))
    groups = [f"photo {photo}" if photo else by_name[file].photo for file, photo in zip(files, named)]
    for column in ("content", "source_digest"):
        groups = photo_groups.merge_groups(groups, [text or group for text, group in zip(table[column], groups)])
    areas = [area_of(row, file, None if photo else by_name[file].origin)
             for row, file, photo in zip(rows, files, named)]
    return table.assign(group=groups, area=areas), notes


def _manifest_rows(root: Path) -> dict[str, ManifestRow]:
    """Path of a mask, or of an image without objects, as `read_class_folders` gives it -> its row of the manifest."""
    rows = [*read_manifest(root).rows, *read_manifest(root, ("image_path",), contracts.BACKGROUND_FILE).rows]
    return {(root / (row.mask_path or row.image_path)).as_posix(): row for row in rows}


def _photos_told(files: Sequence[str], rows: Sequence[ManifestRow | None], told: Told
                 ) -> tuple[list[str], list[str]]:
    """The photo that the user says each file shows, "" where nothing is said; and that in words. Raises UserError."""
    count = len({*files})
    if told.pattern:
        where = "--group_by"
        found = [told.pattern.search(file) for file in files]
        photos = [(match and match[1]) or "" for match in found]
        if not any(photos):
            raise UserError(f"--group_by {told.pattern.pattern}: matches none of {count} files, e.g. {files[0]}; "
                            "expected a pattern whose first group is the photo's name, e.g. '([^/]+)_[0-9]+[.]'")
    elif told.table:
        where = told.table
        photo_of = _photo_table(told.table, {*files})
        photos = [photo_of.get(file, "") for file in files]
        if not any(photos):
            raise UserError(f"{told.table}: names none of {count} files, e.g. {files[0]}; expected them in the column "
                            f"{contracts.SOURCE_COLUMN}, as in {contracts.MANIFEST_FILE}")
    else:
        where = f"column {contracts.PHOTO_COLUMN} of {contracts.MANIFEST_FILE}"
        photos = [row.photo if row else "" for row in rows]
    known = {file for file, photo in zip(files, photos) if photo}
    return photos, [f"by {where}: {len({*photos} - {''})} groups of {len(known)} files"] if known else []


def _photo_table(path: str, files: Collection[str]) -> dict[str, str]:
    """File -> photo, of those of `files` that the table names, by path or where that is enough by name. Raises
    UserError."""
    rows = read_table(path, (contracts.SOURCE_COLUMN, contracts.PHOTO_COLUMN), "any editor: the file, and its photo")
    named = {file: [file] for file in files}
    for file in sorted(files):
        name = file.rpartition("/")[2]
        if name not in files:
            named.setdefault(name, []).append(file)
    photo_of = {}
    for row, (text, photo) in enumerate(zip(rows[contracts.SOURCE_COLUMN], rows[contracts.PHOTO_COLUMN])):
        meant = named.get(text.replace("\\", "/"), [])
        if len(meant) > 1:
            raise UserError(f"{path}: row {row_lines(path, len(rows))[row]}: {text} may be {meant[0]} or {meant[1]}; "
                            "expected the path below the data set's folder")
        photo_of |= dict.fromkeys(meant, photo)
    return photo_of


# ---- splitting --------------------------------------------------------------------------------------------

def split_rows(table: "pd.DataFrame", fractions: Sequence[float], seed: int, resplit: bool, split_by: str = "auto"
               ) -> tuple["pd.DataFrame", list[str]]:
    """Add the column `split` to what `group_rows` gave -> (table, what happened, in words).

    `split_by` "area": every photo by itself, as far as its crops or tiles allow; "photo": none; "auto": only where
    there is but one. Rows in the gaps between the sides of a photo have the split "". Raises UserError.
    """
    groups, class_ids = table["group"].tolist(), table["class_id"].tolist()
    given = [""] * len(table) if resplit else table["source_split"].tolist()
    own = {*given} - {""}
    has_split = (len(own) > 1 and "train" in own) or (bool(own) and not fractions[0])     # and it will be kept
    if split_by == "area" and has_split:
        raise UserError("--split_by area: the data set has its own split; add --resplit to make a new one")
    one = len({*groups}) == 1 and not has_split and sum(fraction > 0 for fraction in fractions) > 1
    wanted = {*groups} if split_by == "area" else {groups[0]} if one and split_by == "auto" else set()
    by_area = _split_photos(table, wanted, fractions)
    split, notes = [by_area.get(row, "") for row in range(len(table))], []
    others = [row for row in range(len(table)) if row not in by_area]
    if others:
        chosen = [[values[row] for row in others] for values in (given, groups, class_ids)]
        if resplit:
            sides = splits.random_split(*chosen[1:], fractions, seed)
            notes.append("split from scratch" + (", the data set's own split is not used"
                                                 if any(table["source_split"]) else ""))
        else:
            sides, notes = splits.complete_split(*chosen, fractions, seed)
        for row, side in zip(others, sides):
            split[row] = side
    table = table.assign(**{contracts.SPLIT_COLUMN: split})
    notes += _area_notes(table, [*by_area])
    if one and not by_area:
        notes.append(_cannot_be_split(table))
    elif whole := wanted & {groups[row] for row in others}:
        notes.append(f"{len(whole)} of {len(wanted)} photos could not be split by area and are on one side each, e.g. "
                     f"{min(whole)}")
    notes += _leak_notes([groups[row] for row in others], [split[row] for row in others], len({*groups}))
    return table, notes + _alike_notes(table)


def _split_photos(table: "pd.DataFrame", groups: Collection[str], fractions: Sequence[float]) -> dict[int, str]:
    """Row -> side, "" in a gap, of the rows of those of `groups` that can be split by area."""
    rows_of = defaultdict(list)
    for row, group in enumerate(table["group"]):
        if group in groups:
            rows_of[group].append(row)
    areas, class_ids, sides = table["area"].tolist(), table["class_id"].tolist(), {}
    for rows in rows_of.values():
        found = split_by_area([areas[row] for row in rows], [class_ids[row] for row in rows], fractions)
        sides |= dict(zip(rows, found or []))
    return sides


def _area_notes(table: "pd.DataFrame", rows: Sequence[int]) -> list[str]:
    """How the rows that were split by area lie, in words."""
    if not rows:
        return []
    chosen = table.iloc[rows]
    photos, left_out = chosen["group"].unique().tolist(), int((chosen[contracts.SPLIT_COLUMN] == "").sum())
    only = " (there is no other)" if table["group"].nunique() == 1 else ""
    kinds = {area.frame[0] for area in chosen["area"]}
    what, how = (("video", "time") if kinds == {"video"} else ("photo", "area"))
    many = "s" if len(photos) > 1 else ""
    same = "no two sides are neighbours" if what == "video" else "no pixel is on two sides"
    return [f"split by {how}: {len(photos)} {what}{many}, e.g. {photos[0]}{only}: its sides are blocks with gaps "
            f"between them, so that {same}; {left_out} of {len(chosen)} rows lie in the gaps and are in no table"]


def _cannot_be_split(table: "pd.DataFrame") -> str:
    """Why one photo is on one side only, in words."""
    files, side = sorted(set(table[contracts.SOURCE_COLUMN])), table[contracts.SPLIT_COLUMN].iloc[0]
    if len(files) > 1:
        why = (f"{len(files)} files, e.g. {files[0]} and {files[1]}, are taken for one; if they are different photos, "
               "--group_by '(.+)' takes each for itself, and other patterns say more")
    else:
        why = "its crops overlap, or there are too few; --tile of the converter, or less --padding, may help"
    return (f"warning: one photo cannot be split: all {len(table)} rows are {side}, and no step makes other tables; "
            f"{why}")


def _leak_notes(groups: Sequence[str], split: Sequence[str], count: int) -> list[str]:
    """What lies in several splits, in words; `count`: of all photos, by area split or not."""
    leak = splits.find_leak(groups, split)
    notes = [f"photos in more than one split: {len(leak.groups)} of {count} (copies of a photo count once"
             + ("; photos split by area do not count)" if len({*groups}) < count else ")")]
    if leak.groups:
        rows = ", ".join(f"{found} of {split.count(side)} {side} rows" for side, found in leak.rows.items() if found)
        notes.append(f"warning: the data set's own split leaks: {rows} come from photos that are in another split too "
                     f"(e.g. {leak.groups[0]}), so their scores are too high; --resplit puts each photo in one split")
    return notes


def _alike_notes(table: "pd.DataFrame") -> list[str]:
    """Images of val and test that look like one of another photo on a side before them, in words."""
    if not near_duplicates.available():
        return ["near-duplicates were not looked for: ImageHash is not there; pip install -r requirements.txt"]
    images = table.drop_duplicates("image_path")
    sides_of = table.groupby("group")[contracts.SPLIT_COLUMN].nunique()
    images = images[images["group"].map(sides_of).eq(1) | images["area"].notna()]    # a leak is told by itself
    notes = []
    for side, before in (("val", ["train"]), ("test", ["train", "val"])):
        here = images[images[contracts.SPLIT_COLUMN] == side]
        there = images[images[contracts.SPLIT_COLUMN].isin(before)]
        found = near_duplicates.find_alike(here["looks"].tolist(), there["looks"].tolist())
        if found:
            pair = here["image_path"].iloc[found[0].index], there["image_path"].iloc[found[0].other]
            notes.append(f"warning: {len(found)} of {len(here)} {side} images look like one in {' or '.join(before)}, "
                         f"e.g. {pair[0]} and {pair[1]}: if they are copies or frames of one photo, name it by "
                         "--group_by or --group_csv (and --resplit)")
    return notes


# ---- reporting and writing --------------------------------------------------------------------------------

def summary(table: "pd.DataFrame", folders: ClassFolders, skipped: Sequence[Skipped]) -> str:
    """Rows for each class and split, classes without an instance, and what was skipped by reason, as text."""
    classes = sorted(set(zip(table["class_id"], table["class_name"])), key=lambda key: (len(key[0]), key))
    count = Counter(zip(table["class_id"], table["class_name"], table[contracts.SPLIT_COLUMN]))
    lines = [("class", *contracts.SPLITS, "all")]
    for key in classes:
        numbers = [count[(*key, side)] for side in contracts.SPLITS]
        lines.append((f"{key[0]} {key[1]}" if any(key) else NO_OBJECTS, *map(str, numbers), str(sum(numbers))))
    by_split = table.groupby(contracts.SPLIT_COLUMN)
    for label, numbers in (("rows", by_split.size()), ("photos", by_split["group"].nunique())):
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

    output.csv holds all rows and their split, {split}.csv the rows of one. A split without rows gets no file, and an
    old file of that name is removed, so that no later step takes it for one of these.
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
