"""Speed of predicting, scoring and drawing a table: evaluation.evaluate_table against a loop around SamPredictor.

    python benchmarks/bench_inference.py
    python benchmarks/bench_inference.py --test_csv test_reformatted.csv --rows 64 --rounds 5
    python benchmarks/bench_inference.py --device cuda --model_type vit_b --rows 48 --rounds 2 --output inference.json

Crops come from the demo's data set (or your table); the model is vit_mini, or a larger SAM with random weights. The
loop does what scripts around SamPredictor do: for every row it reads the image, calls `set_image` and `predict`,
computes the IoU, and writes a mask as PNG and a picture as JPEG. Ours does all that run_inference.py does, with a panel
for every row. The comparisons on the CPU:

    a row an image     every image once, with three clicks; the loop draws our panel, by the same function, and its
                       model has our attention
    3 rows an image    each image with one, two and three clicks; the rest the same
    plain, a row an image; plain, 3 rows an image
                       the loop draws the same panel by code of its own (plain_panel.py), which stays as it is, and its
                       model is segment_anything's as it comes: what such a script does without this project
    matplotlib         the first table; the loop draws three axes side by side and saves them, as such scripts do

On a GPU the loop's model is always segment_anything's as it comes, in float32, and ours computes in --precision; the
comparisons are

    a row an image, a row an image without pictures, 3 rows an image (as many rows as the others)

--pictures and --no-pictures keep to those with and without; without, both sides score and write masks only.

The sides take turns, each in a process of its own with its imports done and its model loaded. Each comparison prints
its medians and the share of pixels on which the masks of both agree: on the CPU in float32 practically all must. On a
machine with other work the ratio of processor times is the one to go by: that of wall times then says how the system
shares its cores. Where ours computes in another precision than float32, the shipped vit_mini's mean IoU in both
follows. The last line is `speedup X.XX`, the smallest median ratio where pictures cost both the same: without plain and
matplotlib.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sam_lora  # noqa: F401, I001 - before torch, as in the scripts: it says how threads wait

import cv2
import numpy as np
import pandas as pd
import torch
from drawn_photos import write_weights
from plain_panel import plain_panel

from sam_lora import cli, contracts, workers
from sam_lora.data import imaging
from sam_lora.data.samples import Sample, read_samples
from sam_lora.drawing import Example
from sam_lora.errors import UserError
from sam_lora.files import atomic_path
from sam_lora.model.meta import Sam, SamPredictor
from sam_lora.model.precision import choose_precision, multiply_faster, select_device
from sam_lora.model.sam import build_sam, load_sam
from sam_lora.model.weights import find_weights, read_state_dict
from sam_lora.ranks import ALONE
from sam_lora.results import evaluation, metrics, pictures
from sam_lora.results.requests import Candidate, Destination, Runtime, SampleTable
from sam_lora.sam_types import SAM_TYPES
from sam_lora.tables import points_from_json, points_to_json, resolve_path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = 3
OBJECTS_PER_PHOTO = 3   # of the demo's photos, at least
WARM_ROWS = 8
TRAINED = "vit_mini"    # the model that ships; the others get random weights
OWN_WORK = ("plain", "matplotlib")   # the loop's own ways to draw, which say nothing about prediction
MODEL = STOCK = None    # in the process of one side


@dataclass(frozen=True)
class Settings:
    """What both sides run on; `precision` is that of ours."""

    device: torch.device
    model_type: str
    weights: Path
    precision: str
    threads: int

    @property
    def strict(self) -> bool:
        """Must both sides' masks be the same?"""
        return self.device.type == "cpu" and self.precision == "fp32"

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.device, precision=self.precision)


@dataclass(frozen=True)
class Comparison:
    """One table; the loop draws a `panel`, `plain`, by `matplotlib`, or `nothing`: then ours draws nothing either."""

    title: str
    table: Path
    draw: str


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--test_csv", metavar="FILE", help="training table; default: one made of the demo's data")
    add("--model_type", choices=SAM_TYPES, default=TRAINED, help="vit_mini as it ships, or another with random weights")
    add("--rows", type=cli.positive_int, default=64, metavar="N", help="images to take from the table")
    add("--rounds", type=cli.positive_int, default=3, metavar="N", help="runs of each side on each table")
    add("--pictures", action=argparse.BooleanOptionalAction,
        help="only the comparisons with pictures, or only those without; default: on the CPU with, on a GPU both")
    add("--threads", type=cli.positive_int, default=torch.get_num_threads(), metavar="N",
        help="of PyTorch and OpenCV, for both sides")
    add("--profile", metavar="FILE",
        help="instead of comparing, write a cProfile (processor time) of our side on the first table")
    add("--output", metavar="FILE", help="write the figures as JSON too")
    cli.add_device(parser)
    cli.add_precision(parser)
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="bench_inference-") as name:
        folder = Path(name)
        settings = settings_of(args, folder)
        single, shared = make_tables(folder, args, settings)
        if args.profile:
            start(settings, ours=True)
            profile(single, folder / "profile", args.profile, settings)
            return
        warm = write(pd.read_csv(single).head(WARM_ROWS), folder / "warm.csv")
        comparisons = comparisons_of(args.pictures, settings, single, shared)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, start, (settings, False)) as loop, \
                ProcessPoolExecutor(1, spawn, start, (settings, True)) as ours:
            sides = {"loop": loop, "ours": ours}
            for draw in {comparison.draw for comparison in comparisons}:  # the first call of everything is slower
                loop.submit(by_loop, warm, folder / f"warm-loop-{draw}", draw, settings).result()
                ours.submit(seconds, by_table, warm, folder / f"warm-ours-{draw}", draw, settings).result()
            figures = [compare(sides, comparison, folder, args.rounds, settings) for comparison in comparisons]
            parity = None
            if settings.precision != "fp32":
                parity = ours.submit(precision_parity, single, folder, settings).result()
    if parity:
        print(f"{TRAINED}, {parity['rows']} rows: mean IoU {parity['fp32']:.4f} in fp32, "
              f"{parity[settings.precision]:.4f} in {settings.precision}; their masks' IoU {parity['masks_iou']:.4f}")
    speedup = min(entry["ratio"] for entry in figures if entry["draw"] not in OWN_WORK)
    if args.output:
        write_json(Path(args.output), settings, figures, parity, speedup)
    print(f"speedup {speedup:.2f}")


def settings_of(args: argparse.Namespace, folder: Path) -> Settings:
    """What the flags ask for; random weights are written into `folder`. The precision is settled on the model."""
    device = select_device(args.device)
    if args.model_type == TRAINED:
        weights = find_weights(TRAINED)
    else:
        weights = folder / "weights.pth"
        write_weights(weights, args.model_type, args.seed, position_std=0.2)  # masks neither empty nor full
    with torch.device("meta"):
        sam = build_sam(args.model_type)
    precision = choose_precision(args.precision, device, sam, ALONE)
    return Settings(device, args.model_type, weights, precision, args.threads)


def comparisons_of(with_pictures: bool | None, settings: Settings, single: Path, shared: Path) -> list[Comparison]:
    on_cpu = settings.device.type == "cpu"
    one, several = "a row an image", f"{PROMPTS} rows an image"
    drawn = [Comparison(one, single, "panel"), Comparison(several, shared, "panel")]
    plain = [Comparison(f"{one}, no pictures", single, "nothing")]
    if on_cpu:
        drawn += [Comparison(f"plain, {one}", single, "plain"), Comparison(f"plain, {several}", shared, "plain"),
                  Comparison("matplotlib", single, "matplotlib")]
        plain.append(Comparison(f"{several}, no pictures", shared, "nothing"))
    if with_pictures is None:
        return drawn if on_cpu else [drawn[0], *plain, *drawn[1:]]
    return drawn if with_pictures else plain


def write_json(path: Path, settings: Settings, figures: Sequence[dict], parity: dict | None, speedup: float) -> None:
    name = torch.cuda.get_device_name(settings.device) if settings.device.type == "cuda" else settings.device.type
    content = {"device": name, "torch": torch.__version__, "threads": settings.threads,
               "model_type": settings.model_type, "precision": settings.precision, "loop_precision": "fp32",
               "comparisons": figures, "precision_parity": parity, "speedup": speedup}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def make_tables(folder: Path, args: argparse.Namespace, settings: Settings) -> tuple[Path, Path]:
    """Two training tables of the same images: one row each, and PROMPTS rows with one, two and three clicks.

    On a GPU the second has fewer images, so that both have as many rows.
    """
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
          f"{args.threads} threads; torch {torch.__version__}; {args.model_type} on {settings.device} in "
          f"{settings.precision}")
    images = table if settings.device.type == "cpu" else table.head(max(1, len(table) // PROMPTS))
    shared = images.loc[images.index.repeat(PROMPTS)].copy()
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


def compare(sides: dict[str, Executor], comparison: Comparison, folder: Path, rounds: int, settings: Settings) -> dict:
    """The figures of both sides. Ends the run if their masks differ where they must not."""
    title, draw, times = comparison.title, comparison.draw, []
    for number in range(rounds):
        outputs = [folder / f"{title}-{number}-{side}" for side in sides]
        times.append(tuple(side.submit(seconds, run, comparison.table, output, draw, settings).result()
                           for side, run, output in zip(sides.values(), (by_loop, by_table), outputs)))
    pairs = list(zip(*(sorted((output / "masks").iterdir()) for output in outputs), strict=True))
    agreement = [float((imaging.load_mask(theirs) == imaging.load_mask(ours)).mean()) for theirs, ours in pairs]
    if settings.strict and min(agreement) < 1 - 1e-3:
        sys.exit(f"{pairs[int(np.argmin(agreement))][0].name}: the masks differ")
    rows = len(pairs)
    (loop, ours), (loop_cpu, ours_cpu) = np.median(times, axis=0).T / rows * 1e3
    ratio, cpu_ratio = (float(value) for value in np.median([np.divide(*pair) for pair in times], axis=0))
    print(f"{title:<28} {rows:>4} rows  ours {ours:6.1f} ms a row ({ours_cpu:.1f} of processor time)  "
          f"SamPredictor loop {loop:6.1f} ms ({loop_cpu:.1f})  {ratio:5.2f}x, {cpu_ratio:.2f}x in processor time  "
          f"masks agree on {np.mean(agreement):.2%}", flush=True)
    return {"title": title, "draw": draw, "rows": rows, "ours_rows_per_s": 1e3 / ours, "loop_rows_per_s": 1e3 / loop,
            "ours_cpu_ms": ours_cpu, "loop_cpu_ms": loop_cpu, "ratio": ratio, "cpu_ratio": cpu_ratio,
            "pixels_agree": float(np.mean(agreement))}


def start(settings: Settings, ours: bool) -> None:
    """Prepare the process of one side."""
    global MODEL, STOCK
    torch.set_num_threads(settings.threads)
    cv2.setNumThreads(settings.threads)
    if ours:  # as both inference scripts do
        workers.keep_freed_memory()
        if settings.device.type == "cpu":
            multiply_faster()
    MODEL = load_sam(settings.model_type, settings.weights)[0].to(settings.device)
    if not ours:
        STOCK = build_sam(settings.model_type)
        STOCK.load_state_dict(read_state_dict(settings.weights))
        STOCK.to(settings.device)


def seconds(run: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """(wall time, processor time) of a call."""
    wall, busy = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(*arguments)
    return time.perf_counter() - wall, time.process_time() - busy


def by_table(test_csv: Path, folder: Path, draw: str, settings: Settings) -> None:
    evaluate(MODEL, test_csv, folder, 0 if draw == "nothing" else 10**6, settings.runtime)


def evaluate(sam: Sam, test_csv: Path, folder: Path, num_pictures: int, runtime: Runtime) -> pd.DataFrame:
    return evaluation.evaluate_table(Candidate(lambda _: sam, tuned=True), SampleTable(str(test_csv)),
                                     Destination(folder, num_pictures=num_pictures), runtime)


def precision_parity(test_csv: Path, folder: Path, settings: Settings) -> dict:
    """Mean IoU of the model that ships, in float32 and in ours, and how well the masks of both agree."""
    sam = load_sam(TRAINED)[0].to(settings.device)
    results = {}
    for precision in ("fp32", settings.precision):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            results[precision] = evaluate(sam, test_csv, folder / f"parity-{precision}", 0,
                                          Runtime(settings.device, precision=precision))
    masks = [[imaging.load_mask(folder / f"parity-{precision}" / name) for name in table["mask"]]
             for precision, table in results.items()]
    means = {precision: float(table["iou"].astype(float).mean()) for precision, table in results.items()}
    return {"rows": len(masks[0]), **means,
            "masks_iou": float(np.mean([metrics.iou(one, other) for one, other in zip(*masks)]))}


def by_loop(test_csv: Path, folder: Path, draw: str, settings: Settings) -> None:
    (folder / "masks").mkdir(parents=True)
    (folder / "samples").mkdir()
    stock = draw == "plain" or settings.device.type != "cpu"
    predictor, scores, samples = SamPredictor(STOCK if stock else MODEL), [], read_samples(test_csv)
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
        elif draw == "panel":
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


def profile(test_csv: Path, folder: Path, path: str, settings: Settings) -> None:
    """Profile the second of two runs of our side."""
    import cProfile
    profiler = cProfile.Profile(time.process_time)
    seconds(by_table, test_csv, folder / "first", "panel", settings)
    seconds(profiler.runcall, by_table, test_csv, folder / "second", "panel", settings)
    profiler.dump_stats(path)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
