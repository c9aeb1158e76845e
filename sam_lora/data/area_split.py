"""One photo split by area: train, val and test as blocks side by side, with gaps, so that no pixel is on two sides.

The boxes are crops or tiles in the frame of their photo. Frames of one video are split by time in the same way: a frame
is a box as long as itself and the frames that must lie between it and another side.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from sam_lora.contracts import SPLITS
from sam_lora.data.file_names import FRAME, TILE, Origin, are_pixels
from sam_lora.data.manifest import ManifestRow
from sam_lora.data.splits import PRIORITY, split_cost

MOST_CUTS = 64          # places tried for a border, along each axis
FRAMES_BETWEEN = 0.02   # of a video's frames that lie between two sides, at least one


class Area(NamedTuple):
    """Where a row lies: a box (x0, y0, x1, y1; ends exclusive), comparable with those of the same frame."""
    frame: tuple[str, str]      # (kind, name): "photo" (pixels), "tiles" (by two numbers, with their longer side in
    #                             pixels in place of an end) or "video" (by the frame's number)
    box: tuple[int, int, int, int]


def area_of(row: ManifestRow | None, file: str, origin: Origin | None) -> Area | None:
    """The area of a row of `file`, as far as the manifest, or a tile's or frame's name, says; None where they do not.

    `origin`: what the name says of the photo; None where the user has said which photo it is.
    """
    place = origin.place if origin and origin.place else {}
    if origin and origin.kinds == (FRAME,) and place:
        return Area(("video", origin.photo), (place["number"], 0, place["number"] + 1, 1))
    if origin and origin.kinds == (TILE,) and not place.keys().isdisjoint({"row", "a"}):
        side = max(row.source_width or 0, row.source_height or 0) if row else 0
        a, b = (place["column"], place["row"]) if "row" in place else (place["a"], place["b"])
        return Area(("tiles", origin.photo), (a, b, side, side))
    if row is None or None in (row.crop_x0, row.crop_y0, row.crop_x1, row.crop_y1) or not (
            row.crop_x0 < row.crop_x1 and row.crop_y0 < row.crop_y1):
        return None
    x, y = place.get("x", 0), place.get("y", 0)
    name = origin.photo if "x" in place else row.source_digest or file
    return Area(("photo", name), (row.crop_x0 + x, row.crop_y0 + y, row.crop_x1 + x, row.crop_y1 + y))


def split_by_area(areas: Sequence[Area | None], class_ids: Sequence[Hashable], fractions: Sequence[float]
                  ) -> list[str] | None:
    """train, val or test for each row of one photo, "" for those in a gap; None where that cannot be.

    Of all straight cuts across the photo, those that come nearest to `fractions` in each class, gaps included.
    """
    frames = {area.frame if area else None for area in areas}
    active = [split for split in PRIORITY if fractions[split] > 0]
    if len(frames) != 1 or None in frames or len(active) < 2:
        return None
    boxes = np.array([area.box for area in areas], dtype=np.int64)      # (N, 4)
    kind = next(iter(frames))[0]
    boxes = _frames_in_order(boxes) if kind == "video" else _tiles(boxes) if kind == "tiles" else boxes
    classes, class_of_row = np.unique([str(class_id) for class_id in class_ids], return_inverse=True)
    counts = np.column_stack([np.eye(len(classes))[class_of_row], np.ones(len(boxes))])     # (N, C), the last: all rows
    cost = split_cost(counts.sum(axis=0), _boxes_of_class(boxes, counts), np.divide(fractions, np.sum(fractions)))
    candidates = [(*_best_cuts(boxes[:, axis], boxes[:, axis + 2], counts, cost, order), axis, order)
                  for axis in (0, 1) for order in itertools.permutations(active)]
    _, cuts, axis, order = min(candidates, key=lambda found: found[0])
    sides = _sides(boxes[:, axis], boxes[:, axis + 2], cuts, order)
    return sides if {SPLITS[split] for split in active[:2]} <= {*sides} else None


def _frames_in_order(boxes: np.ndarray) -> np.ndarray:
    """Frames by number -> by rank, each as long as itself and the frames between two sides."""
    numbers, rank = np.unique(boxes[:, 0], return_inverse=True)
    between = max(1, round(FRAMES_BETWEEN * len(numbers)))
    zero = np.zeros_like(rank)
    return np.column_stack([rank, zero, rank + 1 + between, zero + 1])


def _tiles(boxes: np.ndarray) -> np.ndarray:
    """Tiles by two numbers -> boxes that hold all of them: as long as their longer side both ways, as it may not be
    known which number is x; by row and column, half of a tile may be its neighbour's too."""
    start, side = boxes[:, :2], boxes[:, 2:]
    pixels = are_pixels(start.ravel().tolist()) and side.all()
    return np.column_stack([start, start + (side if pixels else 2)])


def _boxes_of_class(boxes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(C,) in how many different boxes each class lies."""
    return np.array([len(np.unique(boxes[column > 0], axis=0)) for column in counts.T])


def _best_cuts(start: np.ndarray, end: np.ndarray, counts: np.ndarray, cost: Callable[[np.ndarray, int], np.ndarray],
               order: Sequence[int]) -> tuple[float, tuple[int, ...]]:
    """(cost, cuts) of the best borders between the sides in this order, along one axis.

    `start`, `end`: (N,) of each row's box.
    """
    places = np.unique(np.concatenate([start, end]))
    if len(places) > MOST_CUTS:
        places = places[np.linspace(0, len(places) - 1, MOST_CUTS).round().astype(int)]
    before = (end[:, None] <= places).astype(float)      # (N, M)
    behind = (start[:, None] >= places).astype(float)
    first, last = cost(before.T @ counts, order[0]), cost(behind.T @ counts, order[-1])     # (M,)
    if len(order) == 2:
        cut = int(np.argmin(first + last))
        return float((first + last)[cut]), (int(places[cut]),)
    between = np.stack([behind.T @ (before * column[:, None]) for column in counts.T], axis=-1)   # (M, M, C)
    costs = first[:, None] + cost(between, order[1]) + last
    costs[np.tril_indices(len(places), -1)] = np.inf
    a, b = np.unravel_index(int(np.argmin(costs)), costs.shape)
    return float(costs[a, b]), (int(places[a]), int(places[b]))


def _sides(start: np.ndarray, end: np.ndarray, cuts: Sequence[int], order: Sequence[int]) -> list[str]:
    edges = [-np.inf, *cuts, np.inf]
    sides = np.full(len(start), "", dtype=object)
    for split, low, high in zip(order, edges, edges[1:]):
        sides[(start >= low) & (end <= high)] = SPLITS[split]
    return sides.tolist()
