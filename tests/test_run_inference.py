"""run_inference.py: its files and tables, the comparison with the base, single images, and what bad input gets."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_checkpoint, random_sam

import run_base_sam_inference
import run_inference
from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.errors import UserError
from sam_lora.results import metrics

ROOT = Path(run_inference.__file__).parent
STEMS = [f"{number:05d}_photo{number + 9}_0001" for number in range(1, 7)]
FILES = {"predictions.jpg", "report.html", "finetuned_sam_results.csv", "finetuned_sam_class_iou_summary.csv",
         "finetuned_sam_size_iou_summary.csv",
         *(f"masks/{stem}.png" for stem in STEMS), *(f"samples/{stem}.jpg" for stem in STEMS)}


@pytest.fixture
def run(crops, mini_weights, mini_checkpoint, tmp_path, monkeypatch):
    """Calls the script with flags of its own; later flags win. Results go to tmp_path/out."""
    monkeypatch.chdir(tmp_path)

    def call(*flags) -> Path:
        arguments = ["--checkpoint", mini_checkpoint, "--base_checkpoint", mini_weights, "--output_dir", "out",
                     "--device", "cpu", *flags]
        if not {"--image", "--images_dir", "--prompts_csv"} & {*flags}:
            arguments += [] if "--test_csv" in flags else ["--test_csv", crops.test_csv]
        run_inference.main(run_inference.get_args_parser().parse_args([str(argument) for argument in arguments]))
        return tmp_path / "out"
    return call


@pytest.fixture
def base_results(crops, mini_weights, tmp_path) -> Path:
    folder = tmp_path / "base"
    run_base_sam_inference.main(run_base_sam_inference.get_args_parser().parse_args(
        ["--model_type", "vit_mini", "--checkpoint", str(mini_weights), "--test_csv", str(crops.test_csv),
         "--output_dir", str(folder), "--num_pictures", "0", "--device", "cpu"]))
    return folder / "base_sam_results.csv"


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- a table ----------------------------------------------------------------------------------------------------

def test_every_row_is_predicted_scored_and_drawn(run, crops, capsys):
    out = run()
    assert files_of(out) == FILES
    results = pd.read_csv(out / "finetuned_sam_results.csv")
    table = pd.read_csv(crops.test_csv)
    assert list(results.columns) == list(contracts.RESULT_COLUMNS)
    assert results[["image", "label"]].equals(table[["image", "label"]])
    assert results["class_name"].tolist() == ["red disc", "green bar"] * 3
    assert results["mask"].tolist() == [f"masks/{stem}.png" for stem in STEMS]
    assert results["picture"].tolist() == [f"samples/{stem}.jpg" for stem in STEMS]
    for row in results.itertuples():
        stored = cv2.imread(str(out / row.mask), cv2.IMREAD_UNCHANGED)
        truth = imaging.load_mask(crops.folder / row.label)
        assert stored.shape == truth.shape and set(np.unique(stored)) <= {0, 255}
        assert row.iou == pytest.approx(metrics.iou(stored > 0, truth), abs=1e-6)
        assert row.dice == pytest.approx(metrics.dice(stored > 0, truth), abs=1e-6)
        assert row.boundary_iou == pytest.approx(metrics.boundary_iou(stored > 0, truth), abs=1e-6)
        assert (row.mask_area, row.truth_area) == ((stored > 0).sum(), truth.sum())
        assert row.size == "small"
    summary = pd.read_csv(out / "finetuned_sam_class_iou_summary.csv")
    assert summary["class_name"].tolist() == ["green bar", "red disc", contracts.BY_OBJECT, contracts.BY_CLASS]
    assert summary["n"].tolist() == [3, 3, 6, 2]
    assert summary["mean_iou"][2] == pytest.approx(results["iou"].mean(), abs=1e-6)
    sizes = pd.read_csv(out / "finetuned_sam_size_iou_summary.csv")
    assert list(sizes.columns) == list(contracts.SIZE_SUMMARY_COLUMNS)
    assert sizes[["size", "n"]].to_numpy().tolist() == [["small", 6], ["medium", 0], ["large", 0]]
    assert sizes["mean_iou"][0] == pytest.approx(results["iou"].mean(), abs=1e-6)
    printed = capsys.readouterr().out
    assert "vit_mini at 256 px, epoch 2" in printed and contracts.BY_CLASS in printed and "under 1024" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 7 and "red disc" in page   # six samples and the contact sheet


def test_the_same_run_writes_the_same_bytes(run, tmp_path):
    first = run("--num_pictures", 2)
    second = run("--num_pictures", 2, "--output_dir", "again", "--batch_size", 8).parent / "again"
    assert files_of(first) == files_of(second)
    for name in files_of(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_fewer_pictures_than_rows_show_every_class(run):
    out = run("--num_pictures", 2)
    results = pd.read_csv(out / "finetuned_sam_results.csv", keep_default_na=False)
    drawn = results[results["picture"] != ""]
    assert {*drawn["picture"]} == {name for name in files_of(out) if name.startswith("samples/")}
    assert sorted(drawn["class_name"]) == ["green bar", "red disc"]


def test_no_pictures(run):
    assert files_of(run("--num_pictures", 0)) == {name for name in FILES if not name.endswith(".jpg")}


def test_a_table_without_labels_gives_masks_and_pictures_only(run, crops, capsys):
    table = pd.read_csv(crops.test_csv).assign(label="")
    table.to_csv(crops.folder / "no_labels.csv", index=False)
    out = run("--test_csv", crops.folder / "no_labels.csv")
    assert files_of(out) == FILES - {"finetuned_sam_class_iou_summary.csv", "finetuned_sam_size_iou_summary.csv"}
    results = pd.read_csv(out / "finetuned_sam_results.csv", keep_default_na=False)
    assert {*results[["iou", "dice", "boundary_iou", "truth_area", "size"]].to_numpy().ravel()} == {""}
    assert results["class_name"].tolist() == ["red disc", "green bar"] * 3
    assert "6 of 6 rows have no label: predicted, not scored" in capsys.readouterr().out


def test_rows_without_a_label_among_others_are_left_out_of_the_summary(run, crops):
    table = pd.read_csv(crops.test_csv)
    table.loc[[0, 3], "label"] = ""
    table.to_csv(crops.folder / "some.csv", index=False)
    out = run("--test_csv", crops.folder / "some.csv", "--num_pictures", 0)
    results = pd.read_csv(out / "finetuned_sam_results.csv")
    assert results["iou"].isna().tolist() == [True, False, False, True, False, False]
    assert pd.read_csv(out / "finetuned_sam_class_iou_summary.csv")["n"].tolist() == [2, 2, 4, 2]


def test_rows_that_differ_in_nothing_but_points_have_their_own_masks(run, crops):
    table = pd.read_csv(crops.test_csv).iloc[[0, 0, 1]]
    table.iloc[1, 2] = "[[3,3]]"
    table.to_csv(crops.folder / "same.csv", index=False)
    out = run("--test_csv", crops.folder / "same.csv", "--num_pictures", 0)
    results = pd.read_csv(out / "finetuned_sam_results.csv")
    assert results["mask"].tolist() == ["masks/00001_photo10_0001.png", "masks/00002_photo10_0001.png",
                                        "masks/00003_photo11_0001.png"]
    assert results["predicted_iou"].nunique() == 3


# ---- base against tuned -------------------------------------------------------------------------------------------

def test_compare_to_the_base(run, base_results, capsys):
    out = run("--num_pictures", 0, "--compare_to", base_results)
    changed = {"improved.jpg", "regressed.jpg"} & files_of(out)
    assert files_of(out) == ({name for name in FILES if not name.endswith(".jpg")}
                             | {"comparison.csv", "comparison.png"} | changed)
    base, tuned = pd.read_csv(base_results), pd.read_csv(out / "finetuned_sam_results.csv")
    comparison = pd.read_csv(out / "comparison.csv")
    assert comparison["class_name"].tolist() == ["green bar", "red disc", contracts.BY_OBJECT, contracts.BY_CLASS]
    everything = comparison.iloc[2]
    assert everything["base_iou"] == pytest.approx(base["iou"].mean(), abs=1e-5)
    assert everything["tuned_iou"] == pytest.approx(tuned["iou"].mean(), abs=1e-5)
    assert everything["wins"] == (tuned["iou"] > base["iou"]).sum() > 0
    assert everything["losses"] == (tuned["iou"] < base["iou"]).sum()
    assert list(comparison.columns) == list(contracts.COMPARISON_COLUMNS) and everything["photos"] == 6
    printed = capsys.readouterr().out
    sentence = [line for line in printed.splitlines() if "on the same 6 objects of 6 photos" in line]
    assert len(sentence) == 1 and f"better on {everything['wins']} and worse on {everything['losses']}." in sentence[0]
    for name, count in (("improved", everything["wins"]), ("regressed", everything["losses"])):
        assert (f"{name}.jpg" in changed) == (count > 0)
        assert (f"no sample {name}: no {name}.jpg" in printed) == (count == 0)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 1 + len(changed) and sentence[0] in page


def test_a_model_against_itself_shows_no_difference(run, capsys):
    results = run("--num_pictures", 0) / "finetuned_sam_results.csv"
    run("--num_pictures", 0, "--compare_to", results, "--output_dir", "again")
    printed = capsys.readouterr().out
    assert "No clear difference" in printed and "no sample improved: no improved.jpg" in printed
    assert not list(results.parents[1].glob("again/*.jpg"))
    assert pd.read_csv(results.parents[1] / "again" / "comparison.csv")[["wins", "losses"]].to_numpy().sum() == 0


def test_the_base_masks_gone_leave_two_pictures_out(run, base_results, capsys):
    next((base_results.parent / "masks").iterdir()).unlink()
    out = run("--num_pictures", 0, "--compare_to", base_results)
    lines = [line for line in capsys.readouterr().out.splitlines() if "no improved.jpg nor regressed.jpg" in line]
    assert len(lines) == 1 and "no such file" in lines[0]
    assert files_of(out) == ({name for name in FILES if not name.endswith(".jpg")}
                             | {"comparison.csv", "comparison.png"})


def test_the_report_shows_the_training_beside_the_checkpoint(run, mini_checkpoint, tmp_path):
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "x.ckpt").write_bytes(mini_checkpoint.read_bytes())
    (folder / "training_log.csv").write_text("epoch,val_iou\n0,0.1234\n")
    assert cv2.imwrite(str(folder / "training_curves.png"), np.zeros((30, 50, 3), np.uint8))
    page = (run("--num_pictures", 0, "--checkpoint", folder / "x.ckpt") / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 1 and "0.1234" in page and "trained/x.ckpt" in page


# ---- other points -------------------------------------------------------------------------------------------------

def test_prompt_trials_have_a_table_and_a_sentence(run, crops, capsys):
    table = pd.read_csv(crops.test_csv)
    table.loc[0, "label"] = ""
    table["box"] = ["", "[5,5,40,30]", *[""] * 4]
    table.loc[1, "points"] = ""
    table.to_csv(crops.folder / "some.csv", index=False)
    out = run("--test_csv", crops.folder / "some.csv", "--num_pictures", 0, "--prompt_trials", 3)
    assert files_of(out) == {name for name in FILES if not name.endswith(".jpg")} | {"finetuned_sam_prompt_trials.csv"}
    trials = pd.read_csv(out / "finetuned_sam_prompt_trials.csv")
    assert list(trials.columns) == list(contracts.PROMPT_TRIALS_COLUMNS)
    results = pd.read_csv(out / "finetuned_sam_results.csv")
    assert trials[["class_name", "image", "label", "iou"]].equals(   # those with a mask and points of their own
        results.loc[2:, ["class_name", "image", "label", "iou"]].reset_index(drop=True))
    assert (trials["trials"] == 3).all() and (trials["min_iou"] <= trials["mean_iou"]).all()
    assert (trials["mean_iou"] <= trials["max_iou"]).all() and (trials["std_iou"] > 0).any()
    sentence = [line for line in capsys.readouterr().out.splitlines() if line.startswith("With 3 other random sets")]
    assert len(sentence) == 1 and f"mean IoU is {trials['mean_iou'].mean():.3f} against" in sentence[0]
    assert f"{trials['iou'].mean():.3f} with the table's own points" in sentence[0] and "on 4 objects" in sentence[0]


def test_trials_change_nothing_else(run, tmp_path):
    plain = run("--num_pictures", 0)
    tried = run("--num_pictures", 0, "--prompt_trials", 2, "--output_dir", "tried").parent / "tried"
    for name in files_of(plain) - {"report.html"}:
        assert (plain / name).read_bytes() == (tried / name).read_bytes(), name


def test_trials_where_nothing_can_be_tried(run, crops, capsys):
    pd.read_csv(crops.test_csv).assign(label="").to_csv(crops.folder / "no_labels.csv", index=False)
    out = run("--test_csv", crops.folder / "no_labels.csv", "--num_pictures", 0, "--prompt_trials", 2)
    assert "No row has both a mask and foreground points" in capsys.readouterr().out
    assert "finetuned_sam_prompt_trials.csv" not in files_of(out)


def test_other_samples_are_refused_before_the_model_runs(run, base_results, crops, tmp_path):
    pd.read_csv(crops.test_csv)[:5].to_csv(crops.folder / "five.csv", index=False)
    with pytest.raises(UserError, match=r"scored other samples than .*five.csv has \(0 only in .*, 1 only in "):
        run("--test_csv", crops.folder / "five.csv", "--compare_to", base_results, "--checkpoint", "not_even_there")
    assert not (tmp_path / "out").exists()


# ---- one image ----------------------------------------------------------------------------------------------------

def test_one_image_by_points_and_box(run, crops, tmp_path, capsys):
    image = crops.folder / pd.read_csv(crops.test_csv)["image"][1]
    out = run("--image", image, "--points", "37,23 4.5,3", "--labels", "1 0", "--box", "10,10,60,35")
    assert files_of(out) == {"photo11_0001_mask.png", "photo11_0001_overlay.jpg"}
    mask = cv2.imread(str(out / "photo11_0001_mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == imaging.load_image(image).shape[:2] and set(np.unique(mask)) == {0, 255}
    assert f"mask of {(mask > 0).sum()} px" in capsys.readouterr().out


def test_one_image_predicts_what_a_table_row_predicts(run, crops):
    row = pd.read_csv(crops.test_csv).iloc[1]
    points = " ".join(f"{x},{y}" for x, y in eval(row["points"]))
    out = run("--image", crops.folder / row["image"], "--points", points)
    (out / "photo11_0001_mask.png").rename(out.parent / "single.png")
    table_mask = imaging.load_mask(run("--num_pictures", 0, "--overwrite") / "masks" / f"{STEMS[1]}.png")
    assert (imaging.load_mask(out.parent / "single.png") != table_mask).mean() < 1e-3


def test_several_objects_of_one_image(run, crops):
    image = crops.folder / pd.read_csv(crops.test_csv)["image"][1]
    out = run("--image", image, "--points", "37,23 4.5,3", "--points", "none", "--labels", "1 0", "--labels", "none",
              "--box", "none", "--box", "10,10,60,35")
    assert files_of(out) == {"photo11_0001_mask_1.png", "photo11_0001_mask_2.png", "photo11_0001_overlay.jpg"}
    masks = [imaging.load_mask(out / f"photo11_0001_mask_{number}.png") for number in (1, 2)]
    for name, prompt in (("by_points", ("--points", "37,23 4.5,3", "--labels", "1 0")),
                         ("by_box", ("--box", "10,10,60,35"))):
        alone = run("--image", image, *prompt, "--output_dir", name).parent / name / "photo11_0001_mask.png"
        assert (imaging.load_mask(alone) != masks.pop(0)).mean() < 1e-3


# ---- a folder of images -------------------------------------------------------------------------------------------

def test_a_folder_of_images_with_a_table_of_prompts(run, crops, capsys):
    images = crops.folder / "processed_dataset"
    table = pd.read_csv(crops.test_csv)[["image", "points"]]
    table["image"] = table["image"].str.removeprefix("processed_dataset/")
    table["class_name"] = ["red disc", "green bar"] * 3
    table.to_csv(crops.folder / "prompts.csv", index=False)
    out = run("--images_dir", images, "--prompts_csv", crops.folder / "prompts.csv", "--save_yolo", "--num_pictures", 2)
    stems = [name.replace("/images/", "/").removesuffix(".png") for name in table["image"]]
    names = files_of(out)
    overlays = {name for name in names if name.startswith("overlays/")}
    assert len(overlays) == 2 and overlays < {f"overlays/{stem}.jpg" for stem in stems}
    assert names - overlays == {"predictions.json", "yolo/data.yaml", *(f"masks/{stem}_1.png" for stem in stems),
                                *(f"yolo/images/{stem}.png" for stem in stems),
                                *(f"yolo/labels/{stem}.txt" for stem in stems)}
    assert "vit_mini at 256 px, epoch 2" in capsys.readouterr().out
    by_table = run("--num_pictures", 0, "--output_dir", "table").parent / "table" / "masks"
    for stem, scored in zip(stems, STEMS):
        difference = imaging.load_mask(out / "masks" / f"{stem}_1.png") != imaging.load_mask(by_table / f"{scored}.png")
        assert difference.mean() < 1e-3


def test_images_gather_in_one_folder_and_none_is_overwritten_unasked(run, crops):
    first, second = (crops.folder / image for image in pd.read_csv(crops.test_csv)["image"][:2])
    run("--image", first, "--box", "1,1,20,20")
    out = run("--image", second, "--box", "1,1,20,20")
    assert len(files_of(out)) == 4
    before = (out / "photo10_0001_mask.png").read_bytes()
    with pytest.raises(UserError, match="photo10_0001_mask.png.*already there; give --overwrite"):
        run("--image", first, "--points", "40,30")
    assert (out / "photo10_0001_mask.png").read_bytes() == before
    run("--image", first, "--points", "40,30", "--overwrite")
    assert (out / "photo10_0001_mask.png").read_bytes() != before


@pytest.mark.parametrize(("flags", "message"), [
    pytest.param(["--image", "gone.png", "--box", "1,1,5,5"], "gone.png: no such file", id="no image"),
    pytest.param(["--image", "text.png", "--box", "1,1,5,5"], "text.png: not an image that can be read", id="text"),
    pytest.param(["--image", "a.png", "--points", "5,5 40,5"], r"point \(40, 5\) lies outside a.png \(40x24 px\)",
                 id="a point outside"),
    pytest.param(["--image", "a.png", "--box", "50,5,60,9"], "box 50,5,60,9 lies outside", id="a box outside"),
])
def test_images_that_cannot_be_predicted(run, tmp_path, flags, message):
    (tmp_path / "text.png").write_text("text")
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((24, 40, 3), np.uint8))
    with pytest.raises(UserError, match=message) as error:
        run(*flags)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


# ---- flags --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "message"), [
    pytest.param(["--image", "a.png"], "--image needs a prompt", id="no prompt"),
    pytest.param(["--image", "a.png", "--test_csv", "t.csv", "--box", "1,1,5,5"], "not allowed with", id="two sources"),
    pytest.param(["--points", "5,5"], "--points: only with --image", id="points for a table"),
    pytest.param(["--box", "1,1,5,5", "--labels", "1"], "--labels, --box: only with --image", id="box for a table"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--compare_to", "r.csv"], "--compare_to: not with --image",
                 id="comparing an image"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--prompt_trials", "3"], "--prompt_trials: not with --image",
                 id="trials of an image"),
    pytest.param(["--prompt_trials", "-1"], "must not be negative", id="fewer than no trials"),
    pytest.param(["--seed", "-1"], "must not be negative", id="a seed below zero"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--labels", "1 0"], "--labels: 2 for 1 points", id="labels"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "6,6", "--box", "1,1,5,5"],
                 "found 2 --points, 1 --box; expected as many of each, one for each object: write none", id="counts"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "6,6", "--labels", "1"],
                 "found 2 --points, 1 --labels; expected as many", id="labels for one of two"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "none"],
                 "--image needs a prompt of object 2: --points, --box, or both", id="an object without prompt"),
    pytest.param(["--image", "a.png", "--points", "none", "--box", "1,1,5,5", "--labels", "1"],
                 "--labels: 1 for 0 points; expected one each", id="labels for a box"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "6,6 7,7", "--labels", "1", "--labels", "1"],
                 "--labels of object 2: 1 for 2 points; expected one each", id="labels of the second"),
    pytest.param(["--image", "a.png", "--labels", "1"], "--image needs a prompt", id="labels only"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--save_yolo"], "--save_yolo: only with --images_dir",
                 id="YOLO of one image"),
    pytest.param(["--save_yolo"], "--save_yolo: only with --images_dir", id="YOLO of a table"),
    pytest.param(["--images_dir", "d"], "--images_dir needs --prompts_csv", id="images without prompts"),
    pytest.param(["--prompts_csv", "p.csv"], "--prompts_csv needs --images_dir", id="prompts without images"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--prompts_csv", "p.csv"],
                 "--prompts_csv needs --images_dir", id="a table of prompts for one image"),
    pytest.param(["--images_dir", "d", "--image", "a.png"], "not allowed with", id="a folder and an image"),
    pytest.param(["--images_dir", "d", "--prompts_csv", "p.csv", "--test_csv", "t.csv"], "not allowed with",
                 id="a folder and a table"),
    pytest.param(["--images_dir", "d", "--prompts_csv", "p.csv", "--points", "5,5"],
                 "--points: only with --image", id="points for a folder"),
    pytest.param(["--images_dir", "d", "--prompts_csv", "p.csv", "--compare_to", "r.csv"],
                 "--compare_to: not with --images_dir", id="comparing a folder"),
    pytest.param(["--image", "a.png", "--points", "5;5"], "expected numbers as x,y", id="another separator"),
    pytest.param(["--image", "a.png", "--points", "5,nan"], "expected numbers as x,y", id="not a number"),
    pytest.param(["--image", "a.png", "--points", ""], "expected points as x,y", id="empty points"),
    pytest.param(["--image", "a.png", "--box", "1,2,3"], "expected numbers as x0,y0,x1,y1", id="three numbers"),
    pytest.param(["--image", "a.png", "--box", "9,2,3,7"], "expected x0 < x1 and y0 < y1", id="box inside out"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--labels", "2"], "expected 1 (foreground)", id="label 2"),
    pytest.param(["--batch_size", "0"], "must be at least 1", id="empty batches"),
])
def test_flags_that_contradict(run, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        run(*flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# ---- bad input ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("spoil", "message"), [
    pytest.param(lambda folder, table: table.unlink(), "reformatted.csv: no such file; make it with reformated_csv.py",
                 id="no table"),
    pytest.param(lambda folder, table: table.write_text("image,mask\na,b\n"),
                 r"missing column\(s\) label, points; found image, mask; make it with reformated_csv.py", id="columns"),
    pytest.param(lambda folder, table: table.write_bytes(b"\x00\xff" * 50), "test_reformatted.csv: ", id="no CSV"),
    pytest.param(lambda folder, table: table.write_text(table.read_text().replace("[[31,17]", "[[310,17]")),
                 r"1 of 6 rows cannot be used: row 2: point \(310, 17\) lies outside", id="a point outside"),
    pytest.param(lambda folder, table: next(folder.rglob("masks/photo12*")).write_bytes(
        next(folder.rglob("masks/photo11*")).read_bytes()), "photo12_0001.png is 80x42 px, but its image",
        id="a mask of another size"),
    pytest.param(lambda folder, table: next(folder.rglob("images/photo12*")).write_text("text"),
                 "row 4: .*photo12_0001.png: not an image that can be read", id="no image"),
    pytest.param(lambda folder, table: [path.write_bytes(path.read_bytes()[:300])
                                        for path in folder.rglob("images/photo12*")],
                 "photo12_0001.png: broken image", id="an image cut short, met while loading"),
])
def test_tables_that_cannot_be_predicted(run, crops, tmp_path, spoil, message):
    spoil(crops.folder, crops.test_csv)
    with pytest.raises(UserError, match=message) as error:
        run()
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_an_image_that_breaks_in_a_worker_leaves_nothing(run, crops, tmp_path):
    path = next(crops.folder.rglob("images/photo12*"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="photo12_0001.png: broken image"):
        run("--num_workers", 1, "--batch_size", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("make", "message"), [
    pytest.param(None, "expected a checkpoint of train.py", id="missing"),
    pytest.param(lambda path, base: path.write_bytes(b"random"), "cannot be read", id="a random file"),
    pytest.param(lambda path, base: torch.save(random_sam("vit_mini").state_dict(), path), "is not a LoRA checkpoint",
                 id="base weights"),
    pytest.param(lambda path, base: (torch.save(random_sam("vit_mini", seed=3).state_dict(), path.parent / "o.pth"),
                                     make_checkpoint(path, path.parent / "o.pth")),
                 "was trained on vit_mini weights with SHA-256", id="of another base"),
])
def test_checkpoints_that_do_not_load(run, mini_weights, tmp_path, make, message):
    path = tmp_path / "x.ckpt"
    if make:
        make(path, mini_weights)
    with pytest.raises(UserError, match=message) as error:
        run("--checkpoint", path)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_full_folder_is_left_alone_without_overwrite(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out: not empty .*give --overwrite"):
        run()
    assert files_of(tmp_path / "out") == {"notes.txt"}


def test_overwrite_replaces_its_own_files_only(run, tmp_path):
    out = run("--num_pictures", 6, "--prompt_trials", 1)
    for name in ("comparison.csv", "comparison.png", "improved.jpg", "regressed.jpg"):
        (out / name).write_text("of an earlier run")
    (out / "notes.txt").write_text("mine")
    (out / "photo_mask.png").write_text("of a single image")
    run("--num_pictures", 0, "--overwrite")
    assert files_of(out) == {name for name in FILES if not name.endswith(".jpg")} | {"notes.txt", "photo_mask.png"}


def test_overwrite_by_the_other_kind_of_run_leaves_nothing_stale(run, crops, mini_weights, tmp_path):
    """A table is scored, photos are annotated, a table is scored by the other script: in one folder, one by one."""
    table, photo = pd.read_csv(crops.test_csv), "class_7/a.png"
    (tmp_path / "photos" / "class_7").mkdir(parents=True)
    imaging.write_png(tmp_path / "photos" / photo, imaging.load_image(crops.folder / table["image"][0]))
    (tmp_path / "prompts.csv").write_text(f'image,points\n{photo},"[[20,20]]"\n')
    annotations = {"masks/class_7/a_1.png", "overlays/class_7/a.jpg", "predictions.json", "yolo/data.yaml",
                   "yolo/images/class_7/a.png", "yolo/labels/class_7/a.txt"}
    annotate = ("--images_dir", "photos", "--prompts_csv", "prompts.csv", "--save_yolo")

    out = run("--prompt_trials", 1)
    (out / "notes.txt").write_text("mine")
    run(*annotate, "--overwrite")
    assert files_of(out) == annotations | {"notes.txt"}
    run("--overwrite")
    assert files_of(out) == FILES | {"notes.txt"}
    run(*annotate, "--overwrite")
    base = run_base_sam_inference.get_args_parser().parse_args(
        ["--model_type", "vit_mini", "--checkpoint", str(mini_weights), "--test_csv", str(crops.test_csv),
         "--output_dir", "out", "--device", "cpu", "--overwrite"])
    run_base_sam_inference.main(base)
    as_base = {name.replace("finetuned_sam_", "base_sam_") for name in FILES}
    assert files_of(out) == as_base | {"notes.txt"}
    run("--overwrite")
    assert files_of(out) == FILES | {"notes.txt"}


@pytest.mark.parametrize("kind", ["masks", "images", "base results"])
def test_overwrite_never_takes_what_the_run_reads(run, crops, base_results, tmp_path, kind):
    """Labels that were predicted and mended by hand, images of an earlier YOLO set, the table to compare with."""
    table, flags = pd.read_csv(crops.test_csv), ["--overwrite"]
    if kind == "base results":
        (tmp_path / "out").mkdir()
        base_results.rename(tmp_path / "out" / base_results.name)
        flags += ["--compare_to", f"out/{base_results.name}"]
    else:
        folder = {"masks": "out/masks", "images": "out/yolo/images"}[kind]
        (tmp_path / folder).mkdir(parents=True)
        for column, rows in (("label", table["label"]), ("image", table["image"])):
            paths = [(crops.folder / path) for path in rows]
            table[column] = [str(path) for path in paths]
            if column == ("label" if kind == "masks" else "image"):
                for path in paths:
                    path.rename(tmp_path / folder / path.name)
                table[column] = [f"{folder}/{path.name}" for path in paths]
        table.to_csv("mended.csv", index=False)
        flags += ["--test_csv", "mended.csv"]
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="this run reads it and would replace it; give another --output_dir"):
        run(*flags)
    assert files_of(tmp_path) == before


def test_a_failed_run_keeps_the_earlier_results(run, crops):
    out = run("--num_pictures", 0)
    before = {name: (out / name).read_bytes() for name in files_of(out)}
    path = next(crops.folder.rglob("images/photo15*"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError):
        run("--overwrite")
    assert {name: (out / name).read_bytes() for name in files_of(out)} == before


def test_a_file_where_the_folder_should_be(run, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out: is a file"):
        run()


def test_an_error_is_one_line_and_exit_code_1(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "run_inference.py", "--test_csv", "gone.csv", "--device", "cpu"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "run_inference.py: error: gone.csv: no such file; make it with reformated_csv.py\n"
    assert list(tmp_path.iterdir()) == []
