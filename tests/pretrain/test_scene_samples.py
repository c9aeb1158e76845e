"""Training samples: masks that fit their crop, prompts that fit their mask, the same for the same seed."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import painter
import scene_samples


@pytest.fixture(scope="module")
def some_samples():
    stream = scene_samples.samples(11, 128, 4, 0.25, bank_size=12)
    return [next(stream) for _ in range(40)]


def test_samples_hold_masks_and_prompts_that_fit_them(some_samples):
    for sample in some_samples:
        height, width = sample.input_size
        assert max(height, width) == 128
        assert not sample.image[height:].any()
        assert not sample.image[:, width:].any()
        assert sample.masks.shape == (4, 64, 64)
        for mask, points, negative, box in zip(sample.masks, sample.positive, sample.negative, sample.boxes):
            assert mask.any()
            assert not mask[(height + 1) // 2:].any()
            assert not mask[:, (width + 1) // 2:].any()
            x, y = (points // 2).astype(int).T
            assert mask[y, x].all()
            x, y = (negative[negative[:, 0] >= 0] // 2).astype(int).T
            assert not mask[y, x].any()
            assert (box[:2] < box[2:]).all()
            assert (box >= 0).all()
            assert (box <= (width, height, width, height)).all()


def test_a_crop_shows_its_region_whole():
    rng = np.random.default_rng(4)
    region = np.zeros((90, 140), bool)
    region[30:50, 60:100] = True
    for _ in range(20):
        x0, y0, x1, y1 = scene_samples.crop_window(rng, region)
        assert 0 <= x0 < 60
        assert 0 <= y0 < 30
        assert 100 < x1 <= 140
        assert 50 < y1 <= 90


def test_the_mask_of_a_crop_is_the_region_enlarged():
    scene = painter.Scene(np.full((90, 140, 3), 90, np.uint8), np.zeros((3, 90, 140), np.int32))
    disc = cv2.circle(np.zeros((90, 140), np.uint8), (70, 45), 20, 1, -1)
    scene.labels[painter.OBJECT] = disc * 7
    for seed in range(5):
        sample = scene_samples.make_sample(np.random.default_rng(seed), scene, 256, 2, target=(painter.OBJECT, 7))
        mask = sample.masks[0]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
        assert abs(height - width) <= 4
        assert mask.sum() / (height * width) == pytest.approx(np.pi / 4, abs=0.06)


def test_the_same_seed_gives_the_same_samples():
    for first, second in zip(*(scene_samples.samples(5, 64, 2, 0.2, bank_size=8) for _ in range(2))):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.masks, second.masks)
        np.testing.assert_array_equal(first.positive, second.positive)
        break
