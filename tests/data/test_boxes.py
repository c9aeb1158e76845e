from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_set_builder import POLYGON as YOLO_BOX
from data_set_builder import add_photo, run_yolo
from pycocotools import mask as coco_mask

from sam_lora.data.boxes import BY_ROWS, CORNERS, MISMATCH, SWAPPED, doubt, is_box, note_boxes
from sam_lora.data.rle import merge_rles, read_by_rows, rle_to_mask
from sam_lora.data.sources import SourceObject

WH = (320, 240)
BBOX, XYXY = (40, 60, 160, 60), (40, 60, 200, 120)
POLYGON = [40, 60, 200, 60, 200, 120, 40, 120]


def rle_of(order: str, size_hw: tuple[int, int] = WH[::-1]) -> dict:
    """The RLE of BBOX whose runs go down the columns ("F") or along the rows ("C")."""
    mask = np.zeros(size_hw, np.uint8)
    mask[60:120, 40:200] = 1
    flat = mask.ravel(order=order)
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return {"size": list(size_hw), "counts": runs}


def polygon(bbox: object, numbers: list = POLYGON) -> SourceObject:
    return SourceObject(1, "annotation 1", "disc", (numbers,), bbox=bbox)


@pytest.mark.parametrize(("item", "mask_xyxy", "said"), [
    pytest.param(polygon(BBOX), XYXY, "", id="as it should be"),
    pytest.param(polygon(None), XYXY, "", id="no bbox"),
    pytest.param(polygon((44.5, 55, 150, 70)), XYXY, "", id="some pixels off"),
    pytest.param(polygon((40, 63, 160, 2)), (40, 60, 200, 62), "", id="three pixels off a thin one"),
    pytest.param(polygon((15, 5, 10, 10)), (10, 10, 20, 20), MISMATCH, id="five pixels off a small one"),
    pytest.param(polygon((0, 0, 1, 1)), XYXY, MISMATCH, id="a bbox without meaning"),
    pytest.param(polygon((200, 100, 100, 100)), XYXY, MISMATCH, id="another object's"),
    pytest.param(polygon((-100, 60, 300, 60), [-100, 60, 200, 60, 200, 120]), (0, 60, 200, 120), "",
                 id="beyond the photo, as its outline"),
    pytest.param(polygon((40 / 320, 0.25, 0.5, 0.25)), XYXY, "", id="fractions"),
    pytest.param(polygon((40, 60, 200, 120), POLYGON), (40, 60, 200, 120), CORNERS, id="corners"),
    pytest.param(polygon(BBOX, [60, 40, 60, 200, 120, 200, 120, 40]), (60, 40, 120, 200), SWAPPED, id="y, x"),
    pytest.param(SourceObject(1, "", "", rle=rle_of("C"), bbox=BBOX), (72, 0, 168, 240), BY_ROWS, id="row by row"),
    pytest.param(SourceObject(1, "", "", rle=rle_of("C", (240, 240)), bbox=BBOX), (60, 40, 120, 200), BY_ROWS,
                 id="row by row, square"),
    pytest.param(SourceObject(1, "", "", (POLYGON,), is_rectangle=True, bbox=(0, 0, 1, 1)), XYXY, "", id="a box"),
])
def test_what_the_bbox_says_of_a_mask(item: SourceObject, mask_xyxy: tuple, said: str):
    assert doubt(item, mask_xyxy, None, (240, 240) if item.rle and item.rle["size"] == [240, 240] else WH) == said


def test_the_bbox_is_in_the_frame_of_the_annotations():
    assert doubt(polygon((20, 30, 80, 30)), XYXY, (160, 120), WH) == ""
    assert doubt(polygon((20, 30, 80, 30)), XYXY, WH, WH) == MISMATCH


@pytest.mark.parametrize(("numbers", "said"), [
    (POLYGON, True), ([*POLYGON, *POLYGON[:2]], True), (POLYGON[2:] + POLYGON[:2], True),
    ([100, 20, 140, 60, 100, 100, 60, 60], True), ([40.2, 60, 200, 60.4, 199.7, 120, 40, 120.1], True),
    ([40, 60, 90, 60, 200, 60, 200, 80, 200, 120, 40, 120], True),
    ([0, 0, 9, 0, 9, 5, 5, 5, 5, 9, 0, 9], False), ([40, 60, 200, 70, 190, 120, 45, 110], False),
    (POLYGON[:6], False), ([*POLYGON, 30, 90], False),
    ([5, 5] * 4, False), ([0.1, 0.2, 0.3, 0.2, 0.3, 0.6, 0.1, 0.6], True)])
def test_is_box(numbers: list, said: bool):
    assert is_box(numbers) == said


@pytest.mark.parametrize(("boxes", "outlines", "said"), [(3, 2, True), (3, 0, True), (3, 3, False), (2, 0, False),
                                                         (0, 0, False)])
def test_most_outlines_that_are_boxes_are_noted(boxes: int, outlines: int, said: bool):
    notes: Counter = Counter()
    ragged = [40, 60, 200, 70, 190, 120, 45, 110]
    note_boxes([polygon(None)] * boxes + [polygon(None, ragged)] * outlines
               + [SourceObject(9, "", "", (POLYGON,), is_rectangle=True)] * 5, notes)
    assert [note.split(" outlines are four")[0] for note in notes] == [f"{boxes} of {boxes + outlines}"] * said


def test_yolo_rows_that_are_boxes_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture):
    turned = "0 0.5 0.1 0.8 0.5 0.5 0.9 0.2 0.5"    # as an OBB export has them, nine numbers
    rows = [f"0 {YOLO_BOX}", f"1 {YOLO_BOX}", turned, "0 0.1 0.1 0.8 0.2 0.5 0.9", "1 0.5 0.5 0.2 0.2"]
    add_photo(tmp_path / "set", "images/a.jpg", "labels/a.txt", "\n".join(rows))
    assert len(run_yolo(tmp_path / "set", tmp_path / "out", "--class_names", "x", "y")) == 4
    assert "note: 3 of 4 outlines are four corners of a box, axis-parallel or turned" in capsys.readouterr().out


def test_read_by_rows_and_merge_rles():
    assert np.array_equal(read_by_rows(rle_to_mask(rle_of("C"))), rle_to_mask(rle_of("F")))
    other = np.zeros(WH[::-1], np.uint8)
    other[100:200, 10:60] = 1
    compressed = coco_mask.encode(np.asfortranarray(other))
    assert np.array_equal(rle_to_mask(merge_rles([rle_of("F"), compressed])), rle_to_mask(rle_of("F")) | (other > 0))
