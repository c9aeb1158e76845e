"""Simulated prompts of one row: where they lie, and how often each kind comes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.model.prompt_mix import BOX_JITTER, MAX_POINTS, MOST_JITTER, PromptMix
from sam_lora.model.prompts import Prompts

SIZE_HW = (40, 64)
OTHER_POINTS = PromptMix(other_points=1.0)


def make_target(x0: int = 8, y0: int = 4, x1: int = 32, y1: int = 20) -> np.ndarray:
    target = np.zeros(SIZE_HW, np.uint8)
    target[y0:y1, x0:x1] = 255
    return target


def table_prompts(boxed: bool = True) -> Prompts:
    """Two foreground points, a background point, and maybe the object's box."""
    return Prompts(torch.tensor([[[8.0, 4], [31, 19], [50, 35]]]), torch.tensor([[1, 1, 0]]),
                   torch.tensor([[8.0, 4, 32, 20]]) if boxed else None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_kinds_come_as_often_as_their_weights_say():
    mix, generator = PromptMix(table=2, other_points=0, points=4, box=1, box_and_points=1), rng()
    table, counts, numbers = table_prompts(boxed=False), Counter(), Counter()
    for _ in range(800):
        prompts = mix.draw(table, make_target(), generator)
        points, boxed = prompts.kinds[0]
        counts["table" if prompts is table else (points > 0, boxed)] += 1
        if prompts is not table and points:
            numbers[points] += 1
    expected = {"table": 200, (True, False): 400, (False, True): 100, (True, True): 100}
    assert counts.keys() == expected.keys()
    assert all(abs(counts[kind] - number) < 60 for kind, number in expected.items())
    assert numbers.keys() == set(range(1, MAX_POINTS + 1)) and min(numbers.values()) > 120


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_points_lie_in_the_object_and_the_box_around_it(seed):
    prompts = PromptMix(box_and_points=1.0).draw(table_prompts(boxed=False), make_target(), rng(seed))
    coords, target = prompts.point_coords[0], make_target()
    assert prompts.point_labels.tolist() == [[1] * len(coords)] and len(coords.unique(dim=0)) == len(coords)
    assert all(target[y, x] == 255 for x, y in coords.int().tolist())
    offsets = (prompts.boxes[0].double() - torch.tensor([8, 4, 32, 20])) / torch.tensor([24, 16, 24, 16])
    assert offsets.abs().max() <= MOST_JITTER + 1e-6
    assert prompts.boxes.dtype == torch.float32 and len(set(offsets.abs().tolist())) == 4


def test_boxes_are_off_by_a_tenth_on_average_and_stay_within_the_picture():
    mix, generator = PromptMix(box=1.0), rng()
    boxes = torch.cat([mix.draw(table_prompts(), make_target(0, 0, 40, 30), generator).boxes for _ in range(300)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 64).all() and (boxes[:, 3] <= 40).all()
    drawn = mix.draw(table_prompts(), make_target(0, 0, 40, 30), rng())
    assert drawn.kinds == [(0, True)]
    widths = torch.cat([mix.draw(table_prompts(), make_target(), rng(seed)).boxes for seed in range(300)])
    offsets = (widths[:, 2] - 32) / 24
    assert offsets.std().item() == pytest.approx(BOX_JITTER, rel=0.2) and abs(offsets.mean().item()) < 0.02


def test_a_box_of_the_table_is_taken_before_that_of_the_mask():
    prompts = replace(table_prompts(), boxes=torch.tensor([[40.0, 20, 60, 36]]))
    drawn = PromptMix(box=1.0).draw(prompts, make_target(), rng()).boxes[0]
    assert 35 < drawn[0] < 45 and 55 < drawn[2] < 65


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_other_points_lie_in_the_object_and_nothing_else_changes(seed):
    before = table_prompts()
    after = OTHER_POINTS.draw(before, make_target(), rng(seed))
    assert torch.equal(after.point_coords[0, 2], before.point_coords[0, 2])    # the background point
    assert torch.equal(after.point_labels, before.point_labels) and torch.equal(after.boxes, before.boxes)
    assert all(make_target()[y, x] == 255 for x, y in after.point_coords[0, :2].int().tolist())
    assert not torch.equal(after.point_coords[0, 0], after.point_coords[0, 1])


def test_every_pixel_of_the_object_is_equally_likely():
    generator = rng()
    target = make_target(5, 7, 9, 10)  # 12 pixels
    points = [tuple(point) for _ in range(600)
              for point in OTHER_POINTS.draw(table_prompts(), target, generator).point_coords[0, :2].int().tolist()]
    counts = [points.count((x, y)) for y in range(7, 10) for x in range(5, 9)]
    assert sum(counts) == 1200 and min(counts) > 60 and max(counts) < 145


def test_an_object_thinner_than_a_pixel_of_the_frame_still_gets_its_points_and_box():
    target = np.zeros(SIZE_HW, np.uint8)
    target[7], target[8] = 90, 60
    assert OTHER_POINTS.draw(table_prompts(), target, rng(1)).point_coords[0, :2, 1].tolist() == [7, 7]
    box = PromptMix(box=1.0).draw(table_prompts(boxed=False), target, rng(1)).boxes[0]
    assert 6 <= box[1] <= 7.3 and 7.7 <= box[3] <= 9


@pytest.mark.parametrize("mix", [pytest.param(PromptMix(**{kind: 1.0}), id=kind) for kind in vars(PromptMix())])
def test_a_row_without_a_mask_keeps_the_table_s_prompt(mix):
    prompts = table_prompts()
    assert mix.draw(prompts, np.zeros(SIZE_HW, np.uint8), rng()) is prompts


def test_a_row_without_foreground_points_has_no_other_ones():
    prompts = replace(table_prompts(), point_labels=torch.tensor([[0, 0, 0]]), kinds=None)
    assert OTHER_POINTS.draw(prompts, make_target(), rng()) is prompts
