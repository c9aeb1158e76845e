from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from class_folder_builder import BAR, write_manifest, write_pair, write_set
from data_set_builder import draw_yolo_set, entries, read_text, refused, run_script, run_yolo

import Create_yolo_csv
import reformated_csv
from Create_yolo_csv import class_of_folder
from sam_lora import contracts
from sam_lora.data.imaging import write_png
from sam_lora.data.samples import read_samples
from sam_lora.errors import UserError

COLUMNS = ["image_path", "mask_path", "class_id", "class_name", "point1_x", "point1_y", "point2_x", "point2_y",
           "point3_x", "point3_y", "source_image"]
DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv):
    run_script(Create_yolo_csv, "--num_workers", 0, *argv)


def make_set(root, photos=5):
    rows = write_set(root, "Class_crack", 1, "crack", [f"c{number}.jpg" for number in range(photos)])
    rows += write_set(root, "Class_pot_hole", 4, "pot hole", [f"h{number}.jpg" for number in range(photos)],
                      first_seed=500)
    write_manifest(root, rows)


def test_whole_tables(in_tmp_path):
    make_set(in_tmp_path / "processed_dataset")
    run()
    assert entries(in_tmp_path) == ["output.csv", "processed_dataset", "test.csv", "train.csv", "val.csv"]
    output = read_text("output.csv")
    assert output.columns.tolist() == [*COLUMNS, "split"]
    rows = []
    for folder, letter, *class_cells in (("Class_crack", "c", "1", "crack"), ("Class_pot_hole", "h", "4", "pot hole")):
        for number in range(5):
            file = f"{letter}{number}_0000.png"
            rows.append([f"processed_dataset/{folder}/images/{file}", f"processed_dataset/{folder}/masks/{file}",
                         *class_cells, "20", "11", "11", "9", "29", "13", f"{letter}{number}.jpg"])
    assert output[COLUMNS].values.tolist() == rows
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        table = read_text(f"{split}.csv")
        assert table.columns.tolist() == COLUMNS
        assert table.values.tolist() == output.loc[output["split"] == split, COLUMNS].values.tolist()
        assert table["class_id"].value_counts().to_dict() == {"1": count // 2, "4": count // 2}
    assert all(BAR[int(row[f"point{i}_y"]), int(row[f"point{i}_x"])]
               for row in output.to_dict("records") for i in (1, 2, 3))


def test_no_split(in_tmp_path, capsys):
    make_set(in_tmp_path / "processed_dataset")
    run("--no_split")
    assert entries(in_tmp_path) == ["output.csv", "processed_dataset"]
    assert read_text("output.csv")["split"].value_counts().to_dict() == {"train": 6, "val": 2, "test": 2}
    assert capsys.readouterr().out.endswith("wrote output.csv (10 rows)\n")


def test_the_own_split_without_a_test_gets_one_from_train(in_tmp_path, capsys):
    root = in_tmp_path / "processed_dataset"
    photos = [f"{side}/images/{number}.jpg" for number, side in enumerate(["train"] * 8 + ["valid"] * 2)]
    write_manifest(root, write_set(root, "Class_0", 0, "0", photos, ["train"] * 8 + ["val"] * 2))
    run()
    split = read_text("output.csv").set_index("source_image")["split"]
    assert split.value_counts().to_dict() == {"train": 6, "val": 2, "test": 2}
    assert (split[photos[8:]] == "val").all()
    assert "it has no test: rows taken from train by photo: 2 for test" in capsys.readouterr().out


def test_without_a_manifest(in_tmp_path):
    """The class from the folder's name alone; its id is the name, if that is a number, else its place."""
    for folder in ("Class_7", "Class_2_wheels"):
        for number in range(3):
            write_pair(in_tmp_path / "processed_dataset", folder, f"{folder}{number}_0000", len(folder) + number)
    run()
    classes = read_text("output.csv")[["class_id", "class_name"]]
    assert set(map(tuple, classes.values)) == {("7", "7"), ("0", "2_wheels")}


@pytest.mark.parametrize(("name", "expected"), [
    pytest.param("crack", (None, "crack"), id="a name"),
    pytest.param("0", ("0", "0"), id="a number"),
    pytest.param("7_crack", (None, "7_crack"), id="not a COCO folder"),
])
def test_class_of_folder(name, expected):
    assert class_of_folder(name) == expected


def test_nothing_is_overwritten_unasked(in_tmp_path, capsys):
    make_set(in_tmp_path / "processed_dataset")
    (in_tmp_path / "output.csv").write_text("mine")
    code, line = refused(capsys, Create_yolo_csv)
    assert code == 1 and "output.csv: already there; give --overwrite" in line
    assert entries(in_tmp_path) == ["output.csv", "processed_dataset"]
    assert (in_tmp_path / "output.csv").read_text() == "mine"


def pixels_of(split):
    """Which pixels of the photo the rows of a table show, (H, W) bool; tiles without objects, too."""
    shown = np.zeros((2000, 3000), bool)
    paths = [Path("processed_dataset") / name for name in ("instances.csv", "background.csv")]
    places = pd.concat([pd.read_csv(path) for path in paths if path.is_file()]).set_index("image_path")
    for image in read_text(f"{split}.csv")["image_path"]:
        x0, y0, x1, y1 = places.loc[[image.removeprefix("processed_dataset/")]].iloc[0][
            ["crop_x0", "crop_y0", "crop_x1", "crop_y1"]].astype(int)
        shown[y0:y1, x0:x1] = True
    return shown


def one_photo(root, columns, rows):
    """A photo of 3000 x 2000 pixels with objects at these places, as shares of its sides."""
    write_png(root / "images/ortho.png", np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), dtype=np.uint8))
    (root / "labels").mkdir()
    (root / "data.yaml").write_text("names: [tree]\n")
    (root / "labels/ortho.txt").write_text("\n".join(
        f"0 {x} {y} {x + .03} {y} {x + .03} {y + .04} {x + .01} {y + .05}" for x in columns for y in rows))


@pytest.mark.parametrize(("flags", "columns", "rows"), [
    pytest.param(["--tile", "512"], np.arange(.05, .95, .1), np.arange(.05, .95, .15), id="tiles"),
    pytest.param(["--tile", "256"], [.5, .52, .54], np.arange(.05, .9, .02), id="tiles, all in a column"),
    pytest.param([], np.arange(.05, .95, .1), [.3, .5], id="crops"),
])
def test_one_orthomosaic_is_split_by_area(in_tmp_path, capsys, flags, columns, rows):
    one_photo(in_tmp_path / "set", columns, rows)
    run_yolo(in_tmp_path / "set", in_tmp_path / "processed_dataset", *flags)
    run()
    train, val, test = map(pixels_of, contracts.SPLITS)
    assert not (train & val).any() and not (train & test).any() and not (val & test).any()
    assert "so that no pixel is on two sides" in capsys.readouterr().out
    kept = {split: len(read_text(f"{split}.csv")) for split in contracts.SPLITS}
    assert sum(kept.values()) >= 0.6 * len(read_text("output.csv"))
    assert kept["train"] > kept["test"] > 0 and kept["val"] > 0
    run_script(reformated_csv)
    assert len(read_samples("test_reformatted.csv")) == kept["test"]


def test_one_whole_photo_cannot_be_split_and_the_next_steps_say_so(in_tmp_path, capsys):
    one_photo(in_tmp_path / "set", [.1, .5], [.3])
    run_yolo(in_tmp_path / "set", in_tmp_path / "processed_dataset", "--no_crop")
    run()
    assert "warning: one photo cannot be split: all 2 rows are train" in capsys.readouterr().out
    run_script(reformated_csv)
    with pytest.raises(UserError, match="^test_reformatted.csv: no such file, nor a test.csv to make it from: the "
                                        "split has no test rows .there is train_reformatted.csv"):
        read_samples("test_reformatted.csv")


@pytest.mark.parametrize("no_crop", [False, True])
@pytest.mark.parametrize("name", ["drawn", "mixed-yolo-fixture"])
def test_after_the_converter(in_tmp_path, name, no_crop):
    """What process_yolo_to_classwise.py writes, --no_crop too, is read whole: a row for each manifest row."""
    root = DATA / name
    if name == "drawn":
        root = in_tmp_path / "set"
        draw_yolo_set(root)
    elif not root.is_dir():
        pytest.skip(f"{root} is not there")
    run_yolo(root, in_tmp_path / "processed_dataset", "--boxes", "rectangle", *["--no_crop"] * no_crop)
    run()
    manifest, output = read_text("processed_dataset/instances.csv"), read_text("output.csv")
    assert len(manifest) > 10
    with_objects, background = output[output["mask_path"] != ""], output[output["mask_path"] == ""]
    for column in ("image_path", "mask_path"):
        assert sorted(with_objects[column]) == sorted("processed_dataset/" + manifest[column])
    assert len(background) == (4 if no_crop and name == "mixed-yolo-fixture" else 0)
    assert (background[[*contracts.POINT_COLUMNS, "class_id", "class_name"]] == "").all(axis=None)
    assert set(with_objects["class_name"]) == set(manifest["class_name"])
    assert (output.groupby("source_image")["split"].nunique() == 1).all()
