"""The demo's data set: the same objects in both forms, drawn where the annotations say."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask

from sam_lora.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
import make_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    make(folder)
    return folder


def make(folder, *more):
    make_dataset.main(make_dataset.get_args_parser().parse_args(
        ["--output_dir", str(folder), "--num_images", "8", "--seed", "7", *more]))


def coco(folder):
    return json.loads((folder / "coco" / "annotations.json").read_text(encoding="utf-8"))


def coco_masks(folder):
    """{file stem: [(class, mask)]} of the COCO form, decoded by pycocotools alone."""
    table = coco(folder)
    images = {image["id"]: image for image in table["images"]}
    found = {Path(image["file_name"]).stem: [] for image in table["images"]}
    for annotation in table["annotations"]:
        image, shape = images[annotation["image_id"]], annotation["segmentation"]
        if isinstance(shape, list):
            packed = coco_mask.merge(coco_mask.frPyObjects(shape, image["height"], image["width"]))
        elif isinstance(shape["counts"], list):
            packed = coco_mask.frPyObjects(shape, *shape["size"])
        else:
            packed = {"size": shape["size"], "counts": shape["counts"].encode("ascii")}
        found[Path(image["file_name"]).stem].append((annotation["category_id"] - 1, coco_mask.decode(packed) > 0))
    return found


def yolo_masks(folder):
    """{file stem: [(class, mask)]} of the YOLO form, drawn by OpenCV four times larger."""
    found = {}
    for label in sorted((folder / "yolo").glob("*/labels/*.txt")):
        picture = cv2.imread(str(label.parent.parent / "images" / f"{label.stem}.jpg"))
        height, width = picture.shape[:2]
        found[label.stem] = []
        for row in label.read_text(encoding="utf-8").splitlines():
            class_id, *numbers = row.split()
            points = np.array(numbers, float).reshape(-1, 2) * (width * 4, height * 4)
            mask = cv2.fillPoly(np.zeros((height * 4, width * 4), np.uint8), [np.round(points).astype(np.int32)], 255)
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA) > 127
            found[label.stem].append((int(class_id), mask))
    return found


def test_exactly_the_files_of_both_forms_are_written(made):
    names = [f"plate_{number:03d}" for number in range(8)]
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    splits = {name: next((made / "yolo").glob(f"*/images/{name}.jpg")).parts[-3] for name in names}
    assert set(splits.values()) == {"train", "valid", "test"}
    assert files == {"yolo/data.yaml", "coco/annotations.json",
                     *(f"coco/images/{name}.jpg" for name in names),
                     *(f"yolo/{split}/images/{name}.jpg" for name, split in splits.items()),
                     *(f"yolo/{split}/labels/{name}.txt" for name, split in splits.items())}


def test_the_yaml_names_the_classes_and_folders_that_exist(made):
    config = yaml.safe_load((made / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert config["names"] == ["berry", "cell", "beetle"]
    assert config["nc"] == 3
    for split in ("train", "val", "test"):
        assert (made / "yolo" / config[split]).is_dir()


def test_pictures_are_the_same_in_both_forms_and_not_square(made):
    sizes = {(image["width"], image["height"]) for image in coco(made)["images"]}
    assert sizes == {(320, 240), (240, 320)}
    for image in coco(made)["images"]:
        data = (made / "coco" / "images" / image["file_name"]).read_bytes()
        assert data == next((made / "yolo").glob(f"*/images/{image['file_name']}")).read_bytes()
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[:2] == (image["height"], image["width"])


def test_both_forms_describe_the_same_objects(made):
    from_coco, from_yolo = coco_masks(made), yolo_masks(made)
    assert from_coco.keys() == from_yolo.keys()
    for stem in from_coco:
        assert [class_id for class_id, _ in from_coco[stem]] == [class_id for class_id, _ in from_yolo[stem]]
        for (_, first), (_, second) in zip(from_coco[stem], from_yolo[stem]):
            assert (first & second).sum() / (first | second).sum() > 0.9


def test_boxes_and_areas_are_those_of_the_masks(made):
    masks = [mask for pairs in coco_masks(made).values() for _, mask in pairs]
    for annotation, mask in zip(coco(made)["annotations"], masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width - 1, y + height - 1) == (columns[0], rows[0], columns[-1], rows[-1])
        assert annotation["area"] == mask.sum()


def test_an_object_differs_from_the_ground_around_it(made):
    steps = []
    for stem, pairs in coco_masks(made).items():
        picture = cv2.imread(str(made / "coco" / "images" / f"{stem}.jpg")).astype(float)
        for _, mask in pairs:
            ring = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool) & ~mask
            steps.append(np.abs(picture[mask].mean(axis=0) - picture[ring].mean(axis=0)).max())
    assert np.median(steps) > 15


def test_the_seed_decides_everything(made, tmp_path):
    make(tmp_path / "again")
    make(tmp_path / "other", "--seed", "8")
    assert coco(tmp_path / "again") == coco(made)
    assert coco(tmp_path / "other")["annotations"] != coco(made)["annotations"]
    assert ((tmp_path / "again" / "coco" / "images" / "plate_003.jpg").read_bytes()
            == (made / "coco" / "images" / "plate_003.jpg").read_bytes())


def test_a_full_folder_is_refused_and_replaced_on_request(tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        make(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    make(tmp_path, "--overwrite")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("count", [1, 2, 3, 75])
def test_every_picture_has_a_split(count):
    names = make_dataset.split_names(np.random.default_rng(0), count)
    assert len(names) == count
    assert "train" in names
    if count >= 3:
        assert set(names) == {"train", "valid", "test"}


def test_parts_are_joined_into_one_polygon_without_gain_or_loss():
    squares = [np.array([[10, 10], [30, 10], [30, 30], [10, 30]], float) + shift for shift in ((0, 0), (40, 5))]
    row = make_dataset.yolo_row(2, squares, 100, 60)
    class_id, *numbers = row.split()
    points = np.round(np.array(numbers, float).reshape(-1, 2) * (100, 60)).astype(np.float32)
    assert class_id == "2"
    assert cv2.contourArea(points) == pytest.approx(800, abs=1)


def test_rle_and_several_parts_occur(tmp_path):
    make_dataset.main(make_dataset.get_args_parser().parse_args(
        ["--output_dir", str(tmp_path), "--num_images", "24", "--seed", "7"]))
    shapes = [annotation["segmentation"] for annotation in coco(tmp_path)["annotations"]]
    assert any(isinstance(shape, list) and len(shape) > 1 for shape in shapes)
    assert any(isinstance(shape, dict) and isinstance(shape["counts"], list) for shape in shapes)
    assert any(isinstance(shape, dict) and isinstance(shape["counts"], str) for shape in shapes)
