"""What a COCO annotation outlines, in the many ways that tools write it.

    [[x, y, x, y, …], …]                       COCO's own: the polygons of one object
    {"size": [h, w], "counts": …}              RLE, not checked here; several in a list are united
    [x, y, x, y, …]                            a polygon whose outer list is missing
    [[x, y], …], [{"x": x, "y": y}, …]         a polygon of points; {"x": [x, …], "y": [y, …]} too
    [[[x, y]], [[x, y]], …]                    the same as OpenCV's contours have it
    [[[x, y, …]]], [[[x, y], …]]               lists nested once too often, or twice
    "[[x, y, …]]"                              any of these as text
    null, [], [[]], {}, RLE without counts     no outline: then the bbox counts, where boxes are wanted
    [x, y, w, h], [[x, y, w, h]]               no outline either, but the box once more
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sam_lora.data.conversion_report import BOX_MARKED, BOX_ONLY

FAR = 1e15              # beyond it a coordinate is as good as infinite
FRACTION = 1.5          # what is above is none of width or height
BOX_MARKS = ("isbbox", "is_bbox", "obb", "is_obb")   # keys by which tools say that a polygon is only a box
DEEPEST = 4             # lists in lists
SHORT_RLE = 12          # characters: an RLE without foreground has no more

PART_DROPPED = "a polygon part was dropped: under three points, an odd count or no finite number"
THIRD_DROPPED = "polygon points had three numbers; the third was dropped"

Numbers = list | array


class AnnotationError(ValueError):
    """Why an annotation is not an object: (reason, detail)."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass
class Outline:
    """`polygons`, each flat [x, y, …], finite, three points or more; or `rle`, not checked yet; or neither.

    `boxes`: what stands where an outline belongs, but is a box, [x, y, w, h]. `is_box`: the polygons are only a box.
    """
    polygons: list[Numbers] = field(default_factory=list)
    rle: dict | None = None
    boxes: list[Numbers] = field(default_factory=list)
    is_box: bool = False


def read_outline(annotation: dict, frame_wh: tuple[float, float] | None, boxes: bool, notes: Counter) -> Outline:
    """The outline of an annotation, with `boxes` its box where it has only that. Raises AnnotationError."""
    outline = parse_segmentation(annotation.get("segmentation"), frame_wh, notes)
    marked = [mark for mark in BOX_MARKS if annotation.get(mark) in (True, 1, "1", "true", "True")]
    if outline.polygons or outline.rle is not None:
        if marked and not boxes:
            raise AnnotationError(BOX_MARKED, marked[0])
        outline.is_box = bool(marked)
        return outline
    try:
        outline.polygons = [box_polygon(annotation.get("bbox"))]
    except AnnotationError:
        if not outline.boxes:
            raise
        outline.polygons = [box_polygon(box) for box in outline.boxes]
    if not boxes:
        raise AnnotationError(BOX_ONLY)
    outline.is_box = True
    return outline


def parse_segmentation(segmentation: object, frame_wh: tuple[float, float] | None, notes: Counter) -> Outline:
    """What a `segmentation` says, in any of the ways above. Unusable parts are dropped and noted. Raises
    AnnotationError."""
    if isinstance(segmentation, str):
        segmentation = _from_text(segmentation)
    if isinstance(segmentation, list) and segmentation and all(map(_is_rle, segmentation)):
        segmentation = _united([rle for rle in segmentation if not is_empty(rle)])
    if is_empty(segmentation):
        return Outline()
    if _is_rle(segmentation):
        return Outline(rle=segmentation)
    if not isinstance(segmentation, list | array | dict):
        raise AnnotationError("segmentation that is neither polygons nor RLE")
    if boxes := _boxes(segmentation):
        return Outline(boxes=boxes)
    parts = _parts(segmentation, notes)
    if is_numbers(segmentation):
        _refuse_counts(segmentation, frame_wh)
    polygons = [part for part in parts if is_numbers(part) and len(part) >= 6 and len(part) % 2 == 0]
    if not polygons:
        raise AnnotationError("no polygon part of three finite points")
    if len(polygons) < len(parts):
        notes[PART_DROPPED] += 1
    return Outline(polygons)


def _from_text(text: str) -> object:
    if not text.strip():
        return None
    try:
        return json.loads(text) if text.lstrip()[0] in "[{" else text
    except (ValueError, RecursionError):
        return text


def _united(rles: Sequence[dict]) -> dict | None:
    from sam_lora.data.rle import merge_rles
    if len(rles) < 2:
        return rles[0] if rles else None
    try:
        return merge_rles(rles)
    except ValueError as error:
        raise AnnotationError(str(error)) from None


def _refuse_counts(numbers: Numbers, frame_wh: tuple[float, float] | None) -> None:
    """Raise AnnotationError for an RLE without its size, which a polygon without its outer list looks like."""
    reach = max(frame_wh) * 1.5 if frame_wh else math.inf
    if len(numbers) % 2 or (frame_wh and sum(numbers) == frame_wh[0] * frame_wh[1]) or max(numbers) > reach:
        raise AnnotationError("a plain list of numbers that looks like RLE counts")


def _boxes(segmentation: object) -> list[Numbers]:
    """Lists of four numbers, where there is nothing else: what is no polygon, but a box."""
    while isinstance(segmentation, list) and len(segmentation) == 1 and isinstance(segmentation[0], list) \
            and segmentation[0] and isinstance(segmentation[0][0], list | array):
        segmentation = segmentation[0]
    rows = [segmentation] if is_numbers(segmentation) else segmentation
    rows = [row for row in rows if not is_empty(row)] if isinstance(rows, list) else []
    return rows if all(isinstance(row, list | array) and len(row) == 4 and is_numbers(row) for row in rows) else []


def _parts(segmentation: object, notes: Counter, depth: int = 0) -> list:
    """The parts in lists of any depth: flat lists of numbers, and what is none as it stands."""
    if isinstance(segmentation, array) or is_numbers(segmentation):
        return [segmentation]
    if _is_points(segmentation):
        return [_flat(segmentation, notes)]
    if isinstance(segmentation, list) and segmentation and depth < DEEPEST:
        return [part for inner in segmentation for part in _parts(inner, notes, depth + 1)]
    if isinstance(segmentation, dict) and not _is_rle(segmentation):
        xs, ys = segmentation.get("x"), segmentation.get("y")
        if is_numbers(xs) and is_numbers(ys) and len(xs) == len(ys):
            return [[number for point in zip(xs, ys) for number in point]]
    return [segmentation] if hasattr(segmentation, "__len__") else [[segmentation]]


def _is_points(segmentation: object) -> bool:
    """A list of points, all [x, y], [[x, y]] as OpenCV's contours, {"x": …, "y": …}, or all of three numbers?"""
    if not isinstance(segmentation, list) or not segmentation:
        return False
    length = len(_point(segmentation[0]))
    return length > 0 and all(len(_point(value)) == length for value in segmentation)


def _point(value: object) -> Numbers:
    """The numbers of a point; none for what is no point."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list | array):
        value = value[0]
    if isinstance(value, dict):
        value = [value.get("x"), value.get("y")]
    return value if isinstance(value, list | array) and len(value) in (2, 3) and is_numbers(value) else []


def _flat(points: list, notes: Counter) -> list[float]:
    points = [_point(value) for value in points]
    if len(points[0]) == 3:
        notes[THIRD_DROPPED] += 1
    return [number for point in points for number in point[:2]]


def is_empty(segmentation: object, depth: int = 0) -> bool:
    """No outline at all: nothing, empty lists however nested, an RLE without runs or without foreground?"""
    if segmentation is None or (isinstance(segmentation, list | array | dict | str) and not len(segmentation)):
        return True
    if isinstance(segmentation, list):
        return depth < DEEPEST and all(is_empty(inner, depth + 1) for inner in segmentation)
    if not _is_rle(segmentation):
        return False
    from sam_lora.data.rle import rle_runs, rle_size
    counts = segmentation.get("counts")
    if not counts:
        return counts is None or isinstance(counts, list | str)
    try:
        runs = rle_runs(counts.encode()) if isinstance(counts, str) and len(counts) <= SHORT_RLE else counts
        if not isinstance(runs, list | array) or any(runs[1::2]):  # foreground
            return False
        height, width = rle_size(segmentation)
    except ValueError:
        return False
    return is_numbers(runs) and sum(runs) == height * width


def _is_rle(segmentation: object) -> bool:
    return isinstance(segmentation, dict) and ("counts" in segmentation or "size" in segmentation)


def box_polygon(bbox: object) -> list[float]:
    """COCO's bbox [x, y, width, height] -> the four corners, flat. Raises AnnotationError."""
    found = box_or_none(bbox)
    if found is None:
        raise AnnotationError("neither an outline nor a box")
    x, y, width, height = found
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def box_or_none(bbox: object) -> tuple[float, ...] | None:
    """A bbox as (x, y, width, height), in a list of its own or with these keys too; None for one without extent."""
    if isinstance(bbox, list) and len(bbox) == 1:
        bbox = bbox[0]
    if isinstance(bbox, dict):
        bbox = [bbox.get(key) for key in ("x", "y", "width", "height")]
    if not (isinstance(bbox, list | array) and len(bbox) == 4 and is_numbers(bbox) and min(bbox[2:]) > 0):
        return None
    return tuple(bbox)


def is_fraction(polygons: Sequence[Numbers]) -> bool:
    """Do all coordinates lie within 0..1, or about there, as they reach beyond the photo now and then?"""
    return min(map(min, polygons)) > -FRACTION / 2 and 0 < max(map(max, polygons)) < FRACTION


def is_numbers(values: object) -> bool:
    """A list of numbers, all finite, one at least?"""
    if isinstance(values, array):  # by C's loops: a NaN spoils the sum
        return len(values) > 0 and math.isfinite(sum(values)) and -FAR < min(values) <= max(values) < FAR
    return isinstance(values, list) and len(values) > 0 and all(map(is_number, values))


def is_number(value: object) -> bool:
    """A finite number?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and -FAR < value < FAR
