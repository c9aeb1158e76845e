"""sam_lora/data/class_folders.py: exact files and manifest rows for one photo's objects."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from class_folder_builder import convert, large_photo, photo, rectangle
from data_set_builder import OTHER_OUTPUT, files_in
from pycocotools import mask as coco_mask

from sam_lora import contracts
from sam_lora.data.imaging import load_image, load_mask
from sam_lora.data.sources import SourceImage, SourceObject
from sam_lora.errors import UserError

WIDTH, HEIGHT = 90, 60


def test_crops_masks_and_manifest(tmp_path: Path):
    runs = coco_mask.encode(np.asfortranarray(np.pad(np.ones((10, 20), np.uint8), ((5, 45), (70, 0)))))
    image = photo(tmp_path / "in", "sub/x y.png", [
        SourceObject(1, "labels.txt:1", "a", (rectangle(10, 20, 40, 30), rectangle(50, 20, 60, 40))),
        SourceObject(4, "labels.txt:4", "b", rle={"size": runs["size"], "counts": runs["counts"].decode()}),
        SourceObject(12345, "labels.txt:12345", "a", (rectangle(0, 0, 12, 8),), is_rectangle=True)])
    manifest, report = convert([image], tmp_path / "out", padding=0.1)
    assert files_in(tmp_path / "out") == sorted([
        *(f"Class_3_red_disc/{kind}/x y_{index}.png" for kind in ("images", "masks") for index in ("0001", "12345")),
        *(f"Class_5_bar/{kind}/x y_0004.png" for kind in ("images", "masks")), *OTHER_OUTPUT])
    assert manifest.columns.tolist() == list(contracts.MANIFEST_COLUMNS)
    common = ["sub/x y.png", ""]
    digest = manifest.pop("source_digest")
    assert digest.tolist() == [hashlib.blake2b(image.path.read_bytes(), digest_size=16).hexdigest()] * 3
    assert manifest.to_numpy().tolist() == [
        ["Class_3_red_disc/images/x y_0001.png", "Class_3_red_disc/masks/x y_0001.png", 3, "red disc", *common,
         "labels.txt:1", 90, 60, 5, 18, 65, 42, 500, "opencv fillPoly 4x"],
        ["Class_5_bar/images/x y_0004.png", "Class_5_bar/masks/x y_0004.png", 5, "bar", *common,
         "labels.txt:4", 90, 60, 68, 4, 90, 16, 200, "pycocotools RLE"],
        ["Class_3_red_disc/images/x y_12345.png", "Class_3_red_disc/masks/x y_12345.png", 3, "red disc", *common,
         "labels.txt:12345", 90, 60, 0, 0, 14, 9, 96, "rectangle"]]
    whole = load_image(image.path)
    for row in manifest.itertuples():
        crop, mask = load_image(tmp_path / "out" / row.image_path), load_mask(tmp_path / "out" / row.mask_path)
        assert np.array_equal(crop, whole[row.crop_y0:row.crop_y1, row.crop_x0:row.crop_x1])
        assert mask.shape == crop.shape[:2] and mask.sum() == row.mask_area
    two_parts = np.zeros((HEIGHT, WIDTH), bool)
    two_parts[20:30, 10:40] = two_parts[20:40, 50:60] = True
    assert np.array_equal(load_mask(tmp_path / "out" / manifest.mask_path[0]), two_parts[18:42, 5:65])
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == {
        "Class_3_red_disc": {"class_id": 3, "class_name": "red disc"},
        "Class_5_bar": {"class_id": 5, "class_name": "bar"}}
    assert (report.crops, report.skipped, report.classes) == (3, [], Counter({"red disc": 2, "bar": 1}))


def test_no_crop_writes_the_photo_once_a_class(tmp_path: Path):
    objects = [SourceObject(1, "1", "a", (rectangle(10, 20, 40, 30),)),
               SourceObject(2, "2", "a", (rectangle(0, 0, 20, 9),)),
               SourceObject(3, "3", "b", (rectangle(50, 30, 90, 60),))]
    image = photo(tmp_path / "in", "x.png", objects)
    manifest, _ = convert([image], tmp_path / "out", no_crop=True)
    assert files_in(tmp_path / "out") == sorted([
        "Class_3_red_disc/images/x.png", "Class_3_red_disc/masks/x_0001.png", "Class_3_red_disc/masks/x_0002.png",
        "Class_5_bar/images/x.png", "Class_5_bar/masks/x_0003.png", *OTHER_OUTPUT])
    assert manifest.image_path.tolist() == ["Class_3_red_disc/images/x.png"] * 2 + ["Class_5_bar/images/x.png"]
    assert manifest[["crop_x0", "crop_y0", "crop_x1", "crop_y1"]].to_numpy().tolist() == [[0, 0, WIDTH, HEIGHT]] * 3
    assert np.array_equal(load_image(tmp_path / "out/Class_5_bar/images/x.png"), load_image(image.path))
    assert np.argwhere(load_mask(tmp_path / "out/Class_5_bar/masks/x_0003.png")).min(axis=0).tolist() == [30, 50]


@pytest.mark.parametrize(("complete", "empty_tiles"), [
    pytest.param(True, ["big.tile.272.0.png"], id="every row is an object"),
    pytest.param(False, [], id="a row was skipped, and its object may be anywhere"),
])
def test_tiles_without_objects_are_background_where_every_object_is_known(tmp_path: Path, complete, empty_tiles):
    objects = [SourceObject(1, "1", "a", (rectangle(10, 20, 40, 80),)),
               SourceObject(2, "2", "b", (rectangle(100, 30, 125, 60),))]
    image = photo(tmp_path / "in", "big.png", objects, size_hw=(128, 400), complete=complete)
    convert([image], tmp_path / "out", tile=128)
    folder = tmp_path / "out" / contracts.BACKGROUND_FOLDER / contracts.IMAGES_FOLDER
    assert sorted(path.name for path in folder.glob("*")) == empty_tiles
    assert (tmp_path / "out" / contracts.BACKGROUND_FILE).is_file() == complete


def test_every_object_is_a_crop_or_a_counted_reason(tmp_path: Path):
    good = SourceObject(1, "good", "a", (rectangle(10, 20, 40, 30),))
    crack = SourceObject(2, "a thin crack", "a", (rectangle(10, 5, 80, 6),))
    small = SourceObject(3, "small", "a", (rectangle(10, 20, 19, 29),))
    outside = SourceObject(4, "outside", "a", (rectangle(200, 20, 240, 30),))
    broken = SourceObject(5, "broken RLE", "a", rle={"size": [HEIGHT, WIDTH], "counts": [3]})
    wide = SourceObject(6, "RLE of a square picture", "a", rle={"size": [60, 60], "counts": [0, 3600]})
    half = SourceObject(7, "RLE at half size", "a", rle={"size": [30, 45], "counts": [0, 1350]})
    no_picture = SourceImage(tmp_path / "no.png", "no.png", "", [good], "no.txt")
    (tmp_path / "no.png").write_text("no picture")
    image = photo(tmp_path, "x.png", [good, crack, small, outside, broken, wide, half])
    manifest, report = convert([image, no_picture], tmp_path / "out")
    assert manifest.source_id.tolist() == ["good", "a thin crack", "RLE at half size"]
    assert manifest.mask_area.tolist() == [300, 70, HEIGHT * WIDTH]
    skipped = pd.read_csv(tmp_path / "out" / "conversion_report.csv", keep_default_na=False)
    assert skipped.to_numpy().tolist() == [
        ["no.txt", "good", "photo cannot be read", "not an image that can be read"],
        ["labels.txt", "small", "smaller than --min_size", "9 x 9 px"],
        ["labels.txt", "outside", "covers no pixel of the photo", ""],
        ["labels.txt", "broken RLE", "RLE counts that do not add up to its size", ""],
        ["labels.txt", "RLE of a square picture", "RLE of another size than its photo", "60 x 60, the photo 90 x 60"]]
    assert report.total == report.crops + len(report.skipped) == 8
    assert next(report.lines()) == "objects: 8 = 3 crops + 5 skipped"
    with pytest.raises(UserError, match=r"no\.txt: good: photo cannot be read"):
        convert([image, no_picture], tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_nothing_converted_is_an_error_and_leaves_nothing(tmp_path: Path):
    image = photo(tmp_path, "x.png", [SourceObject(1, "1", "a", (rectangle(1, 1, 5, 5),))])
    with pytest.raises(UserError, match="nothing to convert: 1 objects, no crop .1 smaller than --min_size"):
        convert([image], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tree_does_not_depend_on_workers_or_order(tmp_path: Path):
    images = [photo(tmp_path / "in", f"{i:02d}.png",
                    [SourceObject(1, f"{i}", "ab"[i % 2], (rectangle(5, 6, 30 + i, 50),))],
                    seed=i, split="train" if i % 3 else "val") for i in range(20)]
    convert(images, tmp_path / "one", num_workers=0)
    convert(images[::-1], tmp_path / "two", num_workers=2)
    names = files_in(tmp_path / "one")
    assert len(names) == 44 and files_in(tmp_path / "two") == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_coordinates_are_scaled_from_their_frame_and_stored_frames_kept(tmp_path: Path):
    from PIL import Image
    exif = Image.Exif()
    exif[274] = 6  # stored 90 x 60, upright 60 x 90
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
    objects = [SourceObject(1, "1", "a", (rectangle(0.5, 0.5, 1, 1),))]
    upright = SourceImage(tmp_path / "x.jpg", "upright/x.jpg", "", objects, "", (1, 1))
    stored = SourceImage(tmp_path / "x.jpg", "stored/x.jpg", "", objects, "", (1, 1), upright=False)
    manifest, _ = convert([upright, stored], tmp_path / "out", padding=0)
    box = ["source_image", "source_width", "source_height", "crop_x0", "crop_y0", "crop_x1", "crop_y1"]
    assert manifest[box].to_numpy().tolist() == [["stored/x.jpg", 90, 60, 45, 30, 90, 60],
                                                 ["upright/x.jpg", 60, 90, 30, 45, 60, 90]]


@pytest.mark.parametrize(("splits", "expected"), [
    pytest.param(("train", "val"), ["train", "val"], id="two splits stay"),
    pytest.param(("train", "train"), ["", ""], id="one split is no split"),
    pytest.param(("", ""), ["", ""], id="none"),
])
def test_a_single_split_is_no_split(tmp_path: Path, splits: tuple[str, str], expected: list[str]):
    images = [photo(tmp_path, f"{i}.png", [SourceObject(1, "1", "a", (rectangle(1, 1, 50, 50),))], split=split)
              for i, split in enumerate(splits)]
    assert convert(images, tmp_path / "out")[0].source_split.tolist() == expected


# ---- squares and tiles ------------------------------------------------------------------------------------

CROP_BOX = ["crop_x0", "crop_y0", "crop_x1", "crop_y1"]


def test_square_crops_take_more_context_as_far_as_the_picture_goes(tmp_path: Path):
    objects = [SourceObject(1, "1", "a", (rectangle(10, 20, 40, 30),)),
               SourceObject(2, "2", "a", (rectangle(0, 2, 80, 12),))]
    image = photo(tmp_path / "in", "x.png", objects)
    manifest, _ = convert([image], tmp_path / "out", square=True, padding=0.1)
    assert manifest[CROP_BOX].to_numpy().tolist() == [[7, 7, 43, 43], [0, 0, 88, 60]]
    assert load_mask(tmp_path / "out" / manifest.mask_path[0]).sum() == 300


def test_tiles(tmp_path: Path):
    image = large_photo(tmp_path / "in")
    manifest, report = convert([image], tmp_path / "out", tile=128)
    tiles = ["big.tile.0.0", "big.tile.90.0", "big.tile.181.0", "big.tile.272.0"]
    assert files_in(tmp_path / "out") == sorted([
        "Class_3_red_disc/images/big.tile.90.0.png", "Class_3_red_disc/masks/big.tile.90.0_0001.png",
        *(f"Class_5_bar/images/{tile}.png" for tile in tiles),
        *(f"Class_5_bar/masks/{tile}_0002.png" for tile in tiles), *OTHER_OUTPUT])
    assert manifest[["source_id", *CROP_BOX]].to_numpy().tolist() == [
        ["small", 90, 0, 218, 128], *(["bar", x, 0, x + 128, 128] for x in (0, 90, 181, 272))]
    assert manifest.mask_area.tolist() == [400, 123 * 12, 128 * 12, 128 * 12, 123 * 12]
    whole = load_image(image.path)
    assert np.array_equal(load_image(tmp_path / "out" / manifest.image_path[3]), whole[:128, 181:309])
    assert (report.total, report.crops, report.cut, report.pieces) == (3, 2, 1, 4)
    assert report.skipped == [("labels.txt", "specks", "smaller than --min_size in every tile", "")]
    assert list(report.lines())[:3] == [
        "objects: 3 = 2 crops + 1 skipped", "  skipped 1: smaller than --min_size in every tile",
        "  1 of these crops were too large for a tile and became 4 pieces: 5 pairs of image and mask"]
    assert report.classes == {"red disc": 1, "bar": 4}
