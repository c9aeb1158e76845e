"""Speed of training with kept features of the frozen encoder blocks: train.py with --feature_cache against without.

    python benchmarks/bench_cache.py
    python benchmarks/bench_cache.py --model_type vit_b --lora_blocks 4 --images 4 --val_images 2 --batch_size 2

Images are drawn and written as JPEG files with PNG masks; the weights are random, in the published format. Each side
is a run of train.py in a process of its own, with the same flags and --no-flip; they take turns. Timed are the epochs
after the first, validation included, as training_log.csv reports them; the time of the whole run, which includes
filling the cache, is printed beside it. The benchmark fails if the losses of the two sides differ by more than 0.01.
The last line is `speedup X.XX`, the ratio of the median epochs.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawn_photos import run_train, write_table, write_weights

from sam_lora import cli, contracts
from sam_lora.errors import UserError
from sam_lora.sam_types import SAM_TYPES

SIDES = {"kept features": "--feature_cache", "recomputed": "--no-feature_cache"}
LARGEST_DIFFERENCE = 1e-2  # of losses; in bfloat16 the first steps of AdamW amplify small rounding errors


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_type", choices=SAM_TYPES, default="vit_mini")
    parser.add_argument("--lora_blocks", type=cli.non_negative_int, default=2, metavar="N",
                        help="encoder blocks that train")
    parser.add_argument("--images", type=cli.positive_int, default=48, metavar="N",
                        help="training images, one row each")
    parser.add_argument("--val_images", type=cli.non_negative_int, default=16, metavar="N", help="validation images")
    parser.add_argument("--image_size", type=cli.positive_int, metavar="PX", help="default: the model's own")
    parser.add_argument("--batch_size", type=cli.positive_int, default=8, metavar="N")
    parser.add_argument("--epochs", type=cli.positive_int, default=4, metavar="N", help="at least 2")
    parser.add_argument("--rounds", type=cli.positive_int, default=2, metavar="N", help="runs of each side")
    parser.add_argument("--num_workers", type=cli.non_negative_int, default=0, metavar="N",
                        help="of train.py, for both sides")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[],
                        help="further flags of train.py, for both sides; give this last")
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
        seconds = time_epochs(folder, args)
    kept, recomputed = (float(np.median(seconds[side])) for side in SIDES)
    print(f"{args.model_type}, LoRA in the last {args.lora_blocks} blocks, {args.images} + {args.val_images} images: "
          f"an epoch takes {kept:.2f} s with kept features, {recomputed:.2f} s without")
    print(f"speedup {recomputed / kept:.2f}")


def time_epochs(folder: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """The seconds of every timed epoch of both sides. Raises UserError where their losses differ."""
    seconds = {side: [] for side in SIDES}
    for number in range(1, args.rounds + 1):
        logs = []
        for side, flag in SIDES.items():
            log, whole_run = run(folder, folder / f"{number} {side}", flag, args)
            timed = log["seconds"][2:].tolist()  # the log starts with epoch 0
            seconds[side] += timed
            logs.append(log)
            print(f"round {number}: {side}  an epoch {np.median(timed):8.2f} s  the whole run {whole_run:8.1f} s")
        check_losses(*logs)
    return seconds


def check_losses(first: pd.DataFrame, second: pd.DataFrame) -> None:
    columns = [name for name in ("train_loss", "val_loss") if first[name].notna().any()]
    difference = float((first[columns][1:] - second[columns][1:]).abs().max().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(f"the losses of both sides differ by {difference:g}, expected at most {LARGEST_DIFFERENCE:g}")


def run(folder: Path, save_dir: Path, flag: str, args: argparse.Namespace) -> tuple[pd.DataFrame, float]:
    """One run of train.py: its log, and its seconds from start to end."""
    size = ["--image_size", args.image_size] if args.image_size else []
    started = time.perf_counter()
    log = run_train(save_dir, [
        "--train_csv", folder / contracts.training_table("train"), "--model_type", args.model_type, "--checkpoint",
        folder / "sam.pth", "--lora_blocks", args.lora_blocks, "--batch_size", args.batch_size, "--num_epochs",
        args.epochs, "--patience", args.epochs, "--save_top_k", 0, "--num_workers", args.num_workers, "--seed",
        args.seed, "--device", args.device, "--no-flip", flag, *size, *args.flags])
    return log, time.perf_counter() - started


if __name__ == "__main__":
    cli.run(main, get_args_parser())
