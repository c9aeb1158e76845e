"""sam_lora/data/manifest.py: rows written and read back, class and photo of samples, masks back in their photos."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from class_folder_builder import convert, large_photo

from sam_lora import contracts
from sam_lora.data.imaging import load_image, load_mask
from sam_lora.data.manifest import (
    ManifestRow,
    class_names,
    manifest_writer,
    mask_in_source,
    read_manifest,
    source_photos,
)
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError

# ---- writing and reading ----------------------------------------------------------------------------------

def test_the_columns_are_the_fields_of_a_row():
    assert tuple(field.name for field in fields(ManifestRow)) == (*contracts.MANIFEST_COLUMNS, contracts.PHOTO_COLUMN)


def test_rows_are_read_as_written(tmp_path):
    rows = [ManifestRow(f"Class_a/images/{i}.png", f"Class_a/masks/{i}.png", "7", 'a, "b"', "é/x.jpg", "train",
                        f"a:{i}", 90, 60, 1, 2, 30, 40, 99, "rectangle", "d" * 32) for i in range(2)]
    with manifest_writer(tmp_path) as write_row:
        for row in rows:
            write_row(row)
    assert read_manifest(tmp_path, contracts.MANIFEST_COLUMNS).rows == rows
    assert rows[0].folder == "Class_a"


def test_no_file_is_no_rows_and_what_a_file_does_not_say_is_empty(tmp_path):
    assert read_manifest(tmp_path).rows == []
    (tmp_path / contracts.MANIFEST_FILE).write_text("mine,mask_path,crop_x0\nx,Class_a/masks/1.png,?\n")
    assert read_manifest(tmp_path).rows == [ManifestRow("", "Class_a/masks/1.png")]
    with pytest.raises(UserError, match=r"missing column\(s\) class_name; .*make it with process_yolo_to_classwise.py"):
        read_manifest(tmp_path, ("mask_path", "class_name"))


def test_a_bad_split_is_named_by_its_line(tmp_path):
    (tmp_path / contracts.MANIFEST_FILE).write_text('mask_path,source_split\n"a\nb",train\nc,dev\n')
    assert len(read_manifest(tmp_path).rows) == 2  # where the split is not asked for
    with pytest.raises(UserError, match="instances.csv: row 4, source_split: found 'dev', expected train, val,"):
        read_manifest(tmp_path, ("mask_path", "source_split"))


# ---- classes --------------------------------------------------------------------------------------------------

def sample_at(label: str, image: str = "photo.png") -> Sample:
    return Sample(Path(image), Path(label) if label else None, ((1, 1),), (1,), None, image, label)


@pytest.mark.parametrize(("label", "image", "name"), [
    pytest.param("data/Class_crack/masks/a.png", "x.png", "crack", id="a YOLO folder"),
    pytest.param("data/Class_3_red_disc/masks/a.png", "x.png", "red_disc", id="a COCO folder"),
    pytest.param("data/Class_12/masks/a.png", "x.png", "12", id="a class called 12"),
    pytest.param("data/Class_3_red_disc/a.png", "x.png", "red_disc", id="no masks folder"),
    pytest.param("", "data/Class_crack/images/a.png", "crack", id="no label: the image's folder"),
    pytest.param("labels/a.png", "images/a.png", "(no class)", id="no class folders"),
])
def test_class_names_from_folders(tmp_path, label, image, name):
    label = str(tmp_path / label) if label else ""
    assert class_names([sample_at(label, str(tmp_path / image))]) == [name]


def test_true_class_names_come_from_the_manifest_else_from_classes_json(tmp_path):
    samples = [sample_at(str(tmp_path / folder / "masks" / "a.png")) for folder in ("Class_0_a_b", "Class_1_c")]
    classes = tmp_path / contracts.CLASSES_FILE
    classes.write_text(json.dumps({"Class_0_a_b": {"class_id": 0, "class_name": "a/b"}}), encoding="utf-8")
    assert class_names(samples) == ["a/b", "c"]
    manifest = pd.DataFrame({"mask_path": ["Class_1_c/masks/a.png", "Class_0_a_b/masks/a.png"],
                             "class_name": ["ç", "a:b"]})
    manifest.to_csv(tmp_path / contracts.MANIFEST_FILE, index=False)
    assert class_names(samples) == ["a:b", "ç"]


@pytest.mark.parametrize("text", ["", "[1]", '{"Class_1_c": 3}', '{"Class_1_c": {}}'])
def test_a_broken_classes_json_is_told(tmp_path, text):
    (tmp_path / contracts.CLASSES_FILE).write_text(text)
    with pytest.raises(UserError, match="classes.json: cannot be read as the converter's list of classes"):
        class_names([sample_at(str(tmp_path / "Class_1_c" / "masks" / "a.png"))])


# ---- photos -----------------------------------------------------------------------------------------------------

def same_photo(samples: list[Sample]) -> list[int]:
    """The number of each sample's photo, in order of appearance."""
    photos = source_photos(samples)
    return [list(dict.fromkeys(photos)).index(photo) for photo in photos]


def in_folder(tmp_path: Path, stem: str, folder: str = "Class_a", image: str = "") -> Sample:
    return sample_at(str(tmp_path / folder / "masks" / f"{stem}.png"),
                     str(tmp_path / folder / "images" / f"{image or stem}.png"))


def write_table(tmp_path: Path, rows: list[tuple], columns=("mask_path", "image_path", "source_image",
                                                               "source_digest")) -> None:
    pd.DataFrame(rows, columns=["class_name", *columns]).to_csv(tmp_path / contracts.MANIFEST_FILE, index=False)


def test_photos_come_from_the_manifest_across_classes_and_copies(tmp_path):
    write_table(tmp_path, [
        ("a", "Class_a/masks/1.png", "Class_a/images/1.png", "train/images/p_jpg.rf.0123456789abcdef.jpg", "d1"),
        ("b", "Class_b/masks/2.png", "Class_b/images/2.png", "valid/images/p_jpg.rf.fedcba9876543210.jpg", "d2"),
        ("a", "Class_a/masks/3.png", "Class_a/images/3.png", "q.jpg", "d3"),
        ("a", "Class_a/masks/4.png", "Class_a/images/4.png", "copy of q.jpg", "d3"),
        ("a", "Class_a/masks/5.png", "Class_a/images/5.png", "r.jpg", "")])
    samples = [in_folder(tmp_path, "1"), in_folder(tmp_path, "2", "Class_b"), in_folder(tmp_path, "3"),
               in_folder(tmp_path, "4"), in_folder(tmp_path, "5"), replace(in_folder(tmp_path, "5"), label=None)]
    assert same_photo(samples) == [0, 0, 1, 1, 2, 2]


def test_photos_by_their_names_and_as_the_user_says(tmp_path):
    """A copy, slices, and two photos that the column photo makes one."""
    names = ["wall.jpg", "wall_aug3.jpg", "o_0_0_512_512.png", "o_410_0_922_512.png", "x.jpg", "y.jpg", "z.jpg"]
    rows = [("a", f"Class_a/masks/{number}.png", f"Class_a/images/{number}.png", name, f"d{number}", said)
            for number, (name, said) in enumerate(zip(names, ["", "", "", "", "one", "one", ""]))]
    write_table(tmp_path, rows, ("mask_path", "image_path", "source_image", "source_digest", "photo"))
    assert same_photo([in_folder(tmp_path, str(number)) for number in range(7)]) == [0, 0, 1, 1, 2, 2, 3]


def test_an_older_manifest_and_one_without_photos(tmp_path):
    samples = [in_folder(tmp_path, "p_0001"), in_folder(tmp_path, "q_0001"), in_folder(tmp_path, "p_0002")]
    rows = [("a", f"Class_a/masks/{name}.png", "photo.jpg") for name in ("p_0001", "q_0001", "p_0002")]
    write_table(tmp_path, rows, ("mask_path", "source_image"))
    assert same_photo(samples) == [0, 0, 0]
    write_table(tmp_path, [row[:2] for row in rows], ("mask_path",))
    assert same_photo(samples) == [0, 1, 0]


def test_photos_without_a_manifest_go_by_name_in_class_folders_else_by_image(tmp_path):
    samples = [in_folder(tmp_path, "wall_0001"), in_folder(tmp_path, "wall_0002", "Class_b"),
               in_folder(tmp_path, "door_0001"), in_folder(tmp_path, "door_0002", image="door"),
               sample_at("m1.png", "x_0001.png"), sample_at("m2.png", "x_0002.png"), sample_at("m3.png", "x_0002.png")]
    assert same_photo(samples) == [0, 0, 1, 1, 2, 3, 3]


# ---- back into the photo ------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [
    pytest.param({"padding": 0.1}, id="crops"), pytest.param({"padding": 0.5}, id="much context"),
    pytest.param({"padding": 0.0}, id="no context"), pytest.param({"no_crop": True}, id="whole images"),
    pytest.param({"square": True}, id="squares"), pytest.param({"tile": 128}, id="tiles"),
    pytest.param({"tile": 1000}, id="one tile"),
])
def test_the_way_back_to_the_photo(tmp_path: Path, shape: dict):
    """Each mask at its place in the photo; the union of an object's pieces is the object, the crop the photo there."""
    image = large_photo(tmp_path / "in")
    out = tmp_path / "out"
    convert([image], out, min_size=5, **shape)
    truth = {"small": [(100, 90, 120, 110)], "bar": [(5, 95, 395, 107)],
             "specks": [(0, 0, 4, 4), (390, 290, 394, 294)]}
    if shape == {"tile": 128}:
        del truth["specks"]
    found = {name: np.zeros((300, 400), bool) for name in truth}
    whole = load_image(image.path)
    for row in read_manifest(out).rows:
        mask, crop = load_mask(out / row.mask_path), load_image(out / row.image_path)
        back = mask_in_source(mask, row)
        assert back.shape == (300, 400) and back.dtype == bool and back.sum() == mask.sum() == row.mask_area
        assert np.array_equal(whole[back], crop[mask])
        found[row.source_id] |= back
    for name, rectangles in truth.items():
        expected = np.zeros((300, 400), bool)
        for x0, y0, x1, y1 in rectangles:
            expected[y0:y1, x0:x1] = True
        assert np.array_equal(found[name], expected), name


@pytest.mark.parametrize("kind", [int, str, float, np.int64])
def test_the_row_may_be_a_mapping_of_numbers_or_text(kind: type):
    numbers = {"source_width": 9, "source_height": 5, "crop_x0": 2, "crop_y0": 1, "crop_x1": 4, "crop_y1": 2}
    back = mask_in_source(np.ones((1, 2), bool), {"mask_path": "m.png", "mine": "x"} | {
        name: kind(number) for name, number in numbers.items()})
    assert back.shape == (5, 9) and np.argwhere(back).tolist() == [[1, 2], [1, 3]]


def test_masks_that_have_no_way_back(tmp_path: Path):
    manifest, _ = convert([large_photo(tmp_path / "in")], tmp_path / "out")
    row = manifest.to_dict("records")[0]
    with pytest.raises(ValueError, match="the crop has 24 x 24 pixels, the mask 24 x 23"):
        mask_in_source(np.zeros((23, 24), bool), row)
    with pytest.raises(ValueError, match="m.png: the manifest does not say where"):
        mask_in_source(np.zeros((23, 24), bool), ManifestRow("i.png", "m.png"))
