"""sam_lora/data/names.py: slugs, stems and splits that are safe and tell things apart."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.data.names import (
    class_folder_names,
    class_slug,
    clean_name,
    normalise_split,
    photo_stem,
    printable,
    unique_stems,
)


@pytest.mark.parametrize(("name", "slug"), [
    ("crack", "crack"), ("minor crack", "minor_crack"), ("a/b", "a_b"), ("..", "unnamed"), ("../../etc", "etc"),
    ("", "unnamed"), (".hidden", "hidden"), ("what? *really*", "what___really"), ("trailing. ", "trailing"),
    ("C:\\x", "C__x"), ("strauß 图像", "strauß_图像"), (unicodedata.normalize("NFD", "é"), "é"), ("हिन्दी", "हिन्दी"),
    ("x" * 300, "x" * 80), ("图" * 100, "图" * 26), ("a\nb\0c", "a_b_c"), ("type 1.5-b", "type_1.5-b")])
def test_class_slug(name: str, slug: str):
    assert class_slug(name) == slug


def test_class_folder_names_differ_where_case_does_not_count():
    labels = {"1": "Car", "2": "car", "3": "a b", "4": "a/b", "5": "a_b-2"}
    assert class_folder_names(labels) == {
        "1": "Class_Car", "2": "Class_car-2", "3": "Class_a_b", "4": "Class_a_b-2", "5": "Class_a_b-2-2"}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(), max_size=8))
def test_any_class_names_give_safe_different_folders(names: list[str]):
    folders = list(class_folder_names({str(i): name for i, name in enumerate(names)}).values())
    assert len({folder.casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert len(folder.encode()) < 120 and not set(folder) & set('/\\:*?"<>|\0 \n') and folder[-1] != "."


def stems(*names: str) -> list[str]:
    return unique_stems([(name, "") for name in names])


def test_stems():
    assert stems("a.jpg", "b.rf.0123.jpg", "c.jpg.jpg") == ["a", "b.rf.0123", "c.jpg"]
    train, valid = stems("train/a.jpg", "valid/A.png")
    assert train.startswith("a-") and valid.startswith("A-") and len({train, valid}) == 2
    assert stems("valid/A.png", "train/a.jpg") == [valid, train]  # whatever the order
    for name in ("a.tile.0.96.jpg", "a.tile.0.96_0001.jpg", "a_0003.jpg"):
        whole, like_another = stems("a.jpg", name)
        assert whole == "a" and like_another.startswith(f"{name[:-4]}-")
    assert stems("b.jpg", "a.tile.0.96.jpg") == ["b", "a.tile.0.96"]
    whole, like_a_mask = stems("a.jpg", "a_0001.jpg")
    assert whole == "a" and like_a_mask.startswith("a_0001-")
    assert stems("clip_0001.jpg", "clip_0002.jpg") == ["clip_0001", "clip_0002"]
    assert len(stems("图" * 80 + ".jpg")[0].encode()) < 200


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(alphabet="aA_01.é:", min_size=1, max_size=9), unique=True, max_size=6))
def test_mask_names_never_meet(names: list[str]):
    """No two masks of different photos share a name, nor has a mask the name of another photo, whatever the case."""
    names = [f"{i}/{name.replace(':', '.tile.0.0')}.jpg" for i, name in enumerate(names)]
    found = stems(*names)
    files = [f"{stem}{tile}_{index}".casefold() for stem in found for tile in ("", ".tile.0.0", ".tile.11.0")
             for index in ("0000", "0001", "00011")]
    assert len(set(files) | {stem.casefold() for stem in found}) == len(files) + len(found)


@pytest.mark.parametrize(("text", "split"), [("train", "train"), ("Valid", "val"), ("validation", "val"),
                                             ("TEST", "test"), ("images", ""), ("", "")])
def test_normalise_split(text: str, split: str):
    assert normalise_split(text) == split


@pytest.mark.parametrize(("name", "text"), [("crack", "crack"), (" a\nb ", "a_b"), (3, "3"), (True, "True"), (None, ""),
                                            ([], ""), ({"a": 1}, ""), (10**19, "")])
def test_clean_name(name: object, text: str):
    assert clean_name(name) == text


@settings(max_examples=80, deadline=None)
@given(st.text())
def test_any_text_is_printable_on_one_line_as_utf_8(text: str):
    line = printable(text)
    assert len(line) == len(text) and len(f"x{line}x".splitlines()) == 1 and line.encode().decode() == line


@pytest.mark.parametrize(("image", "mask", "stem"), [
    pytest.param("a_0003.png", "a_0003.png", "a", id="a crop"),
    pytest.param("Class_x/images/a.png", "Class_x/masks/a_0003.png", "a", id="a whole photo"),
    pytest.param("a_0001.png", "a_0001_0003.png", "a_0001", id="a whole photo named like an object"),
    pytest.param("a.tile.0.96.png", "a.tile.0.96_0003.png", "a", id="a tile"),
    pytest.param("mine.jpg", "mine.png", "mine", id="a user's own"),
])
def test_photo_stem(image: str, mask: str, stem: str):
    assert photo_stem(image, mask) == stem
