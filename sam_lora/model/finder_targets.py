"""All objects of a photo as the finder learns them: which cells of its grid belong to which object.

A table has a row for each object, and a photo of several classes is several image files; `Scenes` puts the objects of
one photo together again, by `data.photos`.
"""

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import cv2
import numpy as np
import torch
from torch import Tensor

from sam_lora.data import geometry
from sam_lora.data.geometry import Box
from sam_lora.data.photos import VisibleObject, photo_key, visible_objects
from sam_lora.data.samples import Sample

CORE = 0.7      # a cell is an object's if it comes at least this close to its inmost pixel, as a fraction of its depth
EDGE = 0.25     # a cell that an object covers more than this, and that is none of these, counts neither way


@dataclass(frozen=True)
class Scene:
    """The objects of one photo in the model frame.

    `owner` (h, w) int16: the number of the object that a pixel shows, from 1, and 0 where there is none. Where objects
    overlap it is the smaller one's. `classes`: for each object the number of its class, from 0.
    """

    owner: np.ndarray
    classes: tuple[int, ...]
    cell: int                   # side of the finder's cells, in pixels

    def mirrored(self, axes: Sequence[int]) -> "Scene":
        return replace(self, owner=np.flip(self.owner, axes))

    def cells(self, side: int) -> "Cells":
        """What the finder is to say of an image of this scene, padded to `side`."""
        grid = side // self.cell
        classes = np.full((grid, grid), NOTHING, np.int8)
        boxes = np.zeros((4, grid, grid), np.float32)
        valid = np.zeros((grid, grid), bool)
        height, width = self.owner.shape
        valid[:-(-height // self.cell), :-(-width // self.cell)] = True
        for number, class_number in enumerate(self.classes, start=1):   # the smaller ones come last, and stay
            box = geometry.mask_to_xyxy(self.owner == number)
            if box is None:     # hidden by smaller ones
                continue
            here, core, edge = self._cells_of(number, box)
            classes[here][edge & (classes[here] == NOTHING)] = UNDECIDED
            classes[here][core] = class_number
            boxes[:, here[0], here[1]][:, core] = np.array(box, np.float32)[:, None]
        return Cells(torch.from_numpy(classes), torch.from_numpy(boxes), torch.from_numpy(valid))

    def _cells_of(self, number: int, box: Box) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """The part of the grid that holds an object, and bool arrays over it: its inmost cells, all that show it."""
        cell, (x0, y0, x1, y1) = self.cell, box
        top, left, bottom, right = y0 // cell, x0 // cell, -(-y1 // cell), -(-x1 // cell)
        own = np.zeros(((bottom - top) * cell, (right - left) * cell), np.uint8)
        own[y0 - top * cell:y1 - top * cell, x0 - left * cell:x1 - left * cell] = self.owner[y0:y1, x0:x1] == number
        depth = cv2.distanceTransform(np.pad(own, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        blocks = (bottom - top, cell, right - left, cell)
        core = depth.reshape(blocks).max(axis=(1, 3)) >= CORE * depth.max()
        return (slice(top, bottom), slice(left, right)), core, own.reshape(blocks).mean(axis=(1, 3)) > EDGE


NOTHING, UNDECIDED = -1, -2


@dataclass
class Cells:
    """`classes` (g, g) int8: the class of the object at each cell, NOTHING, or UNDECIDED at an object's edge; `boxes`
    (4, g, g) xyxy in the model frame, where there is a class; `valid` (g, g) bool: on the image."""

    classes: Tensor
    boxes: Tensor
    valid: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Cells":
        return Cells(*(value.to(device, non_blocking=non_blocking) for value in vars(self).values()))

    def pin_memory(self) -> "Cells":
        return Cells(*(value.pin_memory() for value in vars(self).values()))


def stack_cells(cells: Sequence[Cells]) -> Cells:
    """Of B images, in one."""
    return Cells(*(torch.stack(values) for values in zip(*(vars(one).values() for one in cells))))


class Scenes:
    """The scene of each photo or tile of a table. What was read is kept, compressed, for the next epochs."""

    def __init__(self, samples: Sequence[Sample], classes: Sequence[str], cell: int) -> None:
        """`classes`: the finder's; objects of others are left out. `cell`: side of its cells in the model frame."""
        self.cell = cell
        numbers = {name: number for number, name in enumerate(classes)}
        self.objects = {key: [(thing, numbers[thing.class_name]) for thing in things if thing.class_name in numbers]
                        for key, things in visible_objects(samples).items()}
        self._kept: dict[Hashable, tuple[bytes, tuple[int, int], tuple[int, ...]]] = {}

    def of(self, sample: Sample, original_size: tuple[int, int], input_size: tuple[int, int]) -> Scene:
        """The scene of a row's image. Sizes are (h, w): the image file's, and in the model frame. Raises UserError."""
        key = photo_key(sample)
        if key not in self._kept:
            scene = self._read(self.objects[key], original_size, input_size)
            self._kept[key] = zlib.compress(scene.owner.tobytes(), 1), scene.owner.shape, scene.classes
        packed, shape, classes = self._kept[key]
        return Scene(np.frombuffer(zlib.decompress(packed), np.int16).reshape(shape), classes, self.cell)

    def _read(self, objects: Sequence[tuple[VisibleObject, int]], original_size: tuple[int, int],
              input_size: tuple[int, int]) -> Scene:
        height, width = input_size
        shown = []
        for thing, class_number in objects:
            mask = thing.mask(original_size[::-1])
            covered = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
            small = covered >= min(128, max(1, covered.max()))   # also what is thinner than a pixel of the frame
            if small.any():
                shown.append((np.count_nonzero(small), class_number, small))
        shown.sort(key=itemgetter(0), reverse=True)
        owner = np.zeros(input_size, np.int16)
        for number, (_, _, small) in enumerate(shown, start=1):
            owner[small] = number
        return Scene(owner, tuple(class_number for _, class_number, _ in shown), self.cell)
