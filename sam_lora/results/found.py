"""What was found in a photo without a prompt. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rle = Mapping[str, Any]     # COCO's compressed run lengths, as pycocotools gives them: size [H, W], counts


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
