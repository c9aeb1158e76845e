import pytest

from sam_lora.data.photo_groups import merge_groups, source_group

HASH = "3bd02c57a72f11dbb4275ccaad157d65"


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
def test_source_group(first, second, same):
    assert (source_group(first) == source_group(second)) is same


def test_source_group_names_the_photo():
    assert source_group(f"train/images/217_jpg.rf.{HASH}.jpg") == "217_jpg"
    assert source_group("train/images/217.jpg") == "train/images/217.jpg"


@pytest.mark.parametrize(("groups", "contents", "expected"), [
    pytest.param(["b", "a", "c"], [1, 1, 2], ["a", "a", "c"], id="two groups, one content"),
    pytest.param(["a", "b", "b", "c", "d"], [1, 1, 2, 2, 3], ["a", "a", "a", "a", "d"], id="a chain"),
    pytest.param(["a", "a", "b"], [1, 2, 3], ["a", "a", "b"], id="nothing shared"),
    pytest.param([], [], [], id="none"),
])
def test_merge_groups(groups, contents, expected):
    assert merge_groups(groups, contents) == expected
