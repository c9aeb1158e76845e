"""Runs of train.py on a few small crops, for several test files."""

from pathlib import Path

import pandas as pd

import train

ROOT = Path(train.__file__).parent
MEASURED = ["seconds", "images_per_s", "data_wait", "peak_memory_mb"]  # columns of the log that differ from run to run


def command_line(crops, mini_weights: Path, save_dir: Path, *more: str) -> list[str]:
    """Flags for two epochs of vit_mini at 128 px, in batches of two, without workers."""
    return ["--train_csv", str(crops.train_csv), "--val_csv", str(crops.val_csv), "--model_type", "vit_mini",
            "--checkpoint", str(mini_weights), "--save_dir", str(save_dir), "--num_workers", "0", "--batch_size", "2",
            "--num_epochs", "2", "--image_size", "128", *more]


def run(*arguments: str) -> None:
    """train.py in this process."""
    train.main(train.get_args_parser().parse_args([*arguments]))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def log_of(folder: Path) -> pd.DataFrame:
    """The log of a run, without what is measured."""
    return pd.read_csv(folder / "training_log.csv").drop(columns=MEASURED)
