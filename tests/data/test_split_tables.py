import numpy as np
import pandas as pd
import pytest
from class_folder_builder import BAR, EMPTY, write_image, write_manifest, write_mask, write_pair, write_set

from sam_lora.contracts import SPLIT_COLUMNS
from sam_lora.data.clicks import centre_and_opposite_points
from sam_lora.data.pairing import read_class_folders
from sam_lora.data.split_tables import place_points, split_rows, summary, write
from sam_lora.errors import UserError


def by_name(name):
    return None, name


def read(root):
    return read_class_folders(root, by_name)


def placed(root, num_workers=0):
    return place_points(read(root), centre_and_opposite_points, num_workers)


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
    table, _ = placed(tmp_path)
    table, _ = split_rows(table, (0.6, 0.2, 0.2), 0, resplit=False)
    write(table, [tmp_path / "train.csv"])
    back = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    assert back.loc[0, ["class_name", "source_image"]].tolist() == [name, photo]
