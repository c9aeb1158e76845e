"""process_coco_dataset.py: each annotation, polygons or RLE, is a crop or a reason."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_set_builder import BOX_ONLY, HEIGHT, SQUARE, WIDTH, annotation, image, run_coco_file, runs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from process_coco_dataset import id_text
from sam_lora.data.segmentation import AnnotationError, parse_segmentation

NO_BOX = "neither an outline nor a box"
NO_PART = "no polygon part of three finite points"
OTHER = [5, 5, 30, 5, 30, 40, 5, 40]                 # an outline beside SQUARE
COUNTS = "a plain list of numbers that looks like RLE counts"


@pytest.mark.parametrize(("more", "flags", "reason"), [
    pytest.param({"category_id": 9}, [], "category_id that no category has", id="unknown category"),
    pytest.param({"category_id": None}, [], "category_id that no category has", id="no category"),
    pytest.param({"image_id": {}}, [], "image_id that no image has", id="image id of another kind"),
    pytest.param({"iscrowd": 1}, [], "iscrowd (--crowd keep takes it)", id="crowd"),
    pytest.param({"iscrowd": 1}, ["--crowd", "keep"], None, id="crowd kept"),
    pytest.param({"segmentation": None}, [], BOX_ONLY, id="null"),
    pytest.param({"segmentation": []}, [], BOX_ONLY, id="[]"),
    pytest.param({"segmentation": [[]]}, [], BOX_ONLY, id="[[]]"),
    pytest.param({"segmentation": []}, ["--boxes", "rectangle"], None, id="box taken"),
    pytest.param({"segmentation": [], "bbox": None}, ["--boxes", "rectangle"], NO_BOX, id="no box"),
    pytest.param({"segmentation": [], "bbox": [5, 5, -3, 9]}, ["--boxes", "rectangle"], NO_BOX,
                 id="negative box"),
    pytest.param({"segmentation": [[[1, 2], [3, 4]]]}, [], NO_PART, id="two points"),
    pytest.param({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, [], NO_PART, id="NaN"),
    pytest.param({"segmentation": [[1, 2, 30, 4, 50, 1e400]]}, [], NO_PART, id="Inf"),
    pytest.param({"segmentation": [[1, 2, 3, 4, 5]]}, [], NO_PART, id="odd"),
    pytest.param({"segmentation": [["1", "2", "3", "4", "5", "6"]]}, [], NO_PART, id="text"),
    pytest.param({"segmentation": [SQUARE, [1, 2, 3, 4], [1, 2, float("inf"), 2, 3, 3]]}, [], None, id="one good part"),
    pytest.param({"segmentation": [[20, 10, 60, 1e8, 1e8, 1e8, 1e8, 10]]}, [], None, id="far out of the photo"),
    pytest.param({"segmentation": [[200, 10, 260, 10, 230, 40]]}, [], "covers no pixel of the photo", id="outside"),
    pytest.param({"segmentation": SQUARE}, [], None, id="outer list missing"),
    pytest.param({"segmentation": [100, 3000, 900]}, [], COUNTS, id="odd counts"),
    pytest.param({"segmentation": [1000, 1000, 1000, 1000, 0, 0]}, [], COUNTS,
                 id="counts that sum to the photo"),
    pytest.param({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 3800]}}, [],
                 "RLE counts that do not add up to its size", id="RLE cut off"),
    pytest.param({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [100, 3900]}}, [],
                 "RLE of another size than its photo", id="RLE with width and height swapped"),
    pytest.param({"segmentation": {"counts": "04"}}, [], "RLE without a size of two whole numbers",
                 id="RLE without size"),
    pytest.param({"segmentation": [{"size": [HEIGHT, WIDTH], "counts": [500, 3500]}]}, [], None, id="RLE in a list"),
    pytest.param({"segmentation": {"size": [HEIGHT // 2, WIDTH // 2], "counts": [0, 1000]}}, [], None,
                 id="RLE at half size"),
    pytest.param({"segmentation": "polygon"}, [], "segmentation that is neither polygons nor RLE", id="text"),
])
def test_one_annotation_is_a_crop_or_a_reason(tmp_path: Path, more: dict, flags: list[str], reason: str | None):
    manifest, skipped = run_coco_file(tmp_path, [annotation(segmentation=[OTHER]), {**annotation(), **more}], *flags)
    assert skipped == ({} if reason is None else {reason: 1})
    assert len(manifest) == (2 if reason is None else 1)


def test_bare_and_odd_annotations(tmp_path: Path):
    bare = {"image_id": "1", "category_id": 1.0, "segmentation": [SQUARE]}
    manifest, skipped = run_coco_file(tmp_path, [bare, "text", None, 5, {}])
    assert len(manifest) == 1 and manifest.mask_area.tolist() == [800]
    assert skipped == {"not an annotation": 3, "image_id that no image has": 1}


def test_masks_that_are_all_crowd_are_kept_as_cvat_means_them(tmp_path: Path, capsys: pytest.CaptureFixture):
    crowds = [annotation(segmentation=rle_of((x, 10, 60, 30)), iscrowd=1) for x in range(3)]
    assert len(run_coco_file(tmp_path, crowds)[0]) == 3
    assert "3 of 3 masks are RLE with iscrowd, as CVAT writes any mask: kept" in capsys.readouterr().out
    mixed = [*crowds, annotation()]
    assert run_coco_file(tmp_path, mixed, "--overwrite")[1] == {"iscrowd (--crowd keep takes it)": 3}
    assert run_coco_file(tmp_path, mixed, "--overwrite", "--crowd", "keep")[1] == {}


finite = st.floats(-1e9, 1e9) | st.integers(-10**6, 10**6)
odd = st.sampled_from([None, True, "1", float("nan"), float("inf"), 10**400, [], {}])
part = st.lists(st.one_of(finite, finite, odd), max_size=10)
segmentations = st.one_of(st.none(), part, st.lists(part, max_size=4),
                          st.dictionaries(st.text(max_size=6), part, max_size=2))


@settings(max_examples=200, deadline=None)
@given(segmentations)
def test_any_segmentation_is_polygons_rle_or_a_reason(segmentation: object):
    try:
        outline = parse_segmentation(segmentation, (WIDTH, HEIGHT), Counter())
    except AnnotationError as error:
        assert str(error)
    else:
        assert bool(outline.polygons) + bool(outline.boxes) + (outline.rle is not None) <= 1
        assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 and np.isfinite(np.array(polygon, float)).all()
                   for polygon in outline.polygons)
        assert all(len(box) == 4 and np.isfinite(np.array(box, float)).all() for box in outline.boxes)


@pytest.mark.parametrize(("value", "text"), [(12, "12"), ("12", "12"), (" 12 ", "12"), (12.0, "12"), (0, "0"),
                                             (None, ""), (True, ""), (1.5, ""), ({}, ""), ("a1", "a1"),
                                             (float("nan"), "")])
def test_id_text(value: object, text: str):
    assert id_text(value) == text


# ---- every rule of shared/formats.md that no test above names ---------------------------------------------

def rle_of(box: tuple[int, int, int, int]) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[box[1]:box[3], box[0]:box[2]] = 1
    return {"size": [HEIGHT, WIDTH], "counts": runs_of(mask)}


RING = [[10, 5, 60, 5, 60, 45, 10, 45], [20, 15, 50, 15, 50, 35, 20, 35]]


@pytest.mark.parametrize(("annotations", "flags", "areas", "skipped", "said"), [
    pytest.param([annotation(segmentation=[[0, 0, 20, 0, 20, 10, 0, 10], [40, 30, 60, 30, 60, 50, 40, 50]])], [],
                 [600], {}, "", id="multi-part polygon: one object, the union"),
    pytest.param([annotation(segmentation=RING)], [], [2000], {}, "", id="inner polygon is no hole"),
    pytest.param([annotation(segmentation=rle_of((20, 10, 60, 30)))], [], [800], {}, "", id="RLE, counts a list"),
    pytest.param([annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "a7zzzz"})], [], None,
                 {"damaged": 1}, "", id="RLE text that is damaged"),
    pytest.param([annotation(segmentation=SQUARE)], [], [800], {}, "", id="flat polygon"),
    pytest.param([annotation(segmentation=[100, 30, 20, 30, 20, 3800])], [], None, {COUNTS: 1}, "",
                 id="flat RLE counts"),
    pytest.param([annotation(segmentation=rle_of((20, y, 60, y + 20)), iscrowd=1) for y in range(3)], [], [800] * 3, {},
                 "3 of 3 masks are RLE with iscrowd", id="iscrowd on every CVAT mask"),
    pytest.param([annotation(segmentation=rle_of((20, 10, 60, 30)), iscrowd=1)] * 3, ["--crowd", "skip"], None,
                 {"iscrowd (--crowd keep takes it)": 3}, "", id="iscrowd on every CVAT mask, --crowd skip"),
    pytest.param([annotation(iscrowd=1), annotation()], [], [800], {"iscrowd (--crowd keep takes it)": 1}, "",
                 id="iscrowd on one polygon"),
    pytest.param([{"image_id": 1, "category_id": 1, "segmentation": [SQUARE]}], [], [800], {}, "",
                 id="no iscrowd, bbox, area, id"),
    pytest.param([{"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}], [], None, {BOX_ONLY: 1}, "",
                 id="no segmentation: detection-only export"),
    pytest.param([annotation(segmentation=[SQUARE, [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7],
                                           [1, 1, float("nan"), 2, 3, 3]])], [], [800], {}, "part was dropped",
                 id="short, odd and NaN parts go, the good one stays"),
    pytest.param([annotation(bbox=[3, 70, -9, 1e9])], [], [800], {}, "", id="a wrong bbox does not count"),
    pytest.param([annotation(segmentation=[[10, 10, 50, 40, 50, 10, 10, 40]])], [], [600], {}, "",
                 id="self-intersecting polygon"),
    pytest.param([annotation(segmentation=[[-1e6, 10, 1e6, 10, 1e6, 30, -1e6, 30]])], [], [1600], {}, "",
                 id="out of bounds: clipped"),
    pytest.param([annotation(category_id=2), annotation(image_id=9), annotation()], [], [800],
                 {"category_id that no category has": 1, "image_id that no image has": 1}, "",
                 id="unknown category_id and image_id"),
    pytest.param([annotation("1", "1"), annotation(1.0, 1.0, [OTHER]), annotation(True, 1), annotation(1, True),
                  annotation([1])], [], [800, 875],
                 {"image_id that no image has": 2, "category_id that no category has": 1}, "",
                 id="ids as text and floats are ids, bools and lists are none"),
    pytest.param([annotation(), annotation(segmentation=[OTHER])], [], [800, 875], {}, "", id="duplicate ids"),
    pytest.param([annotation(), annotation(id=8, bbox=[1, 2, 3, 4]), annotation(id=9)], [], [800], {"twice": 2}, "",
                 id="identical annotations: once"),
    pytest.param([annotation(segmentation=rle_of((20, 10, 60, 30)), id=i) for i in range(3)], [], [800], {"twice": 2},
                 "", id="identical RLE: once"),
    pytest.param([annotation(segmentation=None, id=i) for i in range(2)], ["--boxes", "rectangle"], [800], {"twice": 1},
                 "", id="identical boxes: once"),
    pytest.param([annotation(segmentation=[[5, 5, 11, 5, 11, 11, 5, 11]]), annotation()], [], [800],
                 {"smaller than --min_size": 1}, "", id="tiny object"),
    pytest.param([annotation(segmentation=[[10, 10, 1e308, 10, 30, 40]])], [], None, {NO_PART: 1}, "", id="1e308"),
    pytest.param([annotation(segmentation=[[10, 10, 10**400, 10, 30, 40]])], [], None, {NO_PART: 1}, "",
                 id="a whole number of 400 digits"),
    pytest.param([annotation(segmentation={"size": [2**14, 2**14], "counts": [0, 2**28]})], [], None,
                 {"RLE of another size than its photo": 1}, "", id="RLE bomb"),
    pytest.param([annotation(segmentation=[[[[[SQUARE]]]]])], [], None, {NO_PART: 1}, "", id="nested lists"),
])
def test_rules_of_annotations(tmp_path: Path, capsys: pytest.CaptureFixture, annotations: list, flags: list[str],
                              areas: list | None, skipped: dict, said: str):
    if areas is None:  # an object beside it, for an export without any is an error
        annotations, areas = [*annotations, annotation()], [800]
        if any("iscrowd" in reason for reason in skipped):
            flags = flags or ["--crowd", "skip"]
    manifest, found = run_coco_file(tmp_path, annotations, *flags)
    assert np.abs(manifest.mask_area.to_numpy() - areas).max() <= 12
    assert {next((word for word in skipped if word in reason), reason): count
            for reason, count in found.items()} == skipped
    assert said in capsys.readouterr().out


# ---- coordinates, boxes and masks that are not as they seem -----------------------------------------------

FRACTIONS = [0.25, 0.2, 0.75, 0.2, 0.75, 0.6, 0.25, 0.6]      # SQUARE, as a fraction of width and height
ALMOST = [-0.01, 0.2, 1.02, 0.2, 1.02, 0.6, -0.01, 0.6]


@pytest.mark.parametrize(("annotations", "sizes", "flags", "boxes", "said"), [
    pytest.param([annotation(segmentation=[FRACTIONS], bbox=[0.25, 0.2, 0.5, 0.4]), annotation(segmentation=[ALMOST])],
                 {}, [], [(20, 10, 60, 30), (0, 10, 80, 30)], "2 outlines have all", id="outlines"),
    pytest.param([annotation(segmentation=[[FRACTIONS[i:i + 2] for i in range(0, 8, 2)]])], {"width": 1, "height": 1},
                 [], [(20, 10, 60, 30)], "1 outlines have all", id="pairs, in a frame of 1 x 1"),
    pytest.param([annotation(segmentation=[FRACTIONS])], {"width": None, "height": None}, [], [(20, 10, 60, 30)],
                 "1 outlines have all", id="no size in the JSON"),
    pytest.param([annotation(segmentation=[FRACTIONS])], {"width": 160, "height": 100}, [], [(20, 10, 60, 30)],
                 "1 outlines have all", id="a larger frame"),
    pytest.param([{"image_id": 1, "category_id": 1, "bbox": [0.25, 0.2, 0.5, 0.4]}], {}, ["--boxes", "rectangle"],
                 [(20, 10, 60, 30)], "1 boxes have all", id="Azure's boxes"),
])
def test_fractions_of_width_and_height_are_scaled(tmp_path: Path, capsys: pytest.CaptureFixture, annotations: list,
                                                  sizes: dict, flags: list, boxes: list, said: str):
    manifest, skipped = run_coco_file(tmp_path, annotations, *flags, "--padding", 0, images=[{**image(), **sizes}])
    assert [tuple(row) for row in manifest[["crop_x0", "crop_y0", "crop_x1", "crop_y1"]].to_numpy()] == boxes
    printed = capsys.readouterr().out
    assert f"note: {said} coordinates within 0..1: taken for fractions" in printed and not skipped


def test_fractions_among_pixels_have_their_reason(tmp_path: Path):
    manifest, skipped = run_coco_file(tmp_path, [annotation(), annotation(segmentation=[OTHER]),
                                                 annotation(segmentation=[FRACTIONS])])
    assert len(manifest) == 2 and skipped == {"all coordinates within 0..1, while the file's others are pixels": 1}


def test_rle_written_row_by_row_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture):
    masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    for number, mask in enumerate(masks):
        mask[10 + number:30, 20:60] = 1
    rows = [{"size": [HEIGHT, WIDTH], "counts": runs_of(mask.T)} for mask in masks]
    run_coco_file(tmp_path, [annotation(segmentation=rle) for rle in rows])
    assert "note: 3 masks do not match their bbox, but do with their RLE read row by row, while COCO's runs go down " \
           "the columns, e.g. annotation 7" in capsys.readouterr().out
    run_coco_file(tmp_path, [annotation(segmentation=rle_of((20, 10 + i, 60, 30))) for i in range(3)], "--overwrite")
    assert "match their bbox" not in capsys.readouterr().out
    run_coco_file(tmp_path, [annotation(id=4), annotation(segmentation=[OTHER], bbox=[60, 0, 20, 50])], "--overwrite")
    assert "note: 1 masks do not match their bbox, e.g. annotation 7" in capsys.readouterr().out


def test_boxes_disguised_as_polygons(tmp_path: Path, capsys: pytest.CaptureFixture):
    turned = [40, 5, 70, 25, 40, 45, 10, 25]
    annotations = [annotation(), annotation(segmentation=[turned]), annotation(segmentation=[[*OTHER, *OTHER[:2]]]),
                   annotation(segmentation=[[10, 10, 60, 20, 40, 40]])]
    assert len(run_coco_file(tmp_path, annotations)[0]) == 4
    assert "note: 3 of 4 outlines are four corners of a box" in capsys.readouterr().out
    marked = [{**item, mark: True} for item, mark in zip(annotations, ("isbbox", "obb"))] + annotations[3:]
    assert run_coco_file(tmp_path, marked, "--overwrite")[1] == {
        "marked as a box by the export (--boxes rectangle takes it)": 2}
    assert "four corners" not in capsys.readouterr().out
    manifest, skipped = run_coco_file(tmp_path, marked, "--overwrite", "--boxes", "rectangle")
    assert not skipped and manifest.rasteriser.tolist() == ["rectangle", "rectangle", "opencv fillPoly 4x"]
