"""The scenes that the small SAM learns from: exact masks, prompts that fit them, the same for the same seed."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pretrain"))
import scenes
import textures


@pytest.fixture(scope="module")
def bank():
    return textures.TextureBank(np.random.default_rng(0), count=12)


@pytest.fixture(scope="module")
def some_samples():
    stream = scenes.samples(11, 128, 4, 0.25, bank_size=12)
    return [next(stream) for _ in range(40)]


@pytest.mark.parametrize("kind", textures.KINDS[2:], ids=lambda kind: kind.__name__)
def test_a_field_has_the_size_asked_for_and_is_not_flat(kind):
    field = kind(np.random.default_rng(5), 60, 90)
    assert field.shape == (60, 90)
    assert field.dtype == np.uint8
    assert field.std() > 20


def test_the_bank_cuts_any_size(bank):
    rng = np.random.default_rng(1)
    assert bank.cut(rng, 3, 700).shape == (3, 700)
    assert bank.cut(rng, 431, 20).shape == (431, 20)


def test_a_palette_runs_from_dark_to_light_around_its_colour():
    table = textures.palette(np.random.default_rng(0), np.array([100, 120, 140]), 20, grey=True)
    assert table.shape == (256, 3)
    assert table[0].tolist() == [80, 100, 120]
    assert table[255].tolist() == [120, 140, 160]


@pytest.mark.parametrize("theme", scenes.THEMES, ids=lambda theme: theme.__name__)
def test_every_theme_paints_labelled_regions(theme, bank):
    rng = np.random.default_rng(3)
    painter = scenes.Painter(rng, bank, 150, 210, grey=theme is scenes.slices)
    theme(painter)
    scene = painter.finish()
    assert scene.image.shape == (150, 210, 3)
    assert scene.image.dtype == np.uint8
    assert scene.labels.shape == (3, 150, 210)
    assert (scene.labels[scenes.OBJECT] > 0).any()


def test_a_part_lies_on_one_object_only(bank):
    rng = np.random.default_rng(8)
    seen = 0
    for _ in range(20):
        scene = scenes.make_scene(rng, bank)
        for part in np.unique(scene.labels[scenes.PART])[1:]:
            owners = np.unique(scene.labels[scenes.OBJECT][scene.labels[scenes.PART] == part])
            assert len(owners) == 1
            assert owners[0] > 0
            seen += 1
    assert seen > 20


def test_a_simple_scene_has_its_shapes_apart_and_well_seen(bank):
    for seed in range(8):
        scene = scenes.simple_scene(np.random.default_rng(seed), bank)
        labels = scene.labels[scenes.OBJECT]
        numbers = np.unique(labels[labels > 0])
        assert 6 <= len(numbers) <= 9
        for number in numbers:
            mask = (labels == number).astype(np.uint8)
            around = (cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0) & (mask == 0)
            assert not labels[around].any()
            assert mask.sum() >= scenes.MIN_AREA


def test_simple_scenes_come_only_when_asked_for(bank):
    plain = [scenes.make_scene(np.random.default_rng(seed), bank).image for seed in range(3)]
    again = [scenes.make_scene(np.random.default_rng(seed), bank, 0.0).image for seed in range(3)]
    assert all(map(np.array_equal, plain, again))
    assert scenes.make_scene(np.random.default_rng(0), bank, 1.0).image.shape == (240, 320, 3)


def test_a_later_shape_hides_what_it_covers(bank):
    painter = scenes.Painter(np.random.default_rng(0), bank, 80, 120, grey=False)
    square = np.full((40, 40), 255, np.uint8)
    below = painter.paint(square, 50, 40)
    above = painter.paint(square, 70, 40)
    objects = painter.labels[scenes.OBJECT]
    assert (objects == above.number).sum() == 40 * 40
    assert (objects == below.number).sum() == 20 * 40


def test_a_thin_strip_keeps_its_width():
    mask = scenes.strip(np.random.default_rng(2), 200, 2.0, 0.5, branches=0)
    assert 200 < (mask > 127).sum() < 1400


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


def test_a_crop_shows_its_region_whole(bank):
    rng = np.random.default_rng(4)
    region = np.zeros((90, 140), bool)
    region[30:50, 60:100] = True
    for _ in range(20):
        x0, y0, x1, y1 = scenes.crop_window(rng, region)
        assert 0 <= x0 < 60
        assert 0 <= y0 < 30
        assert 100 < x1 <= 140
        assert 50 < y1 <= 90


def test_the_mask_of_a_crop_is_the_region_enlarged(bank):
    scene = scenes.Scene(np.full((90, 140, 3), 90, np.uint8), np.zeros((3, 90, 140), np.int32))
    disc = cv2.circle(np.zeros((90, 140), np.uint8), (70, 45), 20, 1, -1)
    scene.labels[scenes.OBJECT] = disc * 7
    for seed in range(5):
        sample = scenes.make_sample(np.random.default_rng(seed), scene, 256, 2, target=(scenes.OBJECT, 7))
        mask = sample.masks[0]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
        assert abs(height - width) <= 4
        assert mask.sum() / (height * width) == pytest.approx(np.pi / 4, abs=0.06)


def test_the_same_seed_gives_the_same_samples():
    for first, second in zip(*(scenes.samples(5, 64, 2, 0.2, bank_size=8) for _ in range(2))):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.masks, second.masks)
        np.testing.assert_array_equal(first.positive, second.positive)
        break
