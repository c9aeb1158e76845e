import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import files_below
from data_set_builder import entries, refused, run_script

import reformated_csv
from reformated_csv import pixel
from sam_lora.contracts import SPLIT_COLUMNS
from sam_lora.data.samples import read_samples
from sam_lora.tables import points_from_json

HEADER = ",".join(SPLIT_COLUMNS)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv):
    run_script(reformated_csv, *argv)


def write(path, *rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n")


def test_whole_tables(in_tmp_path, capsys):
    write(in_tmp_path / "train.csv", "d/a.png,d/m/a.png,0,crack,1,2,3,4,5,6,a.jpg",
          '"d/b, c.png",d/m/b.png,0,crack,10,20,30,40,50.5,60,b.jpg', header=HEADER + ",source_image")
    write(in_tmp_path / "val.csv", "d/c.png,d/m/c.png,1,hole,0,0,1,1,2,2")
    write(in_tmp_path / "test.csv", "d/e.png,d/m/e.png,1,hole,0,0,1,1,2,2")
    run()
    assert entries(in_tmp_path) == ["test.csv", "test_reformatted.csv", "train.csv", "train_reformatted.csv", "val.csv",
                                  "val_reformatted.csv"]
    assert (in_tmp_path / "train_reformatted.csv").read_text() == (
        'image,label,points\n'
        'd/a.png,d/m/a.png,"[[1,2],[3,4],[5,6]]"\n'
        '"d/b, c.png",d/m/b.png,"[[10,20],[30,40],[50.5,60]]"\n')
    assert capsys.readouterr().out == ("train_reformatted.csv: 2 rows\nval_reformatted.csv: 1 rows\n"
                                       "test_reformatted.csv: 1 rows\n")
    cell = pd.read_csv("train_reformatted.csv").loc[1, "points"]
    assert points_from_json(cell, "cell") == [[10, 20], [30, 40], [50.5, 60]]


@pytest.fixture
def masks(in_tmp_path):
    """Two split tables beside a mask with two parts, a whole one, an empty one and one that is none."""
    folder = in_tmp_path / "tables" / "m"
    folder.mkdir(parents=True)
    for name, boxes in (("parts.png", [(3, 5, 20, 9), (30, 2, 41, 28)]), ("full.png", [(0, 0, 50, 30)]),
                        ("empty.png", [])):
        mask = np.zeros((30, 50), np.uint8)
        for x0, y0, x1, y1 in boxes:
            mask[y0:y1, x0:x1] = 255
        cv2.imwrite(str(folder / name), mask)
    (folder / "broken.png").write_text("no picture")
    names = ("parts.png", "empty.png", "full.png", "broken.png", "missing.png")
    write(in_tmp_path / "tables" / "train.csv", *(f"a.png,m/{name},0,a,4,6,3,5,40,2" for name in names))
    return in_tmp_path


@pytest.mark.parametrize(("prompts", "points"), [("box", ["", ""]), ("both", ["[[4,6],[3,5],[40,2]]"] * 2)])
def test_boxes_are_tight_around_the_masks(masks, capsys, prompts, points):
    run("--input_dir", "tables", "--output_dir", "tables", "--prompts", prompts)
    table = pd.read_csv("tables/train_reformatted.csv", dtype=str, keep_default_na=False)
    assert table.columns.tolist() == ["image", "label", "points", "box"] and table["points"].tolist() == points
    assert table["label"].tolist() == ["m/parts.png", "m/full.png"]
    assert table["box"].tolist() == ["[3,2,41,28]", "[0,0,50,30]"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tables/train_reformatted.csv: 2 rows"
    assert lines[1].startswith("  skipped 3 rows of tables/train.csv: tables/m/empty.png: empty mask; "
                               "tables/m/broken.png: ") and "m/missing.png: " in lines[1]
    samples = read_samples("tables/train_reformatted.csv")
    assert [sample.box for sample in samples] == [(3, 2, 41, 28), (0, 0, 50, 30)]
    assert [len(sample.points) for sample in samples] == [3 * (prompts == "both")] * 2


def test_no_mask_with_a_box_is_an_error(masks, capsys):
    write(masks / "tables" / "train.csv", "a.png,m/empty.png,0,a,1,2,3,4,5,6")
    code, line = refused(capsys, reformated_csv, "--input_dir", "tables", "--prompts", "box")
    assert code == 1 and "tables/train.csv: no mask has a box, e.g. tables/m/empty.png: empty mask" in line


def test_other_folders_and_chosen_splits(in_tmp_path):
    (in_tmp_path / "in").mkdir()
    for split in ("train", "val", "test"):
        write(in_tmp_path / "in" / f"{split}.csv", "a.png,m.png,0,a,1,2,3,4,5,6")
    run("--input_dir", "in", "--output_dir", "out/new", "--splits", "test", "train")
    assert entries(in_tmp_path / "out/new") == ["test_reformatted.csv", "train_reformatted.csv"]


@pytest.mark.parametrize(("folder", "argv"), [
    pytest.param("tables", ["--input_dir", "tables"], id="a folder"),
    pytest.param("runs/1", ["--input_dir", "runs/1/"], id="below a folder"),
    pytest.param(".", [], id="none given"),
])
def test_the_output_goes_beside_the_input(in_tmp_path, folder, argv):
    (in_tmp_path / folder).mkdir(parents=True, exist_ok=True)
    write(in_tmp_path / folder / "test.csv", "a.png,m.png,0,a,1,2,3,4,5,6")
    run(*argv)
    assert files_below(in_tmp_path) == {f"{folder}/test.csv".removeprefix("./"),
                                        f"{folder}/test_reformatted.csv".removeprefix("./")}


def test_a_missing_table_is_passed_over_and_its_old_result_removed(in_tmp_path, capsys):
    write(in_tmp_path / "train.csv", "a.png,m.png,0,a,1,2,3,4,5,6")
    (in_tmp_path / "val_reformatted.csv").write_text("old")
    run("--overwrite")
    assert entries(in_tmp_path) == ["train.csv", "train_reformatted.csv"]
    assert capsys.readouterr().out == ("train_reformatted.csv: 1 rows\n"
                                       "no val.csv, so no val_reformatted.csv (the old one is removed)\n"
                                       "no test.csv, so no test_reformatted.csv\n")


def test_bad_rows_are_skipped_and_named_by_their_line(in_tmp_path, capsys):
    write(in_tmp_path / "train.csv", "a.png,m.png,0,a,1,2,3,4,5,6", "b.png,m.png,0,a,x,2,3,4,5,-6",
          ",m.png,0,a,1,2,3,4,5,6", "c.png,m.png,0,a,1,2,3,nan,inf,", "d.png,m.png,0,a,1,2,3,4,5,6")
    run()
    assert pd.read_csv("train_reformatted.csv")["image"].tolist() == ["a.png", "d.png"]
    assert capsys.readouterr().out.splitlines()[:2] == [
        "train_reformatted.csv: 2 rows",
        "  skipped 3 rows of train.csv: row 3: point1_x is 'x', point3_y is '-6'; row 4: image_path is empty; "
        "row 5: point2_y is 'nan', point3_x is 'inf', point3_y is ''"]


def test_lines_count_as_an_editor_shows_them(in_tmp_path, capsys):
    """A cell of two lines and an empty line come before the bad row."""
    write(in_tmp_path / "train.csv", '"a\nb.png",m.png,0,a,1,2,3,4,5,6', "", "c.png,m.png,0,a,?,2,3,4,5,6")
    run()
    assert (in_tmp_path / "train.csv").read_text().splitlines()[5 - 1].startswith("c.png")
    assert "skipped 1 rows of train.csv: row 5: point1_x is '?'" in capsys.readouterr().out


def test_many_bad_rows_are_counted(in_tmp_path, capsys):
    write(in_tmp_path / "train.csv", "a.png,m.png,0,a,1,2,3,4,5,6", *["a.png,m.png,0,a,?,2,3,4,5,6"] * 8)
    run()
    assert "skipped 8 rows of train.csv: row 3: point1_x is '?'; " in (out := capsys.readouterr().out)
    assert "; and 3 more\n" in out


@pytest.mark.parametrize(("text", "expected"), [("3", 3.0), ("3.5", 3.5), (" 4 ", 4.0), ("1e2", 100.0), ("0", 0.0),
                                                ("-1", None), ("", None), ("x", None), ("nan", None), ("inf", None),
                                                ("1e12", None), ("[1]", None)])
def test_pixel(text, expected):
    assert pixel(text) == expected


@pytest.mark.parametrize(("content", "message"), [
    pytest.param(None, ".: no train.csv, val.csv, test.csv in it; make them with Create_yolo_csv.py (YOLO) or "
                 "Create_csv.py (COCO)", id="no table"),
    pytest.param("", "train.csv: cannot be read as CSV (No columns to parse from file)", id="empty file"),
    pytest.param(HEADER + "\n", "train.csv: has a header but no rows; make it with Create_yolo_csv.py", id="no rows"),
    pytest.param("image_path,point1_x\na,1\n", "train.csv: missing column(s) mask_path, class_id, class_name, "
                 "point1_y, point2_x, point2_y, point3_x, point3_y; found image_path, point1_x; make it with",
                 id="columns"),
    pytest.param(HEADER + "\na,b,0,c,x,2,3,4,5,6\n", "train.csv: none of 1 rows can be used, e.g. row 2: point1_x is "
                 "'x'; expected", id="no good row"),
    pytest.param(HEADER + '\na,"b,0\n', "train.csv: cannot be read as CSV", id="open quote"),
    pytest.param(HEADER + "\na,b,0,c,1,2,3,4,5,6,7,8\n", "train.csv: cannot be read as CSV (rows have more cells than "
                 "the header", id="too many cells"),
])
def test_bad_input(in_tmp_path, capsys, content, message):
    if content is not None:
        (in_tmp_path / "train.csv").write_text(content)
    before = entries(in_tmp_path)
    code, line = refused(capsys, reformated_csv)
    assert code == 1 and message in line
    assert entries(in_tmp_path) == before


def test_one_bad_table_leaves_all_unwritten(in_tmp_path, capsys):
    write(in_tmp_path / "train.csv", "a.png,m.png,0,a,1,2,3,4,5,6")
    (in_tmp_path / "test.csv").write_text("image_path\na\n")
    assert refused(capsys, reformated_csv)[0] == 1
    assert entries(in_tmp_path) == ["test.csv", "train.csv"]


def test_flags(in_tmp_path, capsys):
    write(in_tmp_path / "train.csv", "a.png,m.png,0,a,1,2,3,4,5,6")
    assert refused(capsys, reformated_csv, "--splits", "../train")[0] == 2
    (in_tmp_path / "train_reformatted.csv").write_text("mine")
    code, line = refused(capsys, reformated_csv)
    assert code == 1 and "train_reformatted.csv: already there; give --overwrite" in line
    assert (in_tmp_path / "train_reformatted.csv").read_text() == "mine"
