"""Rows of a training table, checked: an image, its mask, its prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam_lora import contracts
from sam_lora.data.imaging import ImageError, image_size
from sam_lora.errors import UserError
from sam_lora.tables import (
    box_from_json,
    point_labels_from_json,
    points_from_json,
    read_table,
    resolve_path,
    row_lines,
)

MAX_REPORTED = 3  # bad rows named in one error; a row's number is its line in the file
BOX_SLACK = 0.01  # of the picture's width or height that a box may stick out, at least a pixel: detectors round so


@dataclass(frozen=True)
class Sample:
    """One row: an image, its mask (None without ground truth), and the prompts in pixels of the image (xy)."""

    image: Path
    label: Path | None
    points: tuple[tuple[float, float], ...]
    point_labels: tuple[int, ...]
    box: tuple[float, float, float, float] | None
    image_text: str        # the paths as the table has them
    label_text: str

    @property
    def background(self) -> bool:
        """A whole photo without any object: its label and its points are empty."""
        return self.label is None and not self.points and self.box is None


def read_samples(table_path: str | Path) -> list[Sample]:
    """Read a training table. Raises UserError for missing columns, no rows, or cells that do not hold points."""
    _refuse_empty_split(Path(table_path))
    table = read_table(table_path, contracts.TRAINING_COLUMNS, contracts.MADE_BY["training"])
    return [_sample(row, f"{table_path} row {line}", table_path)
            for line, row in zip(row_lines(table_path, len(table)), table.to_dict("records"))]


def _refuse_empty_split(path: Path) -> None:
    """UserError where a table is missing because the split gave that side no rows: no script would make it."""
    names = {contracts.training_table(split): split for split in contracts.SPLITS}
    if path.name not in names or path.exists():
        return
    split = names.pop(path.name)
    beside = [name for name, other in names.items() if (path.parent / name).is_file()
              and (path.parent / contracts.split_table(other)).is_file()]
    if beside and not (path.parent / contracts.split_table(split)).exists():
        raise UserError(f"{path}: no such file, nor a {contracts.split_table(split)} to make it from: the split has no "
                        f"{split} rows (there is {' and '.join(beside)}); name another table, or split again so that "
                        f"{split} gets some, for which one photo may be too few: {contracts.MADE_BY['split']}")


def _sample(row: dict[str, str], where: str, table_path: str | Path) -> Sample:
    without_objects = not any(row.get(column, "").strip() for column in
                              ("label", "points", contracts.POINT_LABELS_COLUMN, contracts.BOX_COLUMN))
    prompt = ((), (), None) if without_objects else read_prompt(row, where)
    label = resolve_path(row["label"], table_path) if row["label"] else None
    return Sample(resolve_path(row["image"], table_path), label, *prompt, row["image"], row["label"])


def read_prompt(row: Mapping[str, str], where: str) -> tuple[tuple, tuple, tuple | None]:
    """(points, point_labels, box) of a table's row, as `Sample` has them. `where` names the row in the UserError."""
    points: list[list[float]] = []
    if row.get("points", "").strip():
        points = points_from_json(row["points"], f"{where}, column points")
    labels = [1] * len(points)
    if row.get(contracts.POINT_LABELS_COLUMN):
        labels = point_labels_from_json(row[contracts.POINT_LABELS_COLUMN], len(points),
                                        f"{where}, column {contracts.POINT_LABELS_COLUMN}")
    box = None
    if row.get(contracts.BOX_COLUMN):
        box = tuple(box_from_json(row[contracts.BOX_COLUMN], f"{where}, column {contracts.BOX_COLUMN}"))
    if not points and box is None:
        raise UserError(f"{where}: neither points nor a box; expected points as [[x1,y1],[x2,y2],…]")
    return tuple(map(tuple, points)), tuple(labels), box


def check_samples(samples: Sequence[Sample], table_path: str | Path, need_labels: bool) -> None:
    """Check every file's header before hours of work: all exist, masks are as large as their images, points inside.

    Raises one UserError that counts the bad rows and names the first few.
    """
    sizes: dict[Path, tuple[int, int] | str] = {}
    problems = [(row, problem) for row, sample in enumerate(samples)
                if (problem := sample_problem(sample, sizes, need_labels))]
    if problems:
        lines = row_lines(table_path, len(samples))
        named = "; ".join(f"row {lines[row]}: {problem}" for row, problem in problems[:MAX_REPORTED])
        more = f"; and {len(problems) - MAX_REPORTED} more rows" if len(problems) > MAX_REPORTED else ""
        raise UserError(f"{table_path}: {len(problems)} of {len(samples)} rows cannot be used: {named}{more}")


def sample_problem(sample: Sample, sizes: dict[Path, tuple[int, int] | str], need_labels: bool) -> str | None:
    """What makes a row unusable, in words, or None. `sizes` remembers (w, h) of the files looked at so far."""
    for path in (sample.image, sample.label):
        if path is not None and path not in sizes:
            try:
                sizes[path] = image_size(path)
            except ImageError as error:
                sizes[path] = str(error)
    size = sizes[sample.image]
    if isinstance(size, str):
        return size
    width, height = size
    label_size = size if sample.label is None else sizes[sample.label]
    if sample.label is None and need_labels and not sample.background:
        return "no label; expected the path of a mask"
    if isinstance(label_size, str):
        return label_size
    if label_size != size:
        return (f"{sample.label_text} is {label_size[0]}x{label_size[1]} px, "
                f"but its image {sample.image_text} is {width}x{height} px")
    outside = [point for point in sample.points if not (0 <= point[0] < width and 0 <= point[1] < height)]
    if outside:
        return f"point ({outside[0][0]:g}, {outside[0][1]:g}) lies outside {sample.image_text} ({width}x{height} px)"
    box = sample.box
    if box is not None and _box_sticks_out(box, width, height):
        return f"box {','.join(f'{value:g}' for value in box)} lies outside {sample.image_text} ({width}x{height} px)"
    return None


def _box_sticks_out(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    """Does the box miss the picture, or reach out of it by more than BOX_SLACK?"""
    beside = not (box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0)
    slack_x, slack_y = max(1, BOX_SLACK * width), max(1, BOX_SLACK * height)
    return beside or not (-slack_x <= box[0] and box[2] <= width + slack_x
                          and -slack_y <= box[1] and box[3] <= height + slack_y)


def prompt_kinds(samples: Sequence[Sample]) -> set[tuple[int, bool]]:
    """What the rows prompt with: (number of points, is there a box)."""
    return {(len(sample.points), sample.box is not None) for sample in samples if not sample.background}


def prompt_kind(samples: Sequence[Sample]) -> str:
    """What the rows prompt with, for a checkpoint's header: "3 points", "1-3 points and box", …"""
    counts = sorted({len(sample.points) for sample in samples if not sample.background})
    points = "" if counts == [0] else f"{counts[0]} points" if len(counts) == 1 else f"{counts[0]}-{counts[-1]} points"
    return " and ".join(part for part in (points, "box" if any(sample.box for sample in samples) else "") if part)
