"""Runs of both inference scripts on the six test crops, in this process, for several test files."""

from pathlib import Path

import run_base_sam_inference
import run_inference

STEMS = [f"{number:05d}_photo{number + 9}_0001" for number in range(1, 7)]
FILES = {"predictions.jpg", "report.html", "finetuned_sam_results.csv", "finetuned_sam_class_iou_summary.csv",
         "finetuned_sam_size_iou_summary.csv",
         *(f"masks/{stem}.png" for stem in STEMS), *(f"samples/{stem}.jpg" for stem in STEMS)}
OTHER_SOURCES = {"--image", "--images_dir", "--prompts_csv", "--test_csv"}


def run_tuned(crops, weights: Path, checkpoint: Path, *flags: object) -> Path:
    """run_inference.py with further flags, of which the last one wins; returns the default output folder, ./out."""
    call(run_inference, crops, "--checkpoint", checkpoint, "--base_checkpoint", weights, "--output_dir", "out", *flags)
    return Path.cwd() / "out"


def run_base(crops, weights: Path, *flags: object) -> Path:
    """run_base_sam_inference.py, likewise; returns ./base."""
    call(run_base_sam_inference, crops, "--model_type", "vit_mini", "--checkpoint", weights, "--output_dir", "base",
         *flags)
    return Path.cwd() / "base"


def call(script, crops, *flags: object) -> None:
    source = [] if OTHER_SOURCES & {*flags} else ["--test_csv", crops.test_csv]
    script.main(script.get_args_parser().parse_args([*map(str, source), "--device", "cpu", *map(str, flags)]))
