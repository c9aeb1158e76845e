"""run_inference.py on a table: its files and tables, the comparison with the base, other points."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import files_below

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


# ---- a table ----------------------------------------------------------------------------------------------------

def test_every_row_is_predicted_scored_and_drawn(infer, crops, capsys):
    out = infer()
    assert files_below(out) == FILES
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


def test_prompts_that_were_not_trained_are_noted(infer, crops, capsys):
    """The checkpoint's header has the table's three points, boxes, and two corrective clicks."""
    table = pd.read_csv(crops.test_csv, dtype=str)
    table["box"] = ""
    table.loc[0, ["points", "box"]] = "", "[2,2,30,30]"
    table.to_csv(crops.test_csv, index=False)
    infer()
    assert "trained with 3-5 points, a box, a box with 1-2 points a mask" in (printed := capsys.readouterr().out)
    assert "prompts here" not in printed
    table.loc[1, "points"] = str([[x, 20] for x in range(16, 24)])
    table.to_csv(crops.test_csv, index=False)
    infer("--overwrite")
    assert "prompts here are 8 points, which this checkpoint was not trained with (3-5 " in capsys.readouterr().out


def test_the_same_run_writes_the_same_bytes(infer, tmp_path):
    first = infer("--num_pictures", 2)
    second = infer("--num_pictures", 2, "--output_dir", "again", "--batch_size", 8).parent / "again"
    assert files_below(first) == files_below(second)
    for name in files_below(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_fewer_pictures_than_rows_show_every_class(infer):
    out = infer("--num_pictures", 2)
    results = pd.read_csv(out / "finetuned_sam_results.csv", keep_default_na=False)
    drawn = results[results["picture"] != ""]
    assert {*drawn["picture"]} == {name for name in files_below(out) if name.startswith("samples/")}
    assert sorted(drawn["class_name"]) == ["green bar", "red disc"]


def test_no_pictures(infer):
    assert files_below(infer("--num_pictures", 0)) == {name for name in FILES if not name.endswith(".jpg")}


def test_a_table_without_labels_gives_masks_and_pictures_only(infer, crops, capsys):
    table = pd.read_csv(crops.test_csv).assign(label="")
    table.to_csv(crops.folder / "no_labels.csv", index=False)
    out = infer("--test_csv", crops.folder / "no_labels.csv")
    assert files_below(out) == FILES - {"finetuned_sam_class_iou_summary.csv", "finetuned_sam_size_iou_summary.csv"}
    results = pd.read_csv(out / "finetuned_sam_results.csv", keep_default_na=False)
    assert {*results[["iou", "dice", "boundary_iou", "truth_area", "size"]].to_numpy().ravel()} == {""}
    assert results["class_name"].tolist() == ["red disc", "green bar"] * 3
    assert "6 of 6 rows have no label: predicted, not scored" in capsys.readouterr().out


def test_rows_without_a_label_among_others_are_left_out_of_the_summary(infer, crops):
    table = pd.read_csv(crops.test_csv)
    table.loc[[0, 3], "label"] = ""
    table.to_csv(crops.folder / "some.csv", index=False)
    out = infer("--test_csv", crops.folder / "some.csv", "--num_pictures", 0)
    results = pd.read_csv(out / "finetuned_sam_results.csv")
    assert results["iou"].isna().tolist() == [True, False, False, True, False, False]
    assert pd.read_csv(out / "finetuned_sam_class_iou_summary.csv")["n"].tolist() == [2, 2, 4, 2]


def test_rows_that_differ_in_nothing_but_points_have_their_own_masks(infer, crops):
    table = pd.read_csv(crops.test_csv).iloc[[0, 0, 1]]
    table.iloc[1, 2] = "[[3,3]]"
    table.to_csv(crops.folder / "same.csv", index=False)
    out = infer("--test_csv", crops.folder / "same.csv", "--num_pictures", 0)
    results = pd.read_csv(out / "finetuned_sam_results.csv")
    assert results["mask"].tolist() == ["masks/00001_photo10_0001.png", "masks/00002_photo10_0001.png",
                                        "masks/00003_photo11_0001.png"]
    assert results["predicted_iou"].nunique() == 3


# ---- base against tuned -------------------------------------------------------------------------------------------

def test_compare_to_the_base(infer, base_results, capsys):
    out = infer("--num_pictures", 0, "--compare_to", base_results)
    changed = {"improved.jpg", "regressed.jpg"} & files_below(out)
    assert files_below(out) == ({name for name in FILES if not name.endswith(".jpg")}
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


def test_a_model_against_itself_shows_no_difference(infer, capsys):
    results = infer("--num_pictures", 0) / "finetuned_sam_results.csv"
    infer("--num_pictures", 0, "--compare_to", results, "--output_dir", "again")
    printed = capsys.readouterr().out
    assert "No clear difference" in printed and "no sample improved: no improved.jpg" in printed
    assert not list(results.parents[1].glob("again/*.jpg"))
    assert pd.read_csv(results.parents[1] / "again" / "comparison.csv")[["wins", "losses"]].to_numpy().sum() == 0


def test_the_base_masks_gone_leave_two_pictures_out(infer, base_results, capsys):
    next((base_results.parent / "masks").iterdir()).unlink()
    out = infer("--num_pictures", 0, "--compare_to", base_results)
    lines = [line for line in capsys.readouterr().out.splitlines() if "no improved.jpg nor regressed.jpg" in line]
    assert len(lines) == 1 and "no such file" in lines[0]
    assert files_below(out) == ({name for name in FILES if not name.endswith(".jpg")}
                             | {"comparison.csv", "comparison.png"})


def test_the_report_shows_the_training_beside_the_checkpoint(infer, mini_checkpoint, tmp_path):
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "x.ckpt").write_bytes(mini_checkpoint.read_bytes())
    (folder / "training_log.csv").write_text("epoch,val_iou\n0,0.1234\n")
    assert cv2.imwrite(str(folder / "training_curves.png"), np.zeros((30, 50, 3), np.uint8))
    page = (infer("--num_pictures", 0, "--checkpoint", folder / "x.ckpt") / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 1 and "0.1234" in page and "trained/x.ckpt" in page


# ---- kinds of prompts ---------------------------------------------------------------------------------------------

KINDS_FILES = {"finetuned_sam_prompt_kinds.csv", "finetuned_sam_prompt_kinds_summary.csv", "click_curve.png"}


def test_kinds_of_prompts_have_tables_a_curve_and_a_sentence(infer, crops, capsys):
    table = pd.read_csv(crops.test_csv)
    table.loc[0, "label"] = ""
    table["box"] = ["", "[5,5,40,30]", *[""] * 4]
    table.loc[1, "points"] = ""
    table.to_csv(crops.folder / "some.csv", index=False)
    out = infer("--test_csv", crops.folder / "some.csv", "--num_pictures", 0, "--prompt_kinds")
    assert files_below(out) == {name for name in FILES if not name.endswith(".jpg")} | KINDS_FILES
    kinds = pd.read_csv(out / "finetuned_sam_prompt_kinds.csv")
    assert list(kinds.columns) == list(contracts.PROMPT_KINDS_COLUMNS)
    results = pd.read_csv(out / "finetuned_sam_results.csv")[1:].reset_index(drop=True)   # those with a ground truth
    assert kinds[["class_name", "image", "label"]].equals(results[["class_name", "image", "label"]])
    assert kinds["table"].equals(results["iou"])
    assert kinds["random_points"].isna().tolist() == [True, False, False, False, False]   # a box has no points
    ious = kinds[[*contracts.PROMPT_KINDS, *contracts.CLICK_COLUMNS]].drop(columns="random_points")
    assert ious.stack().between(0, 1).all() and kinds["point"].equals(kinds["clicks_1"])
    for name, iou in contracts.CLICKS_TO.items():
        for clicks, row in zip(kinds[name], kinds[list(contracts.CLICK_COLUMNS)].to_numpy()):
            assert clicks == next((number for number, value in enumerate(row, 1) if value >= iou), 10)
    summary = pd.read_csv(out / "finetuned_sam_prompt_kinds_summary.csv")
    assert list(summary.columns) == list(contracts.PROMPT_SUMMARY_COLUMNS) and summary["base"].isna().all()
    assert summary["tuned"].tolist() == pytest.approx(kinds[list(contracts.PROMPT_KINDS_COLUMNS[3:])].mean(), abs=1e-5)
    assert summary["n"].tolist() == [5, 4, *[5] * (len(summary) - 2)]
    sentence = [line for line in capsys.readouterr().out.splitlines() if line.startswith("By kind of prompt")]
    assert len(sentence) == 1 and "5 objects" in sentence[0]
    assert f"an exact box {kinds['box'].mean():.3f}" in sentence[0]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert sentence[0].split(":")[0] in page and "Kinds of prompts" in page and page.count("<img ") == 1


def test_kinds_of_prompts_change_nothing_else(infer, tmp_path):
    plain = infer("--num_pictures", 0)
    scored = infer("--num_pictures", 0, "--prompt_kinds", "--output_dir", "scored").parent / "scored"
    assert files_below(scored) == files_below(plain) | KINDS_FILES
    for name in files_below(plain) - {"report.html"}:
        assert (plain / name).read_bytes() == (scored / name).read_bytes(), name


def test_kinds_of_prompts_stand_beside_the_other_model_s(infer, mini_weights, crops, tmp_path):
    import run_base_sam_inference
    run_base_sam_inference.main(run_base_sam_inference.get_args_parser().parse_args(
        ["--model_type", "vit_mini", "--checkpoint", str(mini_weights), "--test_csv", str(crops.test_csv),
         "--output_dir", str(tmp_path / "base"), "--num_pictures", "0", "--device", "cpu", "--prompt_kinds"]))
    out = infer("--num_pictures", 0, "--prompt_kinds", "--compare_to", tmp_path / "base" / "base_sam_results.csv")
    summary = pd.read_csv(out / "finetuned_sam_prompt_kinds_summary.csv")
    base = pd.read_csv(tmp_path / "base" / "base_sam_prompt_kinds_summary.csv")
    assert base["tuned"].isna().all() and summary["base"].tolist() == pytest.approx(base["base"].tolist(), abs=1e-5)
    assert (summary["tuned"] != summary["base"]).any()


def test_no_ground_truth_leaves_kinds_of_prompts_out(infer, crops, capsys):
    pd.read_csv(crops.test_csv).assign(label="").to_csv(crops.folder / "no_labels.csv", index=False)
    out = infer("--test_csv", crops.folder / "no_labels.csv", "--num_pictures", 0, "--prompt_kinds")
    assert "No row has a ground truth with an object in it" in capsys.readouterr().out
    assert not KINDS_FILES & files_below(out)


def test_other_samples_are_refused_before_the_model_runs(infer, base_results, crops, tmp_path):
    pd.read_csv(crops.test_csv)[:5].to_csv(crops.folder / "five.csv", index=False)
    with pytest.raises(UserError, match=r"scored different samples than .*five.csv \(0 only in .*, 1 only in "):
        infer("--test_csv", crops.folder / "five.csv", "--compare_to", base_results, "--checkpoint", "not_even_there")
    assert not (tmp_path / "out").exists()
