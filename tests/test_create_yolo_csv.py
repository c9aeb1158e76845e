from pathlib import Path

import pytest
from class_folder_builder import BAR, write_manifest, write_pair, write_set
from data_set_builder import draw_yolo_set, entries, read_text, refused, run_script, run_yolo

import Create_yolo_csv
from Create_yolo_csv import class_of_folder
from sam_lora import contracts

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
