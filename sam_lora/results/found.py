"""What was found in a photo without a prompt. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Rle = Mapping[str, Any]     # COCO's compressed run lengths, as pycocotools has them: size [H, W], counts (text)


@dataclass(frozen=True)
class FoundObject:
    """One object: its class, its score from 0 to 1, its mask, its box x0, y0, x1, y1 in pixels of the photo."""

    class_name: str
    score: float
    mask: Rle
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class ScannedPhoto:
    """A photo and what was found in it, best score first. `truth`: (class, mask) of its objects, None if unknown."""

    image: Path
    name: str                   # as tables have it
    size_wh: tuple[int, int]
    found: tuple[FoundObject, ...]
    truth: tuple[tuple[str, Rle], ...] | None
    seconds: float


def encode_mask(mask: "np.ndarray") -> Rle:
    """(H, W) bool -> run lengths that JSON can hold."""
    import numpy as np
    from pycocotools import mask as coco_mask
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def decode_mask(mask: Rle) -> "np.ndarray":
    """Run lengths -> (H, W) bool."""
    from pycocotools import mask as coco_mask
    return coco_mask.decode(mask).astype(bool)
