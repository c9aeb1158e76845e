"""Measuring the small SAM: the same numbers for the same weights, and all those that the README names."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sam_lora.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import evaluate

PROCEDURAL = {"n", "points_1", "points_1_best_of_3", "points_1_chosen_of_3", "points_3", "points_5", "box",
              "whole_frame_as_mask", "spearman_predicted_iou"}
AUTOMATIC = {"n_scenes", "n_regions", *(f"{settings}_{name}" for settings in ("default", "lower")
                                        for name in ("masks_a_scene", "found_at_0.5", "found_at_0.75"))}


def measure(crops, output: Path) -> dict:
    evaluate.main(evaluate.get_args_parser().parse_args([
        "--num_crops", "6", "--num_scenes", "5", "--num_clicked", "3", "--num_simple", "1", "--threads", "1",
        "--output", str(output), "--tables", f"mine={crops.test_csv}"]))
    return json.loads(output.read_text())


def test_all_measurements_are_there_and_repeat(crops, tmp_path):
    report = measure(crops, tmp_path / "first.json")
    assert set(report) == {"sha256", "crops", "scenes", "clicks", "automatic", "mine"}
    assert set(report["crops"]) == set(report["scenes"]) == PROCEDURAL
    assert set(report["automatic"]) == AUTOMATIC
    assert list(report["clicks"]) == ["n", *(f"clicks_{number}" for number in range(1, 11))]
    assert report["clicks"]["clicks_10"] > report["clicks"]["clicks_1"]
    assert report["crops"]["n"] == 6 and report["scenes"]["n"] == 5
    assert 0 < report["crops"]["points_3"] <= 1 and 0 < report["mine"]["points"] <= 1
    assert report["crops"]["whole_frame_as_mask"] < 1
    assert measure(crops, tmp_path / "second.json") == report


def test_rank_correlation_is_of_ranks():
    first = np.array([0.1, 0.5, 0.2, 0.9])
    assert evaluate.spearman(first, np.exp(first * 9)) == pytest.approx(1)
    assert evaluate.spearman(first, -first ** 3) == pytest.approx(-1)


def test_a_table_needs_a_name():
    with pytest.raises(UserError, match="expected NAME=FILE"):
        evaluate.main(evaluate.get_args_parser().parse_args(["--tables", "test.csv"]))
