"""Prompts drawn on the masks' device: they fit their masks, whatever the kind; corrections go where it is wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_lora.model.prompts import Prompts

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import prompting
from scene_batches import Batches


@pytest.fixture(scope="module")
def rows():
    batch = next(iter(Batches(3, 64, 6, 4, 0.2)))
    return {name: batch[name] for name in ("masks", "positive", "negative", "boxes")}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


def value_at(masks, coords):
    """The mask values (N, P) under points (N, P, 2) of the model frame."""
    x, y = (coords // 2).long().unbind(dim=2)
    return masks[torch.arange(len(masks))[:, None], y, x]


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"{kind.points} clicks{', box' * kind.boxed}")
                                  for kind in prompting.KINDS])
def test_clicks_lie_on_the_side_of_the_mask_that_their_label_says(rows, generator, kind):
    prompts = prompting.draw_prompts(rows, kind, generator)
    assert prompts.point_coords.shape == (24, kind.points, 2)
    assert (value_at(rows["masks"], prompts.point_coords) == prompts.point_labels).all()
    assert (prompts.boxes is not None) == kind.boxed
    counted = Prompts(prompts.point_coords, prompts.point_labels, prompts.boxes).kinds  # looked at, not told
    assert prompts.kinds == counted
    if kind.is_single_click:
        assert prompts.point_labels.all()


def test_some_clicks_are_drawn_anew_and_some_are_negative(rows, generator):
    many = {name: tensor.repeat(40, *[1] * (tensor.dim() - 1)) for name, tensor in rows.items()}
    prompts = prompting.draw_prompts(many, prompting.Kind(3, False, 1.0), generator)
    kept = (prompts.point_coords[:, 0] == many["positive"][:, 0]).all(dim=1).float().mean()
    assert 0.5 < kept < 0.85  # 65 %, and some by chance
    assert 0.1 < (prompts.point_labels[:, -1] == 0).float().mean() < 0.3


def test_every_pixel_of_a_mask_is_as_likely(generator):
    mask = torch.zeros(2, 3, 5, dtype=torch.uint8)
    mask[0, 0, 0] = mask[0, 1, 3] = mask[0, 2, 4] = 1
    pixels = prompting.pixels_of(mask, 3000, generator)
    found, counts = pixels[0].unique(dim=0, return_counts=True)
    assert found.tolist() == [[0, 0], [3, 1], [4, 2]]
    assert counts.min() > 900
    assert (pixels[1] == 0).all()  # an empty mask


def test_a_correction_clicks_where_the_prediction_is_wrong(rows, generator):
    masks, rng = rows["masks"], np.random.default_rng(0)
    prompts = prompting.draw_prompts(rows, prompting.Kind(2, True, 1.0), generator)
    logits = torch.where(torch.rand(masks.shape, generator=generator) < 0.9, 1.0, -1.0)
    better = prompting.corrected(logits, masks, prompts, rng, generator)
    assert better.point_labels.shape == (24, 3)
    assert better.kinds == [(3, True)] * 24
    click = better.point_coords[:, 2:]
    assert (value_at(logits > 0, click) != value_at(masks, click)).all()
    assert (value_at(masks, click) == better.point_labels[:, 2:]).all()


def test_where_nothing_is_wrong_the_mask_gets_another_click(rows, generator):
    masks = rows["masks"]
    prompts = prompting.draw_prompts(rows, prompting.Kind(1, False, 1.0), generator)
    better = prompting.corrected(masks * 2.0 - 1, masks, prompts, np.random.default_rng(0), generator)
    assert (better.point_labels == 1).all()
    assert (value_at(masks, better.point_coords) == 1).all()


def test_the_middle_of_an_error_is_inside_the_thickest_one():
    truth = torch.zeros(1, 20, 30, dtype=torch.bool)
    wrong = torch.zeros(1, 20, 30, dtype=torch.bool)
    wrong[0, 2:9, 4:11] = True     # 7 x 7
    wrong[0, 15, :] = True         # a line
    assert prompting.middle_of_error(wrong, truth, 5).flatten().tolist() == pytest.approx([7, 5], abs=1)
