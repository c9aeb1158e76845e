"""Polygons, boxes and masks: pure functions, no files.

Coordinates are (x, y) in pixels of the image; pixel i covers the interval [i, i + 1). Boxes are
xyxy, whole pixels, x1 and y1 exclusive. Masks are (H, W) bool.
"""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

Box = tuple[int, int, int, int]

SUPERSAMPLING = 4
TILE_OVERLAP = 4               # neighbouring tiles overlap by a quarter of their side, or more
POLYGON_RASTERISER = f"opencv fillPoly {SUPERSAMPLING}x"
RECTANGLE_RASTERISER = "rectangle"

_SHIFT = 4                     # fillPoly takes fixed-point vertices: sixteenths of a subpixel
_MAX_CANVAS = 64 * 2**20       # bytes of supersampled canvas drawn at a time
_FAR = 1e7                     # vertices further out are drawn in to here: int32 and float sums stay exact enough
_MANY_POINTS = 5000
_MAX_TANGLE = 1e11             # some 20 seconds
_SPECKS, _MAX_RINGS, _FAITHFUL = 0.01, 500, 0.97  # of a mask as a polygon


# ---- polygons ---------------------------------------------------------------------------------------------

def polygons_to_mask(polygons: Sequence[np.ndarray], resolution_wh: tuple[int, int]) -> tuple[np.ndarray, Box] | None:
    """The union of `polygons`, each (N, 2) float xy, N >= 3, finite, as a mask inside its own box.

    Returns (mask (y1 - y0, x1 - x0) bool, box xyxy in the image), the box tight around the foreground; None where no
    pixel of the image is at least half covered. Every polygon is filled by the even-odd rule, so a seam to an inner
    ring makes a hole. Memory grows with the object, not with the image. Raises ValueError for a polygon that crosses
    itself so often that drawing it would take minutes.
    """
    window = (0, 0, *resolution_wh)
    parts = [clipped for polygon in polygons if len(clipped := clip_polygon(polygon, window)) >= 3]
    if not parts:
        return None
    points = parts[0] if len(parts) == 1 else np.concatenate(parts)
    x0, y0 = np.floor(points.min(axis=0)).astype(int).tolist()
    x1, y1 = np.ceil(points.max(axis=0)).astype(int).tolist()
    x0, y0, x1, y1 = clip_box((x0, y0, x1, y1), resolution_wh)
    if x0 >= x1 or y0 >= y1:
        return None
    for part in parts:
        if len(part) > _MANY_POINTS:
            # fillPoly sorts, row by row, the edges that the row meets: their number squared where they are in disorder
            edges = np.abs(np.diff(part[:, 1])).sum() / (y1 - y0)
            if edges**2 * (y1 - y0) * SUPERSAMPLING > _MAX_TANGLE:
                raise ValueError("polygon that crosses itself too often to be an outline")
    mask = np.empty((y1 - y0, x1 - x0), dtype=bool)
    rows = max(1, _MAX_CANVAS // (SUPERSAMPLING**2 * (x1 - x0 + 2)))
    for top in range(y0, y1, rows):
        bottom = min(top + rows, y1)
        mask[top - y0:bottom - y0] = _draw(parts, (x0, top, x1, bottom))
    return tighten(mask, (x0, y0))


def _draw(parts: Sequence[np.ndarray], box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    width, height = x1 - x0 + 2, y1 - y0 + 2  # a pixel around, so that OpenCV, which moves edges then, never clips
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), dtype=np.uint8)
    for part in parts:
        # OpenCV's integer coordinates are pixel centres, ours pixel corners: hence the half
        vertices = (clip_polygon(part, box) - (x0 - 1, y0 - 1)) * SUPERSAMPLING - 0.5
        if len(vertices) >= 3:
            cv2.fillPoly(canvas, [np.round(vertices * 2**_SHIFT).astype(np.int32)], 240, shift=_SHIFT)
    # the mean of sixteen subpixels of 0 or 240 is a whole number, so nothing is rounded; the threshold is strictly more
    # than half because fillPoly paints the boundary's subpixels too
    for scale in (2, 1):  # by halves, which OpenCV does several times faster than by a quarter at once
        canvas = cv2.resize(canvas, (width * scale, height * scale), interpolation=cv2.INTER_AREA)
    return canvas[1:-1, 1:-1] > 120


def clip_polygon(polygon: np.ndarray, box: Box) -> np.ndarray:
    """The part of a polygon, (N, 2) float xy, in a box and one pixel around it (Sutherland-Hodgman); (M, 2).

    That pixel keeps the edges along the clip border out of the box. M is 0 where nothing is left.
    """
    polygon = np.asarray(polygon, dtype=np.float64)
    x0, y0, x1, y1 = box
    (left, top), (right, bottom) = polygon.min(axis=0), polygon.max(axis=0)
    if left >= x0 - 1 and top >= y0 - 1 and right <= x1 + 1 and bottom <= y1 + 1:
        return polygon
    polygon = np.clip(polygon, -_FAR, _FAR)
    for axis, limit, sign in ((0, x0 - 1.0, 1), (0, x1 + 1.0, -1), (1, y0 - 1.0, 1), (1, y1 + 1.0, -1)):
        distance = sign * (polygon[:, axis] - limit)
        inside = distance >= 0
        if inside.all():
            continue
        crosses = inside != np.roll(inside, -1)
        fall = distance - np.roll(distance, -1)
        fraction = np.divide(distance, fall, out=np.zeros_like(distance), where=crosses)
        crossings = polygon + fraction[:, None] * (np.roll(polygon, -1, axis=0) - polygon)
        crossings[:, axis] = limit
        # each vertex that is inside, then the point where its outgoing edge crosses the border
        both = np.stack([polygon, crossings], axis=1).reshape(-1, 2)
        polygon = both[np.stack([inside, crosses], axis=1).ravel()]
        if len(polygon) == 0:
            break
    return polygon


def box_polygon(xyxy: Sequence[float]) -> np.ndarray:
    """The four corners of a box, (4, 2) float xy."""
    x0, y0, x1, y1 = xyxy
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def mask_to_polygon(mask: np.ndarray) -> np.ndarray:
    """A mask's outline as one polygon, (N, 2) float64 xy at the pixels' outer edges; N is 0 for an empty mask.

    Parts and holes are connected by seams that run there and back, which the even-odd rule ignores, so that
    `polygons_to_mask` draws them all. What is lost: the smallest parts and holes, together 1 % of the mask (of noise
    all but the 500 largest), and detail of up to a pixel as long as polygon and mask keep an IoU of 0.97.
    """
    tight = tighten(mask)
    if tight is None:
        return np.zeros((0, 2))
    cut, (x0, y0, *_) = tight
    doubled = np.pad(cut.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1), 2)
    # OpenCV follows the middles of pixels; in the doubled mask the half pixel it is on tells which edge is next to it
    contours = [(contour - 2 + (contour & 1)) // 2 for contour in
                cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]]
    areas = np.array([cv2.contourArea(contour) for contour in contours])
    order = areas.argsort(kind="stable")
    order = order[areas[order].cumsum() > _SPECKS * np.count_nonzero(cut)][:-_MAX_RINGS - 1:-1]
    for tolerance in (1.0, 0.72, 0.0):  # 0.72 makes stairs straight
        rings = [cv2.approxPolyDP(contours[index], tolerance, True)[:, 0] for index in order]
        polygon = _joined([ring for ring in rings if len(ring) >= 3])
        if len(polygon) and _covers(polygon, cut):
            break
    return polygon + np.array([x0, y0])


def _covers(polygon: np.ndarray, mask: np.ndarray) -> bool:
    try:
        drawn = polygons_to_mask([polygon], mask.shape[::-1])
    except ValueError:  # noise, not an object
        return False
    if drawn is None:
        return False
    covered = paste(*drawn, (0, 0, *mask.shape[::-1]))
    return np.count_nonzero(covered & mask) >= _FAITHFUL * np.count_nonzero(covered | mask)


def _joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Rings, (N, 2) each, as one: a seam between two close vertices connects each ring to those before it."""
    joined = np.concatenate([*rings[:1], np.zeros((0, 2))])
    for ring in rings[1:]:
        there = _nearest(joined, ring[0])
        here = _nearest(ring, joined[there])
        there = _nearest(joined, ring[here])
        joined = np.concatenate([joined[:there + 1], ring[here:], ring[:here + 1], joined[there:]])
    return joined


def _nearest(points: np.ndarray, point: np.ndarray) -> int:
    return int(np.square(points - point).sum(axis=1).argmin())


# ---- masks and boxes --------------------------------------------------------------------------------------

def mask_to_xyxy(mask: np.ndarray) -> Box | None:
    """The tight box around a mask's foreground; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def move_sides(box: Sequence[float], size_wh: tuple[int, int], offsets: Sequence[float]) -> tuple[float, ...]:
    """The xyxy box with its left, top, right and bottom side moved outwards by fractions of its width or height.

    Negative `offsets` move inwards. The result lies within the picture of `size_wh`, at least a pixel wide and high.
    """
    corners = np.array(box, float)
    moved = corners + np.array(offsets) * np.tile(corners[2:] - corners[:2], 2) * (-1, -1, 1, 1)
    low = np.clip(moved[:2], 0, np.array(size_wh) - 1.0)
    return (*low.tolist(), *np.clip(moved[2:], low + 1, np.array(size_wh, float)).tolist())


def tighten(mask: np.ndarray, origin_xy: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, Box] | None:
    """Cut a mask whose corner lies at `origin_xy` down to its foreground: (mask, box in the image); None if empty."""
    box = mask_to_xyxy(mask)
    if box is None:
        return None
    x, y = origin_xy
    return crop(mask, box), (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def pad_box(xyxy: Box, padding: float, resolution_wh: tuple[int, int]) -> Box:
    """Widen a box on every side by `padding` times its width or height, rounded up, clipped to the image."""
    x0, y0, x1, y1 = xyxy
    # a product such as 0.1 * 30 lies a hair above the whole number
    dx = int(np.ceil(min(padding * (x1 - x0) - 1e-9, resolution_wh[0])))
    dy = int(np.ceil(min(padding * (y1 - y0) - 1e-9, resolution_wh[1])))
    return clip_box((x0 - dx, y0 - dy, x1 + dx, y1 + dy), resolution_wh)


def square_box(xyxy: Box, resolution_wh: tuple[int, int]) -> Box:
    """Widen a box that lies in the image to a square, evenly on both sides as far as the image reaches.

    The result is not square only where the image is narrower than the box is long: then it spans the whole image.
    """
    x0, y0, x1, y1 = xyxy
    spans = []
    for first, last, limit in ((x0, x1, resolution_wh[0]), (y0, y1, resolution_wh[1])):
        length = min(longer_side(xyxy), limit)
        start = min(max((first + last - length) // 2, 0), limit - length)
        spans.append((start, start + length))
    (x0, x1), (y0, y1) = spans
    return x0, y0, x1, y1


def tile_grid(resolution_wh: tuple[int, int], size: int) -> list[tuple[Box, Box]]:
    """Tiles of `size` pixels a side that cover an image, row by row, and the core of each: (tile, core).

    Tiles are spread evenly, and neighbours overlap by a quarter of their side or more. The cores divide the image
    without overlap, their borders in the middle of the tiles' overlaps. An image shorter than `size` has one tile,
    as short.
    """
    (columns, rows) = (_tile_spans(length, size) for length in resolution_wh)
    return [((x0, y0, x1, y1), (left, top, right, bottom))
            for (y0, y1), (top, bottom) in rows for (x0, x1), (left, right) in columns]


def _tile_spans(length: int, size: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    more = -(-(length - size) * TILE_OVERLAP // (size * (TILE_OVERLAP - 1))) if length > size else 0
    starts = [0, *(number * (length - size) // more for number in range(1, more + 1))]
    borders = [0, *((following + start + size) // 2 for start, following in pairwise(starts)), length]
    return [((start, min(start + size, length)), core) for start, core in zip(starts, pairwise(borders))]


def cut_into_tiles(mask: np.ndarray, xyxy: Box, grid: Sequence[tuple[Box, Box]], min_size: int
                   ) -> list[tuple[np.ndarray, Box, Box]]:
    """Distribute a mask that fills the box `xyxy` over the tiles of `tile_grid`: (piece, its tight box, tile) each.

    Where tiles hold all of it, the one whose middle is nearest gets it, uncut. Otherwise every tile whose core has
    `min_size` pixels of it or more, in width or in height, gets a piece: all of it that the tile shows.
    """
    x0, y0, x1, y1 = xyxy
    holding = [tile for tile, _ in grid if tile[0] <= x0 and tile[1] <= y0 and x1 <= tile[2] and y1 <= tile[3]]
    if holding:
        off_middle = [sorted((abs(x0 + x1 - tile[0] - tile[2]), abs(y0 + y1 - tile[1] - tile[3])), reverse=True)
                      for tile in holding]
        return [(mask, xyxy, holding[off_middle.index(min(off_middle))])]
    pieces = []
    for tile, core in grid:
        in_core = _part_in(mask, xyxy, core)
        if in_core is not None and longer_side(in_core[1]) >= min_size:
            pieces.append((*_part_in(mask, xyxy, tile), tile))
    return pieces


def _part_in(mask: np.ndarray, xyxy: Box, window: Box) -> tuple[np.ndarray, Box] | None:
    """The part in `window` of a mask that fills `xyxy`: (mask, its tight box); None where there is none."""
    x0, y0 = max(xyxy[0], window[0]), max(xyxy[1], window[1])
    x1, y1 = min(xyxy[2], window[2]), min(xyxy[3], window[3])
    if x0 >= x1 or y0 >= y1:
        return None
    return tighten(crop(mask, (x0 - xyxy[0], y0 - xyxy[1], x1 - xyxy[0], y1 - xyxy[1])), (x0, y0))


def longer_side(xyxy: Box) -> int:
    return max(xyxy[2] - xyxy[0], xyxy[3] - xyxy[1])


def clip_box(xyxy: Box, resolution_wh: tuple[int, int]) -> Box:
    """The part of a box inside the image; empty boxes stay empty."""
    width, height = resolution_wh
    x0, y0, x1, y1 = xyxy
    return (min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height))


def same_aspect(first_wh: tuple[float, float], second_wh: tuple[float, float]) -> bool:
    """Is one size the other one scaled, to within 1 % or a pixel of rounding?"""
    (w1, h1), (w2, h2) = sorted((first_wh, second_wh))
    return abs(w2 * h1 / h2 - w1) <= max(1.0, 0.01 * w1)


def crop(array: np.ndarray, xyxy: Box) -> np.ndarray:
    """The box's part of an (H, W, ...) array, a view."""
    x0, y0, x1, y1 = xyxy
    return array[y0:y1, x0:x1]


def paste(mask: np.ndarray, xyxy: Box, frame: Box) -> np.ndarray:
    """Put a mask that fills the box `xyxy` into an empty mask that fills the box `frame` around it."""
    canvas = np.zeros((frame[3] - frame[1], frame[2] - frame[0]), dtype=bool)
    canvas[xyxy[1] - frame[1]:xyxy[3] - frame[1], xyxy[0] - frame[0]:xyxy[2] - frame[0]] = mask
    return canvas
