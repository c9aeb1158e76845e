"""Pairs -> the rows of the split tables: three points each, a split; then the files."""

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from sam_lora import contracts, workers
from sam_lora.data import splits
from sam_lora.data.imaging import ImageError, load_image, load_mask
from sam_lora.data.pairing import CONVERTERS, ClassFolders, Pair, Skipped
from sam_lora.data.photo_groups import merge_groups, source_group
from sam_lora.data.sources import IMAGE_SUFFIXES
from sam_lora.errors import UserError
from sam_lora.tables import write_tables

if TYPE_CHECKING:
    import pandas as pd

NO_OBJECTS = "(without objects)"
SHOWN = 5                                      # file names given for each reason

Strategy = Callable[[np.ndarray], np.ndarray]  # (H, W) bool -> (3, 2) integer xy


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
    digests, points, skipped = {}, {}, list(folders.skipped)
    points_of_image = functools.partial(_points_of_image, strategy=strategy)
    jobs = list(masks_of_image.items())
    with closing(workers.map_in_order(points_of_image, jobs, num_workers, "points")) as results:
        for (image_path, mask_paths), (digest, outcomes) in zip(jobs, results):
            digests[image_path] = digest
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
             pair.source_image, pair.source_split) for pair in kept]
    table = pd.DataFrame(rows, columns=[*contracts.SPLIT_COLUMNS, contracts.SOURCE_COLUMN, "source_split"])
    table["group"] = _groups(kept, [digests.get(pair.image_path) or _digest(pair.image_path) for pair in kept])
    return table, skipped


def _groups(pairs: Sequence[Pair], image_digests: Sequence[str]) -> list[str]:
    """The photo of each pair, copies under other names and images of identical content counted as one."""
    groups = [source_group(pair.source_image if PurePosixPath(pair.source_image).suffix.lower() in IMAGE_SUFFIXES
                           else pair.source_image + ".png") for pair in pairs]
    groups = merge_groups(groups, image_digests)
    return merge_groups(groups, [pair.source_digest or group for pair, group in zip(pairs, groups)])


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
    return _digest(image_path), outcomes


def _digest(path: str) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


# ---- splitting --------------------------------------------------------------------------------------------

def split_rows(table: "pd.DataFrame", fractions: Sequence[float], seed: int, resplit: bool
               ) -> tuple["pd.DataFrame", list[str]]:
    """Add the column `split` to what `place_points` gave -> (table, what happened, in words)."""
    groups, class_ids = table["group"].tolist(), table["class_id"].tolist()
    given = table["source_split"].tolist()
    if resplit:
        split = splits.random_split(groups, class_ids, fractions, seed)
        notes = ["split from scratch" + (", the data set's own split is not used" if any(given) else "")]
    else:
        split, notes = splits.complete_split(given, groups, class_ids, fractions, seed)
    table = table.assign(**{contracts.SPLIT_COLUMN: split})
    leak = splits.find_leak(groups, split)
    notes.append(f"photos in more than one split: {len(leak.groups)} of {len(set(groups))} "
                 "(copies of a photo count once)")
    if leak.groups:
        rows = ", ".join(f"{count} of {split.count(side)} {side} rows" for side, count in leak.rows.items() if count)
        notes.append(f"warning: the data set's own split leaks: {rows} come from photos that are in another split too "
                     f"(e.g. {leak.groups[0]}), so their scores are too high; --resplit puts each photo in one split")
    return table, notes


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
