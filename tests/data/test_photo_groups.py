import pytest

from sam_lora.data.photo_groups import describe, group_by_name, merge_groups

HASH = "3bd02c57a72f11dbb4275ccaad157d65"


def photo_of(file):
    """By its own name alone."""
    return group_by_name([file])[file].photo


@pytest.mark.parametrize(("first", "second", "same"), [
    pytest.param(f"train/images/a_jpg.rf.{HASH}.jpg", "valid/images/a_jpg.rf.0123456789abcdef.jpg", True,
                 id="exported copies in two splits"),
    pytest.param(f"train/a_jpg.rf.{HASH}.jpg", f"train/b_jpg.rf.{HASH}.jpg", False, id="two photos"),
    pytest.param(f"train/p1/a.rf.{HASH}.jpg", f"test/p1/a.rf.{HASH[::-1]}.jpg", True, id="same sub-folder"),
    pytest.param(f"train/p1/a.rf.{HASH}.jpg", f"train/p2/a.rf.{HASH}.jpg", False, id="two sub-folders"),
    pytest.param("train/images/001.jpg", "val/images/001.jpg", False, id="numbered anew in each split"),
    pytest.param("a.jpg", "a.png", False, id="same stem, two files"),
    pytest.param("images\\a.jpg", "images/a.jpg", True, id="backslash"),
    pytest.param("a.rf.x.jpg", "a.rf.y.jpg", False, id="no hash behind .rf."),
])
def test_names_of_one_photo(first, second, same):
    assert (photo_of(first) == photo_of(second)) is same


def test_a_name_alone_names_the_photo():
    assert photo_of(f"train/images/217_jpg.rf.{HASH}.jpg") == "217_jpg"
    assert photo_of("train/images/217.jpg") == "train/images/217.jpg"


@pytest.mark.parametrize(("groups", "contents", "expected"), [
    pytest.param(["b", "a", "c"], [1, 1, 2], ["a", "a", "c"], id="two groups, one content"),
    pytest.param(["a", "b", "b", "c", "d"], [1, 1, 2, 2, 3], ["a", "a", "a", "a", "d"], id="a chain"),
    pytest.param(["a", "a", "b"], [1, 2, 3], ["a", "a", "b"], id="nothing shared"),
    pytest.param([], [], [], id="none"),
])
def test_merge_groups(groups, contents, expected):
    assert merge_groups(groups, contents) == expected


# ---- all files of a data set ------------------------------------------------------------------------------------

def together(files):
    """The files of each photo, as sets."""
    groups = group_by_name(files)
    photos = {}
    for file in files:
        photos.setdefault(groups[file].photo, set()).add(file)
    return list(photos.values())


@pytest.mark.parametrize("photos", [
    pytest.param([{f"augmented/images/image_{i:04d}{s}.jpg" for s in ("", "_aug0", "_aug3")} for i in range(4)],
                 id="copies beside their photos"),
    pytest.param([{f"ortho{i}_{x}_0_{x + 512}_512.png" for x in (0, 410, 820)} for i in range(3)], id="slices by SAHI"),
    pytest.param([{f"site{i}/frames/frame_{n:06d}.png" for n in range(3)} for i in range(3)], id="a folder per video"),
    pytest.param([{"frame_1.jpg", "train/frame_2.jpg", "images/val/frame_3.jpg"}], id="frames of one video"),
    pytest.param([{"train/a.jpg", "train/a_aug1.jpg"}, {"val/a.jpg", "val/a_aug1.jpg"}],
                 id="copies in each split, numbered anew"),
    pytest.param([{"train/a.jpg", "val/a_aug1.jpg", "test/a_hflip.jpg"}], id="copies in another split"),
    pytest.param([{"train/images/a.jpg", "train/augmented/a_aug1.jpg"}, {"val/images/a.jpg"}],
                 id="copies in a folder of their own"),
    pytest.param([{"original/a.jpg", "augmented/a.jpg"}, {"original/b.jpg", "augmented/b.jpg"}], id="by folder only"),
    pytest.param([{"augmented/a.jpg"}, {"augmented/b.jpg"}], id="nothing but such a folder"),
    pytest.param([{"217.jpg", f"train/217_jpg.rf.{HASH}.jpg"}], id="Roboflow's beside the photo"),
    pytest.param([{"north/a.jpg", "north/a_tile_1.jpg"}, {"south/a_tile_1.jpg", "south/a_tile_2.jpg"}],
                 id="tiles in two folders"),
    pytest.param([{f"IMG_{i:04d}.JPG"} for i in range(4)], id="a camera"),
    pytest.param([{f"crack ({i}).jpg"} for i in range(1, 5)], id="numbered by Windows"),
    pytest.param([{"a_aug1", "a_aug2", "a"}, {"b"}], id="stems only"),
])
def test_group_by_name(photos):
    assert sorted(map(sorted, together(sorted(set().union(*photos))))) == sorted(map(sorted, photos))


def test_other_files_change_nothing_of_the_order():
    files = [f"train/{i}_jpg.rf.{HASH}.jpg" for i in range(5)] + ["a.jpg", "b.png"]
    assert [group_by_name(files)[file].photo for file in files] == [*(f"{i}_jpg" for i in range(5)), "a.jpg", "b.png"]


def test_describe_counts_what_was_put_together():
    files = ["a.jpg", "a_aug1.jpg", "b.jpg", "c_frame_1.jpg", "c_frame_2.jpg", "c_frame_3.jpg", "d_tile_1.jpg"]
    assert describe(files, group_by_name(files)) == (
        "by file name: 4 groups of 7 files (3 frames, e.g. c_frame_1.jpg of c; 1 copies, e.g. a_aug1.jpg of a.jpg)")
    assert describe(["a.jpg"], group_by_name(files)) == "by file name: 1 groups of 1 files"
