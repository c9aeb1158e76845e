"""Objects found without a prompt, from the converter to the exported file: real photos, the shipped vit_mini."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import files_below
from data_set_builder import refused, run_script, run_yolo
from several_processes import together

import Create_yolo_csv
import export_sam
import reformated_csv
import run_base_sam_inference
import run_inference
import train
from sam_lora.data import imaging
from sam_lora.model import checkpoints
from sam_lora.sam import FindSettings, find_objects, load_finder, load_sam
from sam_lora.training import finding

SIDE = 128
NAMES = ["disc", "bar"]


def draw_photo(rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """One or two bright objects on a dark ground: (H, W, 3) RGB, rows of a YOLO label file."""
    pixels, rows = rng.integers(20, 60, (96, SIDE, 3)).astype(np.uint8), []
    for place in range(int(rng.integers(1, 3))):
        disc, x, y = rng.random() < 0.5, int(rng.integers(24, 40)) + 64 * place, int(rng.integers(30, 66))
        mask = np.zeros(pixels.shape[:2], np.uint8)
        if disc:
            cv2.circle(mask, (x, y), 16, 255, -1)
        else:
            cv2.rectangle(mask, (x - 20, y - 7), (x + 20, y + 7), 255, -1)
        pixels[mask > 0] = (220, 60, 60) if disc else (60, 60, 220)
        outline = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0][:, 0] / (SIDE, 96)
        rows.append(" ".join(["0" if disc else "1", *(f"{value:.5f}" for value in outline.ravel())]))
    return pixels, rows


def draw_set(root: Path) -> None:
    rng = np.random.default_rng(3)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for number in range(count):
            pixels, rows = draw_photo(rng)
            if number == 1:     # a photo without objects
                pixels, rows = rng.integers(20, 60, (96, SIDE, 3)).astype(np.uint8), []
            imaging.write_png(root / split / "images" / f"{split}_{number}.png", pixels)
            label = root / split / "labels" / f"{split}_{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(rows) + "\n" * bool(rows))
    (root / "data.yaml").write_text(f"names: {NAMES}\n")


TRAINING = ["--model_type", "vit_mini", "--image_size", str(SIDE), "--num_workers", "0", "--batch_size", "4",
            "--num_epochs", "2", "--correction_rounds", "1"]


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    """Steps 1 to 4 on whole photos."""
    folder = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(finding, "STEPS", 150)
        patch.setattr(finding, "MIN_LAST_STEPS", 100)
        patch.setattr(finding, "MOST_VERSIONS", 4)
        draw_set(Path("set"))
        run_yolo(Path("set"), Path("processed_dataset"), "--no_crop")
        run_script(Create_yolo_csv, "--num_workers", "0")
        run_script(reformated_csv)
        run_script(train, *TRAINING)
    return folder


def run(script, folder: Path, monkeypatch, *flags: object) -> None:
    monkeypatch.chdir(folder)
    run_script(script, "--device", "cpu", *flags)


def test_background_photos_are_in_the_tables(walk):
    table = pd.read_csv(walk / "train_reformatted.csv", dtype=str, keep_default_na=False)
    background = table[table["label"] == ""]
    assert background["image"].tolist() == ["processed_dataset/background/images/train_1.png"]
    assert (background["points"] == "").all()


def test_the_checkpoint_knows_its_classes_and_threshold(walk):
    header = checkpoints.load_checkpoint(walk / "checkpoints/sam_lora_final.ckpt")["header"]
    assert header["find"]["classes"] == ["bar", "disc"] and header["find"]["photo_side"] == SIDE
    assert 0 < header["find"]["threshold"] < 1
    log = pd.read_csv(walk / "checkpoints/training_log.csv")
    assert log["val_find_f1"].notna().tolist() == [False, True, True]


def test_scores_of_what_is_found(walk, monkeypatch, capsys):
    run(run_inference, walk, monkeypatch, "--find", "--output_dir", "found", "--num_pictures", "2")
    summary = pd.read_csv(walk / "found/finetuned_sam_find_summary.csv")
    assert summary["class_name"].tolist() == ["bar", "disc", "all classes (by object)"]
    assert summary["objects"].iloc[-1] == summary["objects"].iloc[:-1].sum()
    assert summary["ap50"].iloc[-1] > 0.6 and summary["f1"].iloc[-1] > 0.6
    table = pd.read_csv(walk / "found/finetuned_sam_find.csv")
    counts = table["outcome"].value_counts()
    assert counts["hit"] + counts.get("missed", 0) == summary["objects"].iloc[-1]
    files = files_below(walk / "found")
    assert {"finetuned_sam_find.csv", "finetuned_sam_find_summary.csv", "precision_recall.png", "report.html"} < files
    assert len([name for name in files if name.startswith("found/")]) == 2
    assert "Found without a prompt" in (walk / "found/report.html").read_text()
    assert "Without a prompt, at a score of" in capsys.readouterr().out


def test_a_higher_threshold_finds_no_more(walk, monkeypatch):
    tables = []
    for threshold in ("0.1", "0.9"):
        run(run_inference, walk, monkeypatch, "--find", "--score_threshold", threshold, "--num_pictures", "0",
            "--output_dir", f"at{threshold}")
        table = pd.read_csv(walk / f"at{threshold}/finetuned_sam_find.csv")
        tables.append(table[table["outcome"] != "missed"])
    assert len(tables[0]) >= len(tables[1]) and (tables[1]["score"] >= 0.9).all()


def test_a_folder_of_new_photos(walk, monkeypatch):
    run(run_inference, walk, monkeypatch, "--images_dir", "set/test/images", "--save_yolo", "--output_dir", "new")
    content = json.loads((walk / "new/predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"test_{number}.png" for number in range(4)]
    assert [category["name"] for category in content["categories"]] == ["bar", "disc"]
    files = files_below(walk / "new")
    for entry in content["annotations"]:
        mask = imaging.load_mask(walk / "new" / entry["mask"])
        assert mask.shape == (96, SIDE) and mask.sum() == entry["area"] and 0 < entry["score"] <= 1
    assert {name for name in files if name.startswith("masks/")} == {entry["mask"] for entry in content["annotations"]}
    assert {f"overlays/test_{number}.jpg" for number in range(4)} < files
    for number in range(4):
        rows = (walk / f"new/yolo/labels/test_{number}.txt").read_text().splitlines()
        assert len(rows) == sum(entry["image_id"] == number + 1 for entry in content["annotations"])


def test_only_the_classes_asked_for(walk, monkeypatch, capsys):
    run(run_inference, walk, monkeypatch, "--images_dir", "set/test/images", "--classes", "disc", "--output_dir",
        "discs")
    content = json.loads((walk / "discs/predictions.json").read_text())
    assert {entry["category_id"] for entry in content["annotations"]} <= {2}
    code, line = refused(capsys, run_inference, "--images_dir", walk / "set/test/images", "--classes", "crack",
                         "--output_dir", walk / "cracks", "--checkpoint", walk / "checkpoints/sam_lora_final.ckpt")
    assert code == 1 and "--classes crack: not among what" in line and "bar, disc" in line


def test_one_photo(walk, monkeypatch, capsys):
    run(run_inference, walk, monkeypatch, "--image", "set/test/images/test_0.png", "--output_dir", "one")
    masks = sorted(name for name in files_below(walk / "one") if "_mask_" in name)
    assert files_below(walk / "one") == {*masks, "test_0_overlay.jpg"}
    assert f"{len(masks)} objects" in capsys.readouterr().out


def test_several_processes_find_the_same(walk, monkeypatch):
    run(run_inference, walk, monkeypatch, "--images_dir", "set/test/images", "--output_dir", "alone")
    done = together(walk, "run_inference.py", "--images_dir", "set/test/images", "--output_dir", "several")
    assert done.returncode == 0, done.stderr
    assert files_below(walk / "several") == files_below(walk / "alone")
    for name in files_below(walk / "alone"):
        assert (walk / "several" / name).read_bytes() == (walk / "alone" / name).read_bytes(), name


def test_everything_mode_of_the_base_is_scored_alike(walk, monkeypatch, capsys):
    run(run_base_sam_inference, walk, monkeypatch, "--model_type", "vit_mini", "--image_size", SIDE, "--find",
        "--points_per_side", "8", "--output_dir", "base", "--num_pictures", "1")
    summary = pd.read_csv(walk / "base/base_sam_find_summary.csv")
    assert summary["class_name"].tolist() == ["all classes (by object)"]
    assert 0 <= summary["ap"].iloc[0] <= 1
    assert "no classes" in capsys.readouterr().out


def test_the_exported_finder_finds_the_same(walk, monkeypatch):
    run_export = [export_sam, walk, monkeypatch]
    monkeypatch.chdir(walk)
    run_script(run_export[0], "--output", "out.pth", "--onnx_finder", "finder.onnx")
    state = torch.load("out.pth", weights_only=True)
    assert not [name for name in state if name.startswith("finder")]
    sam, _ = load_sam("vit_mini", "out.pth", image_size=SIDE)
    sam.finder = load_finder("out.finder.pth")
    tuned, _ = checkpoints.load_tuned_sam("checkpoints/sam_lora_final.ckpt")
    pixels = imaging.load_image("set/test/images/test_0.png")
    ours, theirs = (find_objects(model, pixels, FindSettings.of(model.finder)) for model in (sam, tuned))
    assert ours and [thing.class_name for thing in ours] == [thing.class_name for thing in theirs]
    assert np.allclose([thing.score for thing in ours], [thing.score for thing in theirs], atol=1e-3)
    about = json.loads(Path("out.json").read_text())
    assert {entry["file"]: entry["largest_logit_difference"] < 1e-4 for entry in about["files"]} == {
        "out.pth": True, "out.finder.pth": True, "finder.onnx": True}


def test_a_large_photo_goes_in_tiles_and_pieces_are_joined(walk, monkeypatch):
    """A photo as large as four: an object across the middle is found once."""
    monkeypatch.chdir(walk)
    tuned, _ = checkpoints.load_tuned_sam("checkpoints/sam_lora_final.ckpt")
    pixels = np.random.default_rng(0).integers(20, 60, (2 * SIDE, 2 * SIDE, 3)).astype(np.uint8)
    pixels[SIDE - 7:SIDE + 7, SIDE - 30:SIDE + 30] = (60, 60, 220)
    found = find_objects(tuned, pixels, FindSettings(0.3, None, SIDE))
    across = [thing for thing in found if thing.box[0] < SIDE < thing.box[2]]
    assert len(across) == 1 and across[0].box[2] - across[0].box[0] >= 45


def test_resuming_gives_what_an_unbroken_run_gives(walk, tmp_path, monkeypatch):
    monkeypatch.chdir(walk)
    for name, value in (("STEPS", 20), ("MIN_LAST_STEPS", 20), ("MOST_VERSIONS", 1)):
        monkeypatch.setattr(finding, name, value)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_script(train, *TRAINING, "--save_dir", whole, "--no-flip")
    run_script(train, *TRAINING, "--save_dir", parts, "--no-flip", "--stop_after_epoch", "1")
    run_script(train, *TRAINING, "--save_dir", parts, "--no-flip", "--resume")
    one, other = (checkpoints.load_checkpoint(folder / "sam_lora_final.ckpt") for folder in (whole, parts))
    assert one["header"]["find"] == other["header"]["find"]
    assert all(torch.equal(one["state"][name], other["state"][name]) for name in one["state"])
    assert any(name.startswith("finder.") for name in one["state"])


def test_crops_teach_no_finder_and_say_so(crops, mini_weights, tmp_path, capsys):
    flags = ["--train_csv", crops.train_csv, "--model_type", "vit_mini", "--checkpoint", mini_weights, "--num_workers",
             "0", "--num_epochs", "1", "--image_size", "128", "--save_dir", tmp_path / "ck"]
    run_script(train, *flags)
    assert "rows are not known to show whole photos or tiles" in capsys.readouterr().out
    assert checkpoints.load_checkpoint(tmp_path / "ck/sam_lora_final.ckpt")["header"]["find"] is None
    code, line = refused(capsys, run_inference, "--checkpoint", tmp_path / "ck/sam_lora_final.ckpt",
                         "--base_checkpoint", mini_weights, "--test_csv", crops.test_csv, "--find", "--output_dir",
                         tmp_path / "out")
    assert code == 1 and "has not learned to find objects without a prompt" in line


def test_no_find_leaves_it_out(walk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(walk)
    run_script(train, *TRAINING, "--no-find", "--num_epochs", "1", "--save_dir", tmp_path / "ck")
    state = checkpoints.load_checkpoint(tmp_path / "ck/sam_lora_final.ckpt")["state"]
    assert not [name for name in state if name.startswith("finder.")]


def test_two_processes_train_as_one(walk, tmp_path, monkeypatch):
    monkeypatch.chdir(walk)
    flags = [*TRAINING, "--no-flip", "--stop_after_epoch", "1"]
    run_script(train, *flags, "--save_dir", tmp_path / "one")
    done = together(walk, "train.py", *flags, "--batch_size", "2", "--save_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (checkpoints.load_checkpoint(tmp_path / name / "last.ckpt")["state"] for name in ("one", "two"))
    assert any(name.startswith("finder.") for name in one)
    for name, value in one.items():     # Adam makes much of a gradient that is all but zero
        assert torch.allclose(value, two[name], atol=1e-3), name
    columns = ["train_loss", "val_iou", "val_find_f1"]
    logs = [pd.read_csv(tmp_path / name / "training_log.csv")[columns] for name in ("one", "two")]
    assert np.allclose(*logs, atol=1e-4, equal_nan=True)
