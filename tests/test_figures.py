"""Pictures: their sizes, colours in the right places, and odd input."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from sam_lora import figures
from sam_lora.figures import MISSED, RIGHT, TOO_MUCH, Example

NAN = float("nan")


def example(height: int, width: int, truth: bool = True, **changes) -> Example:
    """A grey picture; the truth is its left half, the prediction its middle, over the lower half."""
    image = np.full((height, width, 3), 128, np.uint8)
    true, predicted = np.zeros((2, height, width), dtype=bool)
    true[height // 2:, :width // 2] = True
    predicted[height // 2:, width // 4:3 * width // 4] = True
    parts = {"image": image, "points": [(width / 8, height * 0.75)], "point_labels": [1], "box": None,
             "predicted": predicted, "truth": true if truth else None, **changes}
    return Example(**parts)


def amount(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels of grey under a tint of `colour`."""
    grey = 128 * figures.DIM
    tint = grey + figures.OPACITY * (np.array(colour) - grey)
    return int((np.abs(picture - tint).max(axis=2) < 2).sum())


@pytest.mark.parametrize(("height", "width"), [
    pytest.param(30, 44, id="small"), pytest.param(900, 1400, id="large"), pytest.param(8, 600, id="very wide"),
    pytest.param(700, 10, id="very tall"), pytest.param(3, 2, id="a few pixels"),
])
@pytest.mark.parametrize("truth", [True, False])
def test_every_size_gives_a_picture_to_look_at(height, width, truth):
    panel = figures.panel(example(height, width, truth), "class · IoU 0.50", "file.png")
    assert panel.dtype == np.uint8 and panel.ndim == 3
    assert 720 <= panel.shape[1] <= 2000 and 80 <= panel.shape[0] <= 800
    cell = figures.sheet_cell(example(height, width, truth), "class")
    assert cell.shape[1] == figures.SHEET_CELL and cell.shape[0] <= figures.SHEET_TILE[1] + 120
    overlay = figures.overlay(example(height, width, truth))
    assert max(overlay.shape[:2]) <= figures.OVERLAY_LONGEST
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

    picture = figures.numbered_overlay(examples())
    assert given == list(range(count)) and (image == 128).all()
    assert picture.shape == figures.overlay(next(examples())).shape
    if width >= 80:
        for number in range(count):
            colour = np.array(figures.OBJECT_COLOURS[number % len(figures.OBJECT_COLOURS)])
            column = picture[:, picture.shape[1] * number // count:picture.shape[1] * (number + 1) // count]
            tint = 128 + figures.OPACITY * (colour - 128)
            assert (np.abs(column - tint).max(axis=2) < 2).mean() > 0.3
            assert height < 60 or (column == colour).all(axis=2).sum() > 50  # the plate with its number


def test_an_empty_mask_has_its_number_at_its_prompt():
    empty = np.zeros((60, 80), bool)
    parts = {"predicted": empty, "truth": None}
    for changes, place in (({"points": [(20, 45)], "point_labels": [1]}, (20, 45)),
                           ({"points": [], "point_labels": [], "box": (50, 10, 70, 30)}, (60, 20))):
        picture = figures.numbered_overlay([example(60, 80, **parts | changes)])
        rows, columns = np.nonzero((picture == figures.OBJECT_COLOURS[0]).all(axis=2))
        scale = picture.shape[1] / 80
        assert (columns.mean() / scale, rows.mean() / scale) == pytest.approx(place, abs=1.5)


def test_right_too_much_and_missed_have_their_own_colours_in_their_own_places():
    scaled = figures._Scaled(example(60, 80), 4)
    _, prediction, truth = figures._tiles(scaled)
    assert prediction.shape == truth.shape == (240, 320, 3)
    quarter = 80 * 120
    for colour, columns in ((MISSED, slice(0, 80)), (RIGHT, slice(80, 160)), (TOO_MUCH, slice(160, 240))):
        assert 0.9 * quarter < amount(prediction[120:, columns], colour) <= quarter
        assert amount(prediction, colour) <= quarter
    assert amount(prediction[:110], MISSED) == amount(prediction[:110], RIGHT) == 0
    assert 1.8 * quarter < amount(truth[120:, :160], RIGHT) <= 2 * quarter


def test_the_overlay_keeps_the_picture_s_own_colours():
    picture = figures.overlay(example(60, 80, truth=False, image=np.full((60, 80, 3), (200, 30, 60), np.uint8)))
    assert (picture[:picture.shape[0] // 3] == (200, 30, 60)).all()
    tint = np.array((200, 30, 60)) + figures.OPACITY * (np.array(RIGHT) - (200, 30, 60))
    assert np.abs(picture[picture.shape[0] * 3 // 4, picture.shape[1] // 2] - tint).max() < 2


def test_the_three_colours_differ_in_brightness_too():
    brightness = [cv2.cvtColor(np.uint8([[colour]]), cv2.COLOR_RGB2GRAY)[0, 0] for colour in (TOO_MUCH, RIGHT, MISSED)]
    assert all(int(b) - int(a) > 30 for a, b in pairwise(brightness))


def test_an_object_a_pixel_wide_survives_reduction():
    crack = np.zeros((1200, 1600), dtype=bool)
    crack[601] = True
    shown = replace(example(1200, 1600), predicted=crack, truth=crack)
    _, prediction, _ = figures._tiles(figures._Scaled(shown, 0.2))
    assert np.abs(prediction[120].astype(int) - round(128 * figures.DIM)).max(axis=1).min() > 5


def test_points_are_marked_where_they_are_and_labels_differ():
    marks = {}
    for label in (1, 0):
        scaled = figures._Scaled(example(60, 80, points=[(20, 10)], point_labels=[label]), 4)
        tile = scaled.with_prompt(scaled.image.copy())
        ys, xs = np.nonzero((tile != 128).any(axis=2))
        assert (xs.min() + xs.max()) / 2 == pytest.approx(81.5, abs=1)  # the middle of pixel 20, four times as large
        assert (ys.min() + ys.max()) / 2 == pytest.approx(41.5, abs=1)
        marks[label] = tile
    assert marks[1].mean() > marks[0].mean()


def test_a_box_is_drawn():
    scaled = figures._Scaled(example(60, 80, points=[], point_labels=[], box=(10, 20, 50, 40)), 4)
    tile = scaled.with_prompt(scaled.image.copy())
    ys, xs = np.nonzero((tile == 255).all(axis=2))
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max(), ys.max()], [40, 80, 200, 160], atol=2)


@pytest.mark.parametrize("text", ["Зубной камень", "牙结石 ½", "a\nb\tc", "", "x" * 5000, "\u202eabc"])
def test_any_text_fits(text):
    assert figures._text(text, 200, 15, (0, 0, 0)).shape[1] == 200
    strip = figures._text("Ж", 200, 15, (0, 0, 0))
    assert not np.array_equal(strip, figures._text("Ш", 200, 15, (0, 0, 0)))  # not two boxes for missing letters


def test_contact_sheet_is_as_wide_as_its_columns_whatever_is_on_it():
    cells = [figures.sheet_cell(example(30, 40 + i), f"no. {i}") for i in range(7)]
    sheets = [figures.contact_sheet("title", [("some", cells[:count])]) for count in (1, 3, 4, 7)]
    assert len({sheet.shape[1] for sheet in sheets}) == 1
    heights = [sheet.shape[0] for sheet in sheets]
    assert heights[0] == heights[1] < heights[2] < heights[3]


LOG = pd.DataFrame({"epoch": [0, 1, 2], "train_loss": [NAN, 0.9, 0.5], "val_loss": [1.2, 0.8, 0.7],
                    "train_iou": [NAN, 0.5, 0.7], "val_iou": [0.4, 0.6, 0.5], "learning_rate": [NAN, 1e-4, 0.0]})


@pytest.mark.parametrize("log", [
    pytest.param(LOG, id="two epochs"), pytest.param(LOG[:1], id="untuned only"),
    pytest.param(LOG.assign(val_loss=NAN, val_iou=NAN), id="no validation"),
    pytest.param(LOG[:1].assign(val_loss=NAN, val_iou=NAN), id="nothing yet"),
])
def test_training_curves(tmp_path: Path, log):
    path = tmp_path / "curves.png"
    figures.training_curves(log, path)
    picture = cv2.imread(str(path))
    assert picture.shape[1] > picture.shape[0] > 200
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("height", "width"), [pytest.param(30, 44, id="small"), pytest.param(900, 1400, id="large"),
                                               pytest.param(8, 600, id="very wide"), pytest.param(700, 10, id="tall"),
                                               pytest.param(3, 2, id="tiny")])
def test_a_change_cell_has_both_predictions_and_the_truth(height, width):
    base = example(height, width)
    tuned = replace(base, predicted=base.truth)
    cell = figures.change_cell(base, tuned, "class", "file.png")
    assert cell.shape[1] == figures.CHANGE_CELL and 60 < cell.shape[0] <= 2 * figures.CHANGE_HEIGHT + 90
    same = figures.change_cell(tuned, tuned, "class", "file.png")
    if min(height, width) > 20:  # of a thinner one the outline is all
        assert amount(cell, TOO_MUCH) > 0 == amount(same, TOO_MUCH)   # the base alone has too much
        assert amount(same, RIGHT) > 2.5 * amount(same, MISSED) == 0
    sheet = figures.change_sheet("title", [cell, same])
    assert sheet.shape == (sheet.shape[0], figures.CHANGE_CELL + 2 * figures.GAP, 3)
    assert sheet.shape[0] > 2 * cell.shape[0]


def test_very_wide_objects_are_not_squeezed_beside_each_other():
    panel = figures.panel(example(40, 600), "class", "file.png")
    assert panel.shape[1] <= figures.NARROWEST_PANEL + 2 * figures.GAP   # as wide as narrow ones


@pytest.mark.parametrize(("tuned", "interval"), [
    pytest.param(lambda base: np.clip(base + 0.2, 0, 1), (0.1, 0.2), id="better"),
    pytest.param(lambda base: base, (0.0, 0.0), id="the same"),
    pytest.param(lambda base: base[::-1], (NAN, NAN), id="no interval"),
])
@pytest.mark.parametrize("count", [1, 30, 2000])
def test_comparison_plot(tmp_path: Path, tuned, interval, count):
    base = np.linspace(0, 1, count)
    figures.comparison_plot(base, tuned(base), float((tuned(base) - base).mean()), interval, tmp_path / "c.png")
    picture = cv2.imread(str(tmp_path / "c.png"))
    assert picture.shape[1] > picture.shape[0] > 400
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


def test_the_comparison_plot_has_each_object_on_its_side_of_the_diagonal(tmp_path):
    base = np.full(40, 0.5)
    pictures = {}
    for name, tuned in (("better", np.linspace(0.6, 1, 40)), ("worse", np.linspace(0, 0.4, 40))):
        figures.comparison_plot(base, tuned, 0.0, (NAN, NAN), tmp_path / f"{name}.png")
        pictures[name] = cv2.imread(str(tmp_path / f"{name}.png")).astype(int)
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    blue = {name: (picture[..., 0] > picture[..., 2] + 60).sum() for name, picture in pictures.items()}
    assert blue["better"] > 1000 > blue["worse"]


def test_training_curves_need_no_screen(tmp_path):
    code = ("import sys, pandas as pd; from sam_lora import figures\n"
            "log = pd.DataFrame({'epoch': [0, 1]} | {name: [0.5, 0.6] for name in "
            "('train_loss', 'val_loss', 'train_iou', 'val_iou', 'learning_rate')})\n"
            f"figures.training_curves(log, {str(tmp_path / 'a.png')!r})\n"
            f"figures.comparison_plot(log['val_iou'].values, log['train_iou'].values, 0, (0, 0), "
            f"{str(tmp_path / 'b.png')!r})\n"
            "print('matplotlib.pyplot' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(figures.__file__).parents[1], env={"MPLBACKEND": "TkAgg", "PATH": ""})
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("height", "width"), [pytest.param(30, 44, id="small"), pytest.param(900, 1400, id="large"),
                                               pytest.param(8, 600, id="very wide"), pytest.param(3, 2, id="tiny")])
def test_a_crop_cell_shows_the_crop_in_colour_and_its_masks_outline(height, width):
    image = np.full((height, width, 3), (200, 40, 90), np.uint8)
    mask = np.zeros((height, width), bool)
    mask[height // 3:height // 2 + 1, width // 4:width // 2 + 1] = True
    cell = figures.crop_cell(image, mask, "class", "file.png")
    assert cell.shape[1] == figures.CROP_TILE[0] and cell.shape[0] <= figures.CROP_TILE[1] + 40
    assert ((cell == (200, 40, 90)).all(axis=2)).sum() > 0.4 * cell.shape[0] * 8
    assert (np.abs(cell.astype(int) - figures.MISSED).max(axis=2) < 40).sum() >= 4  # the line


def test_the_outline_in_a_crop_cell_lies_around_the_mask():
    image = np.zeros((150, 200, 3), np.uint8)
    mask = np.zeros((150, 200), bool)
    mask[50:100, 60:140] = True
    picture = figures.crop_cell(image, mask, "c", "f")[-150:]
    ys, xs = np.nonzero(np.abs(picture.astype(int) - figures.MISSED).max(axis=2) < 40)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (48, 101, 58, 141)


def test_a_crop_sheet_has_rows_of_cells():
    cells = [figures.crop_cell(np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), bool), "c", "f") for _ in range(7)]
    sheet, short = figures.crop_sheet("title", cells), figures.crop_sheet("title", cells[:2])
    assert sheet.shape[1] == short.shape[1] > figures.CROP_COLUMNS * figures.CROP_TILE[0]
    assert sheet.shape[0] > short.shape[0] > cells[0].shape[0]
