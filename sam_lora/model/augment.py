"""Augmentation of one item of the training table: mirror it, change its colours, prompt its masks anew.

All random numbers follow from (seed, epoch, row), so what happens to a row does not depend on its batch, on the number
of loader workers or on the number of processes.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sam_lora.model.batches import Item
from sam_lora.model.prompt_mix import PromptMix
from sam_lora.model.prompts import Prompts

IMAGE_STREAM, CLICK_STREAM, CORRECTION_STREAM = 1, 2, 3  # of random numbers: changing one leaves the others as they are


@dataclass(frozen=True)
class Augmentation:
    """What changes from epoch to epoch. Validation and inference have none.

    `flip`: mirror half of the images left to right and half of them top to bottom. `color_jitter` (0 to 1): change
    brightness, contrast and saturation by up to this fraction. `prompts`: the kinds of prompts, None for the table's
    alone. `correction_rounds`: how many corrective clicks each row gets random numbers for.
    """

    seed: int
    flip: bool = False
    color_jitter: float = 0.0
    prompts: PromptMix | None = None
    correction_rounds: int = 0

    def __call__(self, item: Item, epoch: int) -> Item:
        """The item as this epoch sees it. Without an image, because its features are kept, only prompts change."""
        if item.image is not None and (self.flip or self.color_jitter):
            draws = self._generator(epoch, item.rows[0], IMAGE_STREAM).random(5)
            if self.color_jitter:
                item = replace(item, image=jitter_colors(item.image, 1 + self.color_jitter * (2 * draws[2:] - 1)))
            if self.flip:
                item = mirror(item, top_to_bottom=draws[0] < 0.5, left_to_right=draws[1] < 0.5)
        if self.prompts and not item.background:
            item = replace(item, prompts=[
                self.prompts.draw(prompts, target.numpy(), self._generator(epoch, row, CLICK_STREAM))
                for row, prompts, target in zip(item.rows, item.prompts, item.targets)])
        if self.correction_rounds:
            item = replace(item, correction_draws=[
                self._generator(epoch, row, CORRECTION_STREAM).random(self.correction_rounds) for row in item.rows])
        return item

    def _generator(self, epoch: int, row: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, row, stream))


def mirror(item: Item, top_to_bottom: bool, left_to_right: bool) -> Item:
    """The item with its image, targets and prompts mirrored. Not for items that hold full-resolution masks."""
    axes = [axis for axis, wanted in ((-2, top_to_bottom), (-1, left_to_right)) if wanted]
    if not axes:
        return item
    return replace(item, image=item.image.flip(axes), targets=[target.flip(axes) for target in item.targets],
                   scene=item.scene and item.scene.mirrored(axes),
                   prompts=[_mirrored_prompts(prompts, item.input_size, top_to_bottom, left_to_right)
                            for prompts in item.prompts])


def _mirrored_prompts(prompts: Prompts, size_hw: tuple[int, int], top_to_bottom: bool, left_to_right: bool) -> Prompts:
    flips = torch.tensor([left_to_right, top_to_bottom])                        # x, y
    size = torch.tensor(size_hw[::-1], dtype=prompts.point_coords.dtype)       # w, h
    boxes = prompts.boxes
    if boxes is not None:
        low, high = boxes[:, :2], boxes[:, 2:]
        boxes = torch.cat([torch.where(flips, size - high, low), torch.where(flips, size - low, high)], dim=1)
    coords = torch.where(flips, size - 1 - prompts.point_coords, prompts.point_coords)
    return replace(prompts, point_coords=coords, boxes=boxes)


def jitter_colors(image: Tensor, factors: np.ndarray) -> Tensor:
    """(3, h, w) uint8 with its brightness, contrast and saturation multiplied by the three `factors`."""
    from torchvision.transforms.v2 import functional
    brightness, contrast, saturation = factors.tolist()
    image = functional.adjust_brightness(image, brightness)
    image = functional.adjust_contrast(image, contrast)
    return functional.adjust_saturation(image, saturation)
