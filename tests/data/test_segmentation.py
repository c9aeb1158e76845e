import json
from array import array
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_lora.data.conversion_report import BOX_MARKED, BOX_ONLY
from sam_lora.data.rle import rle_to_mask
from sam_lora.data.segmentation import AnnotationError, box_polygon, parse_segmentation, read_outline

WH = (80, 50)
FLAT = [20, 10, 60, 10, 60, 30, 20, 30]
PAIRS = [[20, 10], [60, 10], [60, 30], [20, 30]]
BOX = [20, 10, 40, 20]
EMPTY_TEXT = coco_mask.encode(np.zeros((50, 80), np.uint8, order="F"))["counts"].decode()
NO_PART = "no polygon part of three finite points"


@pytest.mark.parametrize(("segmentation", "polygons"), [
    pytest.param([FLAT], [FLAT], id="COCO's own"),
    pytest.param([array("d", FLAT), FLAT], [FLAT, FLAT], id="packed, two parts"),
    pytest.param(FLAT, [FLAT], id="outer list missing"),
    pytest.param(PAIRS, [FLAT], id="pairs"),
    pytest.param([PAIRS], [FLAT], id="pairs in a list"),
    pytest.param([[PAIRS, PAIRS]], [FLAT, FLAT], id="two parts of pairs, nested once too often"),
    pytest.param([[FLAT]], [FLAT], id="nested once too often"),
    pytest.param([[[FLAT], [FLAT]]], [FLAT, FLAT], id="nested twice too often"),
    pytest.param([{"x": x, "y": y} for x, y in PAIRS], [FLAT], id="points with x and y"),
    pytest.param([[{"x": x, "y": y} for x, y in PAIRS]] * 2, [FLAT, FLAT], id="two parts of points"),
    pytest.param({"x": FLAT[::2], "y": FLAT[1::2]}, [FLAT], id="all x, all y"),
    pytest.param([[pair] for pair in PAIRS], [FLAT], id="an OpenCV contour"),
    pytest.param([[[pair] for pair in PAIRS]] * 2, [FLAT, FLAT], id="two OpenCV contours"),
    pytest.param([[x, y, 2] for x, y in PAIRS], [FLAT], id="points of three numbers"),
    pytest.param(json.dumps([FLAT]), [FLAT], id="as text"),
    pytest.param(f" {json.dumps(PAIRS)}", [FLAT], id="pairs as text"),
    pytest.param([FLAT, [], [1, 2, 3, 4], [None] * 6], [FLAT], id="one good part"),
])
def test_polygons(segmentation: object, polygons: list):
    notes: Counter = Counter()
    outline = parse_segmentation(segmentation, WH, notes)
    assert [list(polygon) for polygon in outline.polygons] == polygons and outline.rle is None and not outline.boxes
    assert len(notes) == (polygons == [FLAT] and segmentation in ([FLAT, [], [1, 2, 3, 4], [None] * 6],
                                                                  [[x, y, 2] for x, y in PAIRS]))


@pytest.mark.parametrize("segmentation", [
    None, [], [[]], [[], []], [[[]], []], {}, "", " ", "[]", "[[]]", {"size": [50, 80], "counts": []},
    {"size": [50, 80], "counts": None}, {"size": [50, 80]}, {"counts": ""}, {"size": [50, 80], "counts": [4000]},
    {"size": [50, 80], "counts": [4000.0, 0]}, {"size": [50, 80], "counts": EMPTY_TEXT},
    [{"size": [50, 80], "counts": []}] * 2,
    BOX, [BOX], [[BOX]], [BOX, []], [array("d", BOX)], array("d", BOX)])
def test_what_is_no_outline_is_only_a_box(segmentation: object):
    annotation = {"segmentation": segmentation, "bbox": BOX}
    with pytest.raises(AnnotationError) as error:
        read_outline(annotation, WH, False, Counter())
    assert error.value.reason == BOX_ONLY
    outline = read_outline(annotation, WH, True, Counter())
    assert outline.polygons == [FLAT] and outline.is_box


def test_the_box_in_place_of_an_outline_counts_where_there_is_no_bbox():
    for annotation in ({"segmentation": [BOX]}, {"segmentation": BOX, "bbox": [0, 0, 0, 0]}):
        assert read_outline(annotation, WH, True, Counter()).polygons == [FLAT]
    with pytest.raises(AnnotationError, match="neither an outline nor a box"):
        read_outline({"segmentation": [[], []], "bbox": None}, WH, True, Counter())


@pytest.mark.parametrize(("segmentation", "reason"), [
    pytest.param([[1, 2]], NO_PART, id="a point"),
    pytest.param([[1, 2], [3, 4]], NO_PART, id="two points"),
    pytest.param([[[1, 2], [3, 4]]], NO_PART, id="two points, nested"),
    pytest.param([[1, 2], [3, float("nan")], [5, 6]], NO_PART, id="pairs with NaN"),
    pytest.param([{"x": 1, "y": None}] * 3, NO_PART, id="points without y"),
    pytest.param({"x": [1, 2, 3], "y": [1, 2]}, NO_PART, id="unequal lists"),
    pytest.param([[[[[FLAT]]]]], NO_PART, id="nested for ever"),
    pytest.param("polygon", "segmentation that is neither polygons nor RLE", id="a word"),
    pytest.param("[[1, 2", "segmentation that is neither polygons nor RLE", id="broken text"),
    pytest.param([100, 3000, 900], "a plain list of numbers that looks like RLE counts", id="RLE counts"),
    pytest.param([{"size": [50, 80], "counts": [0, 4000]}, {"size": [5, 8], "counts": [0, 40]}],
                 "several RLEs of different sizes", id="RLEs of two sizes"),
])
def test_what_is_no_outline_has_its_reason(segmentation: object, reason: str):
    with pytest.raises(AnnotationError) as error:
        read_outline({"segmentation": segmentation, "bbox": BOX}, WH, True, Counter())
    assert error.value.reason == reason


def test_several_rles_are_one_object():
    parts = [{"size": [50, 80], "counts": [0, 50, 3950]}, {"size": [50, 80], "counts": [3900, 100]}]
    mask = rle_to_mask(parse_segmentation(parts, WH, Counter()).rle)
    assert mask[:, 0].all() and mask[:, 78:].all() and mask.sum() == 150
    assert parse_segmentation(parts[:1], WH, Counter()).rle == parts[0]


@pytest.mark.parametrize("mark", [{"isbbox": True}, {"obb": True}, {"is_bbox": 1}])
def test_what_the_export_marks_as_a_box_is_one(mark: dict):
    annotation = {"segmentation": [FLAT], "bbox": BOX, **mark}
    with pytest.raises(AnnotationError) as error:
        read_outline(annotation, WH, False, Counter())
    assert (error.value.reason, error.value.detail) == (BOX_MARKED, next(iter(mark)))
    assert read_outline(annotation, WH, True, Counter()).is_box
    assert not read_outline({**annotation, next(iter(mark)): False}, WH, False, Counter()).is_box


def test_box_polygon():
    assert box_polygon(BOX) == FLAT
    assert box_polygon([BOX]) == box_polygon(dict(zip(("x", "y", "width", "height"), BOX))) == FLAT
    for bbox in (None, [1, 2, 3], [1, 2, 0, 4], [1, 2, -3, 4], [1, 2, 3, float("nan")], "1234"):
        with pytest.raises(AnnotationError, match="neither an outline nor a box"):
            box_polygon(bbox)
