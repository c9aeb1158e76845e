"""Speed of the conversion: process_yolo_to_classwise.py against a straightforward converter, in one run.

    python benchmarks/bench_convert.py
    python benchmarks/bench_convert.py --images 5000 --objects 100000 --reference_objects 2000

Makes a YOLO data set of drawn photos in a temporary folder, runs both on it, checks that both write as many crops, and
reports time, processor time and peak memory. The straightforward converter is one process that reads the photo for
every label row, draws a full-size mask, crops and writes; with --reference_objects it converts only about that many,
and its time is scaled up. The last line is `speedup X.XX`.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam_lora import cli, contracts

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("disc", "star", "blob")
CORNERS = 24
GROUNDS = 8   # different backgrounds, each shifted at random for every photo


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--images", type=cli.positive_int, default=60, metavar="N", help="photos")
    parser.add_argument("--objects", type=cli.positive_int, default=1200, metavar="N",
                        help="objects in all photos together")
    parser.add_argument("--size", type=cli.positive_int, nargs=2, default=[1280, 960], metavar=("W", "H"))
    parser.add_argument("--reference_objects", type=cli.positive_int, metavar="N",
                        help="objects, roughly, for the straightforward converter; default: all")
    cli.add_num_workers(parser, os.cpu_count() or 1)
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="bench_convert-") as folder:
        root, output, reference_output = (Path(folder) / name for name in ("set", "ours", "straightforward"))
        make_dataset(root, args.images, args.objects, tuple(args.size), args.seed, args.num_workers)
        print(f"{args.images} photos of {args.size[0]} x {args.size[1]}, {args.objects} objects, "
              f"{megabytes(root):.0f} MB; {os.cpu_count()} cores")
        seconds, cpu, crops = run_ours(root, output, args)
        reference_seconds, reference_cpu = run_straightforward(root, reference_output, crops, args)
        print(f"processor time an object: ours {cpu * 1e3:.2f} ms, straightforward {reference_cpu * 1e3:.2f} ms, "
              f"{reference_cpu / cpu:.2f} times as much")
        print(f"speedup {reference_seconds / seconds:.2f}", flush=True)  # removing the folder may take long


def run_ours(root: Path, output: Path, args: argparse.Namespace) -> tuple[float, float, Counter[str]]:
    """Seconds and processor seconds an object, and the number of crops of each photo."""
    seconds, cpu, memory = timed([
        sys.executable, str(ROOT / "process_yolo_to_classwise.py"), "--dataset_dir", str(root), "--output_dir",
        str(output), "--num_workers", str(args.num_workers)])
    with (output / contracts.MANIFEST_FILE).open(encoding="utf-8", newline="") as file:
        crops = Counter(row["source_image"] for row in csv.DictReader(file))
    print(f"ours: {crops.total()} crops in {seconds:.1f} s, {seconds / args.objects * 1e3:.2f} ms an object, "
          f"{args.num_workers} processes, {cpu:.1f} s of processor time, {megabytes(output):.0f} MB written, "
          f"peak memory {memory:.0f} MB in all processes together")
    return seconds / args.objects, cpu / args.objects, crops


def run_straightforward(root: Path, output: Path, crops: Counter[str], args: argparse.Namespace) -> tuple[float, float]:
    """Seconds and processor seconds an object. Ends the run if the number of crops differs from ours."""
    per_photo = max(1, args.objects // args.images)
    photos = sorted((root / "images").iterdir())[:-(-(args.reference_objects or args.objects) // per_photo)]
    objects = sum(len(label_of(photo).read_text().splitlines()) for photo in photos)
    cv2.setNumThreads(1)
    start, cpu_start = time.perf_counter(), time.process_time()
    written = sum(straightforward(photo, output) for photo in photos)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    print(f"straightforward: {written} crops of {objects} objects in {seconds:.1f} s, "
          f"{seconds / objects * 1e3:.2f} ms an object, {cpu:.1f} s of processor time; "
          f"{seconds / objects * args.objects:.1f} s for all {args.objects}")
    expected = sum(crops[f"images/{photo.name}"] for photo in photos)
    if written != expected:
        sys.exit(f"different crops: {written} straightforward, {expected} of ours from the same photos")
    return seconds / objects, cpu / objects


# ---- the straightforward converter ------------------------------------------------------------------------

def straightforward(photo: Path, out: Path, padding: float = 0.1, min_size: int = 10) -> int:
    """Write the crops and masks of one photo's label rows with OpenCV's defaults; returns their number."""
    crops = 0
    for number, line in enumerate(label_of(photo).read_text().splitlines(), start=1):
        values = line.split()
        image = cv2.imread(str(photo))
        height, width = image.shape[:2]
        polygon = np.round(np.array(values[1:], dtype=float).reshape(-1, 2) * (width, height)).astype(np.int32)
        mask = np.zeros((height, width), dtype=np.uint8)
        cv2.fillPoly(mask, [polygon], 255)
        x, y, w, h = cv2.boundingRect(polygon)
        if max(w, h) < min_size:
            continue
        x0, y0 = max(0, int(x - padding * w)), max(0, int(y - padding * h))
        x1, y1 = min(width, int(x + w + padding * w)), min(height, int(y + h + padding * h))
        for kind, pixels in ((contracts.IMAGES_FOLDER, image), (contracts.MASKS_FOLDER, mask)):
            folder = out / f"Class_{CLASSES[int(values[0])]}" / kind
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{photo.stem}_{number}.png"), pixels[y0:y1, x0:x1])
        crops += 1
    return crops


def label_of(photo: Path) -> Path:
    return photo.parents[1] / "labels" / f"{photo.stem}.txt"


# ---- the data set -----------------------------------------------------------------------------------------

def make_dataset(root: Path, images: int, objects: int, size_wh: tuple[int, int], seed: int, num_workers: int) -> None:
    """A YOLO data set: `objects` spread evenly over `images` JPEG photos."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / "data.yaml").write_text(f"names: [{', '.join(CLASSES)}]\n")
    jobs = [(number, objects * (number + 1) // images - objects * number // images) for number in range(images)]
    with ProcessPoolExecutor(max(1, num_workers)) as pool:
        list(pool.map(partial(make_photo, root=root, size_wh=size_wh, seed=seed), jobs, chunksize=16))


def make_photo(job: tuple[int, int], root: Path, size_wh: tuple[int, int], seed: int) -> None:
    """One photo: clouds and grain, with round objects of 20 to 150 pixels, each of a different shade."""
    number, objects = job
    rng = np.random.default_rng([seed, number])
    width, height = size_wh
    picture = np.roll(ground(size_wh, seed, number % GROUNDS), rng.integers(0, size_wh[::-1]), axis=(0, 1))
    rows = []
    for _ in range(objects):
        radius = 10 * 7.5 ** rng.random()
        angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        reach = radius * (1 + 0.25 * np.sin(angles * rng.integers(2, 5) + rng.uniform(0, 6)))
        centre = rng.uniform(radius * 1.3, np.array(size_wh) - radius * 1.3)
        polygon = centre + np.stack([reach * np.cos(angles) * rng.uniform(0.6, 1), reach * np.sin(angles)], axis=1)
        x0, y0, w, h = cv2.boundingRect(np.round(polygon).astype(np.int32))
        window = picture[y0:y0 + h, x0:x0 + w]
        inside = cv2.fillPoly(np.zeros(window.shape[:2], np.uint8), [np.round(polygon - (x0, y0)).astype(np.int32)], 1)
        window[inside > 0] = window[inside > 0] // 2 + rng.integers(20, 128, 3, dtype=np.uint8)
        normalised = polygon / (width, height)
        rows.append(f"{rng.integers(len(CLASSES))} " + " ".join(f"{value:.6f}" for value in normalised.ravel()))
    cv2.imwrite(str(root / "images" / f"photo{number:06d}.jpg"), picture, (cv2.IMWRITE_JPEG_QUALITY, 90))
    (root / "labels" / f"photo{number:06d}.txt").write_text("\n".join(rows) + "\n")


@lru_cache
def ground(size_wh: tuple[int, int], seed: int, number: int) -> np.ndarray:
    """Soft clouds and grain, (H, W, 3) uint8."""
    rng = np.random.default_rng([seed, number, 1])
    width, height = size_wh
    picture = 40 + rng.integers(0, 10, (height, width, 3)).astype(np.float32)
    for cells, strength in ((6, 70), (40, 30), (200, 12)):
        noise = rng.random((cells * height // width + 2, cells, 3), dtype=np.float32)
        picture += cv2.resize(noise, size_wh, interpolation=cv2.INTER_LINEAR) * strength
    return picture.clip(0, 255).astype(np.uint8)


# ---- measuring --------------------------------------------------------------------------------------------

def timed(command: list[str]) -> tuple[float, float, float]:
    """Run a command: (seconds, processor seconds of all its processes, peak MB of all of them together).

    Memory is PSS, so that pages shared by processes count once, sampled four times a second (Linux only).
    """
    start, before = time.perf_counter(), _processor_seconds()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0.0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.25):
            peak[0] = max(peak[0], sum(map(_pss, _family(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    if code:
        sys.exit(f"{' '.join(command)}: exit {code}")
    return seconds, _processor_seconds() - before, peak[0]


def _processor_seconds() -> float:
    """Of all finished child processes, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended in the meantime
            continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sorted(family)


def _pss(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    cli.run(main, get_args_parser())
