"""Mask losses by hand, and what holds for all of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from sam_lora.training import losses

LOSSES = [pytest.param(loss, id=name) for name, loss in losses.MASK_LOSSES.items()]


def example(seed: int = 0, count: int = 3, height: int = 10, width: int = 14):
    """Random logits, a target with soft edges, and a picture that fills the frame's top left."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, height, width, generator=generator) * 3
    target = torch.rand(count, height, width, generator=generator).round(decimals=1)
    valid = torch.zeros(count, height, width)
    valid[:, :7, :12] = 1
    return logits, target * valid, valid


@pytest.mark.parametrize("loss", LOSSES)
def test_one_value_for_each_mask_and_none_depends_on_its_neighbours(loss):
    logits, target, valid = example()
    together = loss(logits, target, valid)
    assert together.shape == (3,)
    apart = torch.cat([loss(logits[i:i + 1], target[i:i + 1], valid[i:i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_never_counts(loss):
    logits, target, valid = example()
    changed = logits + (1 - valid) * 7
    torch.testing.assert_close(loss(changed, target, valid), loss(logits, target, valid))
    cut = [tensor[:, :7, :12] for tensor in (logits, target, valid)]
    torch.testing.assert_close(loss(*cut), loss(logits, target, valid))


@pytest.mark.parametrize("loss", LOSSES)
def test_falls_from_wrong_to_right_and_has_a_finite_gradient_even_where_saturated(loss):
    _, target, valid = example()
    hard = (target > 0.5).float()
    right = ((hard * 2 - 1) * 50).requires_grad_()
    values = [loss(scale * right, hard, valid).mean() for scale in (-1, -0.01, 0.01, 1)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 1e-3
    sum(values).backward()
    assert torch.isfinite(right.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_an_empty_target_is_finite_and_best_met_by_nothing(loss):
    empty, valid = torch.zeros(1, 6, 9), torch.ones(1, 6, 9)
    nothing, something = (loss(torch.full((1, 6, 9), value), empty, valid) for value in (-20.0, 20.0))
    assert torch.isfinite(nothing) and nothing < something


@pytest.mark.parametrize(("loss", "value"), [
    pytest.param(losses.bce_loss, math.log(2), id="BCE of an undecided mask"),
    pytest.param(losses.soft_iou_loss, 1 - 0.25 / 0.75, id="soft IoU: half of a half against a half"),
    pytest.param(losses.dice_loss, 1 - (2 * 0.25 * 54 + 1) / (54 + 1), id="Dice, smoothed by 1"),
    pytest.param(losses.focal_loss, 0.5 * 0.25 * math.log(2), id="focal: mean weight x (1 - p)^2 x BCE"),
])
def test_undecided_against_half_a_picture(loss, value):
    target = torch.zeros(1, 6, 9)
    target[:, :3] = 1
    assert loss(torch.zeros(1, 6, 9), target, torch.ones(1, 6, 9)).item() == pytest.approx(value, rel=1e-5)


def test_bce_equals_torch_on_the_valid_pixels():
    logits, target, valid = example()
    expected = [binary_cross_entropy_with_logits(logits[i, :7, :12], target[i, :7, :12]) for i in range(3)]
    torch.testing.assert_close(losses.bce_loss(logits, target, valid), torch.stack(expected))


def test_mixtures_are_the_sums_they_are_named_for():
    sample = example()
    bce, dice = losses.bce_loss(*sample), losses.dice_loss(*sample)
    torch.testing.assert_close(losses.MASK_LOSSES["bce_iou"](*sample), bce + losses.soft_iou_loss(*sample))
    torch.testing.assert_close(losses.MASK_LOSSES["bce_dice"](*sample), bce + dice)
    torch.testing.assert_close(losses.MASK_LOSSES["focal_dice"](*sample), 20 * losses.focal_loss(*sample) + dice)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_frame_iou_counts_pixels(seed):
    logits, target, valid = (tensor.numpy() for tensor in example(seed))
    predicted, truth = (logits > 0) & (valid > 0), (target >= 0.5) & (valid > 0)
    expected = [np.sum(p & t) / np.sum(p | t) for p, t in zip(predicted, truth)]
    np.testing.assert_allclose(losses.frame_iou(*map(torch.from_numpy, (logits, target, valid))), expected, rtol=1e-6)


def test_frame_iou_of_nothing_against_nothing_is_one():
    assert losses.frame_iou(torch.full((1, 3, 5), -1.0), torch.zeros(1, 3, 5), torch.ones(1, 3, 5)).item() == 1
