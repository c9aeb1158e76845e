"""Scenes: themes with labelled regions, and simple scenes for those that ask."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import painter
import scenes
import textures


@pytest.fixture(scope="module")
def bank():
    return textures.TextureBank(np.random.default_rng(0), count=12)


@pytest.mark.parametrize("theme", scenes.TRAINING_THEMES, ids=lambda theme: theme.__name__)
def test_every_theme_paints_labelled_regions(theme, bank):
    rng = np.random.default_rng(3)
    canvas = painter.Painter(rng, bank, 150, 210, grey=theme in scenes.GREY)
    theme(canvas)
    scene = canvas.finish()
    assert scene.image.shape == (150, 210, 3)
    assert scene.image.dtype == np.uint8
    assert scene.labels.shape == (3, 150, 210)
    assert (scene.labels[painter.OBJECT] > 0).any()


def contrasts(theme, bank, seed):
    """Of the objects of a scene before the camera: how far each one's mean colour is from that around it."""
    canvas = painter.Painter(np.random.default_rng(seed), bank, 200, 200, grey=True)
    theme(canvas)
    labels = canvas.labels[painter.OBJECT]
    for number in np.unique(labels[labels > 0]):
        mask = (labels == number).astype(np.uint8)
        seam = (cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0) & (mask == 0)
        if seam.any():
            yield np.linalg.norm(canvas.canvas[mask > 0].mean(axis=0) - canvas.canvas[seam].mean(axis=0))


def test_faint_shapes_are_fainter_than_others(bank):
    faint, others = ([value for seed in range(6) for value in contrasts(theme, bank, seed)]
                     for theme in (scenes.faint, scenes.dead_leaves))
    assert 0.6 * np.median(others) > np.median(faint)


def test_scattered_regions_are_in_pieces(bank):
    canvas = painter.Painter(np.random.default_rng(0), bank, 240, 240, grey=False)
    for _ in range(4):
        scenes.scattered(canvas)
    labels = canvas.labels[painter.OBJECT]
    pieces = [cv2.connectedComponents((labels == number).astype(np.uint8))[0] - 1
              for number in np.unique(labels[labels > 0])]
    assert sum(count > 1 for count in pieces) >= 5


def test_a_part_lies_on_one_object_only(bank):
    rng = np.random.default_rng(8)
    seen = 0
    for _ in range(20):
        scene = scenes.make_scene(rng, bank)
        for part in np.unique(scene.labels[painter.PART])[1:]:
            owners = np.unique(scene.labels[painter.OBJECT][scene.labels[painter.PART] == part])
            assert len(owners) == 1
            assert owners[0] > 0
            seen += 1
    assert seen > 20


def test_a_simple_scene_has_its_shapes_apart_and_well_seen(bank):
    for seed in range(8):
        scene = scenes.simple_scene(np.random.default_rng(seed), bank)
        labels = scene.labels[painter.OBJECT]
        numbers = np.unique(labels[labels > 0])
        assert 6 <= len(numbers) <= 9
        for number in numbers:
            mask = (labels == number).astype(np.uint8)
            around = (cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0) & (mask == 0)
            assert not labels[around].any()
            assert mask.sum() >= painter.MIN_AREA


def test_simple_scenes_come_only_when_asked_for(bank):
    plain = [scenes.make_scene(np.random.default_rng(seed), bank).image for seed in range(3)]
    again = [scenes.make_scene(np.random.default_rng(seed), bank, 0.0).image for seed in range(3)]
    assert all(map(np.array_equal, plain, again))
    assert scenes.make_scene(np.random.default_rng(0), bank, 1.0).image.shape == (240, 320, 3)
