import cv2
import numpy as np
import pytest
from class_folder_builder import BAR, EMPTY, manifest_row, write_manifest, write_pair, write_set
from data_set_builder import entries, read_text, refused, run_script

import Create_csv
import reformated_csv
from Create_csv import class_of_folder
from sam_lora.data.samples import check_samples, read_samples
from sam_lora.errors import UserError

COLUMNS = ["image_path", "mask_path", "class_id", "class_name", "point1_x", "point1_y", "point2_x", "point2_y",
           "point3_x", "point3_y", "source_image"]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv):
    run_script(Create_csv, "--num_workers", 0, *argv)


def make_set(folder, classes=("Class_7_Dental_Calculus", "Class_12_caries"), photos=10, **more):
    rows = []
    for number, name in enumerate(classes):
        class_id, class_name = class_of_folder(name.removeprefix("Class_"))
        rows += write_set(folder, name, class_id, class_name.replace("_", " "),
                          [f"{number}_{photo}.jpg" for photo in range(photos)], first_seed=1000 * number, **more)
    return rows


def test_masks_that_number_their_objects_are_refused_or_split(in_tmp_path, capsys):
    """Ten cells in each of six photos: never one object of half of them."""
    numbers = np.kron(np.arange(1, 11, dtype=np.uint8).reshape(2, 5), np.ones((10, 8), np.uint8))
    numbers[::10] = numbers[:, ::8] = 0
    for photo in range(6):
        write_pair(in_tmp_path / "processed_dataset", "Class_1_cell", f"img{photo}", photo, numbers > 0)
        cv2.imwrite(str(in_tmp_path / f"processed_dataset/Class_1_cell/masks/img{photo}.png"), numbers)
    code, said = refused(capsys, Create_csv, "--num_workers", 0)
    assert code == 1 and "a label map of 10 objects or classes, expected a mask of one object; give Create_csv.py or " \
           "Create_yolo_csv.py --split_label_maps" in said
    run("--split_label_maps")
    assert "6 label maps became 60 masks" in capsys.readouterr().out
    tables = [read_text(f"{split}.csv") for split in ("train", "val", "test")]
    assert sum(len(table) for table in tables) == 60
    for table in tables:
        for row in table.itertuples():
            assert row.image_path == row.mask_path.replace("/masks/", "/images/")[:-len("_0001.png")] + ".png"
            assert numbers[int(row.point1_y), int(row.point1_x)] == int(row.mask_path[-8:-4])
        assert table.groupby("source_image").size().eq(10).all()


def test_whole_tables(in_tmp_path, capsys):
    rows = make_set(in_tmp_path / "processed_dataset", ["Class_7_Dental_Calculus"], photos=3,
                    split_of=["train", "val", "test"])
    write_manifest(in_tmp_path / "processed_dataset", rows)
    run()
    assert entries(in_tmp_path) == ["processed_dataset", "test.csv", "train.csv", "val.csv"]
    for number, split in enumerate(("train", "val", "test")):
        table = read_text(f"{split}.csv")
        assert table.columns.tolist() == COLUMNS
        folder = "processed_dataset/Class_7_Dental_Calculus"
        assert table.values.tolist() == [
            [f"{folder}/images/0_{number}_0000.png", f"{folder}/masks/0_{number}_0000.png", "7", "Dental Calculus",
             "20", "11", "14", "11", "26", "11", f"0_{number}.jpg"]]
    assert capsys.readouterr().out.splitlines() == [
        "class               train     val    test     all",
        "7 Dental Calculus       1       1       1       3",
        "rows                    1       1       1       3",
        "photos                  1       1       1       3",
        "by file name: 3 groups of 3 files",
        "the data set's own split is kept (train 1, val 1, test 1); --resplit makes a new one",
        "photos in more than one split: 0 of 3 (copies of a photo count once)",
        "wrote train.csv (1 rows)", "wrote val.csv (1 rows)", "wrote test.csv (1 rows)"]


def test_a_split_by_photo_and_class(in_tmp_path, capsys):
    rows = make_set(in_tmp_path / "processed_dataset", objects=2)
    write_manifest(in_tmp_path / "processed_dataset", rows)
    run()
    tables = {split: read_text(f"{split}.csv") for split in ("train", "val", "test")}
    assert {split: table["class_id"].value_counts().to_dict() for split, table in tables.items()} == {
        "train": {"7": 12, "12": 12}, "val": {"7": 4, "12": 4}, "test": {"7": 4, "12": 4}}
    photos = [set(table["source_image"]) for table in tables.values()]
    assert len(set.union(*photos)) == sum(map(len, photos)) == 20
    assert "photos in more than one split: 0 of 20" in capsys.readouterr().out


def test_same_seed_same_tables_other_seed_others(in_tmp_path):
    write_manifest(in_tmp_path / "processed_dataset", make_set(in_tmp_path / "processed_dataset"))
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run("--output_dir", folder, "--seed", seed)
    contents = [[(in_tmp_path / folder / f"{split}.csv").read_bytes() for split in ("train", "val", "test")]
                for folder in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_resplit_and_split(in_tmp_path, capsys):
    rows = make_set(in_tmp_path / "processed_dataset", split_of=["train"] * 4 + ["val"] * 3 + ["test"] * 3)
    write_manifest(in_tmp_path / "processed_dataset", rows)
    run()
    assert [len(read_text(f"{split}.csv")) for split in ("train", "val", "test")] == [8, 6, 6]
    run("--resplit", "--split", "0.8", "0.1", "0.1", "--overwrite")
    assert [len(read_text(f"{split}.csv")) for split in ("train", "val", "test")] == [16, 2, 2]
    assert "split from scratch, the data set's own split is not used" in capsys.readouterr().out


@pytest.mark.parametrize(("photos", "told"), [
    pytest.param([[f"augmented/images/image_{i:04d}{s}.jpg" for s in ("", "_aug0", "_aug1", "_aug2", "_aug3")]
                  for i in range(12)], "by file name: 12 groups of 60 files (48 copies, e.g. augmented/images/"
                 "image_0000_aug0.jpg of augmented/images/image_0000.jpg)", id="copies by an augmentation script"),
    pytest.param([[f"ortho{i}_{x}_0_{x + 512}_512.png" for x in range(0, 1024, 410)] for i in range(6)],
                 "by file name: 6 groups of 18 files (18 tiles, e.g. ortho0_0_0_512_512.png of ortho0)", id="SAHI"),
    pytest.param([[f"drive{i}/frame_{n:05d}.jpg" for n in range(4)] for i in range(5)],
                 "by file name: 5 groups of 20 files (20 frames, e.g. drive0/frame_00000.jpg of drive0)", id="frames"),
    pytest.param([[f"images/wall{i}{s}.png" for s in ("", "_hflip", "_rot90")] for i in range(5)],
                 "by file name: 5 groups of 15 files (10 copies, e.g. images/wall0_hflip.png of images/wall0.png)",
                 id="copies named by what was done to them"),
])
def test_copies_slices_and_frames_of_a_photo_are_on_one_side(in_tmp_path, capsys, photos, told):
    root, names = in_tmp_path / "processed_dataset", [name for copies in photos for name in copies]
    rows = []
    for number, name in enumerate(names):
        write_pair(root, "Class_1_crack", f"p{number}_0000", number)
        rows.append(manifest_row("Class_1_crack", f"p{number}_0000", 1, "crack", name))
    write_manifest(root, rows)
    run()
    sides = {split: set(read_text(f"{split}.csv")["source_image"]) for split in ("train", "val", "test")}
    assert all(sum(bool(side & {*copies}) for side in sides.values()) == 1 for copies in photos)
    out = capsys.readouterr().out.splitlines()
    assert told in out and f"photos in more than one split: 0 of {len(photos)} (copies of a photo count once)" in out


@pytest.mark.parametrize(("argv", "photos"), [
    pytest.param(["--group_by", "site([0-9])"], [["a_site1.png", "b_site1.png"], ["a_site2.png", "c_site2.png"],
                                                 ["site3/d.png", "e_site3.png"]], id="pattern"),
    pytest.param(["--group_csv", "photos.csv"], [["a.png", "b.png"], ["c.png", "d.png"], ["x/e.png", "f.png"]],
                 id="table"),
])
def test_photos_as_the_user_says(in_tmp_path, capsys, argv, photos):
    names = [file for files in photos for file in files]
    rows = write_set(in_tmp_path / "processed_dataset", "Class_1_a", 1, "a", names)
    write_manifest(in_tmp_path / "processed_dataset", rows)
    lines = ("source_image,photo", "a.png,1", "b.png,1", "c.png,2", "d.png,2", "e.png,3", "f.png,3")
    (in_tmp_path / "photos.csv").write_text("\n".join(lines))
    run(*argv)
    sides = [set(read_text(f"{split}.csv")["source_image"]) for split in ("train", "val", "test")]
    assert sorted(map(sorted, sides)) == sorted(map(sorted, photos))
    assert "3 groups of 6 files" in capsys.readouterr().out


@pytest.mark.parametrize(("split", "own", "expected"), [
    pytest.param("0 0 1", [""] * 10, {"test": 20}, id="test alone"),
    pytest.param("0 1 0", [""] * 10, {"val": 20}, id="val alone"),
    pytest.param("0 0.5 0.5", [""] * 10, {"val": 10, "test": 10}, id="no train"),
    pytest.param("0 0 1", ["test"] * 10, {"test": 20}, id="the own split has nothing else"),
    pytest.param("0 0.5 0.5", ["val"] * 3 + ["test"] * 7, {"val": 6, "test": 14}, id="the own split is kept"),
    pytest.param("0 0 1", ["val"] * 10, {"test": 20}, id="the own split has no test"),
])
def test_tables_to_measure_with_only(in_tmp_path, split, own, expected):
    """And the next step takes them; training says that there is nothing to train with."""
    rows = make_set(in_tmp_path / "processed_dataset", split_of=own)
    write_manifest(in_tmp_path / "processed_dataset", rows)
    run("--split", *split.split())
    assert {path.stem: len(read_text(path.name)) for path in in_tmp_path.glob("*.csv")} == expected
    run_script(reformated_csv)
    for side in expected:
        samples = read_samples(f"{side}_reformatted.csv")
        check_samples(samples, f"{side}_reformatted.csv", need_labels=True)
        assert len(samples) == expected[side]
    with pytest.raises(UserError, match=f"^train_reformatted.csv: no such file, nor a train.csv to make it from: the "
                                        f"split has no train rows .there is {'val' if 'val' in expected else 'test'}_"):
        read_samples("train_reformatted.csv")


def test_without_a_manifest(in_tmp_path, capsys):
    """Ids and names from the folders, photos from the file names."""
    for number in range(6):
        for index in range(2):
            write_pair(in_tmp_path / "mine", "Class_3_fine crack", f"p{number}_{index:04d}", number * 2 + index)
    run("--dataset_dir", "mine", "--output_dir", "out/tables")
    assert entries(in_tmp_path / "out/tables") == ["test.csv", "train.csv", "val.csv"]
    tables = [read_text(f"out/tables/{split}.csv") for split in ("train", "val", "test")]
    assert [len(table) for table in tables] == [8, 2, 2]
    assert {tuple(row) for table in tables for row in table[["class_id", "class_name"]].values} == {("3", "fine crack")}
    assert [table["source_image"].nunique() for table in tables] == [4, 1, 1]
    assert "no mine/instances.csv: classes go by folder name" in capsys.readouterr().out


def test_classes_without_an_instance_are_named(in_tmp_path, capsys):
    make_set(in_tmp_path / "processed_dataset", photos=3)
    (in_tmp_path / "processed_dataset" / "Class_0_parent" / "images").mkdir(parents=True)
    write_pair(in_tmp_path / "processed_dataset", "Class_1_blank", "p_0000", 77, EMPTY)
    run()
    out = capsys.readouterr().out
    assert "classes without an instance, skipped: blank, parent\n" in out
    assert "skipped 1: empty mask: processed_dataset/Class_1_blank/masks/p_0000.png\n" in out
    assert sum(len(read_text(f"{split}.csv")) for split in ("train", "val", "test")) == 6


def test_one_photo_makes_a_train_table_only(in_tmp_path, capsys):
    write_pair(in_tmp_path / "processed_dataset", "Class_0_a", "p_0000", 0)
    write_pair(in_tmp_path / "processed_dataset", "Class_0_a", "p_0001", 1)
    run()
    assert entries(in_tmp_path) == ["processed_dataset", "train.csv"]
    out = capsys.readouterr().out
    assert "no val rows, so no val.csv\n" in out and "no test rows, so no test.csv\n" in out


@pytest.mark.parametrize(("name", "expected"), [
    pytest.param("7_Dental_Calculus", ("7", "Dental_Calculus"), id="id and name"),
    pytest.param("7_2_wheels", ("7", "2_wheels"), id="a number in the name"),
    pytest.param("crack", (None, "crack"), id="no id"),
    pytest.param("12", (None, "12"), id="a number only"),
])
def test_class_of_folder(name, expected):
    assert class_of_folder(name) == expected


# ---- bad input --------------------------------------------------------------------------------------------

def test_nothing_is_overwritten_unasked(in_tmp_path, capsys):
    write_pair(in_tmp_path / "processed_dataset", "Class_0_a", "p_0000", 0)
    (in_tmp_path / "val.csv").write_text("mine")
    program = Create_csv.get_args_parser().prog
    assert refused(capsys, Create_csv) == (
        1, f"{program}: error: val.csv: already there; give --overwrite to replace, or write elsewhere")
    assert entries(in_tmp_path) == ["processed_dataset", "val.csv"]
    run("--overwrite")
    assert entries(in_tmp_path) == ["processed_dataset", "train.csv"]


@pytest.mark.parametrize(("argv", "code", "message"), [
    pytest.param([], 1, "processed_dataset: no such folder; make it with process_yolo_to_classwise.py", id="no folder"),
    pytest.param(["--dataset_dir", "file"], 1, "file: is a file, expected the folder", id="a file for a folder"),
    pytest.param(["--output_dir", "file"], 1, "file: is a file; expected a folder", id="a file for the output"),
    pytest.param(["--output_dir", "file/deeper"], 1, "file", id="a file above the output"),
    pytest.param(["--split", "0.6", "0.2", "0.1"], 2, "expected three fractions that sum to 1; got 0.6 0.2 0.1",
                 id="fractions that do not sum to 1"),
    pytest.param(["--split", "0", "0", "0"], 2, "fractions that sum to 1; got 0.0 0.0 0.0", id="nothing at all"),
    pytest.param(["--split", "0.6", "nan", "0.2"], 2, "must be a finite number", id="not a number"),
    pytest.param(["--split", "0.6", "0.4"], 2, "expected 3 arguments", id="two shares"),
    pytest.param(["--group_by", "a("], 2, "not a regular expression", id="a pattern that is none"),
    pytest.param(["--group_by", "a.*"], 2, "expected a group, ( and ), around the photo's name", id="no group"),
    pytest.param(["--group_by", "(a)", "--group_csv", "f"], 2, "not allowed with", id="a pattern and a table"),
    pytest.param(["--num_workers", "-1"], 2, "must not be negative", id="workers"),
    pytest.param(["--no_split"], 2, "unrecognized arguments: --no_split", id="the other script's flag"),
])
def test_bad_input(in_tmp_path, capsys, argv, code, message):
    (in_tmp_path / "file").write_text("x")
    if code == 1 and "--output_dir" in argv:
        write_pair(in_tmp_path / "processed_dataset", "Class_0_a", "p_0000", 0)
    found_code, line = refused(capsys, Create_csv, "--num_workers", 0, *argv)
    assert found_code == code and message in line
    assert not list(in_tmp_path.glob("*.csv"))


def test_points_lie_in_the_mask(in_tmp_path):
    write_pair(in_tmp_path / "processed_dataset", "Class_0_a", "p_0000", 0)
    run()
    row = read_text("train.csv").loc[0]
    assert all(BAR[int(row[f"point{i}_y"]), int(row[f"point{i}_x"])] for i in (1, 2, 3))
