"""Peak memory and time of a training step for different flags: the table in the README.

    python benchmarks/bench_memory.py --model_type vit_b
    python benchmarks/bench_memory.py --model_type vit_b --device cuda --batch_size 8
    python benchmarks/bench_memory.py --model_type vit_h --device cuda --batch_size 4 --only "none; --grad_checkpoint"

Each row is one run of train.py on drawn photos with random weights: two epochs of one step, no validation. Reported are
the seconds of the second step and the peak memory in training_log.csv: on a GPU what PyTorch allocated, on a CPU the
whole process, Python and libraries included (about 0.4 GB).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawn_photos import run_train, write_table, write_weights

from sam_lora import cli, contracts
from sam_lora.errors import UserError
from sam_lora.files import atomic_path
from sam_lora.sam_types import SAM_TYPES

FLAGS = ("--precision fp32", "--precision bf16", "--precision bf16 --grad_checkpoint",
         "--precision bf16 --lora_blocks 4", "--precision bf16 --lora_blocks 0", "--precision bf16 --image_size 512",
         "--precision bf16 --image_size 256")


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_type", choices=SAM_TYPES, default="vit_mini")
    parser.add_argument("--batch_size", type=cli.positive_int, default=1, metavar="N")
    parser.add_argument("--only", metavar="FLAGS", help="flags of train.py for each row of the table, separated by ;")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all figures to this .json file")
    cli.add_device(parser)
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="bench_memory-") as name:
        folder = Path(name)
        write_weights(folder / "sam.pth", args.model_type, args.seed)
        write_table(folder, "train", args.batch_size, np.random.default_rng(args.seed))
        print(f"| {args.model_type}, batch {args.batch_size}, flags | seconds a step | peak memory |\n|---|---|---|")
        lines = [flags.strip() for flags in args.only.split(";")] if args.only else FLAGS
        rows = []
        for number, flags in enumerate(lines):
            rows.append(measure(folder, folder / str(number), flags, args))
            figures = (f"{rows[-1]['seconds']:.2f} | {rows[-1]['peak_memory_mb'] / 1e3:.2f} GB"
                       if "seconds" in rows[-1] else f"| {rows[-1]['problem']}")
            print(f"| {flags} | {figures} |", flush=True)
    if args.output:
        content = {"model_type": args.model_type, "batch_size": args.batch_size, "device": args.device, "rows": rows}
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, save_dir: Path, flags: str, args: argparse.Namespace) -> dict:
    """The figures of one run, or why there are none: out of memory, say, which the other rows need not be."""
    try:
        row = run(folder, save_dir, flags.replace("none", "").split(), args).iloc[-1]
    except UserError as error:
        return {"flags": flags, "problem": str(error)}
    return {"flags": flags, "seconds": args.batch_size / float(row["images_per_s"]),
            "peak_memory_mb": float(row["peak_memory_mb"])}


def run(folder: Path, save_dir: Path, flags: list[str], args: argparse.Namespace) -> pd.DataFrame:
    """The log of one run of train.py."""
    return run_train(save_dir, [
        "--train_csv", folder / contracts.training_table("train"), "--model_type", args.model_type, "--checkpoint",
        folder / "sam.pth", "--batch_size", args.batch_size, "--num_epochs", 2, "--num_workers", 0, "--seed", args.seed,
        "--device", args.device, *flags])


if __name__ == "__main__":
    cli.run(main, get_args_parser())
