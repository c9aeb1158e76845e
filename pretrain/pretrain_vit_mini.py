"""Train the small SAM (vit_mini) from nothing on procedural scenes, by the clock.

Reads   nothing: scenes are made on the fly (scenes.py, textures.py)
Writes  OUTPUT_DIR/state.pt      everything needed to go on after an abrupt end (--resume)
        OUTPUT_DIR/log.csv       a row per minute or so: step, loss, IoU of the training batches, step time
        OUTPUT_DIR/curve.csv     a row per evaluation of the averaged weights at full size on held-out crops
        OUTPUT                   the averaged weights as a plain SAM state dict, replaced whenever they got better

    python pretrain/pretrain_vit_mini.py --minutes 30 65 --sides 128 256 --output sam_lora/weights/sam_vit_mini.pth
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sam_lora import cli

if TYPE_CHECKING:
    import numpy as np
    from segment_anything.modeling import Sam
    from torch import Tensor

MODEL_TYPE = "vit_mini"
HELD_OUT_SEED = 1_000_000
SHARP_STEP = 1500    # from here on the loss is mostly focal + Dice; it begins as balanced BCE + Dice
SIMPLE_SHARE = 0.12  # of the scenes; there are none among the held-out ones
# number of points, a box too, share of the batches; a lone point gets the three-mask output as well
PROMPT_KINDS = ((1, False, 0.30), (2, False, 0.10), (3, False, 0.24), (4, False, 0.05), (5, False, 0.09),
                (0, True, 0.14), (1, True, 0.04), (2, True, 0.04))


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    stages = parser.add_argument_group("stages")
    stages.add_argument("--sides", type=int, nargs="+", default=[128, 256], help="model frame of each stage, pixels")
    stages.add_argument("--minutes", type=float, nargs="+", default=[30, 65], help="length of each stage")
    stages.add_argument("--images", type=int, nargs="+", default=[16, 8], help="pictures in a batch, per stage")
    stages.add_argument("--masks", type=int, nargs="+", default=[4, 4], help="regions prompted in each picture")
    stages.add_argument("--learning_rates", type=float, nargs="+", default=[1e-3, 7e-4],
                        help="peak of each stage: halved by its end, zero at the end of the last")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--warmup", type=int, default=100, help="steps of warm-up, in each stage")
    optimisation.add_argument("--weight_decay", type=float, default=0.05)
    optimisation.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    optimisation.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    cli.add_seed(optimisation)
    run = parser.add_argument_group("run")
    run.add_argument("--threads", type=int, default=2)
    cli.add_num_workers(run, 1)
    cli.add_device(run)
    run.add_argument("--evaluate_every", type=float, default=5, help="minutes")
    run.add_argument("--num_judged", type=cli.positive_int, default=128, help="held-out crops of that evaluation")
    start = run.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR/state.pt")
    start.add_argument("--init", metavar="FILE", help="start from these weights, with a new optimiser")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default="demo_output/pretrain")
    out.add_argument("--output", default="sam_lora/weights/sam_vit_mini.pth")
    return parser


# ---- initialisation -----------------------------------------------------------------------------------------

def initialise(sam: "Sam", batch: dict[str, "Tensor"]) -> None:
    """What makes a small SAM learn from the first step: see README.md, "What was tried".

    The patch embedding is a cosine transform whose channels are brought to one size on `batch`: raw, the mean
    brightness is ten times everything else and drowns detail and position alike.
    """
    import torch
    from torch import nn

    from sam_lora.model.encode import preprocess
    for module in sam.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    encoder = sam.image_encoder
    with torch.no_grad():
        table = encoder.pos_embed
        table.copy_(sine_cosine_table(table.shape[1], table.shape[3])[None])
        patch = encoder.patch_embed.proj
        patch.weight.copy_(cosine_filters(patch.weight.shape[0], patch.weight.shape[2]))
        patch.bias.zero_()
        features = encoder.patch_embed(preprocess(batch["images"], batch["input_sizes"], sam)).flatten(0, 2)
        features = features[features.abs().sum(dim=1) > 0]
        patch.weight.mul_((0.7 / (features.std(dim=0) + 0.1))[:, None, None, None])


def sine_cosine_table(grid: int, width: int) -> "Tensor":
    """(grid, grid, width): sines and cosines of the position relative to the picture, whatever the grid."""
    import torch
    position = (torch.arange(grid) + 0.5) / grid
    frequencies = 2 ** torch.linspace(-1, 3, width // 4) * torch.pi
    angles = position[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)                    # (grid, width / 2)
    rows = waves[:, None].expand(-1, grid, -1)
    columns = waves[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2)[..., :width]


def cosine_filters(count: int, side: int) -> "Tensor":
    """(count, 3, side, side): the lowest two-dimensional cosine waves, of brightness first, then of colour."""
    import torch
    step = (torch.arange(side) + 0.5) * torch.pi / side
    waves = torch.cos(torch.arange(side)[:, None] * step)
    waves[0] *= 0.5 ** 0.5
    order = sorted(((i, j) for i in range(side) for j in range(side)), key=lambda ij: (ij[0] ** 2 + ij[1] ** 2, ij))
    mixes = torch.tensor([[1.0, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]])
    mixes = mixes / mixes.norm(dim=1, keepdim=True)
    colour = count // 5
    plan = [(0, ij) for ij in order[:count - 2 * colour]] + [(k, ij) for k in (1, 2) for ij in order[:colour]]
    planes = [mixes[k][:, None, None] * torch.outer(waves[i], waves[j]) * (2 / side) for k, (i, j) in plan]
    return torch.stack(planes) * (1 / 3 ** 0.5)


# ---- data ---------------------------------------------------------------------------------------------------

class Batches:
    """Endless batches from one seed; a torch IterableDataset in all but name, so that workers can be processes."""

    def __init__(self, seed: int, side: int, images: int, masks: int, whole_share: float) -> None:
        self.seed, self.side, self.images, self.masks, self.whole_share = seed, side, images, masks, whole_share

    def __iter__(self):
        import cv2
        import torch
        from torch.utils.data import get_worker_info
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        from scenes import samples
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        info = get_worker_info()
        seed = self.seed + (info.id if info else 0)
        stream = samples(seed, self.side, self.masks, self.whole_share, simple_share=SIMPLE_SHARE)
        while True:
            yield collate([next(stream) for _ in range(self.images)])


def collate(batch: list) -> dict[str, "Tensor"]:
    """Samples -> tensors; the regions of all pictures stand in one row each, in the order of the pictures."""
    import numpy as np
    import torch
    images = np.stack([sample.image for sample in batch]).transpose(0, 3, 1, 2)
    rows = {name: np.concatenate([getattr(sample, name) for sample in batch])
            for name in ("masks", "positive", "negative", "boxes")}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in rows.items()}
    tensors["images"] = torch.from_numpy(np.ascontiguousarray(images))
    tensors["input_sizes"] = torch.tensor([sample.input_size for sample in batch])
    return tensors


def draw_prompts(rng: "np.random.Generator", batch: dict[str, "Tensor"]):
    """Prompts for all rows of a batch, of two kinds (even and odd rows): (prompts, row has a lone point)."""
    import torch

    from sam_lora.model.prompts import Prompts
    count = len(batch["boxes"])
    coords, labels = batch["positive"].clone(), torch.ones(count, 5)
    boxes = batch["boxes"].clone()
    shares = [share for *_, share in PROMPT_KINDS]
    alone = torch.zeros(count, dtype=torch.bool)
    for start in (0, 1):
        points, boxed, _ = PROMPT_KINDS[rng.choice(len(PROMPT_KINDS), p=shares)]
        rows = torch.arange(start, count, 2)
        labels[rows, points:] = -1
        if not boxed:
            boxes[rows] = torch.nan
        if points >= 2 or (points == 1 and boxed):
            swap = torch.from_numpy(rng.random(len(rows)) < 0.25) & (batch["negative"][rows, 0, 0] >= 0)
            coords[rows[swap], points - 1] = batch["negative"][rows[swap], 0]
            labels[rows[swap], points - 1] = 0
        alone[rows] = points == 1 and not boxed
    return Prompts(coords, labels, boxes), alone


def correction(logits: "Tensor", masks: "Tensor", prompts):
    """The same prompts with one click more: inside the region where the prediction is wrong."""
    import torch

    from sam_lora.model.prompts import Prompts
    wrong = ((logits > 0) != masks.bool()).flatten(1).float() + 1e-8
    picked = torch.multinomial(wrong, 1)[:, 0]
    width = masks.shape[2]
    click = torch.stack([picked % width, picked // width], dim=1)[:, None] * 2.0 + 1
    label = masks.flatten(1).gather(1, picked[:, None]).float()
    counts = (prompts.point_labels >= 0).sum(dim=1)
    coords = torch.cat([prompts.point_coords, click], dim=1)
    labels = torch.cat([prompts.point_labels, -torch.ones_like(label)], dim=1)
    rows = torch.arange(len(counts))
    coords[rows, counts], labels[rows, counts] = click[:, 0], label[:, 0]
    return Prompts(coords, labels, prompts.boxes)


# ---- loss ---------------------------------------------------------------------------------------------------

def mask_losses(logits: "Tensor", masks: "Tensor", sharpness: float = 1.0) -> tuple["Tensor", "Tensor"]:
    """(N, M, h, w) logits against (N, h, w) masks: (loss (N, M), true IoU (N, M) of the thresholded logits).

    `sharpness` 0: balanced BCE + Dice, which leaves the all-background answer at once; 1: mostly focal + Dice.
    """
    import torch
    import torch.nn.functional as F
    truth = masks[:, None].to(logits.dtype).expand_as(logits)
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    miss = (probability - truth).abs()
    focal = (miss ** 2 * cross).mean(dim=(2, 3))
    share = truth.mean(dim=(2, 3), keepdim=True).clamp(1e-3, 1 - 1e-3)
    balanced = (cross * (truth / share + (1 - truth) / (1 - share))).mean(dim=(2, 3)) / 2
    dice = 1 - (2 * (probability * truth).sum(dim=(2, 3)) + 1) / ((probability + truth).sum(dim=(2, 3)) + 1)
    with torch.no_grad():
        found = logits > 0
        inside = masks[:, None].bool()
        iou = (found & inside).sum(dim=(2, 3)) / (found | inside).sum(dim=(2, 3)).clamp(min=1)
    return dice + sharpness * 5 * focal + (1 - 0.9 * sharpness) * balanced, iou


def training_loss(sam: "Sam", batch: dict[str, "Tensor"], rng: "np.random.Generator",
                  sharpness: float = 1.0) -> tuple["Tensor", "Tensor"]:
    """(loss, IoU of the single mask per row)."""
    import torch
    import torch.nn.functional as F

    from sam_lora.model.encode import preprocess
    from sam_lora.model.prompts import Prompts, decode_all, upscale_to_frame
    side, count = batch["images"].shape[-1], batch["masks"].shape[0]
    embeddings = sam.image_encoder(preprocess(batch["images"], batch["input_sizes"], sam))
    embeddings = embeddings.repeat_interleave(count // len(embeddings), dim=0)
    prompts, alone = draw_prompts(rng, batch)
    prompts, alone = prompts.to(embeddings.device), alone.to(embeddings.device)
    low_res, predicted = decode_all(sam, embeddings, prompts)
    losses, iou = mask_losses(upscale_to_frame(low_res, side // 2), batch["masks"], sharpness)
    loss = losses[:, 0].mean() + F.mse_loss(predicted, iou)
    if alone.any():
        loss = loss + losses[alone, 1:].min(dim=1).values.sum() / count
    if rng.random() < 0.35:  # one more round on half of the rows: a correcting click, and the mask so far
        rows = torch.arange(int(rng.integers(2)), count, 2, device=embeddings.device)
        before = low_res[rows, :1].detach()
        half = Prompts(prompts.point_coords[rows], prompts.point_labels[rows], prompts.boxes[rows])
        wanted = batch["masks"][rows]
        better = correction(upscale_to_frame(before, side // 2)[:, 0], wanted, half)
        low_res, predicted = decode_all(sam, embeddings[rows], better, before)
        losses, iou_again = mask_losses(upscale_to_frame(low_res[:, :1], side // 2), wanted, sharpness)
        loss = loss + 0.5 * (losses.mean() + F.mse_loss(predicted[:, :1], iou_again))
    return loss, iou[:, 0]


# ---- held-out check -------------------------------------------------------------------------------------------

def held_out_samples(side: int, count: int) -> list:
    """The same held-out crops every time, each around its region, from scenes that no training seed makes."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import cv2
    from scenes import samples
    cv2.setNumThreads(1)  # its thread pool does not survive the fork of the workers
    stream = samples(HELD_OUT_SEED, side, 1, 0.0, crops_a_scene=2)
    return [next(stream) for _ in range(count)]


def held_out_iou(sam: "Sam", crops: list) -> dict[str, float]:
    """Mean IoU with three points, one point, and the best of three masks for one point."""
    import torch

    from sam_lora.model.encode import preprocess
    from sam_lora.model.prompts import Prompts, decode_all, upscale_to_frame
    device = sam.pixel_mean.device
    scores = {"iou_3": [], "iou_1": [], "best_of_3": []}
    with torch.inference_mode():
        for start in range(0, len(crops), 8):
            batch = {name: tensor.to(device) for name, tensor in collate(crops[start:start + 8]).items()}
            embeddings = sam.image_encoder(preprocess(batch["images"], batch["input_sizes"], sam))
            for points in (3, 1):
                prompts = Prompts(batch["positive"][:, :points], torch.ones(len(embeddings), points, device=device))
                low_res, _ = decode_all(sam, embeddings, prompts)
                _, iou = mask_losses(upscale_to_frame(low_res, batch["masks"].shape[-1]), batch["masks"])
                scores[f"iou_{points}"] += iou[:, 0].tolist()
                if points == 1:
                    scores["best_of_3"] += iou[:, 1:].max(dim=1).values.tolist()
    return {name: sum(values) / len(values) for name, values in scores.items()}


# ---- training -----------------------------------------------------------------------------------------------

def learning_rate(peak: float, end: float, step: int, warmup: int, progress: float) -> float:
    """Warm-up by steps, then a cosine over the progress (0..1) of the stage."""
    import math
    return min(1.0, (step + 1) / warmup) * (end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def make_optimisers(sam: "Sam", weight_decay: float) -> list:
    """Muon for the matrices between features, AdamW for everything else: [Muon, AdamW].

    The patch embedding learns at a tenth: its inputs agree so much that a full step upsets all.
    """
    import torch
    from torch import nn
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from muon import Muon
    matrices = [module.weight for module in sam.modules() if isinstance(module, nn.Linear) and module.out_features > 4]
    patch = list(sam.image_encoder.patch_embed.parameters())
    taken = {id(parameter) for parameter in matrices + patch}
    rest = [parameter for parameter in sam.parameters() if id(parameter) not in taken]
    return [Muon([{"params": matrices, "lr_scale": 2.0}], lr=1e-3, weight_decay=weight_decay),
            torch.optim.AdamW([{"params": rest, "lr_scale": 1.0}, {"params": patch, "lr_scale": 0.1}], lr=1e-3,
                              betas=(0.9, 0.99), weight_decay=0.0, fused=True)]


def main(args: argparse.Namespace) -> None:
    import copy
    import csv
    import os
    import time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stand still when the cores are shared

    import numpy as np
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    from sam_lora.errors import UserError
    from sam_lora.files import atomic_path
    from sam_lora.model.precision import select_device
    from sam_lora.model.sam import build_sam, resize_position_embeddings
    from sam_lora.model.sam_types import SAM_TYPES
    from sam_lora.model.weights import read_state_dict

    if len({len(args.sides), len(args.minutes), len(args.images), len(args.masks), len(args.learning_rates)}) > 1:
        raise UserError("--sides, --minutes, --images, --masks and --learning_rates: expected one value per stage each")
    torch.set_num_threads(args.threads)
    device = select_device(args.device)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    state_path = folder / "state.pt"
    torch.manual_seed(args.seed)

    state = {"stage": 0, "step": 0, "stage_step": 0, "stage_seconds": 0.0, "seconds": 0.0, "best": 0.0}
    model_state = ema_state = optimiser_states = None
    if args.resume:
        if not state_path.is_file():
            raise UserError(f"{state_path}: no such file; start without --resume")
        saved = torch.load(state_path, map_location="cpu", weights_only=True)
        state, model_state, ema_state, optimiser_states = (
            saved[name] for name in ("state", "model", "ema", "optimisers"))
    elif args.init:
        model_state = ema_state = {name: value.float() for name, value in read_state_dict(Path(args.init)).items()}
        state["step"] = SHARP_STEP

    full_side = SAM_TYPES[MODEL_TYPE].image_size
    judge = build_sam(MODEL_TYPE).to(device)
    crops = held_out_samples(full_side, args.num_judged)

    def append(name: str, row: dict) -> None:
        path = folder / name
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(name, *(f"{key} {value}" for key, value in row.items()), flush=True)

    def judge_and_save(note: str, side: int, sam: "Sam", ema: dict, optimisers: list) -> None:
        """Score the averaged weights at full size, export them if they are the best so far, keep the state."""
        whole = resize_position_embeddings({name: value.cpu() for name, value in ema.items()}, judge)
        judge.load_state_dict(whole)
        scores = held_out_iou(judge, crops)
        append("curve.csv", {"minutes": round(state["seconds"] / 60, 1), "step": state["step"], "side": side,
                             **{name: round(value, 4) for name, value in scores.items()}, "note": note})
        if scores["iou_3"] > state["best"]:
            state["best"] = scores["iou_3"]
            with atomic_path(args.output) as temporary:
                torch.save({name: value.half() if value.is_floating_point() else value
                            for name, value in whole.items()}, temporary)
        with atomic_path(state_path) as temporary:
            torch.save({"state": state, "model": {name: value.cpu() for name, value in sam.state_dict().items()},
                        "ema": {name: value.cpu() for name, value in ema.items()},
                        "optimisers": [optimiser.state_dict() for optimiser in optimisers]}, temporary)

    class Stream(Batches, IterableDataset):
        pass

    for stage in range(state["stage"], len(args.sides)):
        side, budget = args.sides[stage], args.minutes[stage] * 60
        if stage != state["stage"]:
            state.update(stage=stage, stage_step=0, stage_seconds=0.0)
            optimiser_states = None
        sam = build_sam(MODEL_TYPE, side)
        if model_state is None:
            initialise(sam, next(iter(Batches(args.seed, side, 64, 1, 0.1))))
            torch.set_num_threads(args.threads)
            ema_state = copy.deepcopy(sam.state_dict())
        else:
            sam.load_state_dict(resize_position_embeddings(model_state, sam))
            ema_state = resize_position_embeddings(ema_state, sam)
        sam.to(device).train()
        ema = {name: value.clone().to(device) for name, value in ema_state.items()}
        optimisers = make_optimisers(sam, args.weight_decay)
        for optimiser, saved in zip(optimisers, optimiser_states or ()):
            optimiser.load_state_dict(saved)
        rng = np.random.default_rng((args.seed, stage, state["step"]))
        stream = Stream(args.seed * 1000 + state["step"] * 7 + stage, side, args.images[stage], args.masks[stage],
                        0.12 if stage == 0 else 0.22)
        loader = iter(DataLoader(stream, batch_size=None, num_workers=args.num_workers,
                                 prefetch_factor=6 if args.num_workers else None))
        peak = args.learning_rates[stage]
        end = 0.0 if stage + 1 == len(args.sides) else peak * 0.5
        last_log = last_judged = time.perf_counter()
        losses, ious, waits, steps = [], [], 0.0, 0

        while state["stage_seconds"] < budget:
            begin = time.perf_counter()
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(loader).items()}
            waits += time.perf_counter() - begin
            rate = learning_rate(peak, end, state["stage_step"], args.warmup, state["stage_seconds"] / budget)
            for group in (group for optimiser in optimisers for group in optimiser.param_groups):
                group["lr"] = group["lr_scale"] * rate
            loss, iou = training_loss(sam, batch, rng,
                                      min(1.0, max(0.0, (state["step"] + 1000 - SHARP_STEP) / 1000)))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(sam.parameters(), args.clip)
            if torch.isfinite(norm):
                for optimiser in optimisers:
                    optimiser.step()
            sam.zero_grad(set_to_none=True)
            with torch.no_grad():
                keep = min(args.ema, (1 + state["step"]) / (10 + state["step"]))
                now_state = sam.state_dict()
                names = [name for name, value in now_state.items() if value.is_floating_point()]
                torch._foreach_lerp_([ema[name] for name in names], [now_state[name] for name in names], 1 - keep)
            losses.append(loss.detach())
            ious.append(iou.mean())
            steps += 1
            state["step"] += 1
            state["stage_step"] += 1
            now = time.perf_counter()
            state["stage_seconds"] += now - begin
            state["seconds"] += now - begin
            if now - last_log > (60 if state["step"] > 300 else 15):
                append("log.csv", {
                    "minutes": round(state["seconds"] / 60, 2), "step": state["step"], "side": side,
                    "loss": round(float(torch.stack(losses).mean()), 4),
                    "iou": round(float(torch.stack(ious).mean()), 4),
                    "learning_rate": f"{rate:.2e}",
                    "seconds_a_step": round((now - last_log) / steps, 3), "waiting": round(waits / steps, 3)})
                losses, ious, waits, steps, last_log = [], [], 0.0, 0, now
            if now - last_judged > args.evaluate_every * 60:
                judge_and_save("", side, sam, ema, optimisers)
                last_judged = last_log = time.perf_counter()
                losses, ious, waits, steps = [], [], 0.0, 0
        judge_and_save("end of stage", side, sam, ema, optimisers)
        model_state = {k: v.cpu() for k, v in sam.state_dict().items()}
        ema_state = {k: v.cpu() for k, v in ema.items()}
        del loader


if __name__ == "__main__":
    cli.run(main, get_args_parser())
