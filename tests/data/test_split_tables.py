import re

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
from sam_lora.data.imaging import encode_png, load_image
from sam_lora.data.pairing import read_class_folders
from sam_lora.data.split_tables import Told, group_rows, place_points, split_rows, summary, write
from sam_lora.errors import UserError


def by_name(name):
    return None, name


def read(root):
    return read_class_folders(root, by_name)


def placed(root, num_workers=0):
    return place_points(read(root), centre_and_opposite_points, num_workers)


def grouped(root, told=None):
    return group_rows(placed(root)[0], root, told)


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
    assert table.columns.tolist() == [*SPLIT_COLUMNS, "source_image", "source_split", "source_digest", "content",
                                      "looks"]
    assert table.iloc[:, :13].values.tolist() == [[
        f"{tmp_path.as_posix()}/Class_a/images/good.png", f"{masks}/good.png", "0", "a", 20, 11, 14, 11, 26, 11, "good",
        "", ""]]
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
    table, _ = grouped(root)
    assert dict(zip(table["source_image"], table["group"])) == {
        photos[0]: "a", photos[1]: "a", photos[2]: "test/c.jpg", photos[3]: "test/c.jpg", photos[4]: "d.jpg"}


def test_workers_change_nothing(tmp_path):
    for number in range(20):
        mask = np.roll(BAR, number % 5, axis=1)
        write_pair(tmp_path, "Class_a", f"p{number}_0000", number, mask)
    alone, together = placed(tmp_path, 0), placed(tmp_path, 2)
    pd.testing.assert_frame_equal(alone[0], together[0])
    assert alone[1] == together[1]


# ---- photos -----------------------------------------------------------------------------------------------------

def numbered(root, names=("s1_a.jpg", "s1_b.jpg", "s2_a.jpg", "x.jpg"), **columns):
    rows = write_set(root, "Class_a", 0, "a", names)
    for name, values in columns.items():
        rows = [row | {name: value} for row, value in zip(rows, values)]
    pd.DataFrame(rows).to_csv(root / "instances.csv", index=False)


def test_a_pattern_names_the_photo(tmp_path):
    numbered(tmp_path)
    table, notes = grouped(tmp_path, Told(re.compile("^(s[0-9])_")))
    assert table["group"].tolist() == ["photo s1", "photo s1", "photo s2", "x.jpg"]
    assert notes == ["by --group_by: 2 groups of 3 files", "by file name: 1 groups of 1 files"]
    with pytest.raises(UserError, match="^--group_by .y..: matches none of 4 files, e.g. s1_a.jpg; expected a pattern"):
        grouped(tmp_path, Told(re.compile("(y)?")))


def test_a_pattern_takes_apart_what_names_put_together(tmp_path):
    numbered(tmp_path, ("a_tile_1.jpg", "a_tile_2.jpg"))
    assert grouped(tmp_path)[0]["group"].tolist() == ["a", "a"]
    assert grouped(tmp_path, Told(re.compile("(.+)")))[0]["group"].nunique() == 2


def test_a_table_names_the_photo(tmp_path):
    numbered(tmp_path, ("d/s1_a.jpg", "d/s1_b.jpg", "x.jpg"))
    path = tmp_path / "photos.csv"
    path.write_text("source_image,photo\nd/s1_a.jpg,one\ns1_b.jpg,one\n")
    table, notes = grouped(tmp_path, Told(table=str(path)))
    assert table["group"].tolist() == ["photo one", "photo one", "x.jpg"]
    assert notes[0] == f"by {path}: 1 groups of 2 files"
    path.write_text("source_image,photo\nother.jpg,one\n")
    with pytest.raises(UserError, match="photos.csv: names none of 3 files, e.g. d/s1_a.jpg; expected them in the col"):
        grouped(tmp_path, Told(table=str(path)))


def test_a_name_in_the_table_that_could_be_two_files(tmp_path):
    one_photo(tmp_path, [(0, 0, 40, 24)] * 4, ("d/a.jpg", "e/b1.jpg", "a.jpg", "f/c.jpg"))
    path = tmp_path / "photos.csv"
    path.write_text("source_image,photo\na.jpg,one\nb1.jpg,one\nf\\c.jpg,two\n")
    table, _ = grouped(tmp_path, Told(table=str(path)))
    assert dict(zip(table["source_image"], table["group"])) == {
        "d/a.jpg": "d/a.jpg", "e/b1.jpg": "photo one", "a.jpg": "photo one", "f/c.jpg": "photo two"}
    one_photo(tmp_path / "two", [(0, 0, 40, 24)] * 2, ("d/b.jpg", "e/b.jpg"))
    path.write_text("source_image,photo\nb.jpg,one\n")
    with pytest.raises(UserError, match="photos.csv: row 2: b.jpg may be d/b.jpg or e/b.jpg; expected the path below"):
        grouped(tmp_path / "two", Told(table=str(path)))


def test_a_column_of_the_manifest_names_the_photo(tmp_path):
    numbered(tmp_path, photo=["one", "two", "one", ""])
    table, notes = grouped(tmp_path)
    assert table["group"].tolist() == ["photo one", "photo two", "photo one", "x.jpg"]
    assert notes[0] == "by column photo of instances.csv: 2 groups of 3 files"


def test_blank_tiles_do_not_make_one_photo_of_two(tmp_path):
    numbered(tmp_path, ("a.jpg", "b.jpg"))
    for name in "ab":
        (tmp_path / f"Class_a/images/{name}_0000.png").write_bytes(encode_png(np.zeros((24, 40, 3), np.uint8)))
    assert grouped(tmp_path)[0]["group"].tolist() == ["a.jpg", "b.jpg"]


def test_images_that_look_alike_are_told(tmp_path):
    """b is a mirrored, which no name says; c and d are others."""
    numbered(tmp_path, ("a.jpg", "b.jpg", "c.jpg", "d.jpg"), source_split=["train", "test", "test", "val"])
    folder = tmp_path / "Class_a/images"
    image = load_image(folder / "a_0000.png")
    (folder / "b_0000.png").write_bytes(encode_png(np.ascontiguousarray(image[:, ::-1])))
    _, notes = split_rows(grouped(tmp_path)[0], (0.6, 0.2, 0.2), 0, resplit=False)
    assert [note for note in notes if "look like" in note] == [
        f"warning: 1 of 2 test images look like one in train or val, e.g. {folder.as_posix()}/b_0000.png and "
        f"{folder.as_posix()}/a_0000.png: if they are copies or frames of one photo, name it by --group_by or "
        "--group_csv (and --resplit)"]


def test_without_imagehash_it_is_said_that_none_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("sam_lora.data.near_duplicates.imagehash", None)
    numbered(tmp_path)
    _, notes = split_rows(grouped(tmp_path)[0], (0.6, 0.2, 0.2), 0, resplit=False)
    assert notes[-1].startswith("near-duplicates were not looked for: ImageHash is not there; pip install")


# ---- one photo --------------------------------------------------------------------------------------------------

BOX = ("crop_x0", "crop_y0", "crop_x1", "crop_y1")


def one_photo(root, boxes, names=None, **columns):
    names = names or ["ortho.png"] * len(boxes)
    rows = []
    for number, (name, box) in enumerate(zip(names, boxes)):
        write_pair(root, "Class_a", f"ortho_{number:04d}", number)
        rows.append(manifest_row("Class_a", f"ortho_{number:04d}", 0, "a", name) | dict(zip(BOX, box))
                    | {column: values[number] for column, values in columns.items()})
    write_manifest(root, rows)
    return grouped(root)[0]


ROW_OF_TILES = [(x, 0, x + 100, 100) for x in range(0, 1600, 80)]


@pytest.mark.parametrize(("split_by", "own"), [("auto", ""), ("auto", "train"), ("auto", "val"), ("area", "")])
def test_one_photo_is_split_by_area(tmp_path, split_by, own):
    table = one_photo(tmp_path, ROW_OF_TILES, source_split=[own] * 20)
    table, notes = split_rows(table, (0.6, 0.2, 0.2), 0, False, split_by)
    assert table["split"].value_counts().to_dict() == {"train": 11, "val": 4, "test": 3, "": 2} or (
        table["split"].value_counts().to_dict() == {"train": 11, "val": 3, "test": 4, "": 2})
    sides = [side for side, before in zip(table["split"], [None, *table["split"]]) if side != before]
    assert len(sides) == 5 and sides[1] == sides[3] == ""
    assert notes == [
        "split by area: 1 photo, e.g. ortho.png (there is no other): its sides are blocks with gaps between them, so "
        "that no pixel is on two sides; 2 of 20 rows lie in the gaps and are in no table",
        "photos in more than one split: 0 of 1 (copies of a photo count once; photos split by area do not count)"]
    write(table, [tmp_path / f"{name}.csv" for name in ("output", "train", "val", "test")])
    assert sum(len(pd.read_csv(tmp_path / f"{side}.csv")) for side in ("train", "val", "test")) == 18
    assert pd.read_csv(tmp_path / "output.csv")["split"].isna().sum() == 2


def test_slices_of_one_photo_and_frames_of_one_video(tmp_path):
    slices = [f"ortho_{x}_0_{x + 100}_100.png" for x in range(0, 1600, 80)]
    table = one_photo(tmp_path / "a", [(0, 0, 100, 100)] * 20, slices)
    assert {*split_rows(table, (0.6, 0.2, 0.2), 0, False)[0]["split"]} == {"train", "val", "test", ""}
    table = one_photo(tmp_path / "b", [(0, 0, 40, 24)] * 20, [f"drive_frame_{number}.jpg" for number in range(20)])
    table, notes = split_rows(table, (0.6, 0.2, 0.2), 0, False)
    assert (table["split"] == "").sum() == 2
    assert notes[0] == ("split by time: 1 video, e.g. drive (there is no other): its sides are blocks with gaps "
                        "between them, so that no two sides are neighbours; 2 of 20 rows lie in the gaps and are in no "
                        "table")


@pytest.mark.parametrize(("boxes", "names", "why"), [
    pytest.param([(0, 0, 40, 24)] * 4, None, "its crops overlap, or there are too few; --tile", id="whole photos"),
    pytest.param([(0, 0, 0, 0)] * 4, None, "its crops overlap", id="places not known"),
    pytest.param([(0, 0, 40, 24)] * 2, ["a_tile_1.png", "a_tile_2.png"],
                 "2 files, e.g. a_tile_1.png and a_tile_2.png, are taken for one; if they are different photos, "
                 "--group_by '(.+)' takes each for itself", id="tiles from nobody knows where"),
])
def test_one_photo_that_cannot_be_split(tmp_path, boxes, names, why):
    table, notes = split_rows(one_photo(tmp_path, boxes, names), (0.6, 0.2, 0.2), 0, False)
    assert {*table["split"]} == {"train"}
    warning = f"warning: one photo cannot be split: all {len(boxes)} rows are train, and no step makes other tables; "
    assert any(note.startswith(warning + why) for note in notes)


def test_whole_photos_unless_asked(tmp_path):
    """Two photos; --split_by area cuts the one with tiles, and takes the other whole."""
    boxes, names = [*ROW_OF_TILES, *[(0, 0, 40, 24)] * 5], ["ortho.png"] * 20 + ["b.png"] * 5
    table = one_photo(tmp_path, boxes, names)
    kept, _ = split_rows(table, (0.6, 0.2, 0.2), 0, False)
    assert kept.groupby("group")["split"].nunique().max() == 1
    cut, notes = split_rows(table, (0.6, 0.2, 0.2), 0, False, "area")
    assert cut.groupby("group")["split"].nunique().to_dict() == {"ortho.png": 4, "b.png": 1}
    assert notes[-2:] == [
        "1 of 2 photos could not be split by area and are on one side each, e.g. b.png",
        "photos in more than one split: 0 of 2 (copies of a photo count once; photos split by area do not count)"]
    one, _ = split_rows(one_photo(tmp_path / "one", ROW_OF_TILES), (0.6, 0.2, 0.2), 0, False, "photo")
    assert {*one["split"]} == {"train"}


def test_an_own_split_is_not_cut_by_area(tmp_path):
    table = one_photo(tmp_path, ROW_OF_TILES, source_split=["train"] * 10 + ["val"] * 10)
    with pytest.raises(UserError, match="^--split_by area: the data set has its own split; add --resplit"):
        split_rows(table, (0.6, 0.2, 0.2), 0, False, "area")
    assert split_rows(table, (0.6, 0.2, 0.2), 0, False)[0]["split"].tolist() == ["train"] * 10 + ["val"] * 10
    assert "" in {*split_rows(table, (0.6, 0.2, 0.2), 0, True)[0]["split"]}


# ---- splitting, telling, writing --------------------------------------------------------------------------

def leaky_table(tmp_path):
    """Ten photos in train, five of them in test again as another exported copy."""
    root = tmp_path / "set"
    train = [f"train/images/p{number}.rf.aaaaaaaa.jpg" for number in range(10)]
    test = [f"test/images/p{number}.rf.bbbbbbbb.jpg" for number in range(5)]
    write_manifest(root, write_set(root, "Class_a", 0, "a", [*train, *test], ["train"] * 10 + ["test"] * 5))
    return grouped(root)[0]


def test_a_leak_in_the_own_split_is_reported_and_resplit_ends_it(tmp_path):
    table = leaky_table(tmp_path)
    kept, notes = split_rows(table, (0.8, 0.0, 0.2), 0, resplit=False)
    assert kept["split"].value_counts().to_dict() == {"train": 10, "test": 5}
    assert notes[-2:] == [
        "photos in more than one split: 5 of 10 (copies of a photo count once)",
        "warning: the data set's own split leaks: 5 of 5 test rows come from photos that are in another split too "
        "(e.g. p0), so their scores are too high; --resplit puts each photo in one split"]
    anew, notes = split_rows(table, (0.8, 0.0, 0.2), 0, resplit=True)
    assert (anew.groupby("group")["split"].nunique() == 1).all()
    assert notes == ["split from scratch, the data set's own split is not used",
                     "photos in more than one split: 0 of 10 (copies of a photo count once)"]


def test_summary(tmp_path):
    root = tmp_path / "set"
    rows = write_set(root, "Class_a", 2, "a", ["p.jpg", "q.jpg", "r.jpg"], ["train", "val", "test"], objects=2)
    rows += write_set(root, "Class_b", 10, "b b", ["p.jpg"], ["train"], first_seed=90)
    write_manifest(root, rows)
    (root / "Class_c").mkdir()
    (root / "Class_a/masks/odd.txt").write_text("")
    folders = read(root)
    table, skipped = place_points(folders, centre_and_opposite_points, 0)
    table, _ = group_rows(table, root)
    table, _ = split_rows(table, (0.6, 0.2, 0.2), 0, resplit=False)
    assert summary(table, folders, skipped).splitlines() == [
        "class    train     val    test     all",
        "2 a          2       2       2       6",
        "10 b b       1       0       0       1",
        "rows         3       2       2       7",
        "photos       1       1       1       3",
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
    table, _ = grouped(tmp_path)
    table, _ = split_rows(table, (0.6, 0.2, 0.2), 0, resplit=False)
    write(table, [tmp_path / "train.csv"])
    back = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    assert back.loc[0, ["class_name", "source_image"]].tolist() == [name, photo]
