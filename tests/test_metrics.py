"""IoU, Dice and boundary IoU against other implementations and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from sam_lora import metrics

SHAPE = (7, 12)
MASKS = arrays(bool, SHAPE)


def mask_of(shape: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[rows, columns] = True
    return mask


@given(MASKS, MASKS)
@settings(max_examples=100, deadline=None)
def test_iou_and_dice_equal_pycocotools_iou(predicted, truth):
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (predicted, truth)]
    expected = coco_mask.iou(encoded[:1], encoded[1:], [False])[0, 0] if (predicted | truth).any() else 1.0
    assert metrics.iou(predicted, truth) == pytest.approx(expected)
    assert metrics.dice(predicted, truth) == pytest.approx(2 * expected / (1 + expected))


@given(MASKS)
@settings(max_examples=50, deadline=None)
def test_boundary_band_holds_the_pixels_near_the_outside(mask):
    shape = (SHAPE[0] * 10, SHAPE[1] * 10)  # diagonal 139 px, so 2 % are 3 px
    large = np.kron(mask, np.ones((10, 10), dtype=bool))
    distance = round(0.02 * np.hypot(*shape))
    padded = np.pad(large, distance)  # the outside of the image is background
    near_background = np.zeros(shape, dtype=bool)
    for y in range(2 * distance + 1):
        for x in range(2 * distance + 1):
            near_background |= ~padded[y:y + shape[0], x:x + shape[1]]
    np.testing.assert_array_equal(metrics.boundary_band(large), large & near_background)


@pytest.mark.parametrize(("predicted", "truth", "iou", "dice", "boundary_iou"), [
    pytest.param(mask_of((50, 80), slice(0, 0), slice(0, 0)), mask_of((50, 80), slice(0, 0), slice(0, 0)), 1, 1, 1,
                 id="empty against empty counts as found"),
    pytest.param(mask_of((50, 80), slice(0, 0), slice(0, 0)), mask_of((50, 80), slice(5, 9), slice(5, 9)), 0, 0, 0,
                 id="nothing predicted"),
    pytest.param(mask_of((50, 80), slice(10, 30), slice(10, 50)), mask_of((50, 80), slice(10, 30), slice(10, 50)),
                 1, 1, 1, id="the same"),
    pytest.param(mask_of((50, 80), slice(10, 30), slice(10, 50)), mask_of((50, 80), slice(10, 30), slice(10, 30)),
                 1 / 2, 2 / 3, 112 / (224 + 144 - 112), id="twice as wide as the truth"),
    pytest.param(np.ones((50, 80), dtype=bool), mask_of((50, 80), slice(0, 50), slice(0, 40)), 1 / 2, 2 / 3,
                 (2 * 40 * 2 + 46 * 2) / (50 * 80 - 46 * 76 + 46 * 2), id="the image's border is an outline too"),
])
def test_scores_by_hand(predicted, truth, iou, dice, boundary_iou):
    assert metrics.iou(predicted, truth) == pytest.approx(iou)
    assert metrics.dice(predicted, truth) == pytest.approx(dice)
    assert metrics.boundary_iou(predicted, truth) == pytest.approx(boundary_iou)


def test_boundary_iou_sees_what_iou_hardly_does():
    truth = mask_of((200, 300), slice(20, 180), slice(20, 280))
    shifted = mask_of((200, 300), slice(24, 184), slice(20, 280))
    assert metrics.iou(shifted, truth) > 0.94
    assert metrics.boundary_iou(shifted, truth) < 0.75


@given(MASKS, MASKS, st.sampled_from([metrics.iou, metrics.dice, metrics.boundary_iou]))
@settings(max_examples=50, deadline=None)
def test_scores_are_symmetric_and_between_0_and_1(predicted, truth, score):
    assert 0 <= score(predicted, truth) == score(truth, predicted) <= 1
    assert score(truth, truth) == 1
