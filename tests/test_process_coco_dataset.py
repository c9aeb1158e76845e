"""process_coco_dataset.py: categories, photos, several files, and what bad input gets."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_set_builder import (
    HEIGHT,
    OTHER_OUTPUT,
    WIDTH,
    annotation,
    draw_coco_set,
    files_in,
    image,
    run_coco,
    run_coco_file,
    runs_of,
    skip_reasons,
    write_json,
    write_photo,
)
from PIL import Image
from pycocotools import mask as coco_mask

from process_coco_dataset import CocoFile, get_args_parser, main, name_folder_splits, object_classes
from sam_lora import cli
from sam_lora.data.conversion_report import ConversionReport
from sam_lora.data.imaging import load_image, load_mask
from sam_lora.data.links import LINK_OUT
from sam_lora.data.listed_photos import split_named
from sam_lora.errors import UserError

TRIANGLE = [20, 10, 60, 10, 60, 30]
DATA = Path(__file__).parents[2] / "shared" / "data"


# ---- the whole conversion ---------------------------------------------------------------------------------

def test_three_files_become_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Roboflow's layout: ids start anew in each file, a parent category has no object, a name stands twice."""
    names = {0: "parts", 1: "disc", 5: "a/b", 6: "disc"}
    categories = [{"id": key, "name": name} for key, name in names.items()]
    ring = np.zeros((HEIGHT, WIDTH), bool)
    ring[5:35, 10:50] = True
    ring[15:25, 20:40] = False
    files = []
    for seed, (folder, segmentation, category) in enumerate([
            ("train", ([0, 0, 30, 0, 30, 20, 0, 20], [50, 20, 80, 20, 80, 50]), 6),
            ("valid", {"size": [HEIGHT, WIDTH], "counts": runs_of(ring)}, 1),
            ("test", coco_mask.encode(np.asfortranarray(ring.astype(np.uint8))), 5)]):
        if folder == "test":
            segmentation["counts"] = segmentation["counts"].decode()
        write_photo(tmp_path / folder / "a.jpg", seed)
        write_photo(tmp_path / folder / "background.jpg", seed)
        files.append(write_json(tmp_path / folder / "_annotations.coco.json", [annotation(0, category, segmentation)],
                                [image(0), image(1, "background.jpg")], categories))
    manifest = run_coco(tmp_path / "out", "--coco_json", *files)
    columns = ["class_id", "class_name", "source_image", "source_split", "source_id", "crop_x0", "crop_y0", "crop_x1",
               "crop_y1", "rasteriser"]
    assert manifest[columns].to_numpy().tolist() == [
        [5, "a/b", "test/a.jpg", "test", "annotation 7", 6, 2, 54, 38, "pycocotools RLE"],
        [1, "disc", "train/a.jpg", "train", "annotation 7", 0, 0, 80, 50, "opencv fillPoly 4x"],
        [1, "disc", "valid/a.jpg", "val", "annotation 7", 6, 2, 54, 38, "pycocotools RLE"]]
    crops = [Path(path).name for path in manifest.mask_path]
    assert files_in(tmp_path / "out") == sorted([
        *(f"Class_5_a_b/{kind}/{crops[0]}" for kind in ("images", "masks")),
        *(f"Class_1_disc/{kind}/{name}" for kind in ("images", "masks") for name in crops[1:]), *OTHER_OUTPUT])
    masks = [load_mask(tmp_path / "out" / path) for path in manifest.mask_path]
    assert np.array_equal(masks[0], ring[2:38, 6:54]) and np.array_equal(masks[2], ring[2:38, 6:54])
    assert masks[1].shape == (HEIGHT, WIDTH) and masks[1][:20, :30].all() and masks[1][22, 70] and not masks[1][40, 10]
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == {
        "Class_1_disc": {"class_id": 1, "class_name": "disc"}, "Class_5_a_b": {"class_id": 5, "class_name": "a/b"}}
    printed = capsys.readouterr().out
    assert printed.startswith("annotations: 3 = 3 crops + 0 skipped\nphotos: 3 with objects, "
                              "0 with skipped annotations only, 3 background, 0 missing")
    assert printed.count("categories 1, 6 are all named 'disc': one class") == 3


def test_images_dir_and_indices(tmp_path: Path):
    write_photo(tmp_path / "photos" / "sub" / "a.jpg")
    path = write_json(tmp_path / "instances_val2017.json",
                      [annotation(segmentation=[]), annotation(), annotation(id=None, segmentation=[TRIANGLE]),
                       annotation(id="k", segmentation=[TRIANGLE[2:] + TRIANGLE[:2]])],
                      [image(file_name="sub\\a.jpg")])
    manifest = run_coco(tmp_path / "out", "--coco_json", path, "--images_dir", tmp_path / "photos")
    assert manifest[["image_path", "source_image", "source_split", "source_id"]].to_numpy().tolist() == [
        ["Class_1_disc/images/a_0002.png", "sub/a.jpg", "", "annotation 7"],
        ["Class_1_disc/images/a_0003.png", "sub/a.jpg", "", "annotation at place 2"],
        ["Class_1_disc/images/a_0004.png", "sub/a.jpg", "", "annotation k"]]


@pytest.mark.parametrize("file_name", [
    "a.jpg", "./a.jpg", "/home/me/a.jpg", "C:\\data\\a.jpg", "https://example.org/photos/a.jpg",
    "../../elsewhere/a.jpg", "old/folder/A.JPG"])
def test_photos_are_found_by_their_base_name(tmp_path: Path, file_name: str):
    manifest, _ = run_coco_file(tmp_path, [annotation()], images=[image(file_name=file_name)])
    assert manifest.source_image.tolist() == ["a.jpg"]


def test_percent_encoding_and_accents(tmp_path: Path):
    write_photo(tmp_path / "set" / "my é.jpg")
    manifest, _ = run_coco_file(tmp_path, [annotation(), annotation(2, segmentation=[TRIANGLE])],
                           images=[image(file_name="my%20%C3%A9.jpg"), image(2, "my e\u0301.jpg")])
    assert manifest.source_image.tolist() == ["my é.jpg"] * 2 and manifest.image_path.nunique() == 2


def test_missing_twin_and_outside_photos_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("a.jpg", "x/twin.jpg", "y/twin.jpg", "unlisted.jpg"):
        write_photo(tmp_path / "set" / name)
    write_photo(tmp_path / "secret.jpg")
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "set" / "broken.jpg").write_text("<html>")
    names = {1: "a.jpg", 2: "twin.jpg", 3: "link.jpg", 4: "gone.jpg", 5: "broken.jpg", 6: "x/twin.jpg"}
    manifest, skipped = run_coco_file(tmp_path, [annotation(i) for i in (*names, 99)],
                                 images=[image(i, name) for i, name in names.items()])
    assert manifest.source_image.tolist() == ["a.jpg", "x/twin.jpg"]
    assert skipped == {"several photos have that file name": 1, "photo not found": 1, LINK_OUT: 1,
                       "photo cannot be read": 1, "image_id that no image has": 1}
    assert "0 background, 1 missing, 3 unusable, 3 on disk but not used" in capsys.readouterr().out


def test_most_photos_missing_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"2 of 3 photos are not in .*, e\.g\. b\.jpg; .*--images_dir"):
        run_coco_file(tmp_path, [annotation()], images=[image(), image(2, "b.jpg"), image(3, "c.jpg")])
    assert not (tmp_path / "out").exists()


def test_duplicate_image_ids_and_file_names(tmp_path: Path):
    write_photo(tmp_path / "set" / "b.jpg", 1)
    annotations = [annotation(1), annotation("2", segmentation=[TRIANGLE]), annotation(3)]
    manifest, skipped = run_coco_file(tmp_path, annotations,
                                 images=[image(1), image(2), image(3, "b.jpg"), image("3", "a.jpg"), image(1)])
    assert manifest.mask_path.tolist() == ["Class_1_disc/masks/a_0001.png", "Class_1_disc/masks/a_0002.png"]
    assert skipped == {"image id of two different photos": 1}


@pytest.mark.parametrize(("stored", "orientation", "claimed", "box", "size"), [
    pytest.param((50, 80), 1, (80, 50), (20, 10, 60, 30), (80, 50), id="as in the JSON"),
    pytest.param((50, 80), 1, (None, None), (20, 10, 60, 30), (80, 50), id="no size in the JSON"),
    pytest.param((100, 160), 1, (80, 50), (40, 20, 120, 60), (160, 100), id="twice as large"),
    pytest.param((80, 50), 6, (80, 50), (20, 10, 60, 30), (80, 50), id="EXIF, annotated upright"),
    pytest.param((50, 80), 6, (80, 50), (20, 10, 60, 30), (80, 50), id="EXIF, annotated as stored"),
])
def test_sizes_and_exif(tmp_path: Path, stored: tuple, orientation: int, claimed: tuple, box: tuple, size: tuple):
    (tmp_path / "set").mkdir()
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((*stored, 3), np.uint8)).save(tmp_path / "set" / "a.jpg", exif=exif)
    manifest, _ = run_coco_file(tmp_path, [annotation()], "--padding", 0,
                           images=[image(width=claimed[0], height=claimed[1])])
    row = manifest.iloc[0]
    assert (row.crop_x0, row.crop_y0, row.crop_x1, row.crop_y1) == box
    assert (row.source_width, row.source_height) == size
    assert load_image(tmp_path / "out" / row.image_path).shape == (box[3] - box[1], box[2] - box[0], 3)


def test_a_photo_of_another_shape_is_skipped(tmp_path: Path):
    write_photo(tmp_path / "set" / "b.jpg", size_hw=(50, 50))
    manifest, skipped = run_coco_file(tmp_path, [annotation(), annotation(2), annotation(2)],
                                 images=[image(), image(2, "b.jpg")])
    assert len(manifest) == 1 and skipped == {"photo of another shape than width and height in the JSON": 2}


# ---- categories and splits --------------------------------------------------------------------------------

def classes_of(*uses: tuple[str, str]) -> dict[str, tuple]:
    classes = object_classes(Counter(uses), ConversionReport("annotations"))
    return {name: (found.class_id, found.folder) for name, found in classes.items()}


def test_classes():
    assert classes_of(("disc", "74676216"), ("bar", "0"), ("disc", "12")) == {
        "bar": (0, "Class_0_bar"), "disc": (12, "Class_12_disc")}
    assert classes_of(("disc", "1"), ("bar", "1"), ("Disc", "2")) == {
        "bar": (1, "Class_1_bar"), "disc": (3, "Class_3_disc"), "Disc": (2, "Class_2_Disc")}
    assert classes_of(("x", "k9"), ("../y", "-3")) == {"../y": (-3, "Class_-3_.._y"), "x": ("k9", "Class_k9_x")}
    assert classes_of() == {}


@pytest.mark.parametrize(("paths", "images_dirs", "splits"), [
    (["annotations/instances_train2017.json"], ["images"], ["train"]),
    (["train/_annotations.coco.json", "valid/_annotations.coco.json"], ["train", "valid"], ["train", "val"]),
    (["x/a.json", "x/b.json"], ["train2017", "test2017"], ["train", "test"]),
    (["test/a.json", "test/b.json"], ["train/images", "val/images"], ["train", "val"]),
    (["train/labels/a.json", "test/labels/a.json"], ["images", "images"], ["train", "test"]),
    (["cracks_train/a.json", "cracks_val/a.json"], ["images", "images"], ["train", "val"]),
    (["x/train_val.json", "x/b.json"], ["images", "val"], ["", "val"]), (["train/contest.json"], ["images"], [""]),
    (["test/a.json", "test/b.json"], ["images", "images"], ["", ""])])
def test_splits_of_files(tmp_path: Path, paths: list[str], images_dirs: list[str], splits: list[str]):
    files = [CocoFile(tmp_path / path, tmp_path / folder, split_named((tmp_path / path).stem))
             for path, folder in zip(paths, images_dirs)]
    name_folder_splits(files)
    assert [file.split or file.folder_split for file in files] == splits


# ---- bad input --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("content", "flags", "said"), [
    pytest.param(None, [], "no such file", id="missing"),
    pytest.param("", [], "broken JSON", id="empty"),
    pytest.param("{'a': 1}", [], "broken JSON", id="not JSON"),
    pytest.param(b"\xff\xfe\x00", [], "broken JSON", id="not UTF-8"),
    pytest.param('{"images": ' + "[" * 100000, [], "broken JSON", id="too deep"),
    pytest.param("[]", [], "found a list, as COCO result files are", id="results"),
    pytest.param("3", [], "no list of images, annotations, categories", id="a number"),
    pytest.param('{"images": [], "annotations": {}}', [], "no list of annotations, categories", id="keys missing"),
    pytest.param('{"images": [], "categories": [], "annotations": [{"caption": "a"}]}', [], "holds captions",
                 id="captions"),
    pytest.param('{"images": [], "categories": [], "annotations": [{"segments_info": []}]}', [], "holds panoptic",
                 id="panoptic"),
    pytest.param('{"images": [], "categories": [], "annotations": []}', [], "nothing to convert", id="no annotations"),
    pytest.param('{"images": [3], "categories": [3, {"id": 1}], "annotations": [3]}', [],
                 "nothing to convert.*1 not an annotation", id="numbers for entries"),
    pytest.param("{}", ["--images_dir", "gone"], "gone: no such folder", id="images_dir missing"),
    pytest.param(json.dumps({"images": [image()], "categories": [{"id": 1, "name": "x"}],
                             "annotations": [annotation(segmentation=[])]}), [], "--boxes rectangle",
                 id="detection only"),
    pytest.param(json.dumps({"images": [image()], "categories": [{"id": 1, "name": "x"}],
                             "annotations": [annotation(), annotation(category_id=4)]}), ["--strict"],
                 "annotation 7: category_id that no category has", id="strict"),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch,
                                                  content: str | bytes | None, flags: list[str], said: str):
    monkeypatch.chdir(tmp_path)
    write_photo(tmp_path / "set" / "a.jpg")
    path = tmp_path / "set" / "coco.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, get_args_parser(), ["--coco_json", str(path), "--output_dir", str(tmp_path / "out"), *flags])
    message = capsys.readouterr().err.strip()
    assert stopped.value.code == 1
    assert "\n" not in message and re.search(said, message), message
    assert not (tmp_path / "out").exists()


def test_flags_that_contradict(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, get_args_parser(), ["--coco_json", "a", "b", "c", "--images_dir", "x", "y"])
    assert stopped.value.code == 2
    assert "--images_dir: 2 folders for 3 JSON files" in capsys.readouterr().err


def test_a_file_that_is_a_folder_and_a_full_output_folder(tmp_path: Path):
    with pytest.raises(UserError, match="is a folder"):
        run_coco(tmp_path / "out", "--coco_json", tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not empty .1 entries, e.g. mine.txt.; give --overwrite"):
        run_coco(tmp_path / "full", "--coco_json", tmp_path / "a.json")
    assert files_in(tmp_path) == ["full/mine.txt"]


def test_a_drawn_data_set(tmp_path: Path):
    crops, skipped = draw_coco_set(tmp_path / "set")
    manifest = run_coco(tmp_path / "out", "--coco_json", *sorted((tmp_path / "set").glob("*/*.json")))
    assert len(manifest) == crops and Counter(skip_reasons(tmp_path / "out")) == skipped
    assert set(manifest.source_split) == {"train", "val", "test"}
    assert {path.name for path in (tmp_path / "out").glob("Class_*")} == {"Class_1_blob", "Class_2_crack"}


@pytest.mark.parametrize(("folder", "total", "skipped", "classes"), [
    pytest.param("calculus-coco", 851, {"smaller than --min_size": 7}, {"Class_1_Calculus"}, id="calculus"),
    pytest.param("brain-tumor-coco", 233, {}, {"Class_1_object"}, id="brain tumours"),
])
def test_real_data(tmp_path: Path, folder: str, total: int, skipped: dict[str, int], classes: set[str]):
    files = sorted((DATA / folder).glob("*/_annotations.coco.json"))
    if not files:
        pytest.skip(f"{DATA / folder} is not there")
    manifest = run_coco(tmp_path / "out", "--coco_json", *files)
    report = pd.read_csv(tmp_path / "out" / "conversion_report.csv")
    assert report.reason.value_counts().to_dict() == skipped
    assert len(manifest) == total - sum(skipped.values())
    assert set(manifest.source_split) == {"train", "val", "test"}
    assert {path.name for path in (tmp_path / "out").glob("Class_*")} == classes


# ---- every rule of shared/formats.md that no test above names ---------------------------------------------

@pytest.mark.parametrize(("categories", "used", "classes"), [
    pytest.param([{"id": 5, "name": "x"}, {"id": 74673216, "name": "y"}, {"id": 0, "name": "z"}], [5, 74673216, 0],
                 {"Class_5_x", "Class_74673216_y", "Class_0_z"}, id="ids with gaps, huge, zero"),
    pytest.param([{"id": 0, "name": "parts"}, {"id": 1, "name": "x"}], [1], {"Class_1_x"}, id="unused parent category"),
    pytest.param([{"id": 1, "name": "x"}, {"id": 2, "name": "x"}], [1, 2], {"Class_1_x"}, id="a name twice"),
    pytest.param([{"id": 1, "name": "../x"}, {"id": 2, "name": "a/b"}], [1, 2], {"Class_1_.._x", "Class_2_a_b"},
                 id="paths"),
    pytest.param([{"id": 1, "name": "CON"}, {"id": 2, "name": "x. "}], [1, 2], {"Class_1_CON", "Class_2_x"},
                 id="reserved on Windows, trailing dot and blank"),
    pytest.param([{"id": "a", "name": "Car"}, {"id": "A", "name": "car"}], ["a", "A"], {"Class_A_car", "Class_a_Car-2"},
                 id="equal but for case"),
    pytest.param([{"id": 1, "name": "x" * 300}, {"id": 2, "name": "😀"}], [1, 2], {"Class_1_" + "x" * 78, "Class_2"},
                 id="300 characters, emoji"),
    pytest.param([{"id": 1, "name": None}, {"id": 2}, {"id": 3, "name": {"a": 1}}], [1, 2, 3],
                 {f"Class_{i}_category_{i}" for i in (1, 2, 3)}, id="no name"),
    pytest.param([{"id": 1, "name": "a\nb\rc"}, {"id": 2, "name": "\ud800"}], [1, 2], {"Class_1_a_b_c", "Class_2"},
                 id="line breaks and half a character"),
    pytest.param([{"id": "--3", "name": "x"}, {"id": "9" * 5000, "name": "y"}, {"id": "007", "name": "z"}],
                 ["--3", "9" * 5000, "007"], {"Class_--3_x", "Class_" + "9" * 80, "Class_007_z"},
                 id="ids that only look like numbers"),
])
def test_rules_of_categories(tmp_path: Path, categories: list, used: list, classes: set[str]):
    outlines = [[[x, 10, 60, 10, 60, 30]] for x in range(len(used))]
    manifest, _ = run_coco_file(tmp_path, [annotation(1, key, outline) for key, outline in zip(used, outlines)],
                                categories=categories)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == classes
    assert len(manifest) == len(used)
    assert set(json.loads((tmp_path / "out" / "classes.json").read_text(encoding="utf-8"))) == classes


@pytest.mark.parametrize("file_name", [
    pytest.param("../../secret.jpg", id="up"), pytest.param("{}/secret.jpg", id="absolute"),
    pytest.param("link.jpg", id="a link out of the folder"), pytest.param("linked/secret.jpg", id="a linked folder"),
    pytest.param("%2e%2e/%2e%2e/secret.jpg", id="percent-encoded"),
    pytest.param("..\\..\\secret.jpg", id="backslashes"), pytest.param("\0", id="NUL"),
    pytest.param("x" * 10**5, id="100,000 characters"),
    pytest.param(["a.jpg"], id="a list")])
def test_no_photo_outside_its_folder(tmp_path: Path, file_name: str):
    write_photo(tmp_path / "secret.jpg")
    write_photo(tmp_path / "set" / "a.jpg")
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "set" / "linked").symlink_to(tmp_path)
    name = file_name.format(tmp_path) if isinstance(file_name, str) else file_name
    manifest, skipped = run_coco_file(tmp_path, [annotation(1), annotation(2)], images=[image(1), image(2, name)])
    reason = LINK_OUT if name in ("link.jpg", "linked/secret.jpg") else "photo not found"
    assert skipped == {reason: 1} and manifest.source_image.tolist() == ["a.jpg"]


@pytest.mark.parametrize(("make", "reason"), [
    pytest.param(lambda path: path.write_bytes(b"<html>"), "photo cannot be read", id="no photo"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:900]), "photo cannot be read", id="truncated"),
    pytest.param(lambda path: Image.new("RGB", (WIDTH, HEIGHT)).save(path, "PNG"), "", id="a PNG named .jpg"),
    pytest.param(lambda path: Image.new("RGB", (9, 5)).save(path), "smaller than --min_size", id="under ten pixels"),
    pytest.param(lambda path: Image.new("RGB", (HEIGHT, WIDTH)).save(path),
                 "photo of another shape than width and height in the JSON", id="width and height swapped, no EXIF"),
    pytest.param(lambda path: Image.new("RGB", (2 * WIDTH, 2 * HEIGHT)).save(path), "", id="twice the size: scaled"),
])
def test_rules_of_photos(tmp_path: Path, make, reason: str):
    write_photo(tmp_path / "set" / "a.jpg")
    write_photo(tmp_path / "set" / "b.jpg", 1)
    make(tmp_path / "set" / "b.jpg")
    manifest, skipped = run_coco_file(tmp_path, [annotation(1), annotation(2)], images=[image(1), image(2, "b.jpg")])
    assert skipped == ({reason: 1} if reason else {}) and len(manifest) == (1 if reason else 2)


def test_images_without_an_id_belong_to_no_annotation(tmp_path: Path):
    manifest, skipped = run_coco_file(tmp_path, [annotation(), annotation(None), annotation(True)],
                                 images=[image(), {"file_name": "a.jpg"}])
    assert len(manifest) == 1 and skipped == {"image_id that no image has": 2}
