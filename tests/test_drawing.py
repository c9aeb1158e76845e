"""drawing.py: text, prompts on a scaled example, crops on a sheet."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from grey_example import example
from PIL import Image, ImageDraw

from sam_lora import drawing
from sam_lora.drawing import MISSED, RIGHT, TOO_MUCH, Scaled, text_strip


def test_points_are_marked_where_they_are_and_labels_differ():
    marks = {}
    for label in (1, 0):
        scaled = Scaled(example(60, 80, points=[(20, 10)], point_labels=[label]), 4)
        tile = scaled.with_prompt(scaled.image.copy())
        ys, xs = np.nonzero((tile != 128).any(axis=2))
        assert (xs.min() + xs.max()) / 2 == pytest.approx(81.5, abs=1)  # the middle of pixel 20, four times as large
        assert (ys.min() + ys.max()) / 2 == pytest.approx(41.5, abs=1)
        marks[label] = tile
    assert marks[1].mean() > marks[0].mean()


def test_a_box_is_drawn():
    scaled = Scaled(example(60, 80, points=[], point_labels=[], box=(10, 20, 50, 40)), 4)
    tile = scaled.with_prompt(scaled.image.copy())
    ys, xs = np.nonzero((tile == 255).all(axis=2))
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max(), ys.max()], [40, 80, 200, 160], atol=2)


@pytest.mark.parametrize("text", ["Зубной камень", "牙结石 ½", "a\nb\tc", "", "x" * 5000, "\u202eabc"])
def test_any_text_fits(text):
    assert text_strip(text, 200, 15, (0, 0, 0)).shape[1] == 200
    strip = text_strip("Ж", 200, 15, (0, 0, 0))
    assert not np.array_equal(strip, text_strip("Ш", 200, 15, (0, 0, 0)))  # not two boxes for missing letters


@pytest.mark.parametrize("text", ["crack · IoU 0.78", "no. 1: /data/crops/Class_1 a/images/AVAToWa_001.png", "f/",
                                  "Зубной камень", "שלום עולם", "牙结石 ½"])
def test_a_text_looks_as_if_it_were_drawn_whole(text):
    """Its words are drawn once and kept; each may lie half a pixel off."""
    whole = Image.new("RGB", (600, 26), drawing.BACKGROUND)
    ImageDraw.Draw(whole).text((0, 2), text, drawing.INK, drawing.font_of(17))
    expected = drawing.BACKGROUND[0] - np.asarray(whole).astype(float)
    for _ in range(2):
        ink = drawing.BACKGROUND[0] - text_strip(text, 600, 17, drawing.INK).astype(float)
        assert np.abs(np.cumsum(ink.sum(axis=(0, 2))) - np.cumsum(expected.sum(axis=(0, 2)))).max() < 2 * 26 * 230
        assert ink.sum() == pytest.approx(expected.sum(), rel=0.02)
        assert np.nonzero(ink)[1].max() == pytest.approx(np.nonzero(expected)[1].max(), abs=1)


def test_the_three_colours_differ_in_brightness_too():
    brightness = [cv2.cvtColor(np.uint8([[colour]]), cv2.COLOR_RGB2GRAY)[0, 0] for colour in (TOO_MUCH, RIGHT, MISSED)]
    assert all(int(b) - int(a) > 30 for a, b in pairwise(brightness))


@pytest.mark.parametrize(("height", "width"), [pytest.param(30, 44, id="small"), pytest.param(900, 1400, id="large"),
                                               pytest.param(8, 600, id="very wide"), pytest.param(3, 2, id="tiny")])
def test_a_crop_cell_shows_the_crop_in_colour_and_its_masks_outline(height, width):
    image = np.full((height, width, 3), (200, 40, 90), np.uint8)
    mask = np.zeros((height, width), bool)
    mask[height // 3:height // 2 + 1, width // 4:width // 2 + 1] = True
    cell = drawing.crop_cell(image, mask, "class", "file.png")
    assert cell.shape[1] == drawing.CROP_TILE[0] and cell.shape[0] <= drawing.CROP_TILE[1] + 40
    assert ((cell == (200, 40, 90)).all(axis=2)).sum() > 0.4 * cell.shape[0] * 8
    assert (np.abs(cell.astype(int) - drawing.MISSED).max(axis=2) < 40).sum() >= 4  # the line


def test_the_outline_in_a_crop_cell_lies_around_the_mask():
    image = np.zeros((150, 200, 3), np.uint8)
    mask = np.zeros((150, 200), bool)
    mask[50:100, 60:140] = True
    picture = drawing.crop_cell(image, mask, "c", "f")[-150:]
    ys, xs = np.nonzero(np.abs(picture.astype(int) - drawing.MISSED).max(axis=2) < 40)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (48, 101, 58, 141)


def test_a_crop_sheet_has_rows_of_cells():
    cells = [drawing.crop_cell(np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), bool), "c", "f") for _ in range(7)]
    sheet, short = drawing.crop_sheet("title", cells), drawing.crop_sheet("title", cells[:2])
    assert sheet.shape[1] == short.shape[1] > drawing.CROP_COLUMNS * drawing.CROP_TILE[0]
    assert sheet.shape[0] > short.shape[0] > cells[0].shape[0]
