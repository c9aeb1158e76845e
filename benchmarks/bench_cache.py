"""Speed of training with kept features of the frozen encoder blocks: train.py with --feature_cache against without.

    python benchmarks/bench_cache.py
    python benchmarks/bench_cache.py --model_type vit_b --lora_blocks 4 --images 4 --val_images 2 --batch_size 2

Images are real files, drawn and written as JPEG with PNG masks; the weights are random, in the published format. Both
sides run train.py as a user would, each in a process of its own, with the same flags and --no-flip; they take turns.
Timed are the epochs after the first, validation included, as training_log.csv has them; the whole run, which pays for
filling the cache, is told beside it. Ends with an error if the two sides' losses differ by more than 0.01.
The last line is `speedup X.XX`, the ratio of the medians of an epoch.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawn_photos import write_table, write_weights

from sam_lora import cli, contracts
from sam_lora.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"kept features": "--feature_cache", "computed anew": "--no-feature_cache"}
MOST_DIFFERENT = 1e-2  # of losses; in bfloat16 the first steps of AdamW make much of little roundings


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_type", choices=("vit_mini", "vit_b", "vit_l", "vit_h"), default="vit_mini")
    parser.add_argument("--lora_blocks", type=cli.non_negative_int, default=2, metavar="N",
                        help="encoder blocks that train")
    parser.add_argument("--images", type=cli.positive_int, default=48, metavar="N", help="training images, a row each")
    parser.add_argument("--val_images", type=cli.non_negative_int, default=16, metavar="N", help="validation images")
    parser.add_argument("--image_size", type=cli.positive_int, metavar="PX", help="default: the model's own")
    parser.add_argument("--batch_size", type=cli.positive_int, default=8, metavar="N")
    parser.add_argument("--epochs", type=cli.positive_int, default=4, metavar="N", help="at least 2")
    parser.add_argument("--rounds", type=cli.positive_int, default=2, metavar="N", help="each side's runs")
    parser.add_argument("--num_workers", type=cli.non_negative_int, default=0, metavar="N", help="of train.py, both")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of train.py, for both; last")
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.epochs < 2:
        get_args_parser().error("--epochs: at least 2, since the first is not timed")
    with tempfile.TemporaryDirectory(prefix="bench_cache-") as name:
        folder = Path(name)
        write_weights(folder / "sam.pth", args.model_type, args.seed)
        rng = np.random.default_rng(args.seed)
        write_table(folder, "train", args.images, rng)
        if args.val_images:
            write_table(folder, "val", args.val_images, rng)
        epochs = {side: [] for side in SIDES}
        for number in range(1, args.rounds + 1):
            logs = {}
            for side, flag in SIDES.items():
                logs[side], whole = run(folder, folder / f"{number} {side}", flag, args)
                timed = logs[side]["seconds"][2:].tolist()  # the log starts with epoch 0
                epochs[side] += timed
                print(f"round {number}: {side}  an epoch {np.median(timed):8.2f} s  the whole run {whole:8.1f} s")
            losses = [log[[c for c in ("train_loss", "val_loss") if log[c].notna().any()]][1:] for log in logs.values()]
            apart = float((losses[0] - losses[1]).abs().max().max())
            if not apart <= MOST_DIFFERENT:
                raise UserError(f"the losses of both sides are {apart:g} apart, expected {MOST_DIFFERENT:g} at most")
    kept, anew = (float(np.median(epochs[side])) for side in SIDES)
    print(f"{args.model_type}, LoRA in the last {args.lora_blocks} blocks, {args.images} + {args.val_images} images: "
          f"an epoch takes {kept:.2f} s with kept features, {anew:.2f} s without")
    print(f"speedup {anew / kept:.2f}")


def run(folder: Path, save_dir: Path, flag: str, args: argparse.Namespace) -> tuple[pd.DataFrame, float]:
    """One run of train.py: its log, and the seconds from start to end."""
    size = ["--image_size", args.image_size] if args.image_size else []
    command = [sys.executable, ROOT / "train.py", "--train_csv", folder / contracts.training_table("train"),
               "--model_type", args.model_type, "--checkpoint", folder / "sam.pth", "--save_dir", save_dir,
               "--lora_blocks", args.lora_blocks, "--batch_size", args.batch_size, "--num_epochs", args.epochs,
               "--patience", args.epochs, "--save_top_k", 0, "--num_workers", args.num_workers, "--seed", args.seed,
               "--device", args.device, "--no-flip", flag, *size, *args.flags]
    started = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"train.py failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else '?'}")
    return pd.read_csv(save_dir / contracts.TRAINING_LOG), time.perf_counter() - started


if __name__ == "__main__":
    cli.run(main, get_args_parser())
