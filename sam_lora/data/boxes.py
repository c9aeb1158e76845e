"""Boxes in annotations: what the stated box says of a mask, and outlines that are only boxes.

COCO's bbox is [x, y, width, height]; everything here is in the frame of its photo's annotations unless said otherwise.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from sam_lora.data.sources import SourceObject

AGREE_IOU = 0.5          # of a mask's own box with the stated one
AGREE_PIXELS = 2         # or each side lies as near as that, and as this fraction of the larger box's longer side:
AGREE_SIDES = 0.03       # exporters' boxes are off by up to 7 px, and the IoU of thin ones means little
MOSTLY, FEWEST = 0.5, 3  # of the outlines, and how many: then boxes are no accident
SQUARENESS = 0.01        # of a box's size: how far exporters' rounding moves its corners

MISMATCH = "masks do not match their bbox"
BY_ROWS = f"{MISMATCH}, but do with their RLE read row by row, while COCO's runs go down the columns"
SWAPPED = f"{MISMATCH}, but do with x and y of their polygons swapped"
CORNERS = f"{MISMATCH}, but do if that is [x0, y0, x1, y1] instead of [x, y, width, height]"

XYXY = tuple[float, float, float, float]


# ---- masks and their bbox ---------------------------------------------------------------------------------

def doubt(item: SourceObject, mask_xyxy: XYXY, frame_wh: tuple[float, float] | None, resolution_wh: tuple[int, int]
          ) -> str:
    """"" where an object's mask, its box in pixels of the photo, matches the bbox it came with; else what is odd."""
    if item.bbox is None or item.is_rectangle:
        return ""
    x, y, width, height = item.bbox
    wide, high = (1.0, 1.0) if frame_wh is None else (resolution_wh[0] / frame_wh[0], resolution_wh[1] / frame_wh[1])
    stated = _clipped((x * wide, y * high, (x + width) * wide, (y + height) * high), resolution_wh)
    if _agree(mask_xyxy, stated) or (max(item.bbox) <= 1 and _agree(mask_xyxy, _fractions(item.bbox, resolution_wh))):
        return ""
    if item.rle is None:
        swapped = _clipped([bound * scale for bound, scale in zip(_swapped_bounds(item.polygons),
                                                                  (wide, high, wide, high))], resolution_wh)
        if _agree(swapped, stated):
            return SWAPPED
    elif _agree(_box_by_rows(item.rle, resolution_wh), stated):
        return BY_ROWS
    if _agree(mask_xyxy, _clipped((x * wide, y * high, width * wide, height * high), resolution_wh)):
        return CORNERS
    return MISMATCH


def _box_by_rows(encoded: dict, resolution_wh: tuple[int, int]) -> XYXY:
    from sam_lora.data import geometry, rle
    mask = rle.read_by_rows(rle.rle_to_mask(encoded))
    x0, y0, x1, y1 = geometry.mask_to_xyxy(mask)
    wide, high = resolution_wh[0] / mask.shape[1], resolution_wh[1] / mask.shape[0]
    return x0 * wide, y0 * high, x1 * wide, y1 * high


def _fractions(bbox: Sequence[float], resolution_wh: tuple[int, int]) -> XYXY:
    (width, height), (x, y, wide, high) = resolution_wh, bbox
    return x * width, y * height, (x + wide) * width, (y + high) * height


def _swapped_bounds(polygons: Sequence[Sequence[float]]) -> XYXY:
    """The box of the polygons with x and y of each point swapped."""
    xs = [number for polygon in polygons for number in (min(polygon[1::2]), max(polygon[1::2]))]
    ys = [number for polygon in polygons for number in (min(polygon[::2]), max(polygon[::2]))]
    return min(xs), min(ys), max(xs), max(ys)


def _clipped(xyxy: Sequence[float], resolution_wh: tuple[int, int]) -> XYXY:
    width, height = resolution_wh
    x0, y0, x1, y1 = xyxy
    return min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)


def _agree(first: XYXY, second: XYXY) -> bool:
    reach = AGREE_PIXELS + AGREE_SIDES * max(max(box[2] - box[0], box[3] - box[1]) for box in (first, second))
    if all(abs(a - b) <= reach for a, b in zip(first, second)):
        return True
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    if wide <= 0 or high <= 0:
        return False
    union = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second)) - wide * high
    return wide * high >= AGREE_IOU * union


# ---- outlines that are boxes ------------------------------------------------------------------------------

def note_boxes(items: Iterable[SourceObject], notes: Counter) -> None:
    """A note where most outlines have but the four corners of a box: SAM learns boxes from them."""
    total = found = 0
    for item in items:
        if not item.is_rectangle:
            total += 1
            found += len(item.polygons) == 1 and is_box(item.polygons[0])
    if found >= FEWEST and found > MOSTLY * total:
        notes[f"{found} of {total} outlines are four corners of a box, axis-parallel or turned, not the shape of an "
              "object: SAM would learn boxes"] += 1


def is_box(polygon: Sequence[float]) -> bool:
    """A flat polygon of four corners, the first perhaps repeated, that are a rectangle's, turned or not? Or one of more
    points, all along an axis-parallel rectangle?

    In a frame of another aspect than the photo's a turned rectangle is a parallelogram; that counts too.
    """
    if len(polygon) == 10 and polygon[:2] == polygon[8:]:
        polygon = polygon[:8]
    if len(polygon) != 8:
        return _runs_along_a_box(polygon)
    xs, ys = array("d", polygon[::2]), array("d", polygon[1::2])
    size = max(max(xs) - min(xs), max(ys) - min(ys))
    return size > 0 and all(abs(c[0] - c[1] + c[2] - c[3]) <= SQUARENESS * size for c in (xs, ys))


def _runs_along_a_box(polygon: Sequence[float]) -> bool:
    count = len(polygon)
    for place in range(0, count, 2):  # other outlines end here at their first edges
        wide, high = abs(polygon[place] - polygon[place - 2]), abs(polygon[place + 1] - polygon[place - 1])
        if min(wide, high) > SQUARENESS * max(wide, high):
            return False
    xs, ys = polygon[::2], polygon[1::2]
    area = sum(xs[place - 1] * ys[place] - xs[place] * ys[place - 1] for place in range(len(xs))) / 2
    return abs(area) > (1 - SQUARENESS) * (max(xs) - min(xs)) * (max(ys) - min(ys)) > 0
