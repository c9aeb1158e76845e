"""Training samples: masks that fit their crop, prompts that fit their mask, the same for the same seed."""

import itertools
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_lora.data.clicks import centre_and_farthest_points, centre_and_opposite_points

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


def test_held_out_samples_are_not_those_of_training():
    assert scene_samples.Mix() == scene_samples.HELD_OUT
    names = [theme.__name__ for theme in scene_samples.HELD_OUT.themes]
    assert names == ["dead_leaves", "cracked_ground", "bodies", "slices", "cells"]  # published figures rest on them
    assert sum(scene_samples.TRAINING.themes.values()) == pytest.approx(1)


def test_a_crop_s_own_region_can_have_several_rows():
    plain, twice = (list(itertools.islice(scene_samples.samples(4, 64, 4, 0.0, bank_size=8, mix=mix), 12))
                    for mix in (scene_samples.Mix(), scene_samples.Mix(target_rows=2)))
    assert not all(sample.main[1] for sample in plain)
    assert all(sample.main[0] and sample.main[1] for sample in twice)
    assert any((sample.positive[0] != sample.positive[1]).any() for sample in twice)  # each row with its own clicks


def test_clicks_can_be_those_of_the_scripts():
    mix = scene_samples.Mix(computed_share=1.0)
    for sample in itertools.islice(scene_samples.samples(4, 64, 2, 0.2, bank_size=8, mix=mix), 8):
        for mask, points in zip(sample.masks, sample.positive):
            placed = [place(mask > 0) * 2 + 1 for place in (centre_and_opposite_points, centre_and_farthest_points)]
            assert any((points[:3] == three).all() for three in placed)
