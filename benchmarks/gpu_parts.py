"""The parts of gpu_run.py: which scripts run, with which flags and for how long at most.

With `quick` the same scripts run on small models, for a few steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PARTS = {"a": "parity with segment_anything on the CPU", "b": "speed of a training step", "c": "attention alone",
         "d": "memory of a training step", "e": "train.py", "f": "inference and export", "g": "pretraining"}
LEAST_SECONDS = 20          # a step with less time than this (and than its limit) is not started
PRETRAIN_OVERHEAD = 35      # seconds that pretraining takes beside its --minutes: start, last evaluation
QUICK_SECONDS = 600         # limit of each step of a quick run: a busy machine has two cores for all of it
WEIGHTS = Path(__file__).resolve().parents[1] / "sam_lora" / "weights" / "sam_vit_mini.pth"


@dataclass(frozen=True)
class Step:
    """`command(seconds)` gives script and flags for a process of that many seconds.

    Its figures are in the file `figures`, or, where that is None, in the table that it prints.
    """

    name: str
    seconds: float
    command: Callable[[float], list[str]]
    figures: Path | None = None


def steps_of(part: str, device: str, quick: bool, work: Path, out: Path) -> list[Step]:
    """The steps of a part, in order. Temporary files go to `work`, what is to be kept to `out`."""
    make = {"a": parity, "b": training_speed, "c": attention, "d": memory, "e": training, "f": inference,
            "g": pretraining}[part]
    return make(device, quick, work, out)


def written(name: str, seconds: float, quick: bool, work: Path, *command: str) -> Step:
    """A step whose script writes its figures as JSON into --output."""
    figures = work / f"{name.replace(' ', '_')}.json"
    words = [*command, "--output", str(figures)]
    return Step(name, QUICK_SECONDS if quick else seconds, lambda _: words, figures)


def printed(name: str, seconds: float, quick: bool, *command: str) -> Step:
    """A step whose figures are in what its script prints."""
    words = list(command)
    return Step(name, QUICK_SECONDS if quick else seconds, lambda _: words)


def parity(device: str, quick: bool, work: Path, out: Path) -> list[Step]:
    return [written("parity", 60, quick, work, "benchmarks/gpu_parity.py", "--device", device,
                    *(["--quick"] if quick else []))]


def training_speed(device: str, quick: bool, work: Path, out: Path) -> list[Step]:
    common = ["benchmarks/bench_train.py", "--device", device, "--precision", "bf16"]
    if quick:  # without --compile: a compiler takes a minute on a CPU
        return [written("train 64 px", 0, quick, work, *common, "--model_type", "vit_mini", "--image_size", "64",
                        "--batch_size", "1", "--steps", "1", "--rounds", "1", "--reference_precision", "fp32", "bf16")]
    common += ["--model_type", "vit_b", "--batch_size", "8", "--num_workers", "8", "--rounds", "2", "--steps", "4"]
    return [written("train 1024 px", 110, quick, work, *common, "--reference_precision", "fp32", "bf16"),
            written("train 1024 px compiled", 80, quick, work, *common, "--reference_precision", "bf16", "--compile"),
            written("train 512 px", 50, quick, work, *common, "--reference_precision", "bf16", "--image_size", "512")]


def attention(device: str, quick: bool, work: Path, out: Path) -> list[Step]:
    return [written("attention", 65, quick, work, "benchmarks/bench_attention.py", "--device", device, "--seconds",
                    "45", *(["--quick"] if quick else []))]


def memory(device: str, quick: bool, work: Path, out: Path) -> list[Step]:
    common = ["benchmarks/bench_memory.py", "--device", device]
    if quick:
        return [printed("memory vit_mini", 0, quick, *common, "--model_type", "vit_mini", "--batch_size", "2",
                        "--only", "none")]
    by_flags = "; ".join(("none", "--grad_checkpoint", "--lora_blocks 4", "--lora_blocks 0", "--precision fp32"))
    return [printed("memory vit_h", 80, quick, *common, "--model_type", "vit_h", "--batch_size", "4", "--only",
                    "none; --grad_checkpoint"),
            printed("memory vit_b", 60, quick, *common, "--model_type", "vit_b", "--batch_size", "8", "--only",
                    by_flags)]


def training(device: str, quick: bool, work: Path, out: Path) -> list[Step]:
    common = ["benchmarks/gpu_train.py", "--device", device, *(["--quick"] if quick else []), "--parts"]
    return [written("train.py", 130, quick, work, *common, "demo", "large"),
            written("train.py find", 60, quick, work, *common, "find")]


def inference(device: str, quick: bool, work: Path, out: Path) -> list[Step]:
    size = ["--model_type", "vit_mini", "--rows", "3", "--rounds", "1"] if quick else \
        ["--model_type", "vit_b", "--rows", "48", "--rounds", "2"]
    export = ["--model_type", "vit_mini" if quick else "vit_b", "--images", "1" if quick else "4"]
    return [written("inference", 75, quick, work, "benchmarks/bench_inference.py", "--device", device, *size),
            written("export", 40, quick, work, "benchmarks/parity_export.py", "--device", device, "--formats", "pth",
                    *export)]


def pretraining(device: str, quick: bool, work: Path, out: Path) -> list[Step]:
    folder = work / "pretrain"
    common = ["pretrain/pretrain_vit_mini.py", "--device", device, "--init", str(WEIGHTS), "--output_dir", str(folder),
              "--output", str(out / WEIGHTS.name)]
    if quick:
        common += ["--minutes", "0.02", "--sides", "64", "--images", "2", "--masks", "1", "--learning_rates", "1e-4",
                   "--num_workers", "0", "--replay", "0", "--num_judged", "4"]
        return [Step("pretraining", QUICK_SECONDS, lambda _: common, folder / "curve.csv")]
    common += ["--sides", "256", "--images", "192", "--masks", "4", "--learning_rates", "1.5e-3", "--num_workers",
               "14", "--evaluate_every", "0.75", "--num_judged", "256"]

    def command(seconds: float) -> list[str]:
        return [*common, "--minutes", f"{max(0.1, (seconds - PRETRAIN_OVERHEAD) / 60):.2f}"]
    return [Step("pretraining", 480, command, folder / "curve.csv")]
