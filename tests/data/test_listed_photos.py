from collections import Counter
from pathlib import Path

import pytest

from sam_lora.data.conversion_report import PHOTO_MISSING
from sam_lora.data.listed_photos import (
    SEVERAL_PHOTOS,
    SEVERAL_PHOTOS_AND_FILES,
    SHARED_FALLBACK,
    Entry,
    PhotoError,
    PhotoFolder,
    find_photos,
    split_of_folders,
)


def found(folder: Path, on_disk: list[str], *names: str | tuple[str, str]) -> tuple[list[str], Counter]:
    """(path or reason of each name, notes); a name as (name, split) comes from a file of that split."""
    for path in on_disk:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    notes: Counter = Counter()
    photos = PhotoFolder(folder, folder / "out", notes)
    entries = [Entry(name, photos, "a.json") if isinstance(name, str) else Entry(name[0], photos, name[1], name[1])
               for name in names]
    return [outcome.reason if isinstance(outcome, PhotoError) else str(outcome)
            for outcome in find_photos(entries, notes)], notes


@pytest.mark.parametrize(("on_disk", "names", "expected"), [
    pytest.param(["cam2/f.png"], ["cam1/f.png", "cam2/f.png", "cam3/f.png"], [None, "cam2/f.png", None],
                 id="another entry names the file exactly"),
    pytest.param(["cam2/f.png"], ["cam1/f.png", "cam3/f.png"], [None, None], id="two entries, one file"),
    pytest.param(["f.png"], ["cam1/f.png", "cam2/f.png"], [None, None], id="two entries, one file, no folder"),
    pytest.param(["f.png"], ["/old/cam1/f.png", "C:\\old\\cam2\\f.png"], [None, None], id="absolute paths"),
    pytest.param(["f.png"], ["https://x.org/1/f.png", "https://x.org/2/f.png"], [None, None], id="URLs"),
    pytest.param(["cam2/f.png", "cam2/g.png"], ["cam2/f.png", "cam1/g.png"], ["cam2/f.png", None],
                 id="a folder that others name exactly"),
    pytest.param(["cam1/f.png", "cam2/f.png"], ["/old/images/cam2/f.png", "D:\\x\\cam1\\f.png"],
                 ["cam2/f.png", "cam1/f.png"], id="the longest common end"),
    pytest.param(["a/cam1/f.png", "b/cam1/f.png"], ["b/cam1/f.png", "x/b/cam1/f.png", "cam1/f.png"],
                 ["b/cam1/f.png", None, SEVERAL_PHOTOS], id="ends that are alike"),
    pytest.param(["Cam1/F.PNG"], ["cam1/f.png"], ["Cam1/F.PNG"], id="case"),
    pytest.param(["f.png"], ["f.png", "f.png"], ["f.png", "f.png"], id="one name twice"),
    pytest.param(["old/f.png"], ["f.png", "new/g.png"], ["old/f.png", None], id="a name without its folder"),
    pytest.param(["f.png", "g h.png"], ["https://x.org/f.png?X-Amz-Signature=ab/c.d&e=1", "g%20h.png#top"],
                 ["f.png", "g h.png"], id="a URL's query"),
    pytest.param(["images/f.png"], ["https://s.example/v0/b/x/o/images%2Ff.png?alt=media&token=1.2"],
                 ["images/f.png"], id="encoded, with a query"),
    pytest.param(["s/f.png", "g.png"], ["/data/local-files/?d=s/f.png", "/data/local-files/?d=g.png"],
                 ["s/f.png", "g.png"], id="a name in the query"),
    pytest.param(["f.png"], [" f.png "], ["f.png"], id="blanks"),
    pytest.param(["f#2.png", "f"], ["f#2.png"], ["f#2.png"], id="a name that only looks like a URL's"),
    pytest.param(["f.png"], ["", "/", "..", "?", "a.png?b=c.png"], [None] * 5, id="names that name nothing"),
])
def test_which_file_an_entry_means(tmp_path: Path, on_disk: list[str], names: list[str], expected: list):
    assert found(tmp_path, on_disk, *names)[0] == [path or PHOTO_MISSING for path in expected]


def test_a_folder_given_for_the_photos_counts_as_part_of_their_paths(tmp_path: Path):
    outcome, _ = found(tmp_path / "images" / "cam2", ["f.png"], "cam1/f.png", "cam2/f.png", "cam3/f.png")
    assert outcome == [PHOTO_MISSING, "f.png", PHOTO_MISSING]


@pytest.mark.parametrize(("on_disk", "names", "expected"), [
    pytest.param(["train/f.png", "val/f.png"], [("f.png", "train"), ("f.png", "val")], ["train/f.png", "val/f.png"],
                 id="the split chooses the folder"),
    pytest.param(["Train/f.png", "Validation/f.png"], [("f.png", "val")], ["Validation/f.png"], id="CVAT's subsets"),
    pytest.param(["train/f.png"], [("f.png", "train"), ("f.png", "val")], ["train/f.png", PHOTO_MISSING],
                 id="the other split's photo is not there"),
    pytest.param(["train/f.png"], [("f.png", "val")], ["train/f.png"], id="nobody else wants it"),
    pytest.param(["cam2/f.png"], [("f.png", "train"), ("f.png", "val")], [SHARED_FALLBACK] * 2, id="whose is it?"),
    pytest.param(["f.png"], [("images/f.png", "train"), ("images/f.png", "val")], ["f.png"] * 2, id="one photo of two"),
    pytest.param(["f.png"], [("f.png", "train"), ("f.png", "val")], ["f.png"] * 2, id="named exactly by both"),
    pytest.param(["f.png", "val/f.png"], [("f.png", "train"), ("f.png", "val")], ["f.png", "val/f.png"],
                 id="only one split has a folder"),
    pytest.param(["a/f.png", "b/f.png"], [("f.png", "train"), ("f.png", "val")], [SEVERAL_PHOTOS_AND_FILES] * 2,
                 id="the split does not help"),
])
def test_files_of_splits(tmp_path: Path, on_disk: list[str], names: list[tuple], expected: list[str]):
    assert found(tmp_path, on_disk, *names)[0] == expected


def test_what_was_found_in_another_folder_is_noted(tmp_path: Path):
    outcome, notes = found(tmp_path, ["new/f.png", "new/g.png", "h.png"], "old/f.png", "old/g.png", "old/h.png")
    assert outcome == ["new/f.png", "new/g.png", "h.png"]
    assert list(notes) == ["photos found by base name alone, in another folder than the file_name has: 2, e.g. "
                           "old/f.png as new/f.png"]


@pytest.mark.parametrize(("folders", "split"), [
    ("train", "train"), ("Train", "train"), ("val2017", "val"), ("images/test_images", "test"),
    ("subset-Validation", "val"), ("test_project/train", "train"), ("train/cam1", "train"),
    ("TrainImages", "train"), ("trainset", "train"), ("Test Set", "test"), ("offset", ""),
    ("train_station", ""), ("contest", ""), ("train_val", ""),
    ("a/b", ""), ("", "")])
def test_split_of_folders(folders: str, split: str):
    assert split_of_folders(folders.split("/")) == split
