"""pictures.py: sizes, colours in the right places, and odd input."""

from dataclasses import replace

import numpy as np
import pytest
from grey_example import example

from sam_lora import drawing
from sam_lora.drawing import MISSED, RIGHT, TOO_MUCH, Example, Scaled
from sam_lora.results import pictures


def amount(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels of grey under a tint of `colour`."""
    grey = 128 * drawing.DIM
    tint = grey + drawing.OPACITY * (np.array(colour) - grey)
    return int((np.abs(picture - tint).max(axis=2) < 2).sum())


@pytest.mark.parametrize(("height", "width"), [
    pytest.param(30, 44, id="small"), pytest.param(900, 1400, id="large"), pytest.param(8, 600, id="very wide"),
    pytest.param(700, 10, id="very tall"), pytest.param(3, 2, id="a few pixels"),
])
@pytest.mark.parametrize("truth", [True, False])
def test_every_size_gives_a_picture_to_look_at(height, width, truth):
    panel = pictures.panel(example(height, width, truth), "class · IoU 0.50", "file.png")
    assert panel.dtype == np.uint8 and panel.ndim == 3
    assert 720 <= panel.shape[1] <= 2000 and 80 <= panel.shape[0] <= 800
    cell = pictures.sheet_cell(example(height, width, truth), "class")
    assert cell.shape[1] == pictures.SHEET_CELL and cell.shape[0] <= pictures.SHEET_TILE[1] + 120
    overlay = pictures.overlay(example(height, width, truth))
    assert max(overlay.shape[:2]) <= pictures.OVERLAY_LONGEST
    assert overlay.shape[1] / overlay.shape[0] == pytest.approx(width / height, rel=0.5)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (900, 1400), (8, 600), (3, 2)])
@pytest.mark.parametrize("count", [1, 9])
def test_objects_of_one_image_have_their_own_colours_and_numbers(height, width, count):
    image, given = np.full((height, width, 3), 128, np.uint8), []

    def examples():
        for number in range(count):
            mask = np.zeros((height, width), bool)
            mask[:, width * number // count:width * (number + 1) // count] = True  # a column each, none left empty
            given.append(number)
            yield Example(image, [], [], (0, 0, width, height), mask, None)

    picture = pictures.numbered_overlay(examples())
    assert given == list(range(count)) and (image == 128).all()
    assert picture.shape == pictures.overlay(next(examples())).shape
    if width >= 80:
        for number in range(count):
            colour = np.array(pictures.OBJECT_COLOURS[number % len(pictures.OBJECT_COLOURS)])
            column = picture[:, picture.shape[1] * number // count:picture.shape[1] * (number + 1) // count]
            tint = 128 + drawing.OPACITY * (colour - 128)
            assert (np.abs(column - tint).max(axis=2) < 2).mean() > 0.3
            assert height < 60 or (column == colour).all(axis=2).sum() > 50  # the plate with its number


def test_an_empty_mask_has_its_number_at_its_prompt():
    empty = np.zeros((60, 80), bool)
    parts = {"predicted": empty, "truth": None}
    for changes, place in (({"points": [(20, 45)], "point_labels": [1]}, (20, 45)),
                           ({"points": [], "point_labels": [], "box": (50, 10, 70, 30)}, (60, 20))):
        picture = pictures.numbered_overlay([example(60, 80, **parts | changes)])
        rows, columns = np.nonzero((picture == pictures.OBJECT_COLOURS[0]).all(axis=2))
        scale = picture.shape[1] / 80
        assert (columns.mean() / scale, rows.mean() / scale) == pytest.approx(place, abs=1.5)


def test_right_too_much_and_missed_have_their_own_colours_in_their_own_places():
    scaled = Scaled(example(60, 80), 4)
    _, prediction, truth = pictures.tiles_of(scaled)
    assert prediction.shape == truth.shape == (240, 320, 3)
    quarter = 80 * 120
    for colour, columns in ((MISSED, slice(0, 80)), (RIGHT, slice(80, 160)), (TOO_MUCH, slice(160, 240))):
        assert 0.9 * quarter < amount(prediction[120:, columns], colour) <= quarter
        assert amount(prediction, colour) <= quarter
    assert amount(prediction[:110], MISSED) == amount(prediction[:110], RIGHT) == 0
    assert 1.8 * quarter < amount(truth[120:, :160], RIGHT) <= 2 * quarter


def test_the_overlay_keeps_the_picture_s_own_colours():
    picture = pictures.overlay(example(60, 80, truth=False, image=np.full((60, 80, 3), (200, 30, 60), np.uint8)))
    assert (picture[:picture.shape[0] // 3] == (200, 30, 60)).all()
    tint = np.array((200, 30, 60)) + drawing.OPACITY * (np.array(RIGHT) - (200, 30, 60))
    assert np.abs(picture[picture.shape[0] * 3 // 4, picture.shape[1] // 2] - tint).max() < 2


def test_an_object_a_pixel_wide_survives_reduction():
    crack = np.zeros((1200, 1600), dtype=bool)
    crack[601] = True
    shown = replace(example(1200, 1600), predicted=crack, truth=crack)
    _, prediction, _ = pictures.tiles_of(Scaled(shown, 0.2))
    assert np.abs(prediction[120].astype(int) - round(128 * drawing.DIM)).max(axis=1).min() > 5


def test_contact_sheet_is_as_wide_as_its_columns_whatever_is_on_it():
    cells = [pictures.sheet_cell(example(30, 40 + i), f"no. {i}") for i in range(7)]
    sheets = [pictures.contact_sheet("title", [("some", cells[:count])]) for count in (1, 3, 4, 7)]
    assert len({sheet.shape[1] for sheet in sheets}) == 1
    heights = [sheet.shape[0] for sheet in sheets]
    assert heights[0] == heights[1] < heights[2] < heights[3]


@pytest.mark.parametrize(("height", "width"), [pytest.param(30, 44, id="small"), pytest.param(900, 1400, id="large"),
                                               pytest.param(8, 600, id="very wide"), pytest.param(700, 10, id="tall"),
                                               pytest.param(3, 2, id="tiny")])
def test_a_change_cell_has_both_predictions_and_the_truth(height, width):
    base = example(height, width)
    tuned = replace(base, predicted=base.truth)
    cell = pictures.change_cell(base, tuned, "class", "file.png")
    assert cell.shape[1] == pictures.CHANGE_CELL and 60 < cell.shape[0] <= 2 * pictures.CHANGE_HEIGHT + 90
    same = pictures.change_cell(tuned, tuned, "class", "file.png")
    if min(height, width) > 20:  # of a thinner one the outline is all
        assert amount(cell, TOO_MUCH) > 0 == amount(same, TOO_MUCH)   # the base alone has too much
        assert amount(same, RIGHT) > 2.5 * amount(same, MISSED) == 0
    sheet = pictures.change_sheet("title", [cell, same])
    assert sheet.shape == (sheet.shape[0], pictures.CHANGE_CELL + 2 * drawing.GAP, 3)
    assert sheet.shape[0] > 2 * cell.shape[0]


def test_very_wide_objects_are_not_squeezed_beside_each_other():
    panel = pictures.panel(example(40, 600), "class", "file.png")
    assert panel.shape[1] <= pictures.NARROWEST_PANEL + 2 * drawing.GAP   # as wide as narrow ones
