"""process_coco_dataset.py: which photo an annotation belongs to, and in which split it is."""

from pathlib import Path

import pandas as pd
import pytest
from data_set_builder import annotation, image, run_coco, run_coco_file, write_json, write_photo

from sam_lora.errors import UserError


def square(x: int) -> list[list[int]]:
    return [[x, 10, x + 20, 10, x + 20, 30, x, 30]]


def report(out: Path) -> list[list[str]]:
    return pd.read_csv(out / "conversion_report.csv", keep_default_na=False)[["reason", "detail"]].to_numpy().tolist()


# ---- the photo --------------------------------------------------------------------------------------------

def test_annotations_stay_off_another_folders_photo(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Frames of three cameras, of which only cam2 is on disk."""
    names = [f"cam{camera}/frame_00000{frame}.png" for camera in (1, 2, 3) for frame in (1, 2)]
    for seed, name in enumerate(names[2:4]):
        write_photo(tmp_path / "set" / name, seed)
    path = write_json(tmp_path / "set" / "a.json",
                      [annotation(i, segmentation=square(i), id=i) for i in range(1, 7)],
                      [image(i, name) for i, name in enumerate(names, start=1)])
    manifest = run_coco(tmp_path / "out", "--coco_json", path)
    assert manifest[["source_image", "source_id"]].to_numpy().tolist() == [[names[2], "annotation 3"],
                                                                           [names[3], "annotation 4"]]
    assert report(tmp_path / "out") == [
        ["photo not found", f"{name}; {photo} is another entry's photo"]
        for name, photo in zip([*names[:2], *names[4:]], names[2:4] * 2)]
    assert "4 missing" in capsys.readouterr().out
    for seed, camera in enumerate((1, 3)):
        write_photo(tmp_path / "set" / f"cam{camera}" / "frame_000001.png", seed)
    manifest = run_coco(tmp_path / "out", "--coco_json", path, "--overwrite")
    assert manifest.source_id.tolist() == [f"annotation {i}" for i in (1, 3, 4, 5)]


def test_one_photo_under_several_image_ids_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture):
    manifest, _ = run_coco_file(tmp_path, [annotation(i, segmentation=square(i // 10)) for i in (1, 51, 359)],
                                images=[image(i) for i in (1, 51, 359)])
    assert len(manifest) == 3
    assert "note: 1 photo under several image ids, e.g. a.jpg (1, 51, 359): taken as one photo with all their " \
           "annotations" in capsys.readouterr().out


def test_one_photo_in_several_files_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number in (0, 1):
        write_photo(tmp_path / "images" / f"f{number}.png", number)
    files = [write_json(tmp_path / f"instances_{split}.json", [annotation(i) for i in (0, 1)],
                        [image(i, f"f{i}.png") for i in (0, 1)]) for split in ("train", "val")]
    manifest = run_coco(tmp_path / "out", "--coco_json", *files, "--images_dir", tmp_path / "images")
    assert sorted(manifest.source_split) == ["train", "train", "val", "val"]
    printed = capsys.readouterr().out
    assert f"note: 2 photos in several JSON files, e.g. f0.png in {files[0]}, {files[1]}; if these are different " \
           "pictures of one name, give one --images_dir for each JSON file" in printed


@pytest.mark.parametrize(("entry", "found", "detail"), [
    pytest.param({"coco_url": "http://images.example.org/train2017/a.jpg"}, True, "", id="coco_url for file_name"),
    pytest.param({"file_name": None, "coco_url": "http://x.org/a.jpg?sig=1"}, True, "", id="null, signed URL"),
    pytest.param({"file_name": " ", "path": "/datasets/a.jpg"}, True, "", id="coco-annotator's path"),
    pytest.param({"file_name": "https://x.org/a.jpg?X-Amz-Signature=d.e%2Ff#g"}, True, "", id="signed URL"),
    pytest.param({}, False, "image 2 has no file_name", id="no name at all"),
    pytest.param({"file_name": 7}, False, "image 2 has no file_name", id="a number"),
    pytest.param({"file_name": "sub/gone.jpg"}, False, "sub/gone.jpg", id="not there"),
    pytest.param({"coco_url": "http://x.org/gone.jpg?a"}, False, "http://x.org/gone.jpg?a", id="URL, not there"),
])
def test_what_names_a_photo(tmp_path: Path, entry: dict, found: bool, detail: str):
    write_photo(tmp_path / "set" / "b.jpg", 1)
    images = [{"id": 2, "width": 80, "height": 50, **entry}, image(3, "b.jpg")]
    manifest, _ = run_coco_file(tmp_path, [annotation(2), annotation(3)], images=images)
    assert sorted(manifest.source_image) == (["a.jpg", "b.jpg"] if found else ["b.jpg"])
    assert report(tmp_path / "out") == ([] if found else [["photo not found", detail]])


def test_the_error_on_missing_photos_names_no_none(tmp_path: Path):
    with pytest.raises(UserError, match=r"1 of 1 photos are not in .*, e\.g\. image 1 has no file_name; give"):
        run_coco_file(tmp_path, [annotation()], images=[{"id": 1}])


def test_the_report_names_the_photo_that_is_unusable(tmp_path: Path):
    write_photo(tmp_path / "set" / "b.jpg", size_hw=(50, 50))
    (tmp_path / "set" / "c.jpg").write_text("<html>")
    run_coco_file(tmp_path, [annotation(i) for i in (1, 2, 3)], images=[image(), image(2, "b.jpg"), image(3, "c.jpg")])
    shape, unreadable = report(tmp_path / "out")
    assert shape == ["photo of another shape than width and height in the JSON", "b.jpg: 50 x 50, in the JSON 80 x 50"]
    assert unreadable[0] == "photo cannot be read" and unreadable[1].startswith("c.jpg: ")


# ---- the split --------------------------------------------------------------------------------------------

FRAMES = ("f0.png", "f1.png")


def split_set(root: Path, folders: tuple[str, str] = ("train", "val")) -> None:
    for seed, folder in enumerate(folders):
        for number, name in enumerate(FRAMES):
            write_photo(root / folder / name, 10 * seed + number)


def listing(path: Path, *names: str) -> Path:
    images = [image(i, name) for i, name in enumerate(names)]
    return write_json(path, [annotation(i) for i in range(len(names))], images)


def splits(manifest: pd.DataFrame) -> list[str]:
    return manifest.sort_values("source_image").source_split.tolist()


@pytest.mark.parametrize(("folders", "names"), [
    pytest.param(("train", "val"), [f"{folder}/{name}" for folder in ("train", "val") for name in FRAMES],
                 id="in file_name"),
    pytest.param(("Train", "Validation"), [f"images\\{folder}\\{name}" for folder in ("Train", "Validation")
                                           for name in FRAMES], id="CVAT's subsets, Windows paths"),
    pytest.param(("a", "b"), [f"/home/me/{folder}/{name}" for folder in ("train2017/a", "val2017/b")
                              for name in FRAMES], id="above the folder"),
])
def test_one_file_whose_photos_folders_name_the_split(tmp_path: Path, folders: tuple, names: list[str]):
    split_set(tmp_path / "images", folders)
    path = listing(tmp_path / "annotations" / "instances_default.json", *names)
    manifest = run_coco(tmp_path / "out", "--coco_json", path, "--images_dir", tmp_path / "images")
    assert splits(manifest) == ["train", "train", "val", "val"]


def test_the_folder_a_photo_lies_in_names_its_split(tmp_path: Path):
    for seed, name in enumerate(("train/a.png", "train/b.png", "test/c.png", "d.png")):
        write_photo(tmp_path / "images" / name, seed)
    path = listing(tmp_path / "coco.json", "a.png", "b.png", "c.png", "d.png")
    manifest = run_coco(tmp_path / "out", "--coco_json", path, "--images_dir", tmp_path / "images")
    assert manifest.set_index("source_image").source_split.to_dict() == {
        "train/a.png": "train", "train/b.png": "train", "test/c.png": "test", "d.png": ""}


def test_same_names_in_two_files_lie_in_the_folders_of_their_splits(tmp_path: Path, capsys: pytest.CaptureFixture):
    split_set(tmp_path / "images")
    files = [listing(tmp_path / "annotations" / f"instances_{split}.json", *FRAMES) for split in ("train", "val")]
    manifest = run_coco(tmp_path / "out", "--coco_json", *files, "--images_dir", tmp_path / "images")
    assert manifest.source_image.tolist() == ["train/f0.png", "train/f1.png", "val/f0.png", "val/f1.png"]
    assert splits(manifest) == ["train", "train", "val", "val"]
    assert "several JSON files" not in capsys.readouterr().out


@pytest.mark.parametrize("folders", [("train", "val"), ("", "val")])
def test_what_only_some_files_name_leaves_train_to_the_others(tmp_path: Path, folders: tuple[str, str]):
    split_set(tmp_path / "images", folders)
    files = [listing(tmp_path / "annotations" / f"instances_{name}.json", *FRAMES) for name in ("default", "val")]
    manifest = run_coco(tmp_path / "out", "--coco_json", *files, "--images_dir", tmp_path / "images")
    assert manifest.groupby("source_split").source_image.apply(list).to_dict() == {
        "train": [f"{folders[0]}/{name}".lstrip("/") for name in FRAMES], "val": [f"val/{name}" for name in FRAMES]}


@pytest.mark.parametrize("name", ["val.json", "val/instances_default.json"])
def test_one_file_named_for_a_split_leaves_it_to_the_folders(tmp_path: Path, name: str):
    split_set(tmp_path / "images")
    path = listing(tmp_path / name, *[f"{folder}/{frame}" for folder in ("train", "val") for frame in FRAMES])
    manifest = run_coco(tmp_path / "out", "--coco_json", path, "--images_dir", tmp_path / "images")
    assert splits(manifest) == ["train", "train", "val", "val"]


def test_photos_without_a_split_beside_test_photos_are_train(tmp_path: Path, capsys: pytest.CaptureFixture):
    split_set(tmp_path / "images", ("one", "two"))
    files = [listing(tmp_path / name, *[f"{folder}/{frame}" for frame in FRAMES])
             for name, folder in (("rest.json", "one"), ("test.json", "two"))]
    manifest = run_coco(tmp_path / "out", "--coco_json", *files, "--images_dir", tmp_path / "images")
    assert splits(manifest) == ["train", "train", "test", "test"]
    assert "note: 2 photos without a named split beside others of test: taken as train" in capsys.readouterr().out


def test_same_names_without_a_split_need_a_folder_for_each_file(tmp_path: Path):
    split_set(tmp_path / "images", ("a", "b"))
    files = [listing(tmp_path / f"task_{number}.json", *FRAMES) for number in (1, 2)]
    with pytest.raises(UserError, match="4 several photos have that file name; give one --images_dir for each JSON"):
        run_coco(tmp_path / "out", "--coco_json", *files, "--images_dir", tmp_path / "images")
    manifest = run_coco(tmp_path / "out", "--coco_json", *files, "--images_dir", *(tmp_path / "images" / name
                                                                                 for name in "ab"))
    assert manifest.source_image.tolist() == ["a/f0.png", "a/f1.png", "b/f0.png", "b/f1.png"]


def test_the_folders_given_for_the_photos_name_the_splits(tmp_path: Path):
    split_set(tmp_path, ("train/images", "val/images"))
    files = [listing(tmp_path / f"task_{number}.json", *FRAMES) for number in (1, 2)]
    manifest = run_coco(tmp_path / "out", "--coco_json", *files, "--images_dir", *(
        tmp_path / split / "images" for split in ("train", "val")))
    assert splits(manifest) == ["train", "train", "val", "val"]


def test_a_files_name_goes_before_its_photos_folders(tmp_path: Path, capsys: pytest.CaptureFixture):
    """LVIS's validation photos lie in train2017."""
    split_set(tmp_path, ("train2017", "val2017"))
    files = [listing(tmp_path / "lvis_v1_train.json", "train2017/f0.png"),
             listing(tmp_path / "lvis_v1_val.json", "train2017/f1.png", "val2017/f0.png")]
    manifest = run_coco(tmp_path / "out", "--coco_json", *files)
    assert splits(manifest) == ["train", "val", "val"]
    assert f"{files[1]}: a photo in a folder of another split than this file's name has; it is val" \
        in capsys.readouterr().out
