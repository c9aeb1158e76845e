"""COCO's run-length encoding (RLE) of masks, checked before pycocotools sees it.

Runs count pixels down the columns, background first: `size` [height, width] and `counts`, a list of the runs or COCO's
compressed text. Masks are (H, W) bool.
"""

from array import array
from collections.abc import Sequence

import numpy as np

RASTERISER = "pycocotools RLE"
_MAX_PIXELS = 2**28


def rle_to_mask(rle: dict) -> np.ndarray:
    """A COCO RLE -> mask (H, W) bool of its own `size`.

    Raises ValueError, its text the reason, for anything that pycocotools would crash on or decode to garbage.
    """
    from pycocotools import mask as coco_mask
    return np.ascontiguousarray(coco_mask.decode(_checked(rle))).view(bool)  # 0 or 1, as the sum was right


def merge_rles(rles: Sequence[dict]) -> dict:
    """The union of several RLEs of one size, as an RLE. Raises ValueError, its text the reason."""
    from pycocotools import mask as coco_mask
    if len({rle_size(rle) for rle in rles}) > 1:
        raise ValueError("several RLEs of different sizes")
    merged = coco_mask.merge([_checked(rle) for rle in rles])
    return {"size": list(merged["size"]), "counts": merged["counts"].decode()}


def read_by_rows(mask: np.ndarray) -> np.ndarray:
    """The mask (H, W) that a decoded RLE would be if its runs went along the rows, as some tools write them."""
    return mask.ravel(order="F").reshape(mask.shape)


def _checked(rle: dict) -> dict:
    """An RLE in its compressed form, safe for pycocotools. Raises ValueError, its text the reason."""
    from pycocotools import mask as coco_mask
    height, width = rle_size(rle)
    counts = rle.get("counts")
    if isinstance(counts, list | tuple | array):
        if not all(map(_is_count, counts)):
            raise ValueError("RLE counts that are not whole numbers")
        runs = [int(count) for count in counts]
        encoded = None
    elif isinstance(counts, str | bytes):
        encoded = counts.encode() if isinstance(counts, str) else counts
        runs = rle_runs(encoded)
    else:
        raise ValueError("RLE without counts")
    if sum(runs) != height * width:
        raise ValueError("RLE counts that do not add up to its size")
    if encoded is None:
        return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": encoded}


def rle_size(rle: dict) -> tuple[int, int]:
    """(height, width) as the RLE states it. Raises ValueError, its text the reason."""
    size = rle.get("size")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_count, size)) and min(size) > 0):
        raise ValueError("RLE without a size of two whole numbers")
    height, width = (int(value) for value in size)
    if height * width > _MAX_PIXELS:
        raise ValueError("RLE larger than 268 megapixels")
    return height, width


def rle_runs(encoded: bytes) -> list[int]:
    """The run lengths in COCO's compressed RLE text. Raises ValueError where it is damaged.

    Each character holds six bits, counted from "0": five bits of the number, lowest first, and one that says whether
    the number goes on. Numbers are signed; from the fourth on they are differences to the number before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in encoded:
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("damaged RLE text")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("damaged RLE text")
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("damaged RLE text")
    return runs


def _is_count(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31) or (
        isinstance(value, float) and value.is_integer() and 0 <= value < 2**31)
