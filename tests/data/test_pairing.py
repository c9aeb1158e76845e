import os
import sys

import pytest
from class_folder_builder import manifest_row, write_image, write_manifest, write_mask, write_pair, write_set

from sam_lora.data.pairing import Pair, Skipped, read_class_folders
from sam_lora.errors import UserError


def read(root):
    return read_class_folders(root, lambda name: (None, name))


def test_pairs_by_manifest(tmp_path):
    root = tmp_path / "set"
    photos = ["train/images/a.jpg", "b.png"]
    rows = write_set(root, "Class_red_disc", 7, "red disc", photos, ["train", "val"], objects=2)
    write_manifest(root, rows)
    folder = f"{root.as_posix()}/Class_red_disc"
    found = read(root)
    assert found.pairs == [
        Pair(f"{folder}/images/{name}.png", f"{folder}/masks/{name}.png", "7", "red disc", source, side)
        for name, source, side in (("a_0000", "train/images/a.jpg", "train"), ("a_0001", "train/images/a.jpg", "train"),
                                   ("b_0000", "b.png", "val"), ("b_0001", "b.png", "val"))]
    assert (found.class_names, found.skipped, found.notes) == (["red disc"], [], [])


def test_paths_are_as_written_from_the_current_folder(tmp_path, monkeypatch):
    write_pair(tmp_path / "set", "Class_a", "x_0000", 0)
    monkeypatch.chdir(tmp_path)
    assert read("set").pairs[0][:2] == ("set/Class_a/images/x_0000.png", "set/Class_a/masks/x_0000.png")
    monkeypatch.chdir(tmp_path / "set")
    assert read(".").pairs[0][:2] == ("Class_a/images/x_0000.png", "Class_a/masks/x_0000.png")


def test_pairs_deleted_by_hand_are_gone_and_added_ones_are_used(tmp_path):
    """Deleted: a whole pair, an image, a mask, a class. Added: another object of a known photo, and a new photo."""
    root = tmp_path / "set"
    rows = write_set(root, "Class_a", 3, "A!", [f"{name}.jpg" for name in "pqrs"], ["train", "val", "test", "train"])
    rows += [manifest_row("Class_gone", "p_0000", 4, "gone", "p.jpg", "train")]
    write_manifest(root, rows)
    (root / "Class_a/images/p_0000.png").unlink()
    (root / "Class_a/masks/p_0000.png").unlink()
    (root / "Class_a/images/q_0000.png").unlink()
    (root / "Class_a/masks/r_0000.png").unlink()
    write_pair(root, "Class_a", "s_0007", 50)
    write_pair(root, "Class_a", "new_0000", 51)
    found = read(root)
    assert [(pair.mask_path.split("/")[-1], *pair[2:6]) for pair in found.pairs] == [
        ("new_0000.png", "3", "A!", "new", ""), ("s_0000.png", "3", "A!", "s.jpg", "train"),
        ("s_0007.png", "3", "A!", "s.jpg", "train")]
    assert found.skipped == [Skipped(f"{root.as_posix()}/Class_a/images/r_0000.png", "image without a mask"),
                             Skipped(f"{root.as_posix()}/Class_a/masks/q_0000.png", "mask without its image")]
    assert found.class_names == ["A!", "gone"]


@pytest.mark.parametrize("with_manifest", [True, False])
def test_one_whole_image_with_several_masks(tmp_path, with_manifest):
    """What --no_crop writes; a photo's stem may itself start with another photo's."""
    root, folder = tmp_path / "set", "Class_a"
    rows = []
    for seed, (photo, count) in enumerate((("p", 2), ("p_x", 1))):
        write_image(root / folder / "images" / f"{photo}.png", seed)
        for index in range(count):
            write_mask(root / folder / "masks" / f"{photo}_{index:04d}.png")
            rows.append(manifest_row(folder, f"{photo}_{index:04d}", 0, "a", f"{photo}.jpg", "train", image_name=photo))
    if with_manifest:
        write_manifest(root, rows)
    found = read(root)
    suffix = ".jpg" if with_manifest else ""
    assert [(pair.image_path.split("/")[-1], pair.mask_path.split("/")[-1], pair.source_image)
            for pair in found.pairs] == [("p.png", "p_0000.png", f"p{suffix}"), ("p.png", "p_0001.png", f"p{suffix}"),
                                         ("p_x.png", "p_x_0000.png", f"p_x{suffix}")]
    assert found.skipped == []


@pytest.mark.parametrize(("images", "mask", "expected"), [
    pytest.param(["a.png", "a.jpg"], "a.png", "a.png", id="the very same name"),
    pytest.param(["a.jpg"], "a.png", "a.jpg", id="same stem"),
    pytest.param(["a.png", "a_1.png"], "a_12.png", "a.png", id="a prefix ends at a separator"),
    pytest.param(["a.png", "a_1.png"], "a_1_0003.png", "a_1.png", id="the longest stem"),
    pytest.param(["a.png"], "a-mask.png", "a.png", id="dash"),
    pytest.param(["a.png"], "ab.png", None, id="another name"),
])
def test_pairing_by_name(tmp_path, images, mask, expected):
    for seed, image in enumerate(images):
        write_image(tmp_path / "Class_a/images" / image, seed)
    write_mask(tmp_path / "Class_a/masks" / mask)
    assert [pair.image_path.split("/")[-1] for pair in read(tmp_path).pairs] == ([expected] if expected else [])


def test_without_a_manifest_names_say_the_class_and_the_photo(tmp_path):
    for folder, name in (("Class_b", "p_0000"), ("Class_b", "p_0001"), ("Class_a", "q.rf.0123456789abcdef_0000")):
        write_pair(tmp_path, folder, name, len(name))
    (tmp_path / "Class_empty").mkdir()
    found = read(tmp_path)
    assert [pair[2:6] for pair in found.pairs] == [("0", "a", "q.rf.0123456789abcdef", ""), ("1", "b", "p", ""),
                                                  ("1", "b", "p", "")]
    assert found.class_names == ["a", "b", "empty"]
    assert found.notes[0].endswith("where <photo>_0003 is an object of <photo>: 2 photos")


def test_a_manifest_cannot_lead_out_of_the_folder(tmp_path):
    root = tmp_path / "set"
    write_image(tmp_path / "secret.png", 0)
    write_mask(root / "Class_a/masks/p_0000.png")
    write_manifest(root, [manifest_row("Class_a", "p_0000", 0, "a", "p.jpg") | {"image_path": "../secret.png"}])
    found = read(root)
    assert (found.pairs, found.skipped[0].reason) == ([], "mask without its image")


def test_files_of_another_kind_are_named(tmp_path):
    write_pair(tmp_path, "Class_a", "p_0000", 0)
    (tmp_path / "Class_a/images/notes.txt").write_text("x")
    (tmp_path / "Class_a/images/.DS_Store").write_text("x")
    (tmp_path / "readme.md").write_text("x")
    found = read(tmp_path)
    assert len(found.pairs) == 1
    notes = f"{tmp_path.as_posix()}/Class_a/images/notes.txt"
    assert found.skipped == [Skipped(notes, "not an image file by its name")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not text")
def test_a_file_name_that_is_not_utf_8_is_skipped(tmp_path):
    write_pair(tmp_path, "Class_a", "p_0000", 0)
    for kind in ("images", "masks"):
        folder = os.fsencode(tmp_path / "Class_a" / kind)
        os.link(folder + b"/p_0000.png", folder + b"/\xff_0000.png")
    found = read(tmp_path)
    assert len(found.pairs) == 1
    assert [skip.reason for skip in found.skipped] == ["file name is not UTF-8, as a table must be"] * 2
    assert found.skipped[0].path.encode().endswith(b"_0000.png")  # printable


@pytest.mark.parametrize(("make", "message"), [
    pytest.param(lambda root: None, "set: no such folder; make it with process_yolo_to_classwise.py", id="missing"),
    pytest.param(lambda root: root.write_text(""), "set: is a file, expected the folder", id="a file"),
    pytest.param(lambda root: root.mkdir(), "set: no Class_<name> folders; found nothing; make them with", id="empty"),
    pytest.param(lambda root: (root / "images").mkdir(parents=True), "set: no Class_<name> folders; found images;",
                 id="another folder"),
])
def test_folders_that_will_not_do(tmp_path, make, message):
    make(tmp_path / "set")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "set")


@pytest.mark.parametrize(("content", "message"), [
    pytest.param("image_path,mask_path\na,b\n",
                 r"missing column\(s\) class_id, class_name, source_image, source_split; found image_path, mask_path",
                 id="columns missing"),
    pytest.param("", "cannot be read as CSV", id="empty file"),
    pytest.param("image_path,mask_path,class_id,class_name,source_image,source_split\na,b,0,a,p.jpg,maybe\n",
                 r"row 2, source_split: found 'maybe', expected train, val, test or nothing", id="unknown split"),
])
def test_a_broken_manifest(tmp_path, content, message):
    write_pair(tmp_path, "Class_a", "p_0000", 0)
    (tmp_path / "instances.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)
