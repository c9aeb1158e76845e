"""A row of a YOLO label file -> its class and outline, whatever numbers a tool has put before or behind these.

    class x1 y1 x2 y2 x3 y3 …           an outline, fractions of the photo's width and height
    class cx cy w h                     a box: its centre and size
    … conf        … id      … conf id   behind either: a model's confidence, the number of an object that was tracked
    class id …    class cx cy w h …     before it: the number of an object, or a flag; the outline's own box

Extra numbers are recognised by their values: those that no coordinate can have, a box that is the outline's. Where they
could be coordinates, as 0 and 1 can, it counts how well the outline closes without them, then how the other rows of the
data set begin and end; in doubt the row is refused.
"""

import functools
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

SMALLEST, LARGEST = -0.5, 1.5    # of a coordinate: beyond that it is none, or one in pixels
FAR = 1e15                       # beyond it a coordinate is as good as infinite
OUT_OF_PHOTO = 0.01              # rounding in exporters
SAME_BOX_IOU = 0.9               # of a box before an outline with the outline's own
SAME_CORNERS = 1e-4              # likewise of one that is given by its corners
AT_EDGE = 0.99                   # an outline that runs along the photo's lower edge has several such y
CLEARLY = 2.0                    # so many times as far, or as compact: then it is no chance
LIKELY = 1.5                     # likewise where the row is only refused
CLEARLY_BOTH = 4.0               # numbers on both sides are rare
MOST, FEWEST = 0.75, 5           # of a data set's rows, and how many: then they say something

CONFIDENCE, ID, CONFIDENCE_AND_ID = "a confidence", "an id", "a confidence and an id"
NUMBER_FIRST, BOX_FIRST = "a number before the outline", "a box before the outline"
NO_NUMBER = "NaN, infinity or something that is not a number"
NO_NUMBER_TEXT = "something that is not a number"
BEYOND = f"a number beyond {SMALLEST} to {LARGEST} among fractions of width and height"
UNCLEAR = "a number too many, and unclear whether the first or the last"
UNCLEAR_ENDS = "first or last numbers that look like no coordinates, and unclear what they are"


class RowError(ValueError):
    """Why a label row is not an object."""


@dataclass(frozen=True)
class LabelRow:
    """`polygon`: flat [x, y, …] doubles, fractions of width and height. A box row is a polygon of four corners.

    `extra`: what the row has besides, "" for nothing.
    """
    class_id: int
    polygon: array
    is_box: bool = False
    extra: str = ""


class RowEnds:
    """How all rows of a data set begin and end, looked at only where a row by itself is unclear."""

    def __init__(self, rows: Callable[[], Iterable[str]]):
        self._rows = rows

    @functools.cached_property
    def have_ids(self) -> bool | None:
        """Do rows end in a confidence and an id? None where none of them says."""
        tracked = plain = 0
        for tokens in self._tokens():
            if len(tokens) % 2:  # an even count of numbers behind the class
                confidence, last = _value(tokens[-2]), _value(tokens[-1])
                tracked += last.is_integer() and last > 1 and 0 <= confidence <= 1
                plain += not last.is_integer()
        return tracked >= plain if tracked or plain else None

    @functools.cached_property
    def first_is_extra(self) -> bool | None:
        """Of rows with a number too many and none whole, is it the first in most? None where that is unclear."""
        first = rows = 0
        for tokens in self._tokens():
            numbers = [_value(tokens[place]) for place in (1, 3, -3, -1)]
            if len(tokens) % 2 == 0 and not any(map(float.is_integer, numbers)):
                from_first, from_last = _distances(numbers)
                first += from_first > from_last
                rows += 1
        return None if rows < FEWEST or 1 - MOST <= first / rows <= MOST else first > MOST * rows

    @functools.cached_property
    def begin_with_id(self) -> bool | None:
        """Do they all have a whole number behind the class? None where that is unclear."""
        whole = fractions = 0
        for tokens in self._tokens():
            first = _value(tokens[1])
            whole += first.is_integer()
            fractions += not first.is_integer()
        return True if whole > 1 and not fractions else False if fractions > whole else None

    def _tokens(self) -> Iterator[list[str]]:
        return (tokens for tokens in map(str.split, self._rows()) if len(tokens) >= 7)


UNKNOWN_ENDS = RowEnds(tuple)


def parse_label_row(line: str, ends: RowEnds = UNKNOWN_ENDS) -> LabelRow:
    """One line that is not blank; `ends`: of all rows of the data set. Raises RowError."""
    tokens = line.split()
    if "," in line or ";" in line:
        raise RowError("commas; numbers are separated by blanks")
    if "rle" in (token.lower() for token in tokens[:2]):
        raise RowError("RLE, which YOLO labels do not have")
    class_id = _number(tokens[0], "a class name where the class id belongs")
    if not class_id.is_integer():
        raise RowError("a class id that is not a whole number")
    numbers = _coordinates(line, tokens)
    low, high = min(numbers), max(numbers)
    if max(-low, high) > LARGEST and sum(abs(number) > LARGEST for number in numbers) * 2 > len(numbers):
        raise RowError("looks like pixel coordinates; expected fractions of width and height, 0 to 1")
    box, extra = _box(numbers, tokens, ends)
    if box:
        return LabelRow(int(class_id), _box_corners(*box), True, extra)
    before, behind, extra = _extra_numbers(numbers, tokens, ends)
    return LabelRow(int(class_id), _open_outline(numbers[before:len(numbers) - behind]), False, extra)


# ---- numbers ----------------------------------------------------------------------------------------------

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


def _number(token: str, otherwise: str) -> float:
    try:
        value = float(token)
    except ValueError:
        raise RowError(otherwise) from None
    if "_" in token or not math.isfinite(value):
        raise RowError(NO_NUMBER)
    return value


def _value(token: str) -> float:
    """NaN, which is not whole, where it is no number."""
    try:
        return float(token)
    except ValueError:
        return math.nan


def _is_written_whole(token: str) -> bool:
    """As ids are, and coordinates only where a tool drops zeros: "1", not "1.0"."""
    return token.isdigit()


def _is_confidence(number: float) -> bool:
    return 0 <= number <= 1


def _is_id(number: float) -> bool:
    """-1 is what trackers write for none."""
    return number.is_integer() and (number >= 1 or number == -1)


def _is_extra(number: float) -> bool:
    return _is_confidence(number) or _is_id(number)


def _are_coordinates(numbers: array) -> bool:
    return min(numbers) >= SMALLEST and max(numbers) <= LARGEST


# ---- boxes ------------------------------------------------------------------------------------------------

def _box(numbers: array, tokens: Sequence[str], ends: RowEnds) -> tuple[array | None, str]:
    """(centre and size, what the row has besides); (None, "") where it holds an outline. Raises RowError."""
    if len(numbers) > 6:
        return None, ""
    if len(numbers) == 6:
        first, confidence, last = numbers[0], numbers[4], numbers[5]
        if _is_id(first) and first != 1 and _is_confidence(last):
            return numbers[1:5], NUMBER_FIRST
        tracked = _is_id(last) and _is_confidence(confidence)
        if not tracked or (last == 1 and not (_is_box_in_photo(numbers[:4]) and _ends_in_id(numbers, tokens, ends))):
            return None, ""
        box, extra = numbers[:4], CONFIDENCE_AND_ID
    elif len(numbers) == 5:
        box, extra = numbers[:4], _name_of(numbers[4])
        if not _is_box_in_photo(box) and _is_box_in_photo(numbers[1:]) and _is_extra(numbers[0]):
            box, extra = numbers[1:], NUMBER_FIRST
        elif not _is_extra(numbers[4]):
            raise RowError(BEYOND)
    else:
        box, extra = numbers, ""
    if not _are_coordinates(box):
        raise RowError(BEYOND)
    return box, extra


def _name_of(number: float) -> str:
    return CONFIDENCE if _is_confidence(number) else ID


def _is_box_in_photo(box: Sequence[float]) -> bool:
    x0, y0, x1, y1 = _corners(*box)
    return -OUT_OF_PHOTO <= x0 < x1 <= 1 + OUT_OF_PHOTO and -OUT_OF_PHOTO <= y0 < y1 <= 1 + OUT_OF_PHOTO


def _corners(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _box_corners(x: float, y: float, width: float, height: float) -> array:
    """Centre and size -> the four corners, flat. Raises RowError."""
    if width <= 0 or height <= 0:
        raise RowError("zero area")
    x0, y0, x1, y1 = _corners(x, y, width, height)
    return array("d", (x0, y0, x1, y0, x1, y1, x0, y1))


# ---- outlines ---------------------------------------------------------------------------------------------

def _extra_numbers(numbers: array, tokens: Sequence[str], ends: RowEnds) -> tuple[int, int, str]:
    """(how many numbers before the outline, how many behind it, what they are). Raises RowError."""
    for before in (4, 5):
        for behind in range(3):
            if (len(numbers) - before - behind) % 2 == 0 and _is_box_of_rest(numbers, before, behind):
                return before, behind, BOX_FIRST
    if len(numbers) % 2:
        return _one_or_three_extra(numbers, ends)
    return _none_or_two_extra(numbers, tokens, ends)


def _is_box_of_rest(numbers: array, before: int, behind: int) -> bool:
    """Are four of the first `before` numbers the box of the outline that follows, and the others extra?"""
    end = len(numbers) - behind
    if end - before < 6 or not all(map(_is_extra, numbers[end:])):
        return False
    starts = [0] if before == 4 else [start for start in (0, 1) if _is_extra(numbers[4 - 4 * start])]
    boxes = [numbers[start:start + 4] for start in starts]
    if not any(min(box[2:]) > 0 for box in boxes):
        return False
    xs, ys = numbers[before:end:2], numbers[before + 1:end:2]
    own = min(xs), min(ys), max(xs), max(ys)
    if any(box[2] > 0 and box[3] > 0 and _iou(_corners(*box), own) >= SAME_BOX_IOU for box in boxes):
        return True
    # a vertex in the middle is no accident, but two in opposite corners may be
    return any(all(abs(a - b) <= SAME_CORNERS for a, b in zip(box, own)) for box in boxes) and \
        _compactness(numbers[before:end]) > CLEARLY * _compactness(numbers[:end - end % 2])


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    wide, high = (max(0.0, min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis])) for axis in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return wide * high / (areas - wide * high) if areas > 0 else 0.0


def _one_or_three_extra(numbers: array, ends: RowEnds) -> tuple[int, int, str]:
    """As `_extra_numbers`, of an odd count of numbers."""
    first, last = numbers[0], numbers[-1]
    may_be_last = _is_extra(last) and _are_coordinates(numbers[:-1])
    may_be_first = _is_extra(first) and _are_coordinates(numbers[1:])
    if not may_be_last and not may_be_first:
        middle = numbers[1:-2]
        if len(middle) >= 6 and _is_id(first) and _is_confidence(numbers[-2]) and _is_id(last) \
                and _are_coordinates(middle):
            return 1, 2, f"{NUMBER_FIRST}, {CONFIDENCE_AND_ID} behind it"
        raise RowError(BEYOND)
    if may_be_last and may_be_first:
        may_be_last = not _first_is_extra(numbers, ends)
    return (0, 1, _name_of(last)) if may_be_last else (1, 0, NUMBER_FIRST)


def _first_is_extra(numbers: array, ends: RowEnds) -> bool:
    """Of an odd count of numbers that could all be coordinates: the first, or else the last? Raises RowError."""
    from_first, from_last = _distances((numbers[0], numbers[2], numbers[-3], numbers[-1]))
    if not numbers[0].is_integer():  # confidences behind outlines are common, before them nearly unknown
        clearly = len(numbers) > 7 and from_first > CLEARLY * from_last  # of triangles that says little
        if from_first > from_last and (ends.first_is_extra or (clearly and ends.first_is_extra is None)):
            raise RowError(UNCLEAR)
        return False
    if from_first > CLEARLY * from_last or from_last > CLEARLY * from_first:
        return from_first > from_last
    if ends.begin_with_id is None:
        raise RowError(UNCLEAR)
    return ends.begin_with_id


def _distances(numbers: Sequence[float]) -> tuple[float, float]:
    """Of a row's first, third, third to last and last number: how far the first and the last are from the others.

    Either the first belongs to these as x, or the last as y.
    """
    first, third, third_to_last, last = numbers
    return tuple(abs(number - third) + abs(number - third_to_last) for number in (first, last))


def _none_or_two_extra(numbers: array, tokens: Sequence[str], ends: RowEnds) -> tuple[int, int, str]:
    """As `_extra_numbers`, of an even count of numbers."""
    plain = _are_coordinates(numbers)
    if len(numbers) >= 8:
        may_be_id = _is_id(numbers[-1]) or numbers[-1] == 0
        if may_be_id and _is_confidence(numbers[-2]) and _are_coordinates(numbers[:-2]) \
                and (not plain or _ends_in_id(numbers, tokens, ends)):
            return 0, 2, CONFIDENCE_AND_ID
        if not plain and _is_id(numbers[0]):
            before, behind, extra = _one_or_three_extra(numbers[1:], ends)
            if before + behind == 1:
                return 1 + before, behind, NUMBER_FIRST if before else f"{NUMBER_FIRST}, {extra} behind it"
        factor = 1 if ends.begin_with_id else CLEARLY_BOTH
        if plain and _is_written_whole(tokens[1]) and _is_confidence(numbers[-1]) and ends.begin_with_id is not False \
                and _compactness(numbers[1:-1]) > factor * _compactness(numbers):
            raise RowError(UNCLEAR_ENDS)
    if not plain:
        raise RowError(BEYOND)
    return 0, 0, ""


def _ends_in_id(numbers: array, tokens: Sequence[str], ends: RowEnds) -> bool:
    """Numbers that end in one of 0..1 and a 0 or 1: are these a confidence and an id, not a corner at the photo's edge?

    Raises RowError for two that are neither.
    """
    is_whole = _is_written_whole(tokens[-1])
    if numbers[-1] == 0 and not (is_whole and ends.have_ids):
        if is_whole and _compactness(numbers[:-2]) > LIKELY * _compactness(numbers):
            raise RowError(UNCLEAR_ENDS)
        return False
    better = _compactness(numbers[:-2]) / max(_compactness(numbers), 1e-12) if len(numbers) >= 8 else LIKELY
    if is_whole and better > CLEARLY:
        return True
    if ends.have_ids is not None:
        return ends.have_ids
    along_edge = len(numbers) >= 8 and max(numbers[1], numbers[-3]) >= AT_EDGE
    if not is_whole or along_edge or numbers[-2].is_integer():
        return False
    if better < 1:
        raise RowError(UNCLEAR_ENDS)
    return True


def _compactness(numbers: array) -> float:
    """Area by squared perimeter of a flat polygon: a corner that is none makes it long and crosses it."""
    import numpy as np
    points = np.array(numbers).reshape(-1, 2)
    following = np.roll(points, -1, axis=0)
    area = abs((points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum()) / 2
    perimeter = np.hypot(*(following - points).T).sum()
    return float(area / perimeter ** 2) if perimeter else 0.0


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
