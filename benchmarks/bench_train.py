"""Speed and memory of a training step: train.py's against the plain loop over segment_anything, in one run.

    python benchmarks/bench_train.py                                              vit_mini on the CPU
    python benchmarks/bench_train.py --model_type vit_b --batch_size 1 --rounds 1
    python benchmarks/bench_train.py --model_type vit_b --device cuda --rounds 2 --precision bf16 \\
        --reference_precision fp32 bf16 --output bench_train.json

All sides train the same weights on the same batches of drawn images, with LoRA on the qkv layer of every encoder
block, the mask decoder and AdamW. The reference encodes every image and decodes every prompt by itself, through
segment_anything's own encoder and decoder, with one backward pass a batch, and with PyTorch's defaults (float32 on a
GPU is not TF32); ours is the step of train.py. vit_b, vit_l and vit_h have random weights. The sides take turns, each
in a process of its own. A round's ratio is that of the seconds its steps took, from batches in memory to the last
step's end, without a look at the GPU in between; the parts of a step, for which the host has to wait, and the time for
a batch are measured in a round of their own. Losses on one batch and embeddings of an image, in float32, are compared
first. The last line for each reference is `speedup X.XX memory Y.YY`, reference over ours.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawn_photos import draw_position_tables

from sam_lora import cli, workers
from sam_lora.data.samples import read_samples
from sam_lora.files import atomic_path
from sam_lora.model import attention, checkpoints
from sam_lora.model.batches import Batch, PromptedImages
from sam_lora.model.encode import frame_mask, preprocess
from sam_lora.model.lora import LoraSettings
from sam_lora.model.meta import Sam
from sam_lora.model.precision import autocast, select_device
from sam_lora.model.sam import build_sam, checkpoint_blocks, compile_blocks, resize_position_embeddings
from sam_lora.model.weights import find_weights, read_state_dict
from sam_lora.sam_types import SAM_TYPES
from sam_lora.tables import points_to_json
from sam_lora.training import distributed, losses
from sam_lora.training.loading import Loader
from sam_lora.training.precision import choose_precision
from sam_lora.training.update import GRADIENT_CLIP, LearningRate, Update

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
    parser.add_argument("--reference_precision", nargs="+", choices=("fp32", "bf16"),
                        help="a reference for each; default: that of our side")
    parser.add_argument("--grad_checkpoint", action="store_true", help="our side recomputes encoder blocks")
    parser.add_argument("--compile", action="store_true", help="our side compiles the encoder, as train.py --compile")
    parser.add_argument("--attention", nargs=2, choices=attention.WAYS, metavar=("WINDOWS", "GLOBAL"),
                        help="ways of sam_lora/model/attention.py that our side takes in place of the table's")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all figures to this .json file")
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
    compile: bool
    attention: tuple[str, str] | None


@dataclass
class Figures:
    """What was measured of a side; `problem` if it failed on the way. Seconds are those of a round's steps."""

    precision: str
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)  # seconds of PARTS in a step
    peak_bytes: int = 0
    images_per_s: float = 0.0
    flops_per_s: float = 0.0
    share_of_matrix_rate: float = 0.0
    problem: str = ""


def main(args: argparse.Namespace) -> None:
    device = select_device(args.device)
    side = args.image_size or SAM_TYPES[args.model_type].image_size
    references = dict.fromkeys(args.reference_precision or [args.precision])
    figures = {f"reference {precision}": Figures(precision) for precision in references}
    figures["ours"] = Figures(args.precision)
    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="bench_train-") as name, contextlib.ExitStack() as stack:
        table = draw_images(Path(name), args.steps * args.batch_size, args.prompts_per_image, side, args.seed)
        print(f"{args.model_type} at {side} px, {args.batch_size} images a step with {args.prompts_per_image} prompts "
              f"each, on {device_name(device)}, {threads} threads; torch {torch.__version__}", flush=True)
        pools = {}
        for key, measured in figures.items():
            ours = key == "ours"
            settings = Settings(ours, table, args.model_type, args.image_size, args.batch_size, args.prompts_per_image,
                                measured.precision, args.grad_checkpoint and ours, args.num_workers, str(device),
                                args.seed, threads, args.compile and ours, args.attention if ours else None)
            pools[key] = stack.enter_context(ProcessPoolExecutor(1, spawn, start, (settings,)))
        for ready in [pool.submit(peak_memory) for pool in pools.values()]:
            ready.result()  # all have started, side by side
        rates = {precision: pools["ours"].submit(matmul_rate, device, precision).result()
                 for precision in {each.precision for each in figures.values()}}
        flops = next(iter(pools.values())).submit(flops_per_image).result()
        print(f"{flops / 1e9:.1f} GFLOP of matrix products an image, forward and backward, in segment_anything's code",
              flush=True)
        content = {"device": device_name(device), "torch": torch.__version__, "image_size": side,
                   "flops_per_image": flops, "matrix_rates": rates, "differences": compare_outputs(pools)}
        for number in range(args.rounds + 1):
            time_round(pools, figures, number, args.rounds, args.steps)
            for measured in figures.values():
                work_out(measured, flops, rates[measured.precision], args.steps * args.batch_size)
            ratios = {key: ratios_of(measured, figures["ours"]) for key, measured in figures.items() if key != "ours"}
            if args.output:  # after each round: what there is by then outlives a run that is cut off
                write_figures(args, content | {"sides": {key: asdict(measured) for key, measured in figures.items()},
                                               "ratios": ratios})
    for key, measured in figures.items():
        report_side(key, measured, rates[measured.precision])
    for key, ratio in ratios.items():
        report_ratio(key, ratio)
    if not max(content["differences"].values()) <= LARGEST_DIFFERENCE:
        sys.exit(f"the sides' results differ by more than {LARGEST_DIFFERENCE:g}")


def compare_outputs(pools: dict[str, ProcessPoolExecutor]) -> dict[str, float]:
    """The relative differences between the first reference's and our losses and embeddings, in float32."""
    (loss, embedding), (our_loss, our_embedding) = (pools[key].submit(first_outputs).result()
                                                    for key in (next(iter(pools)), "ours"))
    differences = {"loss": abs(our_loss - loss) / abs(loss),  # with random weights it says little about the encoder
                   "embeddings": float(np.linalg.norm(our_embedding - embedding) / np.linalg.norm(embedding))}
    print(f"in float32: loss of the reference {loss:.6f}, ours {our_loss:.6f}, relative difference "
          f"{differences['loss']:.1e}; of an image's embeddings {differences['embeddings']:.1e}", flush=True)
    return differences


def time_round(pools: dict[str, ProcessPoolExecutor], figures: dict[str, Figures], number: int, rounds: int,
               count: int) -> None:
    """Each side's turn: the seconds of `count` steps, after the last round the parts of a step; the peak memory."""
    for key, pool in pools.items():
        measured = figures[key]
        if measured.problem:
            continue
        try:
            if number < rounds:
                measured.seconds.append(pool.submit(steps, count).result())
                print(f"round {number + 1} of {key}: {measured.seconds[-1] / count:.3f} s a step", flush=True)
            else:
                measured.parts = pool.submit(parts_of_steps, number + 1, count).result()
            measured.peak_bytes = pool.submit(peak_memory).result()
        except torch.cuda.OutOfMemoryError as error:
            measured.problem = f"out of memory: {str(error).splitlines()[0]}"


def work_out(measured: Figures, flops: float, peak_rate: float, images: int) -> None:
    """Rates from the seconds of rounds of `images` images each."""
    if not measured.problem:
        measured.images_per_s = images / statistics.median(measured.seconds)
        measured.flops_per_s = flops * measured.images_per_s
        measured.share_of_matrix_rate = measured.flops_per_s / peak_rate


def report_side(key: str, measured: Figures, peak_rate: float) -> None:
    if measured.problem:
        print(f"{key:<14} {measured.problem}")
        return
    parts = ", ".join(f"{part} {seconds * 1e3:.1f}" for part, seconds in measured.parts.items())
    print(f"{key:<14} {measured.precision}: {measured.images_per_s:8.2f} images/s, peak "
          f"{measured.peak_bytes / 1e6:,.0f} MB, {measured.flops_per_s / 1e9:,.0f} GFLOP/s "
          f"({measured.share_of_matrix_rate:.0%} of {peak_rate / 1e9:,.0f}, a large product's)\n"
          f"               ms a step, waiting after each: {parts}")


def ratios_of(theirs: Figures, ours: Figures) -> dict[str, float | list[float]]:
    """The reference over our side, by time and by memory; empty if one of them failed."""
    if theirs.problem or ours.problem:
        return {}
    rounds = [reference / our for reference, our in zip(theirs.seconds, ours.seconds)]
    return {"speedup": statistics.median(rounds), "memory": theirs.peak_bytes / ours.peak_bytes, "rounds": rounds}


def report_ratio(key: str, ratio: dict[str, float | list[float]]) -> None:
    if ratio:
        print(f"{key}, rounds: " + " ".join(f"{value:.2f}" for value in ratio["rounds"])
              + f"\nspeedup {ratio['speedup']:.2f} memory {ratio['memory']:.2f}")


def write_figures(args: argparse.Namespace, content: dict) -> None:
    flags = {name: value for name, value in vars(args).items() if name != "output"}
    with atomic_path(args.output) as temporary:
        temporary.write_text(json.dumps({"flags": flags} | content, indent=1) + "\n", encoding="utf-8")


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
        self.update = Update.by_adamw(sam, torch.amp.GradScaler(self.device.type, enabled=False),
                                      LearningRate(1e-4, 10 ** 6, 0.0), weight_decay=0.01)
        if not settings.ours:
            self.update.optimizer = torch.optim.AdamW(self.update.weights, lr=1e-4, weight_decay=0.01)
        images = PromptedImages(read_samples(settings.table), sam.image_encoder.img_size, settings.prompts_per_image,
                                True, False)
        self.loader = Loader(images, batch_size=settings.batch_size, num_workers=settings.num_workers,
                             pin_memory=self.device.type == "cuda", ranks=distributed.Ranks(), seed=settings.seed)
        self.kept = list(self.loader)
        self.autocast, self.prepared = contextlib.nullcontext(), False
        self.encoding, self.encoding_began = 0.0, 0.0

    def prepare(self) -> None:
        """Once, after the comparison in float32: the precision of the runs, and compiling."""
        if self.prepared:
            return
        self.prepared = True
        if not self.settings.ours:
            self.autocast = autocast(self.settings.precision, self.device)
            return
        self.autocast = choose_precision(self.settings.precision, self.device, self.sam, distributed.Ranks()).autocast
        if self.settings.attention:
            for key in attention.FASTEST:
                if key[0] == attention.kind_of_device(self.device):
                    attention.FASTEST[key] = self.settings.attention[key[1] == "global"]
        if self.settings.compile:
            compile_blocks(self.sam, len(self.sam.image_encoder.blocks))

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def before_encoder(self, *_: object) -> None:
        self.encoding_began = self.now()

    def after_encoder(self, *_: object) -> None:
        self.encoding += self.now() - self.encoding_began

    def loss(self, batch: Batch) -> torch.Tensor:
        compute = losses.batch_loss if self.settings.ours else one_at_a_time
        return compute(self.sam, batch, losses.bce_iou, MULTIMASK_WEIGHT)[0]

    def batches(self, round_number: int):
        self.loader.order.epoch = round_number
        return iter(self.loader)

    def forward(self, batch: Batch) -> torch.Tensor:
        with self.autocast:
            return self.loss(batch.to(self.device))

    def backward(self, loss: torch.Tensor) -> None:
        if self.settings.ours:
            self.update.backward(loss, 1.0)
        else:
            loss.backward()

    def optimise(self) -> None:
        if self.settings.ours:
            self.update.step()
            return
        torch.nn.utils.clip_grad_norm_(self.update.weights, GRADIENT_CLIP)
        self.update.optimizer.step()
        self.update.optimizer.zero_grad(set_to_none=True)

    def step(self, batch: Batch) -> None:
        self.backward(self.forward(batch))
        self.optimise()

    def timed_step(self, batches, times: dict[str, float]) -> None:
        marks, self.encoding = [self.now()], 0.0
        batch = next(batches)
        marks.append(self.now())
        loss = self.forward(batch)
        marks.append(self.now())
        self.backward(loss)
        marks.append(self.now())
        self.optimise()
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
    """A batch's loss and the embedding of its first image, in float32."""
    batch, sam = SIDE.kept[0].to(SIDE.device), SIDE.sam
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        loss = float(SIDE.loss(batch))
        embedding = sam.image_encoder(preprocess(batch.images[:1], batch.input_sizes[:1], sam)).cpu().numpy()
    return loss, embedding


def begin_round() -> None:
    """The first step of a round is not timed: it compiles, or gets the memory that `end_round` gave back."""
    SIDE.prepare()
    if SIDE.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(SIDE.device)
    SIDE.step(SIDE.kept[0])


def end_round() -> None:
    """Leave the GPU's memory to the other sides."""
    if SIDE.device.type == "cuda":
        torch.cuda.empty_cache()


def steps(count: int) -> float:
    """Seconds of `count` steps on batches in memory. The host looks at the GPU only as often as the step does."""
    begin_round()
    began = SIDE.now()
    for batch in SIDE.kept[:count]:
        SIDE.step(batch)
    taken = SIDE.now() - began
    end_round()
    return taken


def parts_of_steps(round_number: int, count: int) -> dict[str, float]:
    """Seconds of each part of a step, the mean over `count` steps. The host waits for the GPU after each."""
    begin_round()
    hooks = [SIDE.sam.image_encoder.register_forward_pre_hook(SIDE.before_encoder),
             SIDE.sam.image_encoder.register_forward_hook(SIDE.after_encoder)]
    times, batches = dict.fromkeys(PARTS, 0.0), SIDE.batches(round_number)
    for _ in range(count):
        SIDE.timed_step(batches, times)
    for hook in hooks:
        hook.remove()
    end_round()
    return {part: taken / count for part, taken in times.items()}


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
    batch = SIDE.kept[0].to(SIDE.device)
    with FlopCounterMode(display=False) as counter:
        SIDE.loss(batch).backward()
    SIDE.update.optimizer.zero_grad(set_to_none=True)
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
