"""The recipe of the small SAM end to end, for a few steps."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from sam_lora.errors import UserError
from sam_lora.model.sam import build_sam
from sam_lora.model.weights import read_state_dict

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import pretrain_vit_mini as recipe


def run(folder, *more):
    recipe.main(recipe.get_args_parser().parse_args([
        "--sides", "64", "96", "--minutes", "0.01", "0.01", "--images", "2", "2", "--masks", "2", "2", "--num_workers",
        "0", "--num_judged", "3", "--threads", "1", "--learning_rates", "1e-3", "1e-3", "--device", "cpu",
        "--output_dir", str(folder), "--output", str(folder / "sam.pth"), *more]))


def test_a_few_steps_write_weights_state_and_curves_and_can_go_on(tmp_path):
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {"log.csv"} == {"state.pt", "curve.csv", "sam.pth"}
    state = read_state_dict(tmp_path / "sam.pth")
    sam = build_sam("vit_mini")
    assert state.keys() == sam.state_dict().keys()
    sam.load_state_dict(state)
    before = torch.load(tmp_path / "state.pt", weights_only=True)["state"]
    assert before["step"] >= 2
    run(tmp_path, "--resume", "--minutes", "0.01", str(before["stage_seconds"] / 60 + 0.001))  # at least a step more
    after = torch.load(tmp_path / "state.pt", weights_only=True)["state"]
    assert after["step"] > before["step"]
    assert after["stage"] == 1
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["side"] for row in rows] == ["64", "96", "96"]


def test_going_on_from_nothing_says_so(tmp_path):
    with pytest.raises(UserError, match=r"state\.pt: no such file"):
        run(tmp_path, "--resume")


def test_a_store_without_workers_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one worker"):
        run(tmp_path, "--replay", "40")


def test_stages_of_different_counts_are_refused(tmp_path):
    with pytest.raises(UserError, match="one value per stage"):
        run(tmp_path, "--minutes", "1")


def test_the_state_has_the_entries_of_earlier_versions(tmp_path):
    run(tmp_path)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(saved) == {"state", "model", "ema", "optimisers"}
    assert set(saved["state"]) == {"stage", "step", "stage_step", "stage_seconds", "seconds", "best"}


def test_training_goes_on_from_given_weights(tmp_path):
    run(tmp_path)
    run(tmp_path / "more", "--init", str(tmp_path / "sam.pth"))
    progress = torch.load(tmp_path / "more" / "state.pt", weights_only=True)["state"]
    assert progress["step"] > 1500  # where the loss is sharp from the start


def test_steps_can_draw_from_a_store_and_go_on_from_a_state_elsewhere(tmp_path):
    options = ["--replay", "40", "--num_workers", "1", "--state", str(tmp_path / "elsewhere.pt")]
    run(tmp_path / "out", *options)
    first = torch.load(tmp_path / "elsewhere.pt", weights_only=True)["state"]
    run(tmp_path / "out", *options, "--resume", "--minutes", "0.01", str(first["stage_seconds"] / 60 + 0.001))
    assert torch.load(tmp_path / "elsewhere.pt", weights_only=True)["state"]["step"] > first["step"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "elsewhere.pt"}
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"log.csv"} == {"curve.csv", "sam.pth"}
    assert all(value.isfinite().all() for value in read_state_dict(tmp_path / "out" / "sam.pth").values())
