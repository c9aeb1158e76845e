"""process_yolo_to_classwise.py: layouts, names, files and what bad input gets."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_set_builder import (
    HEIGHT,
    OTHER_OUTPUT,
    POLYGON,
    WIDTH,
    add_photo,
    draw_yolo_set,
    files_in,
    flat_set,
    run_yolo,
    skip_reasons,
)

from process_yolo_to_classwise import get_args_parser, main
from sam_lora import cli
from sam_lora.data.imaging import load_mask, write_png
from sam_lora.data.links import LINK_OUT
from sam_lora.errors import UserError

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"


# ---- the whole conversion ---------------------------------------------------------------------------------

def test_a_data_set_becomes_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture):
    root, out = tmp_path / "set", tmp_path / "out"
    add_photo(root, "train/images/a.jpg", "train/labels/a.txt",
        f"0 {POLYGON}\n2 0.0 0.0 0.5 0.0 0.5 0.5\n1 0.5 0.5 0.2 0.2\n")
    add_photo(root, "valid/images/b.PNG", "valid/labels/b.txt", f"2 {POLYGON}\n")
    add_photo(root, "valid/images/empty.jpg", "valid/labels/empty.txt", "\n")
    add_photo(root, "valid/images/background.jpg", None)
    (root / "data.yaml").write_text("nc: 3\nnames: [minor crack, pothole, 'a/b']\ntrain: ../train/images\n")
    manifest = run_yolo(root, out)
    assert files_in(out) == sorted([
        *(f"Class_a_b/{kind}/{name}.png" for kind in ("images", "masks") for name in ("a_0002", "b_0001")),
        *(f"Class_minor_crack/{kind}/a_0001.png" for kind in ("images", "masks")), *OTHER_OUTPUT])
    columns = ["mask_path", "class_id", "class_name", "source_image", "source_split", "source_id", "crop_x0", "crop_y0",
               "crop_x1", "crop_y1", "rasteriser"]
    assert manifest[columns].to_numpy().tolist() == [
        ["Class_minor_crack/masks/a_0001.png", 0, "minor crack", "train/images/a.jpg", "train", "train/labels/a.txt:1",
         16, 8, 64, 32, "opencv fillPoly 4x"],
        ["Class_a_b/masks/a_0002.png", 2, "a/b", "train/images/a.jpg", "train", "train/labels/a.txt:2",
         0, 0, 44, 28, "opencv fillPoly 4x"],
        ["Class_a_b/masks/b_0001.png", 2, "a/b", "valid/images/b.PNG", "val", "valid/labels/b.txt:1",
         16, 8, 64, 32, "opencv fillPoly 4x"]]
    mask = load_mask(out / "Class_minor_crack/masks/a_0001.png")
    assert mask.shape == (24, 48) and mask.sum() == 800 and mask[2:22, 4:44].all()
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [
        "label rows: 4 = 3 crops + 1 skipped", "  skipped 1: only a box, no outline (--boxes rectangle takes it)",
        "photos: 2 with objects, 0 with skipped rows only, 2 background, 0 missing, 0 outside images/ ignored",
        "classes: minor crack 1, a/b 2"]


@pytest.mark.parametrize(("files", "yaml", "expected"), [
    pytest.param([("images/a.jpg", "labels/a.txt")], "names: [x]", {"images/a.jpg": ""}, id="flat"),
    pytest.param([("images/train/a.jpg", "labels/train/a.txt"), ("images/val/a.jpg", "labels/val/a.txt")], "names: [x]",
                 {"images/train/a.jpg": "train", "images/val/a.jpg": "val"}, id="images/train"),
    pytest.param([("train/images/a.jpg", "train/labels/a.txt"), ("test/images/b.jpg", "test/labels/b.txt")],
                 "names: [x]\ntrain: C:\\Users\\me\\set\\train\\images\ntest: /content/set/test/images",
                 {"train/images/a.jpg": "train", "test/images/b.jpg": "test"}, id="Windows and Colab paths"),
    pytest.param([("one/images/a.jpg", "one/labels/a.txt"), ("two/images/deep/b.jpg", "two/labels/deep/b.txt")],
                 "names: [x]\npath: /gone\ntrain: [one/images]\nval: ../two/images",
                 {"one/images/a.jpg": "train", "two/images/deep/b.jpg": "val"}, id="folders that only the yaml names"),
    pytest.param([("images/a.jpg", "labels/a.txt"), ("test/images/b.jpg", "test/labels/b.txt")],
                 "names: [x]\ntrain: images\nval: images", {"images/a.jpg": "", "test/images/b.jpg": "test"},
                 id="one folder for two splits"),
    pytest.param([("images/a.jpg", "labels/a.txt"), ("images/b.jpg", "labels/b.txt")],
                 "names: [x]\ntrain: train.txt\nval: val.txt", {"images/a.jpg": "train", "images/b.jpg": "val"},
                 id="lists of photos"),
    pytest.param([("a.jpg", "a.txt"), ("b.jpg", "b.txt")], "names: [x]", {"a.jpg": "", "b.jpg": ""},
                 id="labels beside photos"),
    pytest.param([("my/images/set/images/a.b.jpg", "my/images/set/labels/a.b.txt")], "names: [x]",
                 {"my/images/set/images/a.b.jpg": ""}, id="the last images/ counts"),
])
def test_layouts(tmp_path: Path, files: list[tuple[str, str]], yaml: str, expected: dict[str, str]):
    root = tmp_path / "set"
    for seed, (image, label) in enumerate(files):
        add_photo(root, image, label, seed=seed)
    (root / "data.yaml").write_text(yaml)
    if "train.txt" in yaml:
        (root / "train.txt").write_text("./images/a.jpg\n")
        (root / "val.txt").write_text("/home/me/set/images/b.jpg\n\n")
    manifest = run_yolo(root, tmp_path / "out")
    assert dict(zip(manifest.source_image, manifest.source_split)) == expected


def test_earlier_output_in_the_data_set_is_not_read_again(tmp_path: Path):
    add_photo(tmp_path, "images/a.jpg", "labels/a.txt")
    first = run_yolo(tmp_path, tmp_path / "processed_dataset", "--class_names", "x")
    again = run_yolo(tmp_path, tmp_path / "other", "--class_names", "x")
    assert first.equals(again) and len(first) == 1


@pytest.mark.parametrize(("yaml", "flags", "names"), [
    pytest.param("names: [x, y, z]", [], ["x", "z"], id="list"),
    pytest.param("names: {0: x, 2: z}", [], ["x", "z"], id="dict with a gap"),
    pytest.param("names: {'2': z, '10': k, '0': x}", [], ["x", "z"], id="text keys"),
    pytest.param("nc: 3", [], ["class_0", "class_2"], id="count only"),
    pytest.param("train: images", [], ["class_0", "class_2"], id="no names, no count"),
    pytest.param("names: [1, null, true]", [], ["1", "true"], id="names as they are written"),
    pytest.param("names: [yes, no, off]", [], ["yes", "off"], id="yes and off are names"),
    pytest.param("names: {0: on, 1: no, 2: off}", [], ["on", "off"], id="on and off in a dict"),
    pytest.param("names: [010, 1_000, 12:30]", [], ["010", "12:30"], id="octal and sexagesimal numbers"),
    pytest.param("names: [0.50, 1e3, 2001-99-99]", [], ["0.50", "2001-99-99"], id="fractions and dates"),
    pytest.param("names:\n- 0x1F\n- y\n- +.inf\nnc: 3\ntest: null", [], ["0x1F", "+.inf"], id="hexadecimal, infinite"),
    pytest.param("names:\n  0: ~\n  1:\n  2: 'no'\nkpt_shape: ~", [], ["~", "no"], id="a tilde, quotes, no keypoints"),
    pytest.param("base: &b {0: a, 2: no}\nnames: {<<: *b, 1: c}", [], ["a", "no"], id="a merged mapping"),
    pytest.param('names: [a, b, c]\npath: "C:\\Users\\me"', [], ["a", "c"], id="Windows path in double quotes"),
    pytest.param("names: ~\nnc: 3", [], ["class_0", "class_2"], id="no names, as a tilde"),
    pytest.param("names: [x, y, z]", ["--class_names", "p", "q", "r"], ["p", "r"], id="--class_names goes first"),
    pytest.param("\ufeffnames: [ä, y, 图]", [], ["ä", "图"], id="byte order mark, other scripts"),
    pytest.param(None, ["--class_names", "p", "q", "r"], ["p", "r"], id="no yaml"),
])
def test_class_names(tmp_path: Path, yaml: str | None, flags: list[str], names: list[str]):
    root = tmp_path / "set"
    add_photo(root, "images/a.jpg", "labels/a.txt", f"0 {POLYGON}\n2 {POLYGON}\n")
    if yaml is not None:
        (root / "data.yaml").write_text(yaml, encoding="utf-8")
    manifest = run_yolo(root, tmp_path / "out", *flags)
    assert manifest.class_name.astype(str).tolist() == names and manifest.class_id.tolist() == [0, 2]


THREE_ROWS = "".join(f"{number} {POLYGON}\n" for number in range(3))


@pytest.mark.parametrize(("encoding", "file", "text"), [
    pytest.param("utf-16", "classes.txt", "crack\r\nspall\r\nrust\r\n", id="UTF-16, as PowerShell writes it"),
    pytest.param("utf-16-be", "labels/classes.txt", "crack\nspall\nrust", id="UTF-16 without a byte order mark"),
    pytest.param("utf-16-le", "classes.txt", "裂缝\n剥落\n露筋\n", id="UTF-16 of another script"),
    pytest.param("utf-32", "classes.txt", "裂缝\n剥落\n露筋\n", id="UTF-32"),
    pytest.param("utf-8-sig", "classes.txt", "裂缝\n剥落\n露筋\n", id="UTF-8 with a byte order mark"),
    pytest.param("utf-16", "data.yaml", "names: [裂缝, 剥落, 露筋]\n", id="data.yaml in UTF-16"),
])
def test_class_lists_in_unicode(tmp_path: Path, encoding: str, file: str, text: str):
    root = tmp_path / "set"
    add_photo(root, "images/a.jpg", "labels/a.txt", THREE_ROWS)
    (root / file).write_bytes(text.encode(encoding))
    names = run_yolo(root, tmp_path / "out").class_name.tolist()
    assert names == re.findall(r"[^\W\d_]+", text.removeprefix("names"))


@pytest.mark.parametrize("file", ["classes.txt", "data.yaml"])
@pytest.mark.parametrize(("encoding", "names"), [
    ("gbk", ["剥落", "破损", "露筋"]), ("shift_jis", ["ひび", "剥離", "錆"]), ("big5", ["裂縫", "剝落", "鏽蝕"]),
    ("cp949", ["균열", "박리", "녹"]), ("cp1251", ["трещина", "скол", "яма"]),
    ("cp1252", ["fissure", "écaillage", "écrasé"]),
])
def test_class_lists_in_older_encodings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture, encoding: str,
                                                    names: list[str], file: str):
    root = tmp_path / "set"
    add_photo(root, "images/a.jpg", "labels/a.txt", THREE_ROWS)
    text = f"names: [{', '.join(names)}]" if file == "data.yaml" else "\n".join(names)
    (root / file).write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=f"{file}: not UTF-8, .*save it as UTF-8"):
        run_yolo(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_in_utf_16(tmp_path: Path):
    rows = "\r\n".join(THREE_ROWS.splitlines())
    add_photo(tmp_path / "set", "images/a.jpg", "labels/a.txt", rows.encode("utf-16"))
    add_photo(tmp_path / "set", "images/b.jpg", "labels/b.txt", rows.encode("utf-16-le"))
    assert len(run_yolo(tmp_path / "set", tmp_path / "out", "--class_names", "x", "y", "z")) == 6


def test_classes_txt_and_equal_names(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "set"
    add_photo(root, "images/a.jpg", "labels/a.txt", f"0 {POLYGON}\n1 {POLYGON}\n2 {POLYGON}\n")
    (root / "labels" / "classes.txt").write_text("crack\nCrack\ncrack\n\n")
    manifest = run_yolo(root, tmp_path / "out")
    assert manifest[["mask_path", "class_id", "class_name"]].to_numpy().tolist() == [
        ["Class_crack/masks/a_0001.png", 0, "crack"], ["Class_Crack-2/masks/a_0002.png", 1, "Crack"],
        ["Class_crack/masks/a_0003.png", 0, "crack"]]
    assert "note: class ids 0, 2 are all named 'crack': one class" in capsys.readouterr().out


def test_same_stems_stay_apart(tmp_path: Path):
    root = tmp_path / "set"
    for seed, name in enumerate(("train/images/a", "valid/images/a", "valid/images/sub/a")):
        add_photo(root, f"{name}.jpg", f"{name.replace('images', 'labels')}.txt", seed=seed)
    add_photo(root, "train/images/a.png", None)
    manifest = run_yolo(root, tmp_path / "out", "--class_names", "x")
    assert manifest.source_image.tolist() == ["train/images/a.jpg", "valid/images/a.jpg", "valid/images/sub/a.jpg"]
    assert manifest.image_path.nunique() == 3
    assert all(Path(path).name.startswith("a-") for path in manifest.image_path)


def test_boxes_padding_min_size_and_no_crop(tmp_path: Path):
    root = tmp_path / "set"
    add_photo(root, "images/a.jpg", "labels/a.txt", f"0 0.5 0.5 0.5 0.4\n0 {POLYGON} 0.9\n0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    boxes = ["crop_x0", "crop_y0", "crop_x1", "crop_y1"]
    flags = ("--class_names", "x", "--boxes", "rectangle", "--padding", "0.25")
    manifest = run_yolo(root, tmp_path / "out", *flags)
    assert manifest[boxes].to_numpy().tolist() == [[10, 10, 70, 40], [10, 5, 70, 35]]
    assert manifest.mask_area.tolist() == [800, 800] and manifest.rasteriser.tolist()[0] == "rectangle"
    assert skip_reasons(tmp_path / "out") == ["smaller than --min_size"]
    assert len(run_yolo(root, tmp_path / "small", *flags, "--min_size", "7")) == 3
    whole = run_yolo(root, tmp_path / "whole", *flags, "--no_crop")
    assert files_in(tmp_path / "whole" / "Class_x") == ["images/a.png", "masks/a_0001.png", "masks/a_0002.png"]
    assert set(whole.image_path) == {"Class_x/images/a.png"}
    assert load_mask(tmp_path / "whole" / whole.mask_path[1]).shape == (HEIGHT, WIDTH)


def test_dry_run_writes_nothing_and_overwrite_replaces(tmp_path: Path, capsys: pytest.CaptureFixture):
    root, out = tmp_path / "set", tmp_path / "out"
    add_photo(root, "images/a.jpg", "labels/a.txt")
    run_yolo(root, out, "--class_names", "x", "--dry_run")
    printed = capsys.readouterr().out
    assert "label rows: 1 = 1 crops + 0 skipped" in printed and "dry run: nothing written" in printed
    assert not out.exists()
    run_yolo(root, out, "--class_names", "old")
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="--overwrite"):
        run_yolo(root, out, "--class_names", "new")
    assert (out / "Class_old").is_dir()
    run_yolo(root, out, "--class_names", "new", "--overwrite")
    assert files_in(out) == ["Class_new/images/a_0001.png", "Class_new/masks/a_0001.png",
                             *sorted([*OTHER_OUTPUT, "mine.txt"])]


def test_labels_without_a_photo_and_twin_photos_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    root, out = tmp_path / "set", tmp_path / "out"
    add_photo(root, "images/a.jpg", "labels/a.txt")
    add_photo(root, "images/a.png", "labels/gone.txt", f"0 {POLYGON}\n\n0 {POLYGON}\n")
    (root / "images" / "broken.jpg").write_text("<html>")
    (root / "labels" / "broken.txt").write_text(f"0 {POLYGON}\n")
    write_png(root / "preview.png", np.zeros((9, 12), np.uint8))
    run_yolo(root, out, "--class_names", "x")
    report = pd.read_csv(out / "conversion_report.csv", keep_default_na=False)
    assert report.to_numpy().tolist() == [
        ["labels/gone.txt", "labels/gone.txt:1", "photo not found", ""],
        ["labels/gone.txt", "labels/gone.txt:3", "photo not found", ""],
        ["labels/broken.txt", "labels/broken.txt:1", "photo cannot be read", "not an image that can be read"]]
    printed = capsys.readouterr().out
    assert "label rows: 4 = 1 crops + 3 skipped" in printed
    assert "2 with objects, 0 with skipped rows only, 1 background, 1 missing, 1 outside images/ ignored" in printed
    assert "two photos share a label file; images/a.jpg has it, not images/a.png" in printed


# ---- bad input --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("make", "flags", "said"), [
    pytest.param(lambda root: None, ["--class_names", "x"], "no such folder", id="missing folder"),
    pytest.param(lambda root: root.write_text("x"), ["--class_names", "x"], "is a file", id="a file"),
    pytest.param(lambda root: root.mkdir(), ["--class_names", "x"], "no photo found", id="empty folder"),
    pytest.param(flat_set, [], "no data.yaml and no classes.txt; .*--class_names", id="no names at all"),
    pytest.param(lambda root: (flat_set(root), (root / "data.yaml").write_text("names: [x\nnc: 1")), [],
                 "broken YAML at line 2", id="broken yaml"),
    pytest.param(lambda root: (flat_set(root), (root / "data.yaml").write_text("- x")), [], "found a list",
                 id="yaml of another kind"),
    pytest.param(lambda root: (flat_set(root), (root / "data.yaml").write_text("names: x")), [], "names is a str",
                 id="names as text"),
    pytest.param(lambda root: (flat_set(root), (root / "data.yaml").write_text("names: {a: x}")), [], "key 'a'",
                 id="names with odd keys"),
    pytest.param(lambda root: (flat_set(root), (root / "data.yaml").write_text("names: []")), [], "names is empty",
                 id="no names"),
    pytest.param(lambda root: (flat_set(root), (root / "data.yaml").write_bytes(b"names: [\xff]")), [],
                 "data.yaml: not UTF-8.*save it as UTF-8",
                 id="yaml in another encoding"),
    pytest.param(lambda root: (flat_set(root), (root / "data.yaml").write_text("names: [!!python/object:os.system x]")),
                 [], "broken YAML", id="yaml that would run code"),
    pytest.param(lambda root: (flat_set(root), (root / "data.yaml").write_text("names: [x]\nkpt_shape: [17, 3]")), [],
                 "pose", id="pose"),
    pytest.param(lambda root: (flat_set(root), (root / "labels" / "classes.txt").write_text("\n")), [], "empty",
                 id="empty classes.txt"),
    pytest.param(lambda root: add_photo(root, "images/a.jpg", None), ["--class_names", "x"], "not one label file",
                 id="no labels"),
    pytest.param(lambda root: add_photo(root, "images/a.jpg", "labels/a.txt", ""), ["--class_names", "x"],
                 "every photo is background", id="background only"),
    pytest.param(lambda root: add_photo(root, "images/a.jpg", "labels/a.txt", "0 .5 .5 .5 .5\n"),
                 ["--class_names", "x"], "nothing to convert.*--boxes rectangle", id="detection labels"),
    pytest.param(lambda root: add_photo(root, "images/a.jpg", "labels/a.txt", f"0 {POLYGON}\n9 {POLYGON}\n"),
                 ["--class_names", "x", "--strict"], r"labels/a.txt:2: class id that has no name", id="strict"),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture, make, flags: list[str],
                                                  said: str):
    make(tmp_path / "set")
    argv = ["--dataset_dir", str(tmp_path / "set"), "--output_dir", str(tmp_path / "out"), "--num_workers", "0", *flags]
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, get_args_parser(), argv)
    assert stopped.value.code == 1
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert re.search(said, message), message
    assert not (tmp_path / "out").exists()


def test_a_data_set_cannot_reach_out_of_its_folder(tmp_path: Path):
    add_photo(tmp_path / "secret", "images/s.jpg", "labels/s.txt")
    root = tmp_path / "set"
    add_photo(root, "images/a.jpg", "labels/a.txt")
    (root / "images" / "link.jpg").symlink_to(tmp_path / "secret" / "images" / "s.jpg")
    (root / "labels" / "link.txt").write_text(f"0 {POLYGON}\n")
    (root / "data.yaml").write_text(f"names: ['../../x']\ntrain: {tmp_path}/secret/images\nval: ../secret/images\n")
    manifest = run_yolo(root, tmp_path / "out")
    assert manifest[["source_image", "mask_path"]].to_numpy().tolist() == [["images/a.jpg", "Class_x/masks/a_0001.png"]]
    assert skip_reasons(tmp_path / "out") == [LINK_OUT]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_leaves_nothing(tmp_path: Path):
    root, out = tmp_path / "set", tmp_path / "out"
    rows = "".join(f"0 {x / 100} 0.1 0.9 0.2 0.8 0.9\n" for x in range(60))
    add_photo(root, "images/0.jpg", "labels/0.txt", rows)
    for i in range(1, 1000):  # 60,000 masks: far from done when the first is there
        os.link(root / "images" / "0.jpg", root / "images" / f"{i}.jpg")
        os.link(root / "labels" / "0.txt", root / "labels" / f"{i}.txt")
    command = [sys.executable, str(ROOT / "process_yolo_to_classwise.py"), "--dataset_dir", str(root), "--output_dir",
               str(out), "--class_names", "x", "--num_workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not any(out.glob(".partial-*/Class_x/masks/*")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the workers too
        error = process.communicate(timeout=600)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, error
    assert "stopped by Ctrl-C" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not out.exists()


def test_a_drawn_data_set(tmp_path: Path, capsys: pytest.CaptureFixture):
    crops, skipped = draw_yolo_set(tmp_path / "set")
    manifest = run_yolo(tmp_path / "set", tmp_path / "out")
    assert len(manifest) == crops and Counter(skip_reasons(tmp_path / "out")) == skipped
    assert set(manifest.source_split) == {"train", "val", "test"} and set(manifest.class_name) == {"blob", "crack"}
    assert capsys.readouterr().out.startswith(f"label rows: {crops + 3} = {crops} crops + 3 skipped")


@pytest.mark.parametrize(("folder", "flags", "rows", "crops", "skipped"), [
    pytest.param("crack-yolo", [], 379, 378, {"smaller than --min_size": 1}, id="cracks"),
    pytest.param("mixed-yolo-fixture", [], 66, 2, {"only a box, no outline (--boxes rectangle takes it)": 62,
                                                   "class id that has no name": 2}, id="boxes among polygons"),
])
def test_real_data(tmp_path: Path, capsys: pytest.CaptureFixture, folder: str, flags: list[str], rows: int, crops: int,
                   skipped: dict[str, int]):
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is not there")
    manifest = run_yolo(DATA / folder, tmp_path / "out", *flags)
    assert len(manifest) == crops and rows == crops + sum(skipped.values())
    counts = pd.Series(skip_reasons(tmp_path / "out")).value_counts().to_dict()
    assert counts == skipped
    assert capsys.readouterr().out.startswith(f"label rows: {rows} = {crops} crops + {sum(skipped.values())} skipped")


# ---- every rule of shared/formats.md that no test above names ---------------------------------------------

def upper_case(root: Path) -> None:
    add_photo(root, "Train/Images/a.JPG", "Train/Labels/a.TXT")


def twice_a_suffix(root: Path) -> None:
    add_photo(root, "images/a.jpg.jpg", "labels/a.jpg.txt")


def nearly_alike(root: Path) -> None:
    add_photo(root, "images/A.jpg", None, seed=1)
    add_photo(root, "images/a.jpg", "labels/a.txt")


def other_photos(root: Path) -> None:
    add_photo(root, "images/a.jpg", "labels/a.txt")
    for name in ("b.mov", "c.HEIC", "d.heic", "e"):
        (root / "images" / name).write_bytes(b"x")


def missing_split(root: Path) -> None:
    add_photo(root, "train/images/a.jpg", "train/labels/a.txt")
    (root / "data.yaml").write_text("names: [x]\nnc: 2\ntrain: C:\\set\\TRAIN\\images\nval: ../valid/images\ntest:\n")


def turned(root: Path) -> None:
    """Stored 80 x 50, upright 50 x 80: the labels are of the upright photo."""
    from PIL import Image
    exif = Image.Exif()
    exif[274] = 6
    (root / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(root / "images/a.jpg", exif=exif)
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text("0 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75\n")


def pages(root: Path) -> None:
    from PIL import Image
    add_photo(root, "images/a.jpg", "labels/a.txt")
    sheets = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    sheets[0].save(root / "images/b.tif", save_all=True, append_images=sheets[1:])
    (root / "labels/b.txt").write_text(f"0 {POLYGON}\n")


def pipe_and_folder(root: Path) -> None:
    add_photo(root, "images/a.jpg", "labels/a.txt")
    os.mkfifo(root / "images/b.jpg")
    (root / "images/c.jpg").mkdir()


@pytest.mark.parametrize(("make", "sources", "said"), [
    pytest.param(upper_case, ["Train/Images/a.JPG"], "", id="upper-case folders and suffixes"),
    pytest.param(twice_a_suffix, ["images/a.jpg.jpg"], "", id="stem: all before the last dot"),
    pytest.param(nearly_alike, ["images/a.jpg"], "1 background", id="photos equal but for case"),
    pytest.param(other_photos, ["images/a.jpg"], "not taken as photos: 1 without suffix, 2 .heic, 1 .mov",
                 id="other suffixes are told"),
    pytest.param(missing_split, ["train/images/a.jpg"], "names a folder that is not here: val: ../valid/images",
                 id="a split that is not here is told"),
    pytest.param(missing_split, ["train/images/a.jpg"], "nc is 2, but names has 1", id="nc is not the count of names"),
    pytest.param(turned, ["images/a.jpg"], "", id="EXIF: labels are of the upright photo"),
    pytest.param(pages, ["images/a.jpg", "images/b.tif"], "several pages or frames; the first was used",
                 id="multi-page TIFF"),
    pytest.param(pipe_and_folder, ["images/a.jpg"], "", id="a pipe and a folder named .jpg", marks=pytest.mark.skipif(
        os.name == "nt", reason="no pipes in folders")),
])
def test_rules_of_files(tmp_path: Path, capsys: pytest.CaptureFixture, make, sources: list[str], said: str):
    root = tmp_path / "set"
    make(root)
    names = () if (root / "data.yaml").exists() else ("--class_names", "x")
    manifest = run_yolo(root, tmp_path / "out", *names, "--padding", "0")
    assert manifest.source_image.tolist() == sources and skip_reasons(tmp_path / "out") == []
    assert said in capsys.readouterr().out
    row = manifest.iloc[0]
    if make is turned:
        assert row[["source_width", "source_height", "crop_x0", "crop_y0", "crop_x1", "crop_y1"]].tolist() == [
            HEIGHT, WIDTH, 10, 20, 30, 60]
        assert b"eXIf" not in (tmp_path / "out" / row.image_path).read_bytes()


BOMB = "".join(f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize(("yaml", "said"), [
    pytest.param(f"a: &a [x]\n{BOMB}names: *i", "names holds a list", id="names that grow to gigabytes"),
    pytest.param(f"a: &a [x]\n{BOMB}names: [x]\ntrain: *i", "", id="a split that grows to gigabytes"),
    pytest.param("names: !!int ''", "broken YAML", id="a number of no digits"),
    pytest.param("names: !!timestamp x", "broken YAML", id="a date that is none"),
    pytest.param("names: [!!timestamp 2001-99-99]", "broken YAML", id="a month 99"),
    pytest.param("names: [0x" + "f" * 9000 + "]", "", id="a name of ten thousand digits"),
    pytest.param("names: [x]\nnc: 0x" + "f" * 9000, "nc is huge", id="a count of ten thousand digits"),
    pytest.param("names:\n  ? 0x" + "f" * 9000 + "\n  : x", "names has the key", id="an id of ten thousand digits"),
    pytest.param("names: [x]\ntrain: " + "a/" * 10**5, "", id="a path of 100,000 folders"),
    pytest.param("[" * 50000, "broken YAML", id="nested too deep"),
    pytest.param("names: &a [*a]", "names holds a list", id="a list in itself"),
])
def test_hostile_yaml(tmp_path: Path, capsys: pytest.CaptureFixture, yaml: str, said: str):
    root = tmp_path / "set"
    flat_set(root)
    (root / "data.yaml").write_text(yaml)
    argv = ["--dataset_dir", str(root), "--output_dir", str(tmp_path / "out"), "--num_workers", "0"]
    try:
        cli.run(main, get_args_parser(), argv)
    except SystemExit as stopped:
        assert stopped.code == 1
    printed = capsys.readouterr()
    assert said in printed.out + printed.err and len(printed.err.splitlines()) <= 1


@pytest.mark.parametrize(("names", "folders"), [
    pytest.param(["../x", "a/b"], ["Class_a_b", "Class_x"], id="paths"),
    pytest.param(["CON", "nul.txt"], ["Class_CON", "Class_nul.txt"], id="reserved on Windows"),
    pytest.param(["x" * 300, "x" * 301], ["Class_" + "x" * 80, "Class_" + "x" * 80 + "-2"], id="300 characters"),
    pytest.param(["Crack", "crack"], ["Class_Crack", "Class_crack-2"], id="equal but for case"),
    pytest.param(["😀", "裂缝"], ["Class_unnamed", "Class_裂缝"], id="emoji and another script"),
    pytest.param(["a\nb\rc", "\x1b[31m"], ["Class_a_b_c", "Class_31m"], id="line breaks and terminal codes"),
    pytest.param(["", " "], ["Class_class_0", "Class_class_1"], id="empty"),
])
def test_hostile_class_names(tmp_path: Path, capsys: pytest.CaptureFixture, names: list[str], folders: list[str]):
    root, out = tmp_path / "set", tmp_path / "out"
    add_photo(root, "images/a.jpg", "labels/a.txt", f"0 {POLYGON}\n1 {POLYGON}\n")
    (root / "data.yaml").write_text(json.dumps({"names": names}))
    manifest = run_yolo(root, out)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(folders)
    assert len(manifest) == 2 and len(capsys.readouterr().out.splitlines()) == 4
    told = [entry["class_name"] for entry in json.loads((out / "classes.json").read_text(encoding="utf-8")).values()]
    assert told == manifest.class_name.tolist()
