"""What benchmarks of train.py have in common: drawn photos with their table, random weights, and the run itself."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from sam_lora import contracts
from sam_lora.errors import UserError

if TYPE_CHECKING:
    from sam_lora.model.meta import Sam

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def write_weights(path: Path, model_type: str, seed: int, position_std: float = 0.02) -> None:
    """Random weights in the published format."""
    import torch

    from sam_lora.model.sam import build_sam
    torch.manual_seed(seed)
    sam = build_sam(model_type)
    draw_position_tables(sam, position_std)
    torch.save(sam.state_dict(), path)


def draw_position_tables(sam: "Sam", std: float = 0.02) -> None:
    """Random position tables: those of a fresh SAM are all zero."""
    import torch
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "pos_embed" in name or "rel_pos" in name:
                parameter.normal_(std=std)


def write_table(folder: Path, split: str, count: int, rng: np.random.Generator) -> None:
    """`count` photos of 960 x 720 pixels with one bright ellipse each, their masks, and the training table."""
    rows = []
    for number in range(count):
        image = cv2.resize(rng.integers(30, 120, (45, 60, 3), dtype=np.uint8), (960, 720))
        mask = np.zeros((720, 960), np.uint8)
        x, y = (int(rng.integers(200, side - 200)) for side in (960, 720))
        cv2.ellipse(mask, (x, y), (int(rng.integers(60, 190)), int(rng.integers(60, 190))), 0, 0, 360, 255, -1)
        image[mask > 0] += 100
        names = f"{split}_{number}.jpg", f"{split}_{number}_mask.png"
        for name, picture in zip(names, (image, mask)):
            if not cv2.imwrite(str(folder / name), picture):
                raise UserError(f"{folder / name}: cannot be written")
        rows.append({"image": names[0], "label": names[1],
                     "points": f"[[{x},{y}],[{x - 20},{y}],[{x + 20},{y}]]"})
    pd.DataFrame(rows).to_csv(folder / contracts.training_table(split), index=False)


def run_train(save_dir: Path, flags: Sequence[object]) -> pd.DataFrame:
    """Run train.py as a user would; returns its log. Raises UserError with its last line if it fails."""
    command = [sys.executable, TRAIN, "--save_dir", save_dir, *flags]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"train.py failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else '?'}")
    return pd.read_csv(save_dir / contracts.TRAINING_LOG)
