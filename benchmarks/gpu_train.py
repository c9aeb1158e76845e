"""train.py for real, on a GPU: fine-tuning that helps, the loader's waiting time, resuming. For gpu_run.sh.

    python benchmarks/gpu_train.py --device cuda --output train.json
    python benchmarks/gpu_train.py --device cpu --quick

The demo's photos go through the project's own scripts, from labels to the scores of the base and the tuned vit_mini on
the test table. Then ViT-B with random weights trains at 1024 px on drawn photos: two epochs at once, and two with a
stop and --resume between them. Reported of the second epoch of the former are images a second and the share of time
that the training waited for data, and of the whole the largest memory that nvidia-smi saw in use. How far the resumed
run ends from the other is the norm of the difference of the trained tensors over the norm of their change in the second
epoch: 0 on a CPU; on a GPU sums have no fixed order, and Adam's first steps make small differences large.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from drawn_photos import run_train, write_table, write_weights

from sam_lora import cli, contracts
from sam_lora.errors import UserError
from sam_lora.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
LARGEST_LOSS_DIFFERENCE = 0.01   # relative, of the resumed run's second epoch
POLL_SECONDS = 0.5


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_device(parser)
    parser.add_argument("--quick", action="store_true", help="few photos, one epoch; vit_mini in place of ViT-B")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON, anew after each part")
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    figures = {}
    with tempfile.TemporaryDirectory(prefix="gpu_train-") as name, nvidia_peak() as peak:
        for part, measure in (("demo", demo), ("vit_b", large_model)):
            folder = Path(name) / part
            folder.mkdir()
            figures[part] = measure(folder, args)
            if part == "vit_b" and peak:
                figures[part]["peak_nvidia_smi_mib"] = max(peak)
            print(part, *(f"{key} {value:.4g}" for key, value in figures[part].items()), flush=True)
            if args.output:
                with atomic_path(args.output) as temporary:
                    temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if not figures["vit_b"]["loss_difference_resumed"] <= LARGEST_LOSS_DIFFERENCE:
        sys.exit(f"the resumed run's loss differs by {figures['vit_b']['loss_difference_resumed']:.2g}, expected at "
                 f"most {LARGEST_LOSS_DIFFERENCE:g}")


def demo(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Mean IoU on the demo's test table before and after train.py."""
    base = folder / contracts.BASE_RESULTS_FOLDER / contracts.results_table(contracts.BASE_RESULTS_PREFIX)
    device = ("--device", args.device)
    for script, *flags in (
            ("demo/make_dataset.py", "--output_dir", "data", "--seed", str(args.seed), "--num_images",
             "8" if args.quick else "75"),
            ("process_yolo_to_classwise.py", "--dataset_dir", "data/yolo", "--num_workers", "0"),
            ("Create_yolo_csv.py", "--num_workers", "0"), ("reformated_csv.py",),
            ("run_base_sam_inference.py", "--model_type", "vit_mini", "--test_csv",
             contracts.training_table("test"), "--num_pictures", "0", *device),
            ("train.py", "--model_type", "vit_mini", "--num_epochs", "1" if args.quick else "10", "--num_workers",
             "0" if args.quick else "8", *device),
            ("run_inference.py", "--test_csv", contracts.training_table("test"), "--num_pictures", "0", "--compare_to",
             str(base), *device)):
        run(folder, script, *flags)
    log = pd.read_csv(folder / contracts.CHECKPOINTS_FOLDER / contracts.TRAINING_LOG)
    tuned = folder / contracts.TUNED_RESULTS_FOLDER / contracts.results_table(contracts.TUNED_RESULTS_PREFIX)
    scores = {name: pd.read_csv(path)["iou"] for name, path in (("base", base), ("tuned", tuned))}
    return {"test_rows": len(scores["base"]), **{f"{name}_test_iou": float(values.mean())
                                                 for name, values in scores.items()},
            "untuned_val_iou": float(log["val_iou"].iloc[0]), "best_val_iou": float(log["val_iou"].max()),
            "images_per_s": float(log["images_per_s"].iloc[-1])}


def run(folder: Path, script: str, *flags: str) -> None:
    """One of the project's scripts in `folder`. Raises UserError with its last line if it fails."""
    done = subprocess.run([sys.executable, str(ROOT / script), *flags], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def large_model(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """ViT-B's second epoch, and how far a resumed run is from one that was not stopped."""
    model_type = "vit_mini" if args.quick else "vit_b"
    rows, batch, loader_workers = (4, 2, 1) if args.quick else (192, 8, 8)
    write_weights(folder / "sam.pth", model_type, args.seed)
    write_table(folder, "train", rows, np.random.default_rng(args.seed))
    common = ["--train_csv", folder / contracts.training_table("train"), "--model_type", model_type, "--checkpoint",
              folder / "sam.pth", "--batch_size", batch, "--num_epochs", 2, "--num_workers", loader_workers, "--seed",
              args.seed, "--device", args.device]
    straight, stopped = folder / "straight", folder / "stopped"
    log = run_train(straight, common)
    run_train(stopped, [*common, "--stop_after_epoch", 1])
    first = read_state(stopped / contracts.LAST_CHECKPOINT)
    resumed_log = run_train(stopped, [*common, "--resume"])
    ends = [read_state(path / contracts.LAST_CHECKPOINT) for path in (straight, stopped)]
    last, resumed = log.iloc[-1], resumed_log.iloc[-1]
    return {"images": rows, "images_per_s": float(last["images_per_s"]), "data_wait": float(last["data_wait"]),
            "peak_pytorch_mb": float(last["peak_memory_mb"]), "train_loss": float(last["train_loss"]),
            "loss_difference_resumed": float(abs(resumed["train_loss"] / last["train_loss"] - 1)),
            "weights_difference_resumed": distance(*ends) / distance(ends[0], first)}


def read_state(path: Path) -> dict:
    from sam_lora.model.checkpoints import load_checkpoint
    return load_checkpoint(path)["state"]


def distance(one: dict, other: dict) -> float:
    """The norm of the difference of two states."""
    return float(sum((one[name].double() - other[name].double()).square().sum() for name in one) ** 0.5)


@contextlib.contextmanager
def nvidia_peak() -> Iterator[list[int]]:
    """A list that grows by the MiB that nvidia-smi sees in use, as long as the block lasts; empty without it."""
    seen, ended = [], threading.Event()

    def poll() -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        with contextlib.suppress(OSError, ValueError, IndexError, subprocess.TimeoutExpired):
            while not ended.wait(POLL_SECONDS):
                done = subprocess.run(command, capture_output=True, text=True, timeout=20)
                seen.append(int(done.stdout.splitlines()[0]))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    cli.run(main, get_args_parser())
