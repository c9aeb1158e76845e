"""Speed and memory of a training step: train.py's against the plain loop over segment_anything, in one run.

    python benchmarks/bench_train.py                                              vit_mini on the CPU
    python benchmarks/bench_train.py --model_type vit_b --batch_size 1 --rounds 1
    python benchmarks/bench_train.py --model_type vit_b --device cuda --precision bf16 --reference_precision fp32

Both sides train the same weights on the same batches of drawn images, with LoRA on the qkv layer of every encoder
block, the mask decoder and AdamW. The reference encodes every image and decodes every prompt by itself, through
segment_anything's own encoder and decoder, with one backward pass a batch; ours is the step of train.py. vit_b, vit_l
and vit_h have random weights. The sides take turns, each in a process of its own; a round's ratio is that of the
seconds its steps took. Their losses on one batch and their embeddings of an image, in float32, are compared first. The
last line is `speedup X.XX memory Y.YY`, reference over ours.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawn_photos import draw_position_tables

from sam_lora import cli, workers
from sam_lora.data.samples import read_samples
from sam_lora.model import attention, checkpoints
from sam_lora.model.batches import Batch, PromptedImages
from sam_lora.model.encode import frame_mask, preprocess
from sam_lora.model.lora import LoraSettings
from sam_lora.model.meta import Sam
from sam_lora.model.precision import select_device
from sam_lora.model.sam import build_sam, checkpoint_blocks, resize_position_embeddings
from sam_lora.model.weights import find_weights, read_state_dict
from sam_lora.sam_types import SAM_TYPES
from sam_lora.tables import points_to_json
from sam_lora.training import distributed, losses
from sam_lora.training.loading import Loader
from sam_lora.training.precision import choose_precision
from sam_lora.training.update import GRADIENT_CLIP

LORA = LoraSettings(rank=16, alpha=32.0)
MULTIMASK_WEIGHT = 0.25     # train.py's default
LARGEST_DIFFERENCE = 1e-4   # relative, of losses and of embeddings
PARTS = ("data", "encode", "decode and loss", "backward", "optimiser")
SIDE = None                 # of a process of one side


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_type", choices=SAM_TYPES, default="vit_mini", help="SAM architecture")
    parser.add_argument("--image_size", type=cli.positive_int, metavar="PX",
                        help="side of the model frame; default: the model's own")
    parser.add_argument("--batch_size", type=cli.positive_int, default=8, metavar="N", help="images a step")
    parser.add_argument("--prompts_per_image", type=cli.positive_int, default=1, metavar="N",
                        help="objects an image has")
    parser.add_argument("--steps", type=cli.positive_int, default=4, metavar="N", help="steps of a round")
    parser.add_argument("--rounds", type=cli.positive_int, default=5, metavar="N", help="rounds of each side")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of our side")
    parser.add_argument("--reference_precision", choices=("fp32", "bf16"), help="default: that of our side")
    parser.add_argument("--grad_checkpoint", action="store_true", help="our side recomputes encoder blocks")
    cli.add_num_workers(parser, 0)
    cli.add_device(parser)
    cli.add_seed(parser)
    return parser


@dataclass(frozen=True)
class Settings:
    """What the process of one side is told."""

    ours: bool
    table: Path
    model_type: str
    image_size: int | None
    batch_size: int
    prompts_per_image: int
    precision: str
    grad_checkpoint: bool
    num_workers: int
    device: str
    seed: int
    threads: int


def main(args: argparse.Namespace) -> None:
    device = select_device(args.device)
    side = args.image_size or SAM_TYPES[args.model_type].image_size
    precisions = {"reference": args.reference_precision or args.precision, "ours": args.precision}
    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="bench_train-") as name, contextlib.ExitStack() as stack:
        table = draw_images(Path(name), args.steps * args.batch_size, args.prompts_per_image, side, args.seed)
        print(f"{args.model_type} at {side} px, {args.batch_size} images a step with {args.prompts_per_image} prompts "
              f"each, on {device_name(device)}, {threads} threads; torch {torch.__version__}", flush=True)
        pools = {}
        for key, precision in precisions.items():
            settings = Settings(key == "ours", table, args.model_type, args.image_size, args.batch_size,
                                args.prompts_per_image, precision, args.grad_checkpoint and key == "ours",
                                args.num_workers, str(device), args.seed, threads)
            pools[key] = stack.enter_context(ProcessPoolExecutor(1, spawn, start, (settings,)))
        check_equality(pools)
        times = time_rounds(pools, args.rounds, args.steps)
        memory = {key: pool.submit(peak_memory).result() for key, pool in pools.items()}
        flops = pools["reference"].submit(flops_per_image).result()
    peak_rates = {precision: matmul_rate(device, precision) for precision in set(precisions.values())}
    print(f"{flops / 1e9:.1f} GFLOP of matrix products an image, forward and backward, in segment_anything's code")
    for key, precision in precisions.items():
        speed = statistics.median(args.steps * args.batch_size / sum(taken.values()) for taken in times[key])
        parts = ", ".join(f"{part} {statistics.median(taken[part] for taken in times[key]) / args.steps * 1e3:.1f}"
                          for part in PARTS)
        rate, peak_rate = flops * speed, peak_rates[precision]
        print(f"{key:<9} {precision}: {speed:8.2f} images/s, peak {memory[key] / 1e6:,.0f} MB, {rate / 1e9:,.0f} "
              f"GFLOP/s ({rate / peak_rate:.0%} of {peak_rate / 1e9:,.0f}, a large product's)\n"
              f"          ms a step: {parts}")
    ratios = [sum(theirs.values()) / sum(ours.values()) for theirs, ours in zip(times["reference"], times["ours"])]
    print("rounds: " + " ".join(f"{ratio:.2f}" for ratio in ratios))
    print(f"speedup {statistics.median(ratios):.2f} memory {memory['reference'] / memory['ours']:.2f}")


def check_equality(pools: dict[str, ProcessPoolExecutor]) -> None:
    """Compare the sides' losses and embeddings in float32; ends the run if they differ."""
    (loss, embedding), (our_loss, our_embedding) = (pool.submit(first_outputs).result() for pool in pools.values())
    differences = (abs(our_loss - loss) / abs(loss),  # with random weights the loss says little about the encoder
                   np.linalg.norm(our_embedding - embedding) / np.linalg.norm(embedding))
    print(f"in float32: loss of the reference {loss:.6f}, ours {our_loss:.6f}, relative difference "
          f"{differences[0]:.1e}; of an image's embeddings {differences[1]:.1e}", flush=True)
    if not max(differences) <= LARGEST_DIFFERENCE:
        sys.exit(f"they differ by more than {LARGEST_DIFFERENCE:g}")


def time_rounds(pools: dict[str, ProcessPoolExecutor], rounds: int, count: int) -> dict[str, list[dict[str, float]]]:
    """The seconds of each part in each round of `count` steps, after a warm-up of one step."""
    for pool in pools.values():
        pool.submit(steps, 0, 1).result()
    times = {key: [] for key in pools}
    for number in range(1, rounds + 1):
        for key, pool in pools.items():
            times[key].append(pool.submit(steps, number, count).result())
    return times


def draw_images(folder: Path, count: int, objects: int, side: int, seed: int) -> Path:
    """PNG images of ellipses on noise, up to a quarter larger than the model frame, and their training table."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        height, width = (int(value) for value in rng.integers(side * 3 // 4, side * 5 // 4, 2))
        image = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
        for part in range(objects):
            mask, half = np.zeros((height, width), np.uint8), side // 8
            x, y = int(rng.integers(half, width - half)), int(rng.integers(half, height - half))
            cv2.ellipse(mask, (x, y), (half, half // 2), float(rng.uniform(0, 180)), 0, 360, 255, -1)
            image[mask > 0] = image[mask > 0] // 2 + rng.integers(60, 190, 3).astype(np.uint8)
            cv2.imwrite(str(folder / f"{number}_{part}_mask.png"), mask)
            points = [[x, y], [x - half // 4, y], [x + half // 4, y]]
            rows.append({"image": f"{number}.png", "label": f"{number}_{part}_mask.png",
                         "points": points_to_json(points)})
        cv2.imwrite(str(folder / f"{number}.png"), image)
    import pandas as pd
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


# ---- in the process of one side -----------------------------------------------------------------------------

class Side:
    """A model, its optimiser and its data. Hooks time the encoder, so that the step remains that of train.py."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        sam = build(settings.model_type, settings.image_size)
        if settings.ours:
            workers.keep_freed_memory()  # as train.py does
            attention.speed_up(sam)
        torch.manual_seed(settings.seed)
        checkpoints.prepare_for_training(sam, LORA, train_decoder=True)
        if settings.grad_checkpoint:
            checkpoint_blocks(sam)
        self.sam = sam.to(self.device).train()
        self.parameters = [parameter for parameter in sam.parameters() if parameter.requires_grad]
        fused = {"fused": self.device.type in ("cpu", "cuda")} if settings.ours else {}  # as train.py does
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.01, **fused)
        images = PromptedImages(read_samples(settings.table), sam.image_encoder.img_size, settings.prompts_per_image,
                                True, False)
        self.loader = Loader(images, batch_size=settings.batch_size, num_workers=settings.num_workers,
                             pin_memory=self.device.type == "cuda", ranks=distributed.Ranks(), seed=settings.seed)
        self.encoding, self.encoding_began = 0.0, 0.0
        sam.image_encoder.register_forward_pre_hook(self.before_encoder)
        sam.image_encoder.register_forward_hook(self.after_encoder)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def before_encoder(self, *_: object) -> None:
        self.encoding_began = self.now()

    def after_encoder(self, *_: object) -> None:
        self.encoding += self.now() - self.encoding_began

    def autocast(self) -> contextlib.AbstractContextManager:
        return choose_precision(self.settings.precision, self.device, self.sam, distributed.Ranks()).autocast

    def loss(self, batch: Batch) -> torch.Tensor:
        compute = losses.batch_loss if self.settings.ours else one_at_a_time
        return compute(self.sam, batch, losses.bce_iou, MULTIMASK_WEIGHT)[0]

    def batches(self, round_number: int):
        self.loader.order.epoch = round_number
        return iter(self.loader)

    def step(self, batches, times: dict[str, float]) -> None:
        marks, self.encoding = [self.now()], 0.0
        batch = next(batches).to(self.device)
        marks.append(self.now())
        with self.autocast():
            loss = self.loss(batch)
        marks.append(self.now())
        loss.backward()
        marks.append(self.now())
        torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        marks.append(self.now())
        data, forward, backward, optimiser = (b - a for a, b in itertools.pairwise(marks))
        for part, taken in zip(PARTS, (data, self.encoding, forward - self.encoding, backward, optimiser)):
            times[part] += taken


def build(model_type: str, image_size: int | None) -> Sam:
    """segment_anything's SAM with the weights that ship, or random ones where none do."""
    sam = build_sam(model_type, image_size)
    if not SAM_TYPES[model_type].weights_sha256:
        state = read_state_dict(find_weights(model_type))
        sam.load_state_dict(resize_position_embeddings(state, sam))
        return sam
    draw_position_tables(sam)
    return sam


def one_at_a_time(sam: Sam, batch: Batch, mask_loss: losses.MaskLoss, multimask_weight: float):
    """The loss of `losses.batch_loss`, by segment_anything's modules, with one image or prompt in each call."""
    import torch.nn.functional as F
    side, all_losses = batch.images.shape[-1], []
    for image in range(len(batch.images)):
        size = batch.input_sizes[image:image + 1]
        embedding = sam.image_encoder(preprocess(batch.images[image:image + 1], size, sam))
        for row in (batch.image_index == image).nonzero().flatten():
            prompts = batch.prompts.rows(row[None])
            points = (prompts.point_coords, prompts.point_labels) if prompts.point_labels.shape[1] else None
            sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes, masks=None)
            masks, predicted = sam.mask_decoder.predict_masks(
                image_embeddings=embedding, image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense)
            with torch.autocast(batch.images.device.type, enabled=False):
                masks, predicted = masks[0].float(), predicted[0].float()       # (4, 4h, 4w), (4,)
                target = batch.targets[row][None].float() / 255
                valid = frame_mask(size, side)[0].float()
                single = F.interpolate(masks[None, :1], (side, side), mode="bilinear", align_corners=False)[0]
                loss = mask_loss(single, target, valid)[0]
                loss = loss + (predicted[0] - losses.frame_iou(single, target, valid)[0]) ** 2
                target, valid = (F.interpolate(x[None], masks.shape[-2:], mode="area")[0].expand(3, -1, -1)
                                 for x in (target, valid))
                iou_error = (predicted[1:] - losses.frame_iou(masks[1:], target, valid)) ** 2
                loss = loss + multimask_weight * (mask_loss(masks[1:], target, valid).min() + iou_error.mean())
            all_losses.append(loss)
    return torch.stack(all_losses).mean(), None


def start(settings: Settings) -> None:
    global SIDE
    SIDE = Side(settings)


def first_outputs() -> tuple[float, np.ndarray]:
    """A batch's loss and the embedding of its first image, in float32; then the memory's peak starts anew on a GPU."""
    batch, sam = next(SIDE.batches(0)).to(SIDE.device), SIDE.sam
    with torch.no_grad():
        loss = float(SIDE.loss(batch))
        embedding = sam.image_encoder(preprocess(batch.images[:1], batch.input_sizes[:1], sam)).cpu().numpy()
    if SIDE.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(SIDE.device)
    return loss, embedding


def steps(round_number: int, count: int) -> dict[str, float]:
    """Seconds of `count` steps by part."""
    times, batches = dict.fromkeys(PARTS, 0.0), SIDE.batches(round_number)
    for _ in range(count):
        SIDE.step(batches, times)
    return times


def peak_memory() -> int:
    """Bytes: allocated on the GPU, or resident in this process on the CPU (with Python, PyTorch and the weights)."""
    if SIDE.device.type == "cuda":
        return torch.cuda.max_memory_allocated(SIDE.device)
    if sys.platform == "linux":  # getrusage's peak may be that of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def flops_per_image() -> float:
    """FLOPs of the matrix products and convolutions in one forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode
    batch = next(SIDE.batches(0)).to(SIDE.device)
    with FlopCounterMode(display=False) as counter:
        SIDE.loss(batch).backward()
    return counter.get_total_flops() / len(batch.images)


# ---- the machine --------------------------------------------------------------------------------------------

def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, the best of eight."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side ** 3 / best


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
