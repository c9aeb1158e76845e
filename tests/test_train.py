"""train.py: the loop, its files, resuming, and what bad input gets."""

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from training_runs import ROOT, command_line, files, log_of, run

from sam_lora import contracts
from sam_lora.errors import UserError
from sam_lora.model.checkpoints import load_checkpoint, load_tuned_sam, prepare_for_training
from sam_lora.model.sam import load_sam
from sam_lora.model.trained_prompts import trained_kinds

LOG_COLUMNS = ["epoch", "train_loss", "val_loss", "train_iou", "val_iou", "learning_rate", "seconds", "images_per_s",
               "data_wait", "peak_memory_mb", "skipped_steps"]


def test_a_run_leaves_its_files_and_a_log_that_starts_untuned(crops, mini_weights, tmp_path, capsys):
    out = tmp_path / "checkpoints"
    run(*command_line(crops, mini_weights, out, "--save_top_k", "1"))
    log = pd.read_csv(out / "training_log.csv")
    assert list(log.columns) == LOG_COLUMNS
    assert list(log["epoch"]) == [0, 1, 2]
    assert math.isnan(log["train_loss"][0]) and 0 < log["val_iou"][0] < 1
    best = log["val_iou"][1:].idxmax()
    top = contracts.epoch_checkpoint(int(log["epoch"][best]), log["val_iou"][best])
    assert files(out) == {top, "last.ckpt", "sam_lora_final.ckpt", "training_log.csv", "training_curves.png"}
    final = torch.load(out / "sam_lora_final.ckpt", weights_only=True)
    assert final["header"]["epoch"] == log["epoch"][best]
    assert final["header"]["prompt"] == "3 points" and final["header"]["prompt_mix"]["box"] > 0
    assert (0, True) in trained_kinds(final["header"])
    assert final["header"]["metrics"]["untuned_val_iou"] == pytest.approx(log["val_iou"][0])
    assert "training" not in final
    assert "LoRA on 6 layers" in capsys.readouterr().out


def test_what_trains_is_lora_and_the_decoder_and_nothing_else(crops, mini_weights, tmp_path):
    run(*command_line(crops, mini_weights, tmp_path / "out"))
    base, _ = load_sam("vit_mini", mini_weights, 128)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    state = load_checkpoint(tmp_path / "out" / "last.ckpt")["state"]
    moved_b = [name for name, tensor in state.items() if "lora_B" in name and tensor.abs().max() > 0]
    assert len(moved_b) == 6
    decoder = [name for name in state if name.startswith("mask_decoder.")]
    assert len(decoder) == sum(name.startswith("mask_decoder.") for name in before)
    assert len(state) == len(decoder) + 2 * 6
    moved = [name for name in decoder if not torch.equal(state[name], before[name])]
    assert len(moved) == len(decoder)
    tuned, _ = load_tuned_sam(tmp_path / "out" / "last.ckpt", mini_weights)
    changed = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(decoder) | {f"image_encoder.blocks.{i}.attn.qkv.weight" for i in range(6)}


def test_it_learns_to_segment_what_is_clicked(crops, mini_weights, tmp_path):
    run(*command_line(crops, mini_weights, tmp_path / "out", "--num_epochs", "30", "--patience", "30"))
    log = pd.read_csv(tmp_path / "out" / "training_log.csv")
    assert log["train_iou"].iloc[-1] > 0.6 > log["train_iou"][1]
    assert log["val_iou"].max() > log["val_iou"][0] + 0.2


def test_two_and_two_epochs_equal_four(crops, mini_weights, tmp_path):
    four = command_line(crops, mini_weights, tmp_path / "four", "--num_epochs", "4", "--lora_dropout", "0.1")
    run(*four)
    halves = command_line(crops, mini_weights, tmp_path / "halves", "--num_epochs", "4", "--lora_dropout", "0.1")
    run(*halves, "--stop_after_epoch", "2")
    assert "sam_lora_final.ckpt" not in files(tmp_path / "halves")
    run(*halves, "--resume")
    pd.testing.assert_frame_equal(log_of(tmp_path / "four"), log_of(tmp_path / "halves"), check_exact=True)
    for name in ("last.ckpt", "sam_lora_final.ckpt"):
        states = [load_checkpoint(tmp_path / folder / name)["state"] for folder in ("four", "halves")]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert files(tmp_path / "four") == files(tmp_path / "halves")


def test_averaged_weights_are_what_is_validated_and_kept_and_go_on_after_a_stop(crops, mini_weights, tmp_path):
    flags = ("--num_epochs", "3", "--ema", "0.8")
    run(*command_line(crops, mini_weights, tmp_path / "whole", *flags))
    run(*command_line(crops, mini_weights, tmp_path / "halves", *flags, "--stop_after_epoch", "1"))
    with pytest.raises(UserError, match="was trained with --ema"):
        run(*command_line(crops, mini_weights, tmp_path / "halves", "--num_epochs", "3", "--resume"))
    run(*command_line(crops, mini_weights, tmp_path / "halves", *flags, "--resume"))
    pd.testing.assert_frame_equal(log_of(tmp_path / "whole"), log_of(tmp_path / "halves"), check_exact=True)
    run(*command_line(crops, mini_weights, tmp_path / "plain", "--num_epochs", "3"))
    plain, last = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("plain", "whole"))
    weights, average = last["training"]["weights"], last["state"]
    assert all(torch.equal(weights[name], plain["state"][name]) for name in weights)  # averaging changes no step
    assert any(not torch.equal(weights[name], average[name]) for name in weights)
    assert all(torch.equal(average[name], last["training"]["average"][name]) for name in average)


def test_a_loss_that_is_not_finite_skips_the_step_and_ten_in_a_row_end_the_run(crops, mini_weights, tmp_path):
    with pytest.raises(UserError, match="10 steps in a row had a loss or gradient that is not finite"):
        run(*command_line(crops, mini_weights, tmp_path / "out", "--learning_rate", "1e30", "--warmup", "0",
                          "--num_epochs", "9"))


def test_gradient_accumulation_equals_the_larger_batch(crops, mini_weights, tmp_path):
    for name, flags in (("large", ("--batch_size", "6")), ("added", ("--batch_size", "2", "--grad_accum", "3"))):
        run(*command_line(crops, mini_weights, tmp_path / name, "--num_epochs", "1", *flags))
    states = [load_checkpoint(tmp_path / name / "last.ckpt")["state"] for name in ("large", "added")]
    moved = [(states[0][key] - states[1][key]).abs().max().item() for key in states[0]]
    assert max(moved) < 2e-4  # one AdamW step moves each weight by up to the learning rate, 1e-3


def test_without_validation_the_last_epoch_is_final(crops, mini_weights, tmp_path):
    (crops.folder / "val_reformatted.csv").unlink()
    out = tmp_path / "out"
    arguments = command_line(crops, mini_weights, out)
    del arguments[2:4]  # no --val_csv
    run(*arguments)
    assert files(out) == {"last.ckpt", "sam_lora_final.ckpt", "training_log.csv", "training_curves.png"}
    assert load_checkpoint(out / "sam_lora_final.ckpt")["header"]["epoch"] == 2


def test_patience_ends_a_run_that_does_not_improve(crops, mini_weights, tmp_path, capsys):
    run(*command_line(crops, mini_weights, tmp_path / "out", "--num_epochs", "9", "--patience", "2",
                      "--learning_rate", "0"))
    assert list(pd.read_csv(tmp_path / "out" / "training_log.csv")["epoch"]) == [0, 1, 2, 3]
    said = capsys.readouterr().out
    assert "no better validation IoU for 2 epochs" in said and "did NOT help" in said


def test_a_run_is_never_overwritten_unasked(crops, mini_weights, tmp_path):
    out = tmp_path / "out"
    run(*command_line(crops, mini_weights, out, "--num_epochs", "1"))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds an earlier run.*--resume.*--overwrite"):
        run(*command_line(crops, mini_weights, out))
    run(*command_line(crops, mini_weights, out, "--num_epochs", "1", "--seed", "7", "--overwrite"))
    assert (out / "notes.txt").read_text() == "mine"
    assert sum(name.startswith("sam-lora-epoch") for name in files(out)) == 1


def table(crops, **cells: str) -> Path:
    """The training table with cells of its first row replaced."""
    rows = pd.read_csv(crops.train_csv, dtype=str)
    for column, value in cells.items():
        rows.loc[0, column] = value
    path = crops.folder / "changed.csv"
    rows.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(("cells", "message"), [
    pytest.param({"points": "[[1,2],[3"}, "changed.csv row 2, column points: found .*expected", id="broken points"),
    pytest.param({"points": "__import__('os')"}, "row 2, column points", id="code in the table"),
    pytest.param({"points": "[[5000,2]]"}, r"1 of 6 rows.*\(5000, 2\) lies outside", id="point outside"),
    pytest.param({"points": "[[NaN,2]]"}, "row 2, column points", id="not a number"),
    pytest.param({"label": ""}, "no label", id="no label"),
    pytest.param({"label": "absent.png"}, "absent.png: no such file", id="mask missing"),
    pytest.param({"image": "train_reformatted.csv"}, "not an image", id="image that is none"),
])
def test_bad_rows_are_named(crops, mini_weights, tmp_path, cells, message):
    arguments = command_line(crops, mini_weights, tmp_path / "out")
    arguments[1] = str(table(crops, **cells))
    with pytest.raises(UserError, match=message) as error:
        run(*arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_size_is_named(crops, mini_weights, tmp_path):
    rows = pd.read_csv(crops.train_csv)
    arguments = command_line(crops, mini_weights, tmp_path / "out")
    arguments[1] = str(table(crops, label=rows["label"][1]))
    with pytest.raises(UserError, match=r"1 of 6 rows.*is \d+x\d+ px, but its image .* is \d+x\d+ px"):
        run(*arguments)


def test_missing_columns_are_all_named(crops, mini_weights, tmp_path):
    arguments = command_line(crops, mini_weights, tmp_path / "out")
    pd.DataFrame({"image_path": ["a.png"]}).to_csv(crops.train_csv, index=False)
    with pytest.raises(UserError, match=r"missing column\(s\) image, label, points.*reformated_csv.py"):
        run(*arguments)


def test_an_image_that_breaks_in_a_worker_is_one_line(crops, mini_weights, tmp_path):
    image = crops.folder / pd.read_csv(crops.train_csv)["image"][2]
    image.write_bytes(image.read_bytes()[:400])  # the header stays readable
    with pytest.raises(UserError, match=rf"{image.name}: ") as error:
        run(*command_line(crops, mini_weights, tmp_path / "out", "--num_workers", "1"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("flags", "message"), [
    pytest.param(("--model_type", "vit_b"), "does not fit vit_b.*looks like vit_mini: give --model_type vit_mini",
                 id="weights of another model"),
    pytest.param(("--checkpoint", __file__), r"cannot be read \(.*expected SAM weights", id="a random file"),
    pytest.param(("--checkpoint", "absent.pth"), "absent.pth: no such file", id="no file"),
    pytest.param(("--lora_blocks", "7"), "this SAM has 6 blocks", id="too many blocks"),
    pytest.param(("--image_size", "100"), "expected a multiple of 16", id="odd image size"),
    pytest.param(("--device", "cuda:9"), "--device cuda:9: not available here", id="no such device"),
    pytest.param(("--resume",), "last.ckpt: no such file", id="nothing to resume"),
    pytest.param(("--precision", "fp16"), "needs a GPU", id="fp16 on the CPU"),
])
def test_bad_settings_are_one_line(crops, mini_weights, tmp_path, flags, message):
    if "cuda:9" in flags and torch.cuda.device_count() > 9:
        pytest.skip("this machine has cuda:9")
    if "fp16" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=message):
        run(*command_line(crops, mini_weights, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


def test_resume_refuses_another_kind_of_run(crops, mini_weights, tmp_path):
    run(*command_line(crops, mini_weights, tmp_path / "out", "--stop_after_epoch", "1"))
    with pytest.raises(UserError, match=r"was trained with lora .*this run has .*another --save_dir"):
        run(*command_line(crops, mini_weights, tmp_path / "out", "--resume", "--lora_rank", "2"))


@pytest.mark.parametrize("flags", [
    pytest.param(("--resume", "--overwrite"), id="resume and overwrite"),
    pytest.param(("--lora_blocks", "0", "--no-train_decoder"), id="nothing to train"),
    pytest.param(("--feature_cache", "--flip"), id="features of mirrored images"),
    pytest.param(("--prompt_mix", "box=1", "--prompt_sampling", "mixed"), id="a mix where nothing is simulated"),
    pytest.param(("--prompt_mix", "box=0", "points=0"), id="a mix of nothing"),
    pytest.param(("--prompt_mix", "boxes=1"), id="an unknown kind of prompt"),
    pytest.param(("--prompt_mix", "box=half"), id="a share that is no number"),
    pytest.param(("--prompt_sampling", "table", "--correction_rounds", "2"), id="the table's alone and other clicks"),
    pytest.param(("--batch_size", "0"), id="batch of none"),
    pytest.param(("--lora_targets", "q_proj"), id="layer SAM does not have"),
    pytest.param(("--train", "x.csv"), id="abbreviated flag"),
])
def test_contradicting_flags_exit_with_2(flags):
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *flags], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("train.py: error: ")
    assert all(flag in done.stderr.splitlines()[-1] for flag in flags if flag in ("--feature_cache", "--flip"))


def test_ctrl_c_leaves_the_last_epoch_and_says_how_to_go_on(crops, mini_weights, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "train.py"),
               *command_line(crops, mini_weights, out, "--num_epochs", "500", "--patience", "500")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        assert any(line.startswith("epoch 1:") for line in process.stdout)  # printed once last.ckpt is there
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert "Traceback" not in printed and "--resume" in printed and "stopped by Ctrl-C" in printed
    assert load_checkpoint(out / "last.ckpt")["header"]["epoch"] >= 1
    assert not [name for name in files(out) if name.startswith(".partial-")]


def test_default_settings_follow_the_model_type(crops, mini_weights, tmp_path):
    arguments = command_line(crops, mini_weights, tmp_path / "out", "--num_epochs", "1")
    index = arguments.index("--batch_size")
    del arguments[index:index + 2]
    run(*arguments)
    saved = load_checkpoint(tmp_path / "out" / "last.ckpt")["header"]["args"]
    assert (saved["batch_size"], saved["learning_rate"]) == (8, 1e-3)


@pytest.mark.slow
def test_vit_b_in_the_published_format_trains_saves_loads_and_predicts(crops, tmp_path):
    """One training step at 1024 px on random weights, then the tuned model on one image."""
    from segment_anything import SamPredictor

    from sam_lora.data.imaging import load_image
    from tests.conftest import random_sam
    weights = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(random_sam("vit_b").state_dict(), weights)
    rows = pd.read_csv(crops.train_csv)
    rows[:1].to_csv(crops.train_csv, index=False)
    crops.val_csv.unlink()
    out = tmp_path / "out"
    run("--train_csv", str(crops.train_csv), "--model_type", "vit_b", "--checkpoint", str(weights), "--save_dir",
        str(out), "--num_workers", "0", "--num_epochs", "1")
    assert (out / "sam_lora_final.ckpt").stat().st_size < 25e6
    tuned, header = load_tuned_sam(out / "sam_lora_final.ckpt", weights)
    assert header["image_size"] == 1024 and len(header["versions"]) == 4
    log = pd.read_csv(out / "training_log.csv")
    assert np.isfinite(log["train_loss"][1])
    predictor = SamPredictor(tuned)
    image = load_image(crops.folder / rows["image"][0])
    predictor.set_image(image)
    masks, _, _ = predictor.predict(np.array([[20, 20]]), np.array([1]))
    assert masks.shape == (3, *image.shape[:2])


def test_lora_settings_reach_the_model(mini_weights):
    sam, _ = load_sam("vit_mini", mini_weights)
    settings = {"rank": 3, "alpha": 6.0, "dropout": 0.0, "targets": ["proj", "qkv"], "blocks": 2}
    adapted = prepare_for_training(sam, settings, train_decoder=False)
    blocks = [f"image_encoder.blocks.{number}.attn" for number in (4, 5)]
    assert sorted(adapted) == [f"{block}.{layer}" for block in blocks for layer in ("proj", "qkv")]
    assert all(re.search(r"lora_[AB]", name) for name, p in sam.named_parameters() if p.requires_grad)
