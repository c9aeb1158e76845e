from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.data.area_split import Area, area_of, split_by_area
from sam_lora.data.file_names import origins
from sam_lora.data.manifest import ManifestRow

FRACTIONS = (0.6, 0.2, 0.2)


def areas(boxes, frame=("photo", "a")):
    return [Area(frame, tuple(map(int, box))) for box in boxes]


def tiles(columns, rows, side=512, step=400):
    return [(x, y, x + side, y + side) for x in range(0, columns * step, step) for y in range(0, rows * step, step)]


def overlaps(boxes, sides):
    """Pairs of rows on two sides whose boxes share a pixel."""
    known = [(box, side) for box, side in zip(boxes, sides) if side]
    return [(a, b) for number, (a, side) in enumerate(known) for b, other in known[:number]
            if side != other and a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]]


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 500), st.integers(1, 200), st.integers(1, 200),
                          st.integers(0, 2)), min_size=1, max_size=60), st.sampled_from([FRACTIONS, (0.8, 0, 0.2)]))
@settings(max_examples=100, deadline=None)
def test_no_pixel_is_on_two_sides(rows, fractions):
    boxes = [(x, y, x + w, y + h) for x, y, w, h, _ in rows]
    sides = split_by_area(areas(boxes), [row[-1] for row in rows], fractions)
    if sides is not None:
        assert not overlaps(boxes, sides) and {"train", "test"} <= {*sides} <= {"train", "val", "test", ""}


@pytest.mark.parametrize(("columns", "rows"), [(20, 6), (6, 20), (30, 1)])
def test_overlapping_tiles_come_near_the_fractions_along_the_longer_side(columns, rows):
    boxes = tiles(columns, rows)
    count = Counter(split_by_area(areas(boxes), [0] * len(boxes), FRACTIONS))
    assert count[""] == 2 * min(columns, rows)        # two gaps, each as wide as one tile
    for side, fraction in zip(("train", "val", "test"), FRACTIONS):
        assert count[side] / (len(boxes) - count[""]) == pytest.approx(fraction, abs=0.06)


def test_a_rare_class_is_in_each_side():
    """It lies in one band across the photo, which only cuts along the other axis divide."""
    boxes = tiles(8, 24)
    class_ids = [int(box[0] == 800) for box in boxes]
    sides = split_by_area(areas(boxes), class_ids, FRACTIONS)
    assert {side for side, class_id in zip(sides, class_ids) if class_id} >= {"train", "val", "test"}


@pytest.mark.parametrize(("boxes", "count"), [
    pytest.param([(0, 0, 9, 9), (20, 0, 29, 9)], {"train": 1, "test": 1}, id="two crops"),
    pytest.param([(0, 0, 9, 9), (0, 9, 9, 20), (3, 20, 9, 30)], {"train": 1, "val": 1, "test": 1}, id="they may touch"),
    pytest.param([(0, 0, 99, 99)] * 4, None, id="whole photos"),
    pytest.param([(0, 0, 60, 9), (40, 0, 90, 9)], None, id="two that overlap"),
    pytest.param([(0, 0, 9, 9)], None, id="one crop"),
])
def test_few_crops(boxes, count):
    sides = split_by_area(areas(boxes), [0] * len(boxes), FRACTIONS)
    assert sides is None if count is None else Counter(sides) == count


@pytest.mark.parametrize("places", [
    pytest.param([(a, b, 500, 500) for a in range(0, 3000, 400) for b in range(0, 2000, 400)], id="overlapping pixels"),
    pytest.param([(a, b, 640, 480) for a in range(0, 3000, 480) for b in range(0, 2000, 640)], id="pixels, as y x"),
    pytest.param([(a, b, 500, 500) for a in range(8) for b in range(5)], id="row and column"),
])
def test_tiles_by_two_numbers(places):
    """Sides are a tile apart, however the numbers are meant."""
    sides = split_by_area(areas(places, ("tiles", "a")), [0] * len(places), FRACTIONS)
    step = 1 if places[1][1] == 1 else 400
    boxes = [(a, b, a + 2, b + 2) if step == 1 else (a, b, a + w, b + h) for a, b, w, h in places]
    turned = [(a, b, a + h, b + w) if step > 1 else box for (a, b, w, h), box in zip(places, boxes)]
    assert not overlaps(boxes, sides) and not overlaps(turned, sides)
    assert {*sides} >= {"train", "val", "test"} and sides.count("") < len(sides) / 2


def test_areas_that_cannot_be_compared():
    boxes = areas([(0, 0, 9, 9), (20, 0, 29, 9)])
    assert split_by_area([*boxes, None], [0] * 3, FRACTIONS) is None
    assert split_by_area([*boxes, *areas([(40, 0, 49, 9)], ("photo", "b"))], [0] * 3, FRACTIONS) is None
    assert split_by_area(boxes, [0] * 2, (1, 0, 0)) is None


def test_a_video_is_split_by_time():
    """Frames as numbered by a tool that keeps every tenth; several objects each; two of a hundred lie between sides."""
    frames = np.repeat(np.arange(0, 1000, 10), 3)
    sides = split_by_area(areas([(frame, 0, frame + 1, 1) for frame in frames], ("video", "a")), [0] * 300, FRACTIONS)
    assert Counter(sides)[""] == 2 * 2 * 3
    by_frame = dict(zip(frames.tolist(), sides))
    changes = [(a, b) for a, b in zip(list(by_frame.values()), list(by_frame.values())[1:]) if a != b]
    assert len(changes) == 4 and all("" in change for change in changes)


@pytest.mark.parametrize(("file", "expected"), [
    pytest.param("a.png", Area(("photo", "a.png"), (5, 6, 25, 36)), id="a photo"),
    pytest.param("a_512_0_1024_512.png", Area(("photo", "a"), (517, 6, 537, 36)), id="a slice by SAHI"),
    pytest.param("a_r2_c5.png", Area(("tiles", "a"), (5, 2, 90, 90)), id="row and column"),
    pytest.param("a_tile_0_512.png", Area(("tiles", "a"), (0, 512, 90, 90)), id="two numbers"),
    pytest.param("a_frame_12.png", Area(("video", "a"), (12, 0, 13, 1)), id="a frame"),
    pytest.param("a_tile_3.png", Area(("photo", "a_tile_3.png"), (5, 6, 25, 36)), id="a tile from nobody knows where"),
])
def test_area_of(file, expected):
    row = ManifestRow("i", "m", source_width=90, source_height=50, crop_x0=5, crop_y0=6, crop_x1=25, crop_y1=36)
    (origin,) = origins([file.removesuffix(".png")])
    assert area_of(row, file, origin) == expected
    assert area_of(row, file, None) == Area(("photo", file), (5, 6, 25, 36))
    assert area_of(None, "a.png", None) is None
