"""Checked reading and writing of the tables that the stages hand each other, and of their cells."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sam_lora.errors import UserError
from sam_lora.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd


def read_table(path: str | Path, columns: Sequence[str], made_by: str) -> "pd.DataFrame":
    """Read a CSV whose cells all stay text (empty cells are ""), with at least `columns` and one row.

    Raises UserError naming the path, all missing columns, and the script that makes the file (`made_by`).
    """
    import pandas as pd
    path = Path(path)
    if not path.is_file():
        problem = "is a folder, expected a CSV file" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {problem}; make it with {made_by}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        if not isinstance(table.index, pd.RangeIndex):  # pandas would take the cells in front as row names
            raise pd.errors.ParserError("rows have more cells than the header; a cell with commas needs quotes")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as CSV ({reason}); make it with {made_by}") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"{path}: missing column(s) {', '.join(missing)}; found {', '.join(map(str, table.columns))}; "
                        f"make it with {made_by}")
    if table.empty:
        raise UserError(f"{path}: has a header but no rows; make it with {made_by}")
    return table.fillna("")  # a row that ends early


def row_lines(path: str | Path, rows: int) -> Sequence[int]:
    """The line of the file on which each of its `rows` data rows begins; the header is line 1.

    Cells of several lines and empty lines count as in an editor. `path` is a table that `read_table` has read.
    """
    plain = range(2, rows + 2)
    if Path(path).read_bytes().rstrip().count(b"\n") == rows:
        return plain
    starts, line = [], 1
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            for cells in reader:
                if len(cells) > 1 or "".join(cells).strip():
                    starts.append(line)
                line = reader.line_num + 1
        except csv.Error:  # a cell of over 131,072 characters
            return plain
    return starts[1:] if len(starts) == rows + 1 else plain


def write_table(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a CSV atomically, with `\\n` line ends on every system."""
    write_tables({path: table})


def write_tables(tables: Mapping[str | Path, "pd.DataFrame"]) -> None:
    """Write CSVs that belong together: none is renamed into place before all are written."""
    with ExitStack() as stack:
        for path, table in tables.items():
            table.to_csv(stack.enter_context(atomic_path(path)), index=False, lineterminator="\n", encoding="utf-8")


@contextmanager
def table_writer(path: str | Path, columns: Sequence[str]) -> Iterator["csv.writer"]:
    """Write a CSV as `write_table` does, but row by row, so that the memory needed does not grow with the table."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield writer


def resolve_path(text: str, table_path: str | Path) -> Path:
    """A path from a table: relative to the current folder, as written; else relative to the table's own folder."""
    path = Path(text)
    if path.exists() or path.is_absolute():
        return path
    beside_table = Path(table_path).parent / path
    return beside_table if beside_table.exists() else path


def points_to_json(points: Sequence[Sequence[float]]) -> str:
    """[(x, y), …] -> "[[x1,y1],[x2,y2]]". Whole numbers are written without a decimal point."""
    return json.dumps([[_plain(x), _plain(y)] for x, y in points], separators=(",", ":"))


def points_from_json(text: str, where: str) -> list[list[float]]:
    """"[[x1,y1],…]" -> [[x, y], …], at least one point, all finite. `where` names the cell in the UserError."""
    points = _json_list(text, where, "[[x1,y1],[x2,y2],…]")
    if not points or not all(isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))
                             for point in points):
        raise UserError(f"{where}: found {_short(text)}, expected points as [[x1,y1],[x2,y2],…]")
    return [[float(x), float(y)] for x, y in points]


def point_labels_from_json(text: str, count: int, where: str) -> list[int]:
    """"[1,0,…]" -> labels, one for each of `count` points: 1 foreground, 0 background."""
    labels = _json_list(text, where, "[1,0,…]")
    if len(labels) != count or not all(_is_number(label) and label in (0, 1) for label in labels):
        raise UserError(f"{where}: found {_short(text)}, expected {count} labels of 1 (foreground) or 0 (background)")
    return [int(label) for label in labels]


def box_to_json(box: Sequence[float]) -> str:
    """(x0, y0, x1, y1) -> "[x0,y0,x1,y1]"."""
    return json.dumps([_plain(value) for value in box], separators=(",", ":"))


def box_from_json(text: str, where: str) -> list[float]:
    """"[x0,y0,x1,y1]" -> four finite numbers with x0 < x1 and y0 < y1."""
    box = _json_list(text, where, "[x0,y0,x1,y1]")
    if len(box) != 4 or not all(map(_is_number, box)) or not (box[0] < box[2] and box[1] < box[3]):
        raise UserError(f"{where}: found {_short(text)}, expected a box as [x0,y0,x1,y1] with x0 < x1 and y0 < y1")
    return [float(value) for value in box]


def _json_list(text: str, where: str, expected: str) -> list:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: found {_short(text)}, expected {expected}") from error
    if not isinstance(value, list):
        raise UserError(f"{where}: found {_short(text)}, expected {expected}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def _plain(value: float) -> int | float:
    value = float(value)
    return int(value) if value.is_integer() else value


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
