"""IoU, Dice and boundary IoU against other implementations and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from scipy.ndimage import distance_transform_cdt
from sklearn.metrics import f1_score, jaccard_score

from sam_lora.results import metrics

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


def random_masks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of one non-square shape with much, little or no overlap; one in ten is empty, one in ten is full."""
    shape = rng.integers(3, 70), rng.integers(71, 120)
    truth, predicted = rng.random((2, *shape)) < rng.choice([0, 0.03, 0.3, 0.6, 1], size=(2, 1, 1),
                                                            p=[0.1, 0.3, 0.3, 0.2, 0.1])
    if rng.random() < 0.5:
        predicted ^= truth
    return predicted, truth


def test_iou_and_dice_equal_scikit_learn_and_pycocotools_on_random_masks():
    rng = np.random.default_rng(0)
    empty = 0
    for _ in range(150):
        predicted, truth = random_masks(rng)
        iou, dice = metrics.iou(predicted, truth), metrics.dice(predicted, truth)
        # of nothing and nothing all three say 0 by default; what that counts as is for us to say
        assert iou == pytest.approx(jaccard_score(truth.ravel(), predicted.ravel(), zero_division=1.0), abs=1e-12)
        assert dice == pytest.approx(f1_score(truth.ravel(), predicted.ravel(), zero_division=1.0), abs=1e-12)
        encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (predicted, truth)]
        if (predicted | truth).any():
            assert iou == pytest.approx(coco_mask.iou(encoded[:1], encoded[1:], [False])[0, 0], abs=1e-12)
        empty += not truth.any()
    assert 3 < empty < 75


def test_boundary_iou_equals_the_one_by_exact_distances():
    """The band of a mask: its pixels whose chessboard distance to the outside, the frame included, is 2 % or less."""
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(40):
        shape = tuple(int(side) for side in rng.integers(40, 260, 2))
        predicted, truth = (_blobs(shape, rng) for _ in range(2))
        distance = max(1, round(0.02 * np.hypot(*shape)))
        bands = [mask & (distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1] <= distance)
                 for mask in (predicted, truth)]
        union = (bands[0] | bands[1]).sum()
        scores.append((bands[0] & bands[1]).sum() / union if union else 1.0)
        assert metrics.boundary_iou(predicted, truth) == pytest.approx(scores[-1], abs=1e-12)
    assert len({round(float(score), 3) for score in scores}) > 20


def _blobs(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    ys, xs = np.mgrid[:shape[0], :shape[1]]
    mask = np.zeros(shape, dtype=bool)
    for _ in range(rng.integers(0, 4)):
        y, x, height, width = rng.random(4) * [*shape, shape[0] / 2, shape[1] / 2] + [0, 0, 3, 3]
        mask |= ((ys - y) / height) ** 2 + ((xs - x) / width) ** 2 < 1
    return mask


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
