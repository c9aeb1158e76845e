"""annotation_files.py: masks in COCO's terms and as lines of YOLO labels."""

import cv2
import numpy as np
import pytest
from converted_annotations import convert, iou
from pycocotools import mask as coco_mask

import process_yolo_to_classwise
from sam_lora.data import geometry, imaging
from sam_lora.results.annotation_files import mask_to_coco, yolo_row


def test_a_mask_in_cocos_terms_holds_the_very_pixels():
    mask = draw("tilted")
    annotation = mask_to_coco(mask)
    np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]) > 0, mask)
    x, y, width, height = annotation["bbox"]
    assert mask[y:y + height, x:x + width].sum() == mask.sum() == annotation["area"]
    assert mask[y].any() and mask[y + height - 1].any() and mask[:, x].any() and mask[:, x + width - 1].any()


def test_an_empty_mask_has_an_empty_box():
    annotation = mask_to_coco(np.zeros((7, 9), dtype=bool))
    assert annotation["bbox"] == [0, 0, 0, 0] and annotation["area"] == 0
    assert annotation["segmentation"]["size"] == [7, 9]


def draw(shape: str) -> np.ndarray:
    canvas = np.zeros((90, 140), np.uint8)
    if shape == "disc":
        cv2.circle(canvas, (70, 44), 35, 1, -1)
    if shape == "small disc":
        cv2.circle(canvas, (70, 44), 4, 1, -1)
    if shape == "rectangle at the corner":
        canvas[:40, :61] = 1
    if shape == "tilted":
        cv2.fillPoly(canvas, [np.array([(10, 12), (128, 40), (60, 80)])], 1)
    if shape in ("ring", "ring and two parts"):
        cv2.circle(canvas, (70, 44), 30, 1, 9)
    if shape == "ring and two parts":
        canvas[3:12, 4:30] = canvas[70:85, 110:132] = 1
    return canvas > 0


@pytest.mark.parametrize("shape", ["disc", "small disc", "rectangle at the corner", "tilted", "ring",
                                   "ring and two parts"])
def test_solid_shapes_survive_yolo(tmp_path, shape, capsys):
    mask = draw(shape)
    assert mask.any()
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    imaging.write_png(tmp_path / "set" / "images" / "a.png", np.zeros((*mask.shape, 3), np.uint8))
    row = yolo_row(0, geometry.mask_to_polygon(mask), mask.shape[::-1])
    assert row.count("\n") == 1 and len(row.split()) < 300
    (tmp_path / "set" / "labels" / "a.txt").write_text(row)
    found = convert(process_yolo_to_classwise, "--dataset_dir", tmp_path / "set", "--class_names", shape,
                    tmp_path / "crops")
    assert iou(found["a.png", shape][0], mask) > 0.95
