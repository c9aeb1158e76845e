import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam_lora.data import clicks
from sam_lora.data.clicks import centre_and_farthest_points, centre_and_opposite_points, farthest_pair

BOTH = pytest.mark.parametrize("strategy", [pytest.param(centre_and_opposite_points, id="opposite"),
                                            pytest.param(centre_and_farthest_points, id="farthest")])


def ellipse(centre, axes, angle=0, shape=(90, 130)):
    return cv2.ellipse(np.zeros(shape, np.uint8), centre, axes, angle, 0, 360, 1, -1) > 0


def line(points, thickness, shape=(90, 130)):
    return cv2.polylines(np.zeros(shape, np.uint8), [np.array(points)], False, 1, thickness) > 0


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((90, 130), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def from_text(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


RING = ellipse((64, 44), (37, 37)) & ~ellipse((64, 44), (25, 25))
ARCH = RING & rectangle(0, 0, 130, 44)
SHAPES = [
    pytest.param(ellipse((64, 44), (50, 15), 20), id="ellipse"),
    pytest.param(np.ones((90, 130), bool), id="full frame"),
    pytest.param(RING, id="ring"),
    pytest.param(ARCH, id="arch"),
    pytest.param(line([(10, 80), (64, 10), (118, 80)], 9), id="V"),
    pytest.param(line([(5, 5), (40, 60), (80, 40), (125, 85)], 1), id="crack one pixel wide"),
    pytest.param(line([(5, 5), (40, 60), (80, 40), (125, 85)], 5), id="crack"),
    pytest.param(rectangle(10, 5, 20, 80) | rectangle(10, 70, 120, 80), id="L"),
    pytest.param(rectangle(3, 3, 30, 40) | rectangle(80, 50, 125, 85), id="two parts"),
    pytest.param(rectangle(3, 3, 4, 4) | rectangle(80, 50, 125, 85), id="a part of one pixel"),
    pytest.param(from_text("##", "#."), id="three pixels in a corner"),
    pytest.param(from_text("#....##"), id="three pixels in two parts"),
    pytest.param(from_text("#..", ".#.", "..#"), id="three pixels on a diagonal"),
    pytest.param(from_text("####"), id="four pixels in a row"),
]


def check(mask, points):
    assert points.shape == (3, 2) and points.dtype == np.int64
    assert mask[points[:, 1], points[:, 0]].all(), f"{points.tolist()} not all inside"
    assert len(np.unique(points, axis=0)) == min(3, mask.sum()) or mask.sum() < 3


@BOTH
@pytest.mark.parametrize("mask", SHAPES)
def test_points_are_inside_and_distinct(strategy, mask):
    check(mask, strategy(mask))


@BOTH
@given(mask=hnp.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 11))).filter(np.any))
@settings(max_examples=200, deadline=None)
def test_points_of_any_small_mask(strategy, mask):
    before = mask.copy()
    points = strategy(mask)
    check(mask, points)
    assert (strategy(mask) == points).all() and (mask == before).all()


@st.composite
def blobs(draw):
    """Unions of ellipses, rings and lines, thick and thin."""
    mask = np.zeros((80, 120), np.uint8)
    for _ in range(draw(st.integers(1, 3))):
        x, y = draw(st.integers(0, 119)), draw(st.integers(0, 79))
        thickness = draw(st.sampled_from((-1, 1, 2, 5)))
        if draw(st.booleans()):
            axes = (draw(st.integers(0, 50)), draw(st.integers(0, 30)))
            cv2.ellipse(mask, (x, y), axes, draw(st.integers(0, 180)), 0, 360, 1, thickness)
        else:
            cv2.line(mask, (x, y), (draw(st.integers(0, 119)), draw(st.integers(0, 79))), 1, max(1, thickness))
    return mask > 0


@BOTH
@given(mask=blobs(), left=st.integers(0, 9), top=st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_points_of_any_blob_move_with_it(strategy, mask, left, top):
    points = strategy(mask)
    check(mask, points)
    moved = np.pad(mask, ((top, 3), (left, 5)))
    assert (strategy(moved) == points + np.array([left, top])).all()


@BOTH
@pytest.mark.parametrize("count", [1, 2])
def test_a_mask_of_fewer_than_three_pixels_repeats_points(strategy, count):
    mask = np.zeros((4, 9), bool)
    mask[2, 3:3 + count] = True
    points = strategy(mask)
    assert mask[points[:, 1], points[:, 0]].all()
    assert len(np.unique(points, axis=0)) == count


@BOTH
def test_an_empty_mask_is_refused(strategy):
    with pytest.raises(ValueError, match="empty"):
        strategy(np.zeros((3, 5), bool))


# ---- COCO: centre and opposite ----------------------------------------------------------------------------

@given(a=st.integers(6, 50), ratio=st.floats(0.1, 0.5), angle=st.integers(0, 179))
@settings(max_examples=50, deadline=None)
def test_opposite_points_of_an_ellipse_mirror_each_other_along_its_major_axis(a, ratio, angle):
    mask = ellipse((64, 60), (a, max(2, round(a * ratio))), angle, (120, 130))
    centre, second, third = centre_and_opposite_points(mask)
    assert np.abs(centre - (64, 60)).max() <= 1
    assert (second + third == 2 * centre).all()
    along = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    offset = third - centre
    assert abs(abs(offset @ along) - a / 2) <= 1.5
    assert abs(offset @ (-along[1], along[0])) <= 1.5


@pytest.mark.parametrize(("mask", "expected"), [
    pytest.param(rectangle(20, 30, 81, 51), [[50, 40], [32, 40], [68, 40]], id="lying"),
    pytest.param(rectangle(30, 10, 51, 71), [[40, 40], [40, 22], [40, 58]], id="standing"),
    pytest.param(from_text("###"), [[1, 0], [0, 0], [2, 0]], id="three pixels in a row"),
])
def test_opposite_points_of_bars(mask, expected):
    assert centre_and_opposite_points(mask).tolist() == expected


@pytest.mark.parametrize("mask", [
    pytest.param(RING, id="ring"),
    pytest.param(ARCH, id="arch"),
    pytest.param(line([(10, 80), (64, 10), (118, 80)], 9), id="V"),
    pytest.param(rectangle(10, 5, 20, 80) | rectangle(10, 70, 120, 80), id="L"),
])
def test_opposite_points_of_a_curved_mask_are_equally_far_and_spread(mask):
    """The centroid is outside, and no two mask pixels mirror each other far from the centre."""
    centre, second, third = centre_and_opposite_points(mask)
    first_distance, second_distance = np.linalg.norm(second - centre), np.linalg.norm(third - centre)
    assert abs(first_distance - second_distance) <= 1
    assert min(first_distance, second_distance) > 20
    assert np.linalg.norm(second - third) >= first_distance  # 60 degrees or more apart
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    assert depth[centre[1], centre[0]] >= 0.9 * depth.max()  # the pole of inaccessibility


# ---- YOLO: centre and farthest ----------------------------------------------------------------------------

@given(mask=st.one_of(blobs(), hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 13))).filter(np.any)))
@settings(max_examples=80, deadline=None)
def test_farthest_pair_is_exact(mask):
    ys, xs = np.nonzero(mask)
    boundary = np.array([(x, y) for x, y in zip(xs, ys)
                         if not (0 < x < mask.shape[1] - 1 and mask[y, x - 1] and mask[y, x + 1])])
    farthest = max(((boundary - point) ** 2).sum(axis=1).max() for point in boundary)
    pair = farthest_pair(mask)
    assert mask[pair[:, 1], pair[:, 0]].all()
    assert ((pair[0] - pair[1]) ** 2).sum() == farthest


@given(mask=blobs())
@settings(max_examples=50, deadline=None)
def test_farthest_points_stay_near_the_farthest_pair(mask):
    ends = farthest_pair(mask)
    ends = ends[np.lexsort((ends[:, 1], ends[:, 0]))]
    reach = clicks.PULL * np.linalg.norm(ends[0] - ends[1])
    _, second, third = centre_and_farthest_points(mask)
    distances = [[np.linalg.norm(end - point) for point in (second, third)] for end in ends]
    assert min(max(distances[0][0], distances[1][1]), max(distances[0][1], distances[1][0])) <= reach + 1e-9


@BOTH
@given(a=st.integers(10, 55), b=st.integers(10, 30), angle=st.integers(0, 179))
@settings(max_examples=50, deadline=None)
def test_points_of_a_thick_mask_keep_off_its_boundary(strategy, a, b, angle):
    mask = ellipse((64, 60), (a, b), angle, (120, 130))
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    points = strategy(mask)
    assert depth[points[:, 1], points[:, 0]].min() >= 2


def test_farthest_points_of_a_bar():
    assert centre_and_farthest_points(rectangle(20, 30, 81, 51)).tolist() == [[50, 40], [23, 33], [77, 47]]


def test_the_centre_of_a_crack_is_near_its_middle_even_where_one_end_is_thicker():
    crack = line([(5, 80), (64, 30), (125, 80)], 3) | ellipse((8, 78), (6, 6))
    centre = centre_and_farthest_points(crack)[0]
    assert abs(centre[0] - 60) <= 15


# ---- any points -------------------------------------------------------------------------------------------------

@given(hnp.arrays(bool, (7, 12)), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_random_points_lie_in_the_mask_and_differ_where_they_can(mask, sets, count, seed):
    if not mask.any():
        with pytest.raises(ValueError, match="empty"):
            clicks.random_points(mask, sets, count, np.random.default_rng(seed))
        return
    points = clicks.random_points(mask, sets, count, np.random.default_rng(seed))
    assert points.shape == (sets, count, 2) and points.dtype == np.int64
    assert mask[points[..., 1], points[..., 0]].all()
    for drawn in points:
        assert len(np.unique(drawn, axis=0)) == min(count, mask.sum()) or count > mask.sum()
    again = clicks.random_points(mask, sets, count, np.random.default_rng(seed))
    np.testing.assert_array_equal(points, again)


def test_random_points_fall_on_every_pixel_alike():
    mask = np.zeros((4, 9), dtype=bool)
    mask[1, 2:7], mask[3, 8] = True, True
    points = clicks.random_points(mask, 3000, 2, np.random.default_rng(0)).reshape(-1, 2)
    _, counts = np.unique(points, axis=0, return_counts=True)
    assert len(counts) == 6 and counts.min() > 900 and counts.max() < 1100


# ---- the clicks of a simulated user -------------------------------------------------------------------------------

def test_the_inner_click_is_the_deepest_pixel_and_the_frame_is_outside():
    mask = np.zeros((20, 31), bool)
    mask[3:12, 5:26] = True
    x, y = clicks.inner_click(mask)
    assert y == 7 and 9 <= x <= 21
    assert clicks.inner_click(np.ones((5, 9), bool))[1] == 2
    with pytest.raises(ValueError, match="empty"):
        clicks.inner_click(np.zeros((3, 4), bool))


def test_a_corrective_click_goes_to_the_thickest_error_with_its_label():
    truth, predicted = np.zeros((2, 30, 50), bool)
    truth[5:25, 5:25] = True
    predicted[5:25, 5:20] = True      # 5 columns are missing
    predicted[10:13, 30:40] = True    # 3 rows spill over
    (x, y), label = clicks.corrective_click(predicted, truth, [])
    assert label == 1 and 20 <= x < 25 and truth[y, x] and not predicted[y, x]
    predicted[8:19, 28:45] = True     # now more spills over
    (x, y), label = clicks.corrective_click(predicted, truth, [])
    assert label == 0 and predicted[y, x] and not truth[y, x]
    assert clicks.corrective_click(truth, truth, []) is None


def test_a_pixel_that_was_clicked_is_no_error_any_more():
    truth, predicted = np.zeros((2, 4, 5), bool)
    truth[1, 2] = True
    assert clicks.corrective_click(predicted, truth, []) == ((2, 1), 1)
    assert clicks.corrective_click(predicted, truth, [(2, 1)]) is None
    assert truth[1, 2] and not predicted.any()   # its input stays as it was


@given(hnp.arrays(bool, (7, 9)), hnp.arrays(bool, (7, 9)))
@settings(max_examples=60, deadline=None)
def test_every_corrective_click_corrects(predicted, truth):
    click = clicks.corrective_click(predicted, truth, [])
    if click is None:
        assert np.array_equal(predicted, truth)
    else:
        (x, y), label = click
        assert predicted[y, x] != truth[y, x] and truth[y, x] == bool(label)


def test_exact_depths_are_square_roots_of_whole_numbers_to_the_last_bit():
    """Otherwise the first of several deepest pixels is a matter of where in memory the mask lies."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = cv2.GaussianBlur(rng.random((37, 53)).astype(np.float32), (0, 0), 3) > 0.5
        outside = np.argwhere(~np.pad(mask, 1)) - 1
        pixels = np.argwhere(mask)
        squares = ((pixels[:, None] - outside) ** 2).sum(axis=2).min(axis=1)
        np.testing.assert_array_equal(clicks._depth(mask, exact=True)[mask], np.sqrt(squares.astype(np.float32)))
