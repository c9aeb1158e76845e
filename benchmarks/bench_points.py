"""Speed of placing three points in a mask: sam_lora/data/clicks.py against loops over the mask's pixels, in one run.

    python benchmarks/bench_points.py
    python benchmarks/bench_points.py --masks 20 --size 640 480

The loops go pixel by pixel, as the workflow that this project grew from did: for YOLO the middle pixel in reading
order, the pixel farthest from it, and the pixel farthest from that one; for COCO the mean, the pixel two thirds down
the list of pixels by distance, and the most opposite of its neighbours in that list. Ours does more: all points lie
inside and off the boundary, and the farthest pair is exact.
Prints a line for each kind of mask; the last line is
`speedup X.XX`, over all masks, of the slower of both strategies.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam_lora import cli
from sam_lora.data import clicks


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--masks", type=cli.positive_int, default=2, metavar="N", help="masks of each kind")
    parser.add_argument("--size", type=cli.positive_int, nargs=2, default=[640, 640], metavar=("W", "H"))
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(args.seed)
    pairs = ((clicks.centre_and_farthest_points, farthest_by_loops, "YOLO, farthest"),
             (clicks.centre_and_opposite_points, opposite_by_loops, "COCO, opposite"))
    ours, loops = {name: 0.0 for *_, name in pairs}, {name: 0.0 for *_, name in pairs}
    for kind, draw in KINDS.items():
        masks = [draw(rng, *args.size) for _ in range(args.masks)]
        pixels = np.mean([np.count_nonzero(mask) for mask in masks])
        for strategy, reference, name in pairs:
            for mask in masks:
                points = strategy(mask)
                if not mask[points[:, 1], points[:, 0]].all():
                    sys.exit(f"{kind}, {name}: a point outside the mask")
            if strategy is clicks.centre_and_farthest_points:
                check_farthest(masks[0])
            fast, slow = seconds(strategy, masks, 5), seconds(reference, masks, 1)
            ours[name], loops[name] = ours[name] + fast, loops[name] + slow
            print(f"{name}: {kind:<9} {pixels:>8.0f} px  ours {fast / args.masks * 1e3:6.2f} ms  "
                  f"loops {slow / args.masks * 1e3:8.1f} ms  {slow / fast:7.1f}x")
    for name in ours:
        print(f"{name}: all       ours {ours[name]:.3f} s  loops {loops[name]:.2f} s  {loops[name] / ours[name]:.1f}x")
    print(f"speedup {min(loops[name] / ours[name] for name in ours):.2f}")


def seconds(function: Callable, masks: list[np.ndarray], repeats: int) -> float:
    """Seconds for all masks, the best of `repeats` rounds."""
    rounds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for mask in masks:
            function(mask)
        rounds.append(time.perf_counter() - start)
    return min(rounds)


def check_farthest(mask: np.ndarray) -> None:
    """Check that our pair is at least as far apart as that of the loops."""
    pair = clicks.farthest_pair(mask)
    _, first, second = farthest_by_loops(mask)
    if np.linalg.norm(pair[0] - pair[1]) < math.dist(first, second) - 1e-9:
        sys.exit("the loops found a pair farther apart")


# ---- the loops --------------------------------------------------------------------------------------------

def farthest_by_loops(mask: np.ndarray) -> list[tuple[int, int]]:
    rows, columns = np.where(mask)
    pixels = list(zip(columns, rows))
    centre = pixels[len(pixels) // 2]

    def farthest_from(other: tuple[int, int]) -> tuple[int, int]:
        return max(pixels, key=lambda pixel: np.linalg.norm(np.array(pixel) - np.array(other)))

    first = farthest_from(centre)
    return [centre, first, farthest_from(first)]


def opposite_by_loops(mask: np.ndarray) -> list[tuple[int, int]]:
    rows, columns = np.where(mask)
    x, y = int(columns.mean()), int(rows.mean())
    pixels = list(zip(columns, rows))
    ranked = sorted(((column - x) ** 2 + (row - y) ** 2, (column, row)) for column, row in pixels)
    index = len(ranked) * 2 // 3
    first = ranked[index][1]
    opposite = math.atan2(first[1] - y, first[0] - x) + math.pi

    def off(pixel: tuple[int, int]) -> float:
        turn = math.atan2(pixel[1] - y, pixel[0] - x) - opposite
        return abs((turn + math.pi) % (2 * math.pi) - math.pi)

    return [(x, y), first, min((pixel for _, pixel in ranked[max(0, index - 10):index + 10]), key=off)]


# ---- masks ------------------------------------------------------------------------------------------------

def disc(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A filled ellipse that covers most of the frame."""
    axes = (int(width * rng.uniform(0.3, 0.48)), int(height * rng.uniform(0.3, 0.48)))
    return cv2.ellipse(np.zeros((height, width), np.uint8), (width // 2, height // 2), axes,
                       rng.uniform(-20, 20), 0, 360, 1, -1) > 0


def full(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    return np.ones((height, width), bool)


def crack(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A thin wandering line from side to side."""
    xs = np.linspace(0, width - 1, 24)
    ys = np.clip(height / 2 + np.cumsum(rng.normal(0, height / 18, 24)), 0, height - 1)
    line = np.stack([xs, ys], axis=1).round().astype(np.int32)
    return cv2.polylines(np.zeros((height, width), np.uint8), [line], False, 1, int(rng.integers(2, 9))) > 0


def ring(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A ring with a gap: its centroid lies outside, and pixels opposite the gap have no mirror image."""
    radius = int(min(width, height) * rng.uniform(0.3, 0.44))
    start = rng.uniform(0, 360)
    return cv2.ellipse(np.zeros((height, width), np.uint8), (width // 2, height // 2), (radius, radius), start, 0,
                       rng.uniform(200, 330), 1, int(rng.integers(20, 60))) > 0


def blobs(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Ragged patches that cover two thirds of the frame."""
    noise = cv2.resize(rng.random((12, 12), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return noise > np.quantile(noise, 0.35)


KINDS = {"disc": disc, "full": full, "crack": crack, "ring": ring, "patches": blobs}


if __name__ == "__main__":
    cli.run(main, get_args_parser())
