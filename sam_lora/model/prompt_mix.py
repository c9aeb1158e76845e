"""The prompts that training simulates: which kinds, how often, and how one row's is drawn from its mask."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from sam_lora.data.clicks import random_points
from sam_lora.data.geometry import mask_to_xyxy, move_sides
from sam_lora.model.prompts import Prompts

MAX_POINTS = 3                    # of `points` and `box_and_points`
BOX_JITTER, MOST_JITTER = 0.1, 0.2  # standard deviation and limit of a side's offset, in widths or heights of the box


@dataclass(frozen=True)
class PromptMix:
    """How often a row is prompted by each kind; the numbers are weights, whatever their sum.

    `table`: the table's own prompt. `other_points`: the same with its foreground points anywhere in the mask. `points`:
    1 to MAX_POINTS foreground points anywhere in the mask. `box`: the table's box, or else the mask's, each side moved
    by about a tenth (normal, as in SAM). `box_and_points`: both.
    """

    table: float = 0.0
    other_points: float = 0.0
    points: float = 0.0
    box: float = 0.0
    box_and_points: float = 0.0

    def draw(self, prompts: Prompts, target: np.ndarray, generator: np.random.Generator) -> Prompts:
        """One row's prompt. `prompts` is the table's, `target` (h, w) uint8 in the model frame.

        A row without a mask keeps the table's prompt.
        """
        weights = vars(self)
        chances = np.array(list(weights.values())) / sum(weights.values())
        kind = list(weights)[generator.choice(len(chances), p=chances)]
        foreground = object_pixels(target)
        if kind == "table" or foreground is None:
            return prompts
        if kind == "other_points":
            return _other_points(prompts, foreground, generator)
        count = 0 if kind == "box" else int(generator.integers(1, MAX_POINTS + 1))
        coords = torch.from_numpy(random_points(foreground, 1, count, generator)).float()
        box = None if kind == "points" else torch.tensor([_jittered_box(prompts, foreground, generator)])
        return Prompts(coords, torch.ones(1, count, dtype=torch.long), box)


def object_pixels(target: np.ndarray) -> np.ndarray | None:
    """(h, w) bool: the pixels that the object covers by half or more, or if there are none, those it covers most.

    `target` (h, w) uint8, 255 = wholly covered. None without any object.
    """
    most_covered = target.max(initial=0)
    return target >= min(most_covered, 128) if most_covered else None


def _other_points(prompts: Prompts, foreground: np.ndarray, generator: np.random.Generator) -> Prompts:
    """As many other foreground points, every pixel equally likely, all different; the rest of the prompt stays."""
    clicked = prompts.point_labels[0] == 1
    if not clicked.any():
        return prompts
    points = random_points(foreground, 1, int(clicked.sum()), generator)[0]
    coords = prompts.point_coords.clone()
    coords[0, clicked] = torch.from_numpy(points).to(coords.dtype)
    return replace(prompts, point_coords=coords)


def _jittered_box(prompts: Prompts, foreground: np.ndarray, generator: np.random.Generator) -> tuple[float, ...]:
    box = mask_to_xyxy(foreground) if prompts.boxes is None else prompts.boxes[0].tolist()
    offsets = np.clip(generator.normal(0, BOX_JITTER, 4), -MOST_JITTER, MOST_JITTER)
    return move_sides(box, foreground.shape[::-1], offsets)
