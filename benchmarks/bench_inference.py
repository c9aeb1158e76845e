"""Speed of predicting, scoring and drawing a table: evaluation.evaluate_table against a loop around SamPredictor.

    python benchmarks/bench_inference.py
    python benchmarks/bench_inference.py --test_csv test_reformatted.csv --rows 64 --rounds 5

Crops come from the demo's data set (or your table); the model is vit_mini on the CPU. The loop does what scripts
around SamPredictor do: for every row it reads the image, calls `set_image` and `predict`, computes the IoU, and writes
a mask as PNG and a picture as JPEG. Ours does all that run_inference.py does, with a panel for every row. Comparisons:

    a row an image     every image once, with three clicks; the loop draws our panel, by the same function, and its
                       model has our attention
    3 rows an image    each image with one, two and three clicks; the rest the same
    plain, a row an image; plain, 3 rows an image
                       the loop draws the same panel by code of its own (plain_panel.py), which stays as it is, and its
                       model is segment_anything's as it comes: what such a script does without this project
    matplotlib         the first table; the loop draws three axes side by side and saves them, as such scripts do

The sides take turns, each in a process of its own with its imports done and its model loaded. Each comparison prints
its medians. On a machine with other work the ratio of processor times is the one to go by: the ratio of wall times then
says how the system shares its cores. The last line is `speedup X.XX`, the smaller median ratio of the first two, where
pictures cost both the same.
"""

import argparse
import contextlib
import io
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sam_lora  # noqa: F401, I001 - before torch, as in the scripts: it says how threads wait

import cv2
import numpy as np
import pandas as pd
import torch
from plain_panel import plain_panel

from sam_lora import cli, contracts, workers
from sam_lora.data import imaging
from sam_lora.data.samples import Sample, read_samples
from sam_lora.drawing import Example
from sam_lora.errors import UserError
from sam_lora.model.meta import SamPredictor
from sam_lora.model.precision import multiply_faster
from sam_lora.model.sam import build_sam, load_sam
from sam_lora.results import evaluation, pictures
from sam_lora.results.requests import Candidate, Destination, Runtime, SampleTable
from sam_lora.tables import points_from_json, points_to_json, resolve_path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = 3
OBJECTS_PER_PHOTO = 3   # of the demo's photos, at least
MODEL = STOCK = None    # in the process of one side


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--test_csv", metavar="FILE", help="training table; default: one made of the demo's data")
    parser.add_argument("--rows", type=cli.positive_int, default=64, metavar="N", help="images to take from it")
    parser.add_argument("--rounds", type=cli.positive_int, default=3, metavar="N",
                        help="runs of each side on each table")
    parser.add_argument("--threads", type=cli.positive_int, default=torch.get_num_threads(), metavar="N",
                        help="of PyTorch and OpenCV, for both sides")
    parser.add_argument("--profile", metavar="FILE",
                        help="instead of comparing, write a cProfile (processor time) of our side on the first table")
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="bench_inference-") as name:
        folder = Path(name)
        single, shared = make_tables(folder, args)
        if args.profile:
            start(args.threads, ours=True)
            profile(single, folder / "profile", args.profile)
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, start, (args.threads, False)) as loop, \
                ProcessPoolExecutor(1, spawn, start, (args.threads, True)) as ours:
            sides = {"loop": loop, "ours": ours}
            for draw in ("panel", "plain", "matplotlib"):  # the first call of everything is slower
                loop.submit(by_loop, single, folder / f"warm-{draw}", draw).result()
            ours.submit(seconds, by_table, single, folder / "warm").result()
            ratios = [compare(sides, "panel", single, folder, args.rounds, "a row an image"),
                      compare(sides, "panel", shared, folder, args.rounds, f"{PROMPTS} rows an image")]
            compare(sides, "plain", single, folder, args.rounds, "plain, a row an image")
            compare(sides, "plain", shared, folder, args.rounds, f"plain, {PROMPTS} rows an image")
            compare(sides, "matplotlib", single, folder, args.rounds, "matplotlib")
    print(f"speedup {min(ratios):.2f}")


def make_tables(folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """Two training tables of the same images: one row each, and PROMPTS rows with one, two and three clicks."""
    table = pd.read_csv(args.test_csv or demo_table(folder, args.rows, args.seed))
    if args.test_csv:
        for column in ("image", "label"):
            table[column] = [str(resolve_path(path, args.test_csv).resolve()) for path in table[column]]
    table = table.drop_duplicates("image").head(args.rows)
    if len(table) < args.rows:
        raise UserError(f"{args.test_csv or 'the demo'}: {len(table)} images, "
                        f"expected {args.rows}; give a smaller --rows")
    sizes = [imaging.image_size(path) for path in table["image"]]
    print(f"{len(table)} images, {np.mean(sizes, axis=0).round().astype(int).tolist()} px on average; "
          f"{args.threads} threads; torch {torch.__version__}")
    shared = table.loc[table.index.repeat(PROMPTS)].copy()
    shared["points"] = [points_to_json(points_from_json(text, "points")[:1 + i % PROMPTS])
                        for i, text in enumerate(shared["points"])]
    return write(table, folder / "single.csv"), write(shared, folder / "shared.csv")


def demo_table(folder: Path, rows: int, seed: int) -> Path:
    """The demo's photos, converted by our own scripts: a training table of all their objects."""
    for command in (("demo/make_dataset.py", "--output_dir", "data", "--seed", str(seed), "--num_images",
                     str(-(-rows // OBJECTS_PER_PHOTO) + 4)),
                    ("process_coco_dataset.py", "--coco_json", "data/coco/annotations.json", "--images_dir",
                     "data/coco/images", "--output_dir", str(folder / "crops"), "--num_workers", "0"),
                    ("Create_csv.py", "--dataset_dir", str(folder / "crops"), "--split", "1", "0", "0", "--resplit",
                     "--num_workers", "0"),
                    ("reformated_csv.py", "--splits", "train")):
        done = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=folder, capture_output=True,
                              text=True)
        if done.returncode:
            raise UserError(f"{command[0]}: {done.stderr.strip().splitlines()[-1]}")
    return folder / contracts.training_table("train")


def write(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, index=False)
    return path


def compare(sides: dict[str, Executor], draw: str, test_csv: Path, folder: Path, rounds: int, title: str) -> float:
    """The median ratio of the sides' times. Ends the run if their masks differ."""
    times = []
    for number in range(rounds):
        outputs = [folder / f"{title}-{number}-{side}" for side in sides]
        times.append((sides["loop"].submit(seconds, by_loop, test_csv, outputs[0], draw).result(),
                      sides["ours"].submit(seconds, by_table, test_csv, outputs[1]).result()))
    masks = [sorted((output / "masks").iterdir()) for output in outputs]
    for theirs, ours in zip(*masks, strict=True):
        if (imaging.load_mask(theirs) != imaging.load_mask(ours)).mean() > 1e-3:
            sys.exit(f"{theirs.name}: the masks differ")
    rows = len(masks[0])
    (loop, ours), (loop_cpu, ours_cpu) = np.median(times, axis=0).T / rows * 1e3
    ratio, cpu_ratio = np.median([np.divide(*pair) for pair in times], axis=0)
    print(f"{title:<22} {rows:>4} rows  ours {ours:6.1f} ms a row ({ours_cpu:.1f} of processor time)  "
          f"SamPredictor loop {loop:6.1f} ms ({loop_cpu:.1f})  {ratio:5.2f}x, {cpu_ratio:.2f}x in processor "
          "time", flush=True)
    return float(ratio)


def start(threads: int, ours: bool) -> None:
    """Prepare the process of one side."""
    global MODEL, STOCK
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    if ours:  # as both inference scripts do
        workers.keep_freed_memory()
        multiply_faster()
    MODEL = load_sam("vit_mini")[0]
    STOCK = build_sam("vit_mini")
    STOCK.load_state_dict(MODEL.state_dict())


def seconds(run: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """(wall time, processor time) of a call."""
    wall, busy = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(*arguments)
    return time.perf_counter() - wall, time.process_time() - busy


def by_table(test_csv: Path, folder: Path) -> None:
    evaluation.evaluate_table(Candidate(lambda: MODEL, tuned=True), SampleTable(str(test_csv)),
                              Destination(folder, num_pictures=10**6), Runtime(torch.device("cpu")))


def by_loop(test_csv: Path, folder: Path, draw: str) -> None:
    (folder / "masks").mkdir(parents=True)
    (folder / "samples").mkdir()
    predictor, scores, samples = SamPredictor(STOCK if draw == "plain" else MODEL), [], read_samples(test_csv)
    for number, sample in enumerate(samples):
        image = cv2.cvtColor(cv2.imread(str(sample.image)), cv2.COLOR_BGR2RGB)
        predictor.set_image(image)
        masks, _, _ = predictor.predict(np.array(sample.points), np.array(sample.point_labels), multimask_output=False)
        mask, truth = masks[0], cv2.imread(str(sample.label), cv2.IMREAD_GRAYSCALE) > 127
        scores.append((mask & truth).sum() / max(1, (mask | truth).sum()))
        cv2.imwrite(str(folder / "masks" / f"{number:05d}.png"), mask.astype(np.uint8) * 255)
        path, heading = str(folder / "samples" / f"{number:05d}.jpg"), f"IoU {scores[-1]:.2f}"
        if draw == "matplotlib":
            by_matplotlib(image, sample, mask, truth, heading, path)
        elif draw == "plain":
            panel = plain_panel(image, sample.points, mask, truth, heading, sample.image_text)
            cv2.imwrite(path, cv2.cvtColor(panel, cv2.COLOR_RGB2BGR))
        else:
            example = Example(image, sample.points, sample.point_labels, None, mask, truth)
            cv2.imwrite(path, cv2.cvtColor(pictures.panel(example, heading, sample.image_text), cv2.COLOR_RGB2BGR))
    pd.DataFrame({"image": [sample.image_text for sample in samples], "iou": scores}).to_csv(folder / "results.csv")


def by_matplotlib(image: np.ndarray, sample: Sample, mask: np.ndarray, truth: np.ndarray, title: str,
                  path: str) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    for axis, shown, name in zip(axes, (None, mask, truth), ("image and points", title, "ground truth")):
        axis.imshow(image)
        if shown is None:
            axis.scatter(*zip(*sample.points), c="lime", marker="*")
        else:
            axis.imshow(shown, alpha=0.5)
        axis.set_title(name)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def profile(test_csv: Path, folder: Path, path: str) -> None:
    """Profile the second of two runs of our side."""
    import cProfile
    profiler = cProfile.Profile(time.process_time)
    seconds(by_table, test_csv, folder / "first")
    seconds(profiler.runcall, by_table, test_csv, folder / "second")
    profiler.dump_stats(path)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
