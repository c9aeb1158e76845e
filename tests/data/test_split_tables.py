import os
import sys

import numpy as np
import pandas as pd
import pytest
from class_folder_builder import (
    BAR,
    EMPTY,
    manifest_row,
    write_image,
    write_manifest,
    write_mask,
    write_pair,
    write_set,
)

from sam_lora.contracts import SPLIT_COLUMNS
from sam_lora.data.clicks import centre_and_opposite_points
from sam_lora.data.split_tables import Pair, Skipped, place_points, read_class_folders, split_rows, summary, write
from sam_lora.errors import UserError


def by_name(name):
    return None, name


def read(root):
    return read_class_folders(root, by_name)


def placed(root, num_workers=0):
    return place_points(read(root), centre_and_opposite_points, num_workers)


# ---- pairing ----------------------------------------------------------------------------------------------

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
                 r"row 1, source_split: found 'maybe', expected train, val, test or nothing", id="unknown split"),
])
def test_a_broken_manifest(tmp_path, content, message):
    write_pair(tmp_path, "Class_a", "p_0000", 0)
    (tmp_path / "instances.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


# ---- points -----------------------------------------------------------------------------------------------

def test_place_points_skips_and_names_what_cannot_be_used(tmp_path):
    names = ("good", "empty", "size", "broken_mask", "broken_image")
    for seed, name in enumerate(names):
        write_pair(tmp_path, "Class_a", name, seed, EMPTY if name == "empty" else BAR)
    write_mask(tmp_path / "Class_a/masks/size.png", BAR[:, :-1])
    (tmp_path / "Class_a/masks/broken_mask.png").write_text("no image")
    (tmp_path / "Class_a/images/broken_image.png").write_text("no image")
    table, skipped = placed(tmp_path)
    masks = f"{tmp_path.as_posix()}/Class_a/masks"
    assert table.columns.tolist() == [*SPLIT_COLUMNS, "source_image", "source_split", "group"]
    assert table.values.tolist() == [[f"{tmp_path.as_posix()}/Class_a/images/good.png", f"{masks}/good.png", "0", "a",
                                      20, 11, 14, 11, 26, 11, "good", "", "good.png"]]
    assert {(skip.path.removeprefix(masks), skip.reason) for skip in skipped} == {
        ("/empty.png", "empty mask"), ("/size.png", "mask of another size than its image"),
        ("/broken_mask.png", "mask: not an image that can be read"),
        ("/broken_image.png", "image: not an image that can be read")}


def test_no_usable_pair_is_an_error(tmp_path):
    write_pair(tmp_path, "Class_a", "p", 0, EMPTY)
    with pytest.raises(UserError, match=r"no usable pair of image and mask in the class folders: 1 skipped: empty mask "
                                        r"\(e.g. .*Class_a/masks/p.png\); make them with"):
        placed(tmp_path)


def test_groups_are_photos_their_copies_and_their_doubles(tmp_path):
    """Two exported copies of a.jpg; b.jpg and c.jpg with the same pixels; d.jpg alone."""
    root = tmp_path / "set"
    photos = ["train/a.rf.0123456789.jpg", "test/a.rf.9876543210.jpg", "train/b.jpg", "test/c.jpg", "d.jpg"]
    rows = write_set(root, "Class_a", 0, "a", photos)
    write_image(root / "Class_a/images/c_0000.png", 2)  # b's seed
    write_manifest(root, rows)
    table, _ = placed(root)
    assert dict(zip(table["source_image"], table["group"])) == {
        photos[0]: "a", photos[1]: "a", photos[2]: "test/c.jpg", photos[3]: "test/c.jpg", photos[4]: "d.jpg"}


def test_workers_change_nothing(tmp_path):
    for number in range(20):
        mask = np.roll(BAR, number % 5, axis=1)
        write_pair(tmp_path, "Class_a", f"p{number}_0000", number, mask)
    alone, together = placed(tmp_path, 0), placed(tmp_path, 2)
    pd.testing.assert_frame_equal(alone[0], together[0])
    assert alone[1] == together[1]


# ---- splitting, telling, writing --------------------------------------------------------------------------

def leaky_table(tmp_path):
    """Ten photos in train, five of them in test again as another exported copy."""
    root = tmp_path / "set"
    train = [f"train/images/p{number}.rf.aaaaaaaa.jpg" for number in range(10)]
    test = [f"test/images/p{number}.rf.bbbbbbbb.jpg" for number in range(5)]
    write_manifest(root, write_set(root, "Class_a", 0, "a", [*train, *test], ["train"] * 10 + ["test"] * 5))
    return placed(root)[0]


def test_a_leak_in_the_own_split_is_reported_and_resplit_ends_it(tmp_path):
    table = leaky_table(tmp_path)
    kept, notes = split_rows(table, (0.8, 0.0, 0.2), 0, resplit=False)
    assert kept["split"].value_counts().to_dict() == {"train": 10, "test": 5}
    assert notes[-2:] == [
        "source images in more than one split: 5 of 10 (copies of one photo count once)",
        "warning: the data set's own split leaks: 5 of 5 test rows come from photos that another split has too "
        "(e.g. p0), so scores on them flatter; --resplit puts each photo on one side"]
    anew, notes = split_rows(table, (0.8, 0.0, 0.2), 0, resplit=True)
    assert (anew.groupby("group")["split"].nunique() == 1).all()
    assert notes == ["split anew, the data set's own split put aside",
                     "source images in more than one split: 0 of 10 (copies of one photo count once)"]


def test_summary(tmp_path):
    root = tmp_path / "set"
    rows = write_set(root, "Class_a", 2, "a", ["p.jpg", "q.jpg", "r.jpg"], ["train", "val", "test"], objects=2)
    rows += write_set(root, "Class_b", 10, "b b", ["p.jpg"], ["train"], first_seed=90)
    write_manifest(root, rows)
    (root / "Class_c").mkdir()
    (root / "Class_a/masks/odd.txt").write_text("")
    folders = read(root)
    table, skipped = place_points(folders, centre_and_opposite_points, 0)
    table, _ = split_rows(table, (0.6, 0.2, 0.2), 0, resplit=False)
    assert summary(table, folders, skipped).splitlines() == [
        "class           train     val    test     all",
        "2 a                 2       2       2       6",
        "10 b b              1       0       0       1",
        "rows                3       2       2       7",
        "source images       1       1       1       3",
        "classes without an instance, skipped: c",
        f"skipped 1: not an image file by its name: {root.as_posix()}/Class_a/masks/odd.txt"]


def test_write_removes_the_old_table_of_a_split_without_rows(tmp_path):
    table, _ = split_rows(leaky_table(tmp_path), (0.8, 0.0, 0.2), 0, resplit=True)
    paths = [tmp_path / f"{split}.csv" for split in ("train", "val", "test")]
    paths[1].write_text("old")
    notes = write(table, paths)
    assert sorted(path.name for path in tmp_path.glob("*")) == ["set", "test.csv", "train.csv"]
    assert notes == [f"wrote {paths[0]} (12 rows)", f"wrote {paths[2]} (3 rows)",
                     f"no val rows, so no {paths[1]}: the old one was removed"]


def test_the_manifest_may_come_from_any_text(tmp_path):
    """A class name with a comma, quotes, another script; a photo's name likewise."""
    name, photo = 'crack, "fine" ひび', "été/ひび 1.jpg"
    write_manifest(tmp_path, write_set(tmp_path, "Class_x", 0, name, [photo]))
    table, _ = placed(tmp_path)
    table, _ = split_rows(table, (0.6, 0.2, 0.2), 0, resplit=False)
    write(table, [tmp_path / "train.csv"])
    back = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    assert back.loc[0, ["class_name", "source_image"]].tolist() == [name, photo]
