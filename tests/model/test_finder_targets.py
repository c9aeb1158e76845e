"""finder_targets.py: which cells of the finder's grid belong to which object."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.model.finder_targets import NOTHING, UNDECIDED, Scene, stack_cells


def scene(*boxes, size_hw=(64, 64), classes=None, cell=8) -> Scene:
    owner = np.zeros(size_hw, np.int16)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        owner[y0:y1, x0:x1] = number
    return Scene(owner, tuple(classes or range(len(boxes))), cell)


def test_the_middle_of_an_object_is_its_own_its_edge_undecided():
    cells = scene((8, 8, 56, 56), classes=[2]).cells(64)
    assert cells.classes[3, 3] == 2 and cells.classes[1, 1] == UNDECIDED and cells.classes[0, 0] == NOTHING
    assert cells.boxes[:, 3, 3].tolist() == [8, 8, 56, 56]
    assert cells.valid.all()


def test_an_object_smaller_than_a_cell_has_one():
    cells = scene((17, 33, 20, 35)).cells(64)
    assert (cells.classes == 0).nonzero().tolist() == [[4, 2]]
    assert cells.boxes[:, 4, 2].tolist() == [17, 33, 20, 35]


def test_a_small_object_on_a_large_one_keeps_its_cells():
    cells = scene((0, 0, 64, 64), (24, 24, 40, 40), classes=[0, 1]).cells(64)
    assert (cells.classes[3:5, 3:5] == 1).all()


def test_the_padding_is_no_image():
    cells = scene((0, 0, 10, 10), size_hw=(20, 64)).cells(64)
    assert cells.valid[:3].all() and not cells.valid[3:].any()


def test_of_several_images():
    together = stack_cells([scene((8, 8, 56, 56)).cells(64), scene().cells(64)])
    assert together.classes.shape == (2, 8, 8) and together.boxes.shape == (2, 4, 8, 8)
    assert (together.classes[1] == NOTHING).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(3, 40), st.integers(3, 40))
def test_a_mirrored_scene_has_mirrored_cells(x, y, width, height):
    boxes = (x, y, min(x + width, 64), min(y + height, 64))
    straight, mirrored = scene(boxes).cells(64), scene(boxes).mirrored([-1]).cells(64)
    assert torch.equal(straight.classes.flip(-1), mirrored.classes)
    there = mirrored.classes >= 0
    flipped = straight.boxes.flip(-1)
    assert torch.equal(64 - flipped[[2]][:, there], mirrored.boxes[[0]][:, there])
    assert torch.equal(flipped[[1, 3]][:, there], mirrored.boxes[[1, 3]][:, there])
