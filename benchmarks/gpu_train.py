"""train.py for real, on a GPU: fine-tuning that helps, the loader's waiting time, resuming. For gpu_run.sh.

    python benchmarks/gpu_train.py --device cuda --output train.json
    python benchmarks/gpu_train.py --device cpu --quick --parts find

The demo's photos go through the project's own scripts, from labels to the scores of the base and the tuned vit_mini on
the test table. At the same time, since neither is timed, a run of ViT-B with random weights is stopped after its first
epoch of two and resumed. Then the same run goes through without a stop, alone on the card: reported of its second epoch
are images a second and the share of time that the training waited for data, and of the whole the largest memory that
nvidia-smi saw in use. How far the resumed run ends from it is the norm of the difference of the trained tensors over
the norm of their change in the second epoch: 0 on a CPU; on a GPU sums have no fixed order, and Adam's first steps make
small differences large.

find: on the demo's photos as a whole, vit_mini learns to find their objects without a prompt, too, and does so on the
test photos. `epoch_seconds` is of the last epoch; `last_seconds` is all but the epochs: the start, the finder's own
steps on kept embeddings, its threshold, the checkpoint; `seconds_a_photo` is with all objects down to the lowest score,
as AP needs.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
PARTS = ("demo", "large", "find")


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_device(parser)
    parser.add_argument("--quick", action="store_true", help="few photos, one epoch; vit_mini in place of ViT-B")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS),
                        help="demo: base and tuned vit_mini on crops; large: ViT-B, stopped and resumed, and at once; "
                             "find: objects of whole photos, without a prompt; default: all")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON, anew after each part")
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    figures = {}
    with tempfile.TemporaryDirectory(prefix="gpu_train-") as name, ThreadPoolExecutor(1) as beside:
        folders = {part: Path(name) / part for part in args.parts}
        for folder in folders.values():
            folder.mkdir()
        scores = beside.submit(demo, folders["demo"], args) if "demo" in folders else None
        if "large" in folders:
            large = LargeModel(folders["large"], args)
            large.stop_and_resume()
        if scores is not None:
            report("demo", scores.result(), figures, args.output)
        if "large" in folders:
            report("large", large.at_once(), figures, args.output)
        if "find" in folders:
            report("find", find(folders["find"], args), figures, args.output)
    if "large" in figures:
        difference = figures["large"]["loss_difference_resumed"]
        if not difference <= LARGEST_LOSS_DIFFERENCE:
            sys.exit(f"the resumed run's loss differs by {difference:.2g}, "
                     f"expected at most {LARGEST_LOSS_DIFFERENCE:g}")


def report(part: str, values: dict[str, float], figures: dict[str, dict[str, float]], output: str | None) -> None:
    """Print a part's figures and write all there are by now."""
    figures[part] = values
    print(f"{part}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()), flush=True)
    if output:
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def demo(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Mean IoU on the demo's test table before and after train.py."""
    base = folder / contracts.BASE_RESULTS_FOLDER / contracts.results_table(contracts.BASE_RESULTS_PREFIX)
    device = ("--device", args.device)
    make_photos(folder, args)
    for script, *flags in (
            ("process_yolo_to_classwise.py", "--dataset_dir", "data/yolo", "--num_workers", "0"),
            ("Create_yolo_csv.py", "--num_workers", "0"), ("reformated_csv.py",),
            ("run_base_sam_inference.py", "--model_type", "vit_mini", "--test_csv",
             contracts.training_table("test"), "--num_pictures", "0", *device),
            ("train.py", "--model_type", "vit_mini", "--num_epochs", "1" if args.quick else "10", "--num_workers",
             "0" if args.quick else "4", *device),
            ("run_inference.py", "--test_csv", contracts.training_table("test"), "--num_pictures", "0", "--compare_to",
             str(base), *device)):
        run(folder, script, *flags)
    log = pd.read_csv(folder / contracts.CHECKPOINTS_FOLDER / contracts.TRAINING_LOG)
    tuned = folder / contracts.TUNED_RESULTS_FOLDER / contracts.results_table(contracts.TUNED_RESULTS_PREFIX)
    scores = {name: pd.read_csv(path)["iou"] for name, path in (("base", base), ("tuned", tuned))}
    return {"test_rows": len(scores["base"]), **{f"{name}_test_iou": float(values.mean())
                                                 for name, values in scores.items()},
            "untuned_val_iou": float(log["val_iou"].iloc[0]), "best_val_iou": float(log["val_iou"].max())}


def find(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """How well and how fast vit_mini finds the objects of the demo's test photos after train.py, and what that took."""
    make_photos(folder, args)
    for script, *flags in (
            ("process_coco_dataset.py", "--coco_json", "data/coco/annotations.json", "--images_dir",
             "data/coco/images", "--no_crop", "--num_workers", "0"),
            ("Create_csv.py", "--num_workers", "0"), ("reformated_csv.py",)):
        run(folder, script, *flags)
    began = time.perf_counter()
    run(folder, "train.py", "--model_type", "vit_mini", "--prompts_per_image", "4", "--device", args.device,
        *(("--num_epochs", "1", "--num_workers", "0", "--image_size", "64") if args.quick else
          ("--num_epochs", "10", "--num_workers", "4")))
    seconds = time.perf_counter() - began
    run(folder, "run_inference.py", "--find", "--test_csv", contracts.training_table("test"), "--num_pictures", "0",
        "--device", args.device)
    log = pd.read_csv(folder / contracts.CHECKPOINTS_FOLDER / contracts.TRAINING_LOG)
    summary = folder / contracts.TUNED_RESULTS_FOLDER / contracts.find_summary_table(contracts.TUNED_RESULTS_PREFIX)
    found = pd.read_csv(summary).iloc[-1]
    return {"test_photos": int(found["photos"]), "objects": int(found["objects"]),
            "epoch_seconds": float(log["seconds"].iloc[-1]), "last_seconds": seconds - float(log["seconds"].sum()),
            **{name: float(found[name]) for name in ("ap", "ap50", "f1", "seconds_a_photo")}}


def make_photos(folder: Path, args: argparse.Namespace) -> None:
    run(folder, "demo/make_dataset.py", "--output_dir", "data", "--seed", str(args.seed), "--num_images",
        "8" if args.quick else "75")


def run(folder: Path, script: str, *flags: str) -> None:
    """One of the project's scripts in `folder`. Raises UserError with its last line if it fails."""
    done = subprocess.run([sys.executable, str(ROOT / script), *flags], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


class LargeModel:
    """ViT-B on drawn photos, for two epochs."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder = folder
        model_type = "vit_mini" if args.quick else "vit_b"
        self.rows, batch, loader_workers = (4, 2, 1) if args.quick else (320, 8, 8)
        write_weights(folder / "sam.pth", model_type, args.seed)
        write_table(folder, "train", self.rows, np.random.default_rng(args.seed))
        self.flags = ["--train_csv", folder / contracts.training_table("train"), "--model_type", model_type,
                      "--checkpoint", folder / "sam.pth", "--batch_size", batch, "--num_epochs", 2, "--num_workers",
                      loader_workers, "--seed", args.seed, "--device", args.device]

    def train(self, name: str, *flags: object) -> tuple[pd.Series, dict]:
        """(the last row of the log, the trained tensors) of a run in the folder `name`."""
        from sam_lora.model.checkpoints import load_checkpoint
        log = run_train(self.folder / name, [*self.flags, *flags])
        return log.iloc[-1], load_checkpoint(self.folder / name / contracts.LAST_CHECKPOINT)["state"]

    def stop_and_resume(self) -> None:
        _, self.after_first_epoch = self.train("stopped", "--stop_after_epoch", 1)
        self.resumed_log, self.resumed = self.train("stopped", "--resume")

    def at_once(self) -> dict[str, float]:
        """Without a stop; what is reported of both."""
        with nvidia_peak() as peak:
            log, trained = self.train("at_once")
        change = distance(trained, self.after_first_epoch)
        figures = {"images": self.rows, **{name: float(log[name]) for name in (
            "images_per_s", "data_wait", "peak_memory_mb", "train_loss")}}
        figures |= {"peak_nvidia_smi_mib": max(peak)} if peak else {}
        return figures | {"loss_difference_resumed": float(abs(self.resumed_log["train_loss"] / log["train_loss"] - 1)),
                          "weights_difference_resumed": distance(trained, self.resumed) / change}


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
