"""sam_lora/data/geometry.py: polygons become the masks that pycocotools and plain counting give."""

import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_set_builder import draw_outlines
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from sam_lora.data import geometry
from sam_lora.data.geometry import (
    box_polygon,
    clip_box,
    clip_polygon,
    crop,
    cut_into_tiles,
    mask_to_polygon,
    mask_to_xyxy,
    pad_box,
    paste,
    polygons_to_mask,
    square_box,
    tighten,
    tile_grid,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
WIDTH, HEIGHT = 90, 60


def full_mask(polygons: list, resolution_wh: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """`polygons_to_mask` on the whole picture."""
    width, height = resolution_wh
    drawn = polygons_to_mask([np.array(polygon, float) for polygon in polygons], resolution_wh)
    return np.zeros((height, width), bool) if drawn is None else paste(*drawn, (0, 0, width, height))


def inner(mask: np.ndarray) -> np.ndarray:
    """A mask without its boundary pixels."""
    return cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((3, 3)))[1:-1, 1:-1].astype(bool)


# ---- the rasteriser ---------------------------------------------------------------------------------------

def test_a_rectangle_on_pixel_borders_is_exact():
    mask, box = polygons_to_mask([box_polygon((10, 20, 30, 25))], (WIDTH, HEIGHT))
    assert box == (10, 20, 30, 25)
    assert mask.shape == (5, 20) and mask.all()


@pytest.mark.parametrize(("x1", "covered"), [
    pytest.param(20.3, 10, id="under half a pixel more"), pytest.param(20.8, 11, id="over half a pixel more")])
def test_a_pixel_counts_from_half_coverage(x1: float, covered: int):
    assert full_mask([box_polygon((10, 5, x1, 15))]).sum() == covered * 10


def test_parts_are_united_where_they_overlap_too():
    mask = full_mask([box_polygon((10, 10, 30, 30)), box_polygon((20, 20, 40, 40)), box_polygon((60, 10, 70, 12))])
    assert mask.sum() == 400 + 400 - 100 + 20


def test_an_inner_ring_as_its_own_part_is_no_hole_and_a_seam_is_one():
    inner = [(20, 20), (20, 30), (30, 30), (30, 20)]
    assert full_mask([box_polygon((10, 10, 40, 40)), inner]).sum() == 900
    seam = [(10, 10), (40, 10), (40, 40), (10, 40), (10, 10), *inner, (20, 20)]
    mask = full_mask([seam])
    assert not mask[22:28, 22:28].any() and abs(int(mask.sum()) - 800) < 40


@pytest.mark.parametrize("polygon", [
    pytest.param([(5, 5), (25, 5), (15, 5)], id="a line"),
    pytest.param([(5, 5), (5, 5), (5, 5)], id="a point"),
    pytest.param([(-30, 5), (-10, 5), (-10, 40)], id="left of the picture"),
    pytest.param([(10, 100), (50, 100), (50, 400)], id="below the picture"),
    pytest.param([(-9, -1), (200, -1), (200, -50)], id="above, along the border"),
    pytest.param([(5.1, 5.1), (5.3, 5.1), (5.3, 5.3)], id="a tenth of a pixel"),
])
def test_nothing_covered_is_none(polygon: list):
    assert polygons_to_mask([np.array(polygon, float)], (WIDTH, HEIGHT)) is None


@pytest.mark.parametrize("far", [1e3, 1e6, 1e9, 1e15])
def test_far_corners_are_clipped(far: float):
    mask = full_mask([[(-far, 20), (far, 20), (far, 40), (-far, 40)]])
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[20:40] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("rows", [1, 7])
def test_a_large_object_is_drawn_in_strips_without_seams(monkeypatch: pytest.MonkeyPatch, rows: int):
    star = [(3, 2), (40.5, 20.2), (88, 3), (60.1, 31), (85, 58), (41, 44), (2, 57), (25, 30)]
    whole = full_mask([star])
    monkeypatch.setattr("sam_lora.data.geometry._MAX_CANVAS", rows * 16 * WIDTH)
    strips = full_mask([star])
    assert whole.sum() > 1000 and np.count_nonzero(strips != whole) <= 25  # pixels covered by just half
    assert not (inner(whole) & ~strips).any() and not (inner(strips) & ~whole).any()


def test_a_polygon_of_very_many_points():
    angle = np.linspace(0, 2 * np.pi, 10**6, endpoint=False)
    mask = full_mask([np.stack([45 + 40 * np.cos(angle), 30 + 20 * np.sin(angle)], axis=1)])
    assert abs(mask.sum() - np.pi * 40 * 20) < 25


def test_a_tangle_is_refused_before_it_takes_minutes():
    with pytest.raises(ValueError, match="crosses itself too often"):
        polygons_to_mask([np.random.default_rng(0).uniform(0, 600, (200_000, 2))], (640, 640))
    assert polygons_to_mask([np.random.default_rng(0).uniform(0, 50, (300, 2))], (WIDTH, HEIGHT)) is not None


polygon_points = st.lists(st.tuples(st.floats(-40, 130), st.floats(-40, 100)), min_size=3, max_size=9)


def test_clipping_changes_nothing_inside_the_picture():
    """Drawn on a canvas so large that nothing is clipped, then cut: the same, up to pixels covered by about half."""
    rng = np.random.default_rng(0)
    different, area = [], 0
    for _ in range(200):
        polygon = rng.uniform((-40, -40), (130, 100), (rng.integers(3, 10), 2))
        ours = full_mask([polygon])
        whole = full_mask([polygon + 50], (WIDTH + 140, HEIGHT + 140))[50:50 + HEIGHT, 50:50 + WIDTH]
        different.append(np.count_nonzero(ours != whole))
        area += np.count_nonzero(whole)
    assert max(different) < 70 and sum(different) < 0.01 * area


@settings(max_examples=60, deadline=None)
@given(polygon_points)
def test_clip_polygon_stays_in_its_window(points: list):
    clipped = clip_polygon(np.array(points, float), (0, 0, WIDTH, HEIGHT))
    assert np.isfinite(clipped).all()
    if len(clipped):
        assert (clipped >= -1 - 1e-9).all() and (clipped <= (WIDTH + 1 + 1e-9, HEIGHT + 1 + 1e-9)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4 * WIDTH), st.integers(0, 4 * HEIGHT)), min_size=3, max_size=3))
def test_a_triangle_has_its_area(corners: list):
    triangle = np.array(corners, float) / 4
    (ax, ay), (bx, by), (cx, cy) = triangle
    area = abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2
    perimeter = sum(np.hypot(*(triangle[i] - triangle[i - 1])) for i in range(3))
    # every pixel that an edge touches is in, half a pixel outside it at most, a pixel around each corner
    assert abs(full_mask([triangle]).sum() - area) <= 0.5 * perimeter + 4


def crack_polygons() -> list[list[np.ndarray]]:
    objects = []
    for path in sorted((DATA / "crack-yolo").glob("*/labels/*.txt")):
        for line in path.read_text().splitlines():
            if len(numbers := line.split()[1:]) >= 6:
                objects.append([np.array(numbers, float).reshape(-1, 2) * 640])
    return objects


def calculus_polygons() -> list[list[np.ndarray]]:
    files = sorted((DATA / "calculus-coco").glob("*/_annotations.coco.json"))
    return [[np.array(part, float).reshape(-1, 2) for part in annotation["segmentation"]]
            for path in files for annotation in json.loads(path.read_text())["annotations"]]


def drawn_polygons() -> list[list[np.ndarray]]:
    return [[outline] for _, outline in draw_outlines(np.random.default_rng(0), 90)]


@pytest.mark.parametrize(("read", "least"), [(drawn_polygons, 90), (crack_polygons, 300), (calculus_polygons, 300)])
def test_agreement_with_pycocotools(read, least: int):
    objects = read()
    if not objects:
        pytest.skip(f"{DATA} is not there")
    ious, ratios = [], []
    for polygons in objects:
        ours = full_mask(polygons, (640, 640))
        theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([part.ravel().tolist() for part in polygons],
                                                                        640, 640))).astype(bool)
        ious.append((ours & theirs).sum() / (ours | theirs).sum())
        ratios.append(ours.sum() / theirs.sum())
    assert len(ious) >= least
    assert np.mean(ious) >= 0.95
    assert 0.97 <= np.mean(ratios) <= 1.06


# ---- masks and boxes --------------------------------------------------------------------------------------

masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 13)))


@settings(max_examples=80, deadline=None)
@given(masks)
def test_tighten_and_paste_give_the_mask_back(mask: np.ndarray):
    box = mask_to_xyxy(mask)
    if not mask.any():
        assert box is None and tighten(mask) is None
        return
    rows, columns = np.nonzero(mask)
    assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    tight, moved = tighten(mask, (100, 200))
    assert moved == (box[0] + 100, box[1] + 200, box[2] + 100, box[3] + 200)
    assert np.array_equal(paste(tight, moved, (100, 200, 100 + mask.shape[1], 200 + mask.shape[0])), mask)


@pytest.mark.parametrize(("padding", "expected"), [
    pytest.param(0.0, (20, 10, 50, 20), id="none"),
    pytest.param(0.1, (17, 9, 53, 21), id="a tenth: 3 and 1, not rounded up past them"),
    pytest.param(0.11, (16, 8, 54, 22), id="rounded up"),
    pytest.param(1.0, (0, 0, 80, 30), id="clipped at the corner"),
    pytest.param(1e300, (0, 0, 90, 60), id="all of the picture"),
])
def test_pad_box(padding: float, expected: tuple):
    assert pad_box((20, 10, 50, 20), padding, (WIDTH, HEIGHT)) == expected


def test_clip_box_and_crop_are_xy():
    array = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    box = clip_box((-5, 50, 30, 99), (WIDTH, HEIGHT))
    assert box == (0, 50, 30, 60)
    assert np.array_equal(crop(array, box), array[50:60, 0:30])
    assert clip_box((200, 1, 300, 5), (WIDTH, HEIGHT)) == (WIDTH, 1, WIDTH, 5)


# ---- squares and tiles ------------------------------------------------------------------------------------

@pytest.mark.parametrize(("box", "expected"), [
    pytest.param((20, 10, 50, 20), (20, 0, 50, 30), id="wide"),
    pytest.param((40, 10, 50, 40), (30, 10, 60, 40), id="tall"),
    pytest.param((20, 30, 50, 41), (20, 20, 50, 50), id="an odd pixel goes above"),
    pytest.param((0, 5, 4, 45), (0, 5, 40, 45), id="moved in from the border"),
    pytest.param((80, 50, 90, 60), (80, 50, 90, 60), id="square already"),
    pytest.param((5, 20, 85, 30), (5, 0, 85, 60), id="longer than the picture is high"),
])
def test_square_box(box: tuple, expected: tuple):
    assert square_box(box, (WIDTH, HEIGHT)) == expected


boxes = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, WIDTH), st.integers(1, HEIGHT)
                  ).map(lambda box: (box[0], box[1], min(box[0] + box[2], WIDTH), min(box[1] + box[3], HEIGHT)))


@settings(max_examples=80, deadline=None)
@given(boxes)
def test_a_square_holds_its_box_and_stays_in_the_picture(box: tuple):
    x0, y0, x1, y1 = square_box(box, (WIDTH, HEIGHT))
    assert 0 <= x0 <= box[0] and 0 <= y0 <= box[1] and box[2] <= x1 <= WIDTH and box[3] <= y1 <= HEIGHT
    side = max(box[2] - box[0], box[3] - box[1])
    assert (x1 - x0, y1 - y0) == (min(side, WIDTH), min(side, HEIGHT))


def test_tile_grid_of_a_picture():
    grid = tile_grid((1000, 300), 400)
    assert [tile for tile, _ in grid] == [(0, 0, 400, 300), (300, 0, 700, 300), (600, 0, 1000, 300)]
    assert [core for _, core in grid] == [(0, 0, 350, 300), (350, 0, 650, 300), (650, 0, 1000, 300)]
    assert tile_grid((90, 60), 100) == [((0, 0, 90, 60), (0, 0, 90, 60))]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 500), st.integers(64, 300))
def test_tiles_cover_and_cores_part_any_picture(width: int, height: int, size: int):
    grid = tile_grid((width, height), size)
    count = np.zeros((height, width), int)
    for (x0, y0, x1, y1), (left, top, right, bottom) in grid:
        assert (x1 - x0, y1 - y0) == (min(size, width), min(size, height)) and x1 <= width and y1 <= height
        assert x0 <= left < right <= x1 and y0 <= top < bottom <= y1
        count[top:bottom, left:right] += 1
    assert (count == 1).all()
    columns = sorted({(tile[0], tile[2]) for tile, _ in grid})
    assert all(before[1] - after[0] >= size // 4 - 1 for before, after in pairwise(columns))


def test_an_object_that_a_tile_holds_is_not_cut():
    grid = tile_grid((1000, 300), 400)
    box = (311, 20, 391, 60)  # in the first and in the second tile, a pixel nearer to the middle of the second
    mask = np.ones((40, 80), bool)
    [(piece, piece_box, tile)] = cut_into_tiles(mask, box, grid, 10)
    assert piece is mask and piece_box == box and tile == (300, 0, 700, 300)


def test_an_object_that_no_tile_holds_is_cut():
    grid = tile_grid((1000, 300), 400)
    mask = np.ones((20, 372), bool)  # from 343 to 715: 7 pixels in the first core, 300 in the second, 65 in the third
    pieces = cut_into_tiles(mask, (343, 100, 715, 120), grid, 21)
    assert [(box, tile) for _, box, tile in pieces] == [((343, 100, 700, 120), (300, 0, 700, 300)),
                                                        ((600, 100, 715, 120), (600, 0, 1000, 300))]
    assert [piece.shape for piece, *_ in pieces] == [(20, 357), (20, 115)]
    assert cut_into_tiles(np.eye(400, dtype=bool)[:300] & (np.arange(400) % 399 == 0), (0, 0, 400, 300),
                          tile_grid((400, 300), 128), 10) == []  # specks only


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 399), st.integers(0, 299), st.integers(1, 250), st.integers(1, 40)),
                min_size=1, max_size=4), st.integers(64, 200))
def test_pieces_show_what_their_tiles_show_and_lose_slivers_only(rectangles: list, size: int):
    whole = np.zeros((300, 400), bool)
    for x, y, width, height in rectangles:
        whole[y:y + height, x:x + width] = True
    grid = tile_grid((400, 300), size)
    pieces = cut_into_tiles(*tighten(whole), grid, 8)
    found = np.zeros_like(whole)
    for piece, box, tile in pieces:
        shown = paste(piece, box, (0, 0, 400, 300))
        inside = np.zeros_like(whole)
        inside[tile[1]:tile[3], tile[0]:tile[2]] = True
        assert np.array_equal(shown, whole & inside) and box == mask_to_xyxy(shown)
        found |= shown
    for _, core in grid:
        lost = mask_to_xyxy(crop(whole & ~found, core))
        assert lost is None or max(lost[2] - lost[0], lost[3] - lost[1]) < 8


# ---- masks as polygons ------------------------------------------------------------------------------------------

def drawn(*shapes) -> np.ndarray:
    """A mask of (function of OpenCV, its arguments) on an empty picture; a last argument 0 takes away."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    for function, *arguments in shapes:
        function(canvas, *arguments, -1)
    return canvas > 0


RING = drawn((cv2.circle, (44, 30), 25, 1), (cv2.circle, (44, 30), 12, 0))
PARTS = drawn((cv2.rectangle, (2, 3), (20, 30), 1), (cv2.rectangle, (40, 10), (88, 59), 1),
              (cv2.rectangle, (50, 20), (60, 40), 0))


@pytest.mark.parametrize(("mask", "least", "corners"), [
    pytest.param(drawn((cv2.rectangle, (10, 5), (70, 50), 1)), 1, 4, id="rectangle"),
    pytest.param(np.ones((HEIGHT, WIDTH), bool), 1, 4, id="the whole picture"),
    pytest.param(drawn((cv2.rectangle, (7, 7), (7, 7), 1)), 1, 4, id="one pixel"),
    pytest.param(drawn((cv2.rectangle, (0, 7), (60, 7), 1)), 1, 4, id="a line one pixel wide"),
    pytest.param(drawn((cv2.circle, (44, 30), 25, 1)), 0.97, 60, id="disc"),
    pytest.param(RING, 0.97, 70, id="a hole"),
    pytest.param(PARTS, 1, 16, id="two parts, a hole in one"),
])
def test_a_polygon_draws_the_mask_it_was_made_of(mask, least, corners):
    polygon = mask_to_polygon(mask)
    assert 3 <= len(polygon) <= corners
    again = full_mask([polygon])
    assert (again & mask).sum() >= least * (again | mask).sum()


def test_corners_lie_on_the_outer_edges_of_pixels():
    mask = drawn((cv2.rectangle, (10, 5), (19, 8), 1))
    assert {*map(tuple, mask_to_polygon(mask).tolist())} == {(10, 5), (20, 5), (20, 9), (10, 9)}


def test_an_empty_mask_has_no_polygon():
    assert mask_to_polygon(np.zeros((HEIGHT, WIDTH), bool)).shape == (0, 2)


def test_specks_are_lost_and_no_more_than_one_percent():
    mask = drawn((cv2.rectangle, (10, 5), (59, 44), 1))                        # 2000 px
    specks = mask.copy()
    for x in range(2, 82, 16):
        specks[50:54, x:x + 4] = True                                          # 16 px each: two would be too many
    again = full_mask([mask_to_polygon(specks)])
    assert (again & mask).sum() == 2000 and (specks & ~again).sum() == 16


@given(arrays(np.bool_, (12, 17)), st.integers(3, 5))
@settings(max_examples=60, deadline=None)
def test_any_mask_comes_back_nearly_from_its_polygon(small, factor):
    """Patches of three pixels or more: parts, holes, holes that touch by a corner."""
    mask = small.repeat(factor, axis=0).repeat(factor, axis=1)
    polygon = mask_to_polygon(mask)
    assert (len(polygon) == 0) == (not mask.any())
    if len(polygon):
        again = full_mask([polygon], mask.shape[::-1])
        assert (again & mask).sum() >= 0.93 * (again | mask).sum()


@pytest.mark.parametrize(("offsets", "expected"), [
    pytest.param((0, 0, 0, 0), (10, 20, 30, 60), id="stays"),
    pytest.param((0.1, 0.1, 0.1, 0.1), (8, 16, 32, 64), id="outwards, by its own width and height"),
    pytest.param((-0.1, 0, 0, -0.5), (12, 20, 30, 40), id="inwards"),
    pytest.param((9, 9, 9, 9), (0, 0, 100, 70), id="within the picture"),
    pytest.param((-0.9, -0.9, -0.9, -0.9), (28, 56, 29, 57), id="a pixel is left")])
def test_sides_of_a_box_move(offsets, expected):
    assert geometry.move_sides((10, 20, 30, 60), (100, 70), offsets) == pytest.approx(expected)
