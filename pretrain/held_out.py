"""Judging a run: IoU on held-out crops, from scenes that no training seed makes; the best weights are exported."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from objective import mask_losses
from run_state import State
from scene_batches import collate
from scene_samples import Sample, samples

from sam_lora.files import atomic_path
from sam_lora.model.encode import preprocess
from sam_lora.model.meta import Sam
from sam_lora.model.prompts import Prompts, decode_all, upscale_to_frame
from sam_lora.model.sam import build_sam, resize_position_embeddings
from sam_lora.sam_types import SAM_TYPES

MODEL_TYPE = "vit_mini"
CURVE_FILE = "curve.csv"
HELD_OUT_SEED = 1_000_000
BATCH = 32


def held_out_samples(side: int, count: int) -> list[Sample]:
    """Always the same crops, each around one region."""
    cv2.setNumThreads(1)  # its thread pool does not survive the fork of the workers
    stream = samples(HELD_OUT_SEED, side, 1, 0.0, crops_a_scene=2)
    return [next(stream) for _ in range(count)]


def held_out_iou(sam: Sam, crops: Sequence[Sample]) -> dict[str, float]:
    """Mean IoU with three points, with one point, and of the best of three masks for one point."""
    device = sam.pixel_mean.device
    scores = {"iou_3": [], "iou_1": [], "best_of_3": []}
    with torch.inference_mode():
        for start in range(0, len(crops), BATCH):
            batch = {name: tensor.to(device) for name, tensor in collate(crops[start:start + BATCH]).items()}
            embeddings = sam.image_encoder(preprocess(batch["images"], batch["input_sizes"], sam))
            for points in (3, 1):
                prompts = Prompts(batch["positive"][:, :points], torch.ones(len(embeddings), points, device=device))
                low_res, _ = decode_all(sam, embeddings, prompts)
                _, iou = mask_losses(upscale_to_frame(low_res, batch["masks"].shape[-1]), batch["masks"])
                scores[f"iou_{points}"] += iou[:, 0].tolist()
                if points == 1:
                    scores["best_of_3"] += iou[:, 1:].max(dim=1).values.tolist()
    return {name: sum(values) / len(values) for name, values in scores.items()}


class Judge:
    """Scores averaged weights at full size, writes the best ones to `output`, and logs to `folder`."""

    def __init__(self, folder: Path, output: Path, state_path: Path, num_crops: int, device: torch.device) -> None:
        self.folder, self.output, self.state_path, self.device = folder, output, state_path, device
        self.sam = build_sam(MODEL_TYPE).to(device)
        self.crops = held_out_samples(SAM_TYPES[MODEL_TYPE].image_size, num_crops)

    def log(self, name: str, row: dict[str, object]) -> None:
        """Append a row to a table in the folder, and print it."""
        path = self.folder / name
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        print(name, *(f"{key} {value}" for key, value in row.items()), flush=True)

    def judge(self, state: State, side: int, note: str) -> None:
        """Score the average, export it if it is the best so far, and save the state."""
        weights = resize_position_embeddings(state.ema, self.sam)
        self.sam.load_state_dict(weights)
        scores = held_out_iou(self.sam, self.crops)
        progress = state.progress
        self.log(CURVE_FILE, {"minutes": round(progress.seconds / 60, 1), "step": progress.step, "side": side,
                              **{name: round(value, 4) for name, value in scores.items()}, "note": note})
        if scores["iou_3"] > progress.best:
            state.progress = replace(progress, best=scores["iou_3"])
            with atomic_path(self.output) as temporary:
                torch.save({name: value.half() if value.is_floating_point() else value
                            for name, value in weights.items()}, temporary)
        state.save(self.state_path)
