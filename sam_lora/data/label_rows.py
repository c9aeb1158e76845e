"""Rows of YOLO label files: `class x y x y x y …` or `class cx cy w h`, fractions of the photo's width and height.

Trackers, predictions and other tools add numbers: a confidence behind the coordinates, or a confidence and a track id;
an instance id or a flag before them; the box beside the polygon. Where the numbers of one row leave it open what they
are (an id of 1 may be a y at the photo's edge), all rows of the data set decide.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

PIXEL_COORDINATE = 1.5      # beyond it a number is no fraction of a photo's width or height
FAR = 1e15                  # beyond it a coordinate is as good as infinite
MOST = 0.9                  # of a data set's rows, to say of all that they have an id
MOST_COMPARED = 1000        # rows, and numbers of a row, to see at which end a confidence is
CLEARLY = 0.98              # as much shorter outlines say which
BOX_TOLERANCE = 0.01        # between a polygon and the box beside it: their rounding

NO_NUMBER = "NaN, infinity or something that is not a number"
NO_NUMBER_TEXT = "something that is not a number"
CONFIDENCE = "a row had an odd number of coordinates; the last was taken for a confidence and dropped"
CONFIDENCE_AND_ID = "a row ended in a confidence and a track id, which were dropped"
CONFIDENCE_BEFORE = "a row had an odd number of coordinates; the first was taken for a confidence and dropped"
ID_BEHIND = "a row ended in an id, which was dropped"
ID_BEFORE = "a row had an id or flag before its coordinates, which was dropped"
BOX_BESIDE = "a row had its box beside its polygon; the box was dropped"


@dataclass(frozen=True)
class LabelRow:
    """`polygon`: flat [x, y, …] doubles, fractions of width and height. A box row is a polygon of four corners.

    `dropped`: which other numbers the row had, in words.
    """
    class_id: int
    polygon: array
    is_box: bool = False
    dropped: Sequence[str] = ()


@dataclass(frozen=True)
class RowStyle:
    """What small whole numbers are in the rows of a data set, where a row alone does not tell."""
    id_before: bool = False         # rows with an odd count of numbers begin with an id or flag
    id_behind: bool = False         # rows with an even count end in a confidence and a track id
    confidence_before: bool = False     # rows with an odd count have it before their coordinates


class RowError(ValueError):
    """Why a label row is not an object."""


def style_of(lines: Iterable[str]) -> RowStyle:
    """The style of a data set, from its rows.

    Nearly all rows that could have an id before or behind their coordinates have a whole number there. Without an id
    an odd number is a confidence: at the end, unless the outlines are shorter with it at the beginning. (Read from the
    wrong end, a polygon has the right points with x and y changed over, but one, which is far from the others.)
    """
    odd = odd_with_id = even = even_with_id = 0
    lengths = np.zeros(2)
    for line in lines:
        tokens = line.split()
        count = len(tokens) - 1
        if count >= 5 and count % 2 and not _above_one(tokens[-1]):
            odd, odd_with_id = odd + 1, odd_with_id + tokens[1].isdecimal()
            if 7 <= count <= MOST_COMPARED and odd <= MOST_COMPARED:
                lengths += _outline_length(tokens[1:-1]), _outline_length(tokens[2:])
        elif count >= 6 and count % 2 == 0:
            even, even_with_id = even + 1, even_with_id + _confidence_and_id(*tokens[-2:])
    id_before = bool(odd) and odd_with_id >= MOST * odd
    return RowStyle(id_before, bool(even) and even_with_id >= MOST * even,
                    not id_before and bool(lengths[1] < CLEARLY * lengths[0]))


def _outline_length(tokens: Sequence[str]) -> float:
    """Around the polygon, back to its first point; 0 where these are no numbers."""
    try:
        points = np.array(tokens, float).reshape(-1, 2)
    except ValueError:
        return 0.0
    length = np.hypot(*(points - np.roll(points, 1, axis=0)).T).sum()
    return float(length) if np.isfinite(length) else 0.0


def _above_one(token: str) -> bool:
    try:
        return float(token) > PIXEL_COORDINATE
    except ValueError:
        return False


def _confidence_and_id(confidence: str, number: str) -> bool:
    try:
        return number.isdecimal() and int(number) >= 1 and 0 <= float(confidence) <= 1
    except ValueError:
        return False


def parse_label_row(line: str, style: RowStyle = RowStyle()) -> LabelRow:
    """One row, of a data set of that style. Raises RowError."""
    tokens = line.split()
    if "," in line or ";" in line:
        raise RowError("commas; numbers are separated by blanks")
    if "rle" in (token.lower() for token in tokens[:2]):
        raise RowError("RLE, which YOLO labels do not have")
    class_id = _number(tokens[0], "a class name where the class id belongs")
    if not class_id.is_integer():
        raise RowError("a class id that is not a whole number")
    numbers = _coordinates(line, tokens)
    if sum(abs(number) > PIXEL_COORDINATE for number in numbers) * 2 > len(numbers):
        raise RowError("looks like pixel coordinates; expected fractions of width and height, 0 to 1")
    dropped = _drop_others(numbers, style)
    if len(numbers) < 4:
        raise RowError("too few numbers")
    if far := [number for number in numbers if abs(number) > PIXEL_COORDINATE]:
        raise RowError(f"{far[0]:g} among fractions of width and height")
    is_box = len(numbers) == 4
    return LabelRow(int(class_id), _box_corners(*numbers) if is_box else _open_outline(numbers), is_box, dropped)


def _drop_others(numbers: array, style: RowStyle) -> list[str]:
    """Take from `numbers` what are no coordinates, in place; returns what it was, in words."""
    dropped = []
    if len(numbers) % 2 and style.id_before and not _is_id(numbers[-1]):
        del numbers[0]
        dropped.append(ID_BEFORE)
    while len(numbers) > 4 and _is_id(numbers[0]):
        del numbers[0]
        dropped.append(ID_BEFORE)
    if len(numbers) % 2 and style.confidence_before and not _is_id(numbers[-1]):
        del numbers[0]
        dropped.append(CONFIDENCE_BEFORE)
    elif len(numbers) % 2:
        dropped.append(ID_BEHIND if _is_id(numbers[-1]) else CONFIDENCE)
        numbers.pop()
    elif len(numbers) > 5 and _are_confidence_and_id(*numbers[-2:], style):
        del numbers[-2:]
        dropped.append(CONFIDENCE_AND_ID)
    if len(numbers) >= 10:
        if _is_box_of(numbers[:4], numbers[4:]):
            del numbers[:4]
            dropped.append(BOX_BESIDE)
        elif _is_box_of(numbers[-4:], numbers[:-4]):
            del numbers[-4:]
            dropped.append(BOX_BESIDE)
    return dropped


def _are_confidence_and_id(one: float, other: float, style: RowStyle) -> bool:
    """In either order; an id of 1 only where the whole data set has ids."""
    return (0 <= one <= 1 and (_is_id(other) or (style.id_behind and other == 1))) or (0 <= other <= 1 and _is_id(one))


def _is_id(number: float) -> bool:
    """A whole number that cannot be a coordinate."""
    return number > PIXEL_COORDINATE and number.is_integer()


def _is_box_of(box: array, polygon: array) -> bool:
    """Is `box`, as centre and size, the one around the polygon?"""
    x, y, width, height = box
    xs, ys = polygon[::2], polygon[1::2]
    return all(abs(one - other) <= BOX_TOLERANCE for one, other in (
        (x - width / 2, min(xs)), (x + width / 2, max(xs)), (y - height / 2, min(ys)), (y + height / 2, max(ys))))


def _coordinates(line: str, tokens: Sequence[str]) -> array:
    """The numbers behind the class id, four or more, finite. Raises RowError."""
    numbers = array("d")
    try:
        for start in range(1, len(tokens), 4096):  # in pieces: a row may have millions
            numbers.fromlist(list(map(float, tokens[start:start + 4096])))
    except ValueError:
        numbers = array("d", [math.nan])
    if "_" in line or not all(map(math.isfinite, numbers)):  # token by token only where a reason is wanted: it is slow
        numbers = array("d", (_number(token, NO_NUMBER_TEXT) for token in islice(tokens, 1, None)))
    if len(numbers) < 4:
        raise RowError("too few numbers")
    if not -FAR < min(numbers) <= max(numbers) < FAR:
        raise RowError(NO_NUMBER)
    return numbers


def _box_corners(x: float, y: float, width: float, height: float) -> array:
    """Centre and size -> the four corners, flat. Raises RowError."""
    if width <= 0 or height <= 0:
        raise RowError("zero area")
    x0, y0, x1, y1 = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return array("d", (x0, y0, x1, y0, x1, y1, x0, y1))


def _open_outline(numbers: array) -> array:
    """A flat polygon without a closing point that repeats the first. Raises RowError."""
    if numbers[:2] == numbers[-2:]:
        del numbers[-2:]
    xs, ys = numbers[::2], numbers[1::2]
    if not _three_different(zip(xs, ys)):
        raise RowError("fewer than three different points")
    if min(xs) == max(xs) or min(ys) == max(ys):
        raise RowError("zero area")
    return numbers


def _three_different(points: Iterable[tuple[float, float]]) -> bool:
    different = set()
    return any(different.add(point) or len(different) == 3 for point in points)


def _number(token: str, otherwise: str) -> float:
    try:
        value = float(token)
    except ValueError:
        raise RowError(otherwise) from None
    if "_" in token or not math.isfinite(value):
        raise RowError(NO_NUMBER)
    return value
