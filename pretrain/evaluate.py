"""Measure the small SAM on held-out procedural crops and whole scenes, and on tables of real photos.

Reads   the weights; the training tables ({split}_reformatted.csv) that --tables names
Writes  OUTPUT (JSON), and prints it

    python pretrain/evaluate.py --num_crops 1000 --num_scenes 1000 --output pretrain/evaluation.json
    python pretrain/evaluate.py --num_crops 0 --num_scenes 0 --num_clicked 0 --num_simple 0 \\
        --tables brain=brain/test_reformatted.csv …
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sam_lora import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from sam_lora.model.meta import Sam

MODEL_TYPE = "vit_mini"
SEEDS = {"crops": 2_000_000, "scenes": 3_000_000, "simple": 4_000_000}  # those of training are below 1_000_000
BATCH = 16
PROMPTS = (1, 3, 5, 0)  # numbers of points; 0 is a box
CLICKS = 10  # of the curve of correcting clicks


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--num_crops", type=cli.non_negative_int, default=1000, metavar="N", help="procedural crops")
    data.add_argument("--num_scenes", type=cli.non_negative_int, default=1000, metavar="N",
                      help="procedural whole scenes with one region prompted in each")
    data.add_argument("--num_clicked", type=cli.non_negative_int, default=300, metavar="N",
                      help=f"of the procedural crops: for the curve of 1 to {CLICKS} correcting clicks")
    data.add_argument("--num_simple", type=cli.non_negative_int, default=40, metavar="N",
                      help="simple scenes for SamAutomaticMaskGenerator")
    data.add_argument("--tables", nargs="*", default=[], metavar="NAME=CSV", help="training tables of real photos")
    run = parser.add_argument_group("run")
    run.add_argument("--checkpoint", metavar="FILE", help="SAM weights (.pth); default: those that ship")
    run.add_argument("--threads", type=cli.positive_int, default=2, metavar="N", help="of PyTorch")
    cli.add_device(run)
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="FILE", help="JSON file; default: only printed")
    return parser


def main(args: argparse.Namespace) -> None:
    import json

    import torch

    from sam_lora.errors import UserError
    from sam_lora.files import atomic_path
    from sam_lora.model.precision import select_device
    from sam_lora.model.sam import load_sam
    tables = dict(text.partition("=")[::2] for text in args.tables)
    if not all(tables.values()):
        raise UserError(f"--tables {' '.join(args.tables)}: expected NAME=FILE")
    torch.set_num_threads(args.threads)
    sam, digest = load_sam(MODEL_TYPE, args.checkpoint)
    sam.to(select_device(args.device))
    report: dict[str, object] = {"sha256": digest}
    for name, count in (("crops", args.num_crops), ("scenes", args.num_scenes)):
        if count:
            report[name] = measure_procedural(sam, name, count)
            print(name, json.dumps(report[name]), flush=True)
    if args.num_clicked:
        report["clicks"] = measure_clicks(sam, args.num_clicked)
        print("clicks", json.dumps(report["clicks"]), flush=True)
    if args.num_simple:
        report["automatic"] = measure_automatic(sam, args.num_simple)
        print("automatic", json.dumps(report["automatic"]), flush=True)
    for name, path in tables.items():
        report[name] = measure_table(sam, path)
        print(name, json.dumps(report[name]), flush=True)
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure_procedural(sam: "Sam", kind: str, count: int) -> dict[str, float]:
    """Mean IoU by prompt on procedural crops or scenes, and the rank correlation of predicted and true IoU.

    Masks are compared on the half-size grid of the model frame, as in training.
    """
    import numpy as np
    scores: dict[str, list[float]] = {}
    for batch in procedural_batches(sam, kind, count):
        for name, values in score_prompts(sam, batch).items():
            scores.setdefault(name, []).extend(values)
    correlation = spearman(scores.pop("predicted"), scores.pop("true"))
    return {"n": count, **{name: round(float(np.mean(values)), 4) for name, values in scores.items()},
            "spearman_predicted_iou": round(correlation, 4)}


def procedural_batches(sam: "Sam", kind: str, count: int) -> "Iterator[dict[str, Tensor]]":
    """`count` held-out crops or scenes with one region each, in batches on the model's device; always the same."""
    import cv2
    from scene_batches import collate
    from scene_samples import samples
    cv2.setNumThreads(1)
    stream = samples(SEEDS[kind], sam.image_encoder.img_size, 1, float(kind == "scenes"), crops_a_scene=1)
    for start in range(0, count, BATCH):
        batch = collate([next(stream) for _ in range(min(BATCH, count - start))])
        yield {name: tensor.to(sam.pixel_mean.device) for name, tensor in batch.items()}


def measure_clicks(sam: "Sam", count: int) -> dict[str, float]:
    """Mean IoU of the single mask on procedural crops after 1, 2, ... clicks, each in the middle of the largest error.

    Every click but the first comes with the mask before it as a prompt.
    """
    import numpy as np
    curves = [iou for batch in procedural_batches(sam, "crops", count) for iou in clicked_iou(sam, batch)]
    return {"n": count, **{f"clicks_{number}": round(float(iou), 4)
                           for number, iou in enumerate(np.mean(curves, axis=0), start=1)}}


def clicked_iou(sam: "Sam", batch: dict[str, "Tensor"]) -> list[list[float]]:
    """For each mask of a batch, one per image, the IoU after each of the clicks."""
    import numpy as np
    import torch

    from sam_lora.data.clicks import corrective_click
    from sam_lora.model.encode import preprocess
    from sam_lora.model.prompts import Prompts, decode, upscale_to_frame
    from sam_lora.results import metrics
    masks = batch["masks"].bool().cpu().numpy()
    predicted, clicks = np.zeros_like(masks), [[] for _ in masks]
    curves: list[list[float]] = [[] for _ in masks]
    device, low_res = sam.pixel_mean.device, None
    with torch.inference_mode():
        embeddings = sam.image_encoder(preprocess(batch["images"], batch["input_sizes"], sam))
        for _ in range(CLICKS):
            for row, (mask, truth) in enumerate(zip(predicted, masks)):
                clicked = [(x, y) for x, y, _ in clicks[row]]
                (x, y), label = corrective_click(mask, truth, clicked) or (clicked[0], 1)  # all right: nothing new
                clicks[row].append((x, y, label))
            drawn = torch.tensor(clicks, dtype=torch.float32, device=device)                    # (N, clicks, 3)
            low_res, _ = decode(sam, embeddings, Prompts(drawn[..., :2] * 2 + 1, drawn[..., 2]), low_res)
            predicted = (upscale_to_frame(low_res, masks.shape[-1]) > 0)[:, 0].cpu().numpy()
            for row, (mask, truth) in enumerate(zip(predicted, masks)):
                curves[row].append(metrics.iou(mask, truth))
    return curves


def score_prompts(sam: "Sam", batch: dict[str, "Tensor"]) -> dict[str, list[float]]:
    """The IoU of each mask of a batch, one per image, by prompt; for one point also that of the three masks.

    `predicted` and `true` are the IoU of the three masks as the model and the ground truth have it.
    """
    import torch

    from sam_lora.model.encode import preprocess
    from sam_lora.model.prompts import Prompts, decode_all, upscale_to_frame
    masks, points = batch["masks"].bool(), batch["positive"]
    scores = {}
    with torch.inference_mode():
        embeddings = sam.image_encoder(preprocess(batch["images"], batch["input_sizes"], sam))
        for number in PROMPTS:
            labels = torch.ones(len(masks), number, device=masks.device)
            prompts = Prompts(points[:, :number], labels, None if number else batch["boxes"])
            low_res, predicted = decode_all(sam, embeddings, prompts)
            segmented = upscale_to_frame(low_res, masks.shape[-1]) > 0
            intersection = (segmented & masks[:, None]).sum(dim=(2, 3))
            iou = intersection / (segmented | masks[:, None]).sum(dim=(2, 3)).clamp(min=1)
            scores[f"points_{number}" if number else "box"] = iou[:, 0].tolist()
            if number == 1:
                three, chosen = iou[:, 1:], predicted[:, 1:].argmax(dim=1, keepdim=True)
                scores["points_1_best_of_3"] = three.amax(dim=1).tolist()
                scores["points_1_chosen_of_3"] = three.gather(1, chosen)[:, 0].tolist()
                scores["predicted"], scores["true"] = predicted[:, 1:].flatten().tolist(), three.flatten().tolist()
    sizes = batch["input_sizes"].tolist()
    scores["whole_frame_as_mask"] = [float(mask.sum()) * 4 / (h * w) for mask, (h, w) in zip(masks, sizes)]
    return scores


def measure_automatic(sam: "Sam", count: int) -> dict[str, float]:
    """SamAutomaticMaskGenerator with 16 x 16 points on simple scenes, with its own thresholds and with lower ones.

    A region counts as found if a mask has an IoU of at least 0.5 (0.75) with it.
    """
    import cv2
    import numpy as np
    from painter import OBJECT
    from scenes import simple_scene
    from textures import TextureBank

    from sam_lora.model.meta import SamAutomaticMaskGenerator
    from sam_lora.results import metrics
    cv2.setNumThreads(1)
    report: dict[str, float] = {"n_scenes": count}
    for name, settings in (("default", {}), ("lower", {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.8})):
        rng = np.random.default_rng(SEEDS["simple"])
        bank = TextureBank(rng, 24)
        generator = SamAutomaticMaskGenerator(sam, points_per_side=16, **settings)
        best, masks_made = [], []
        for _ in range(count):
            scene = simple_scene(rng, bank)
            masks = [mask["segmentation"] for mask in generator.generate(scene.image)]
            masks_made.append(len(masks))
            labels = scene.labels[OBJECT]
            best += [max((metrics.iou(mask, labels == number) for mask in masks), default=0.0)
                     for number in np.unique(labels[labels > 0])]
        report |= {"n_regions": len(best), f"{name}_masks_a_scene": round(float(np.mean(masks_made)), 1),
                   f"{name}_found_at_0.5": round(float(np.mean(np.array(best) >= 0.5)), 4),
                   f"{name}_found_at_0.75": round(float(np.mean(np.array(best) >= 0.75)), 4)}
    return report


def measure_table(sam: "Sam", path: str) -> dict[str, float]:
    """Mean IoU at full resolution with the table's points, and that of the whole crop taken as the mask."""
    import contextlib

    import numpy as np

    from sam_lora.data.samples import check_samples, read_samples
    from sam_lora.model.batches import PromptedImages, batches, make_loader
    from sam_lora.results import metrics
    from sam_lora.results.predict import predict
    rows = read_samples(path)
    check_samples(rows, path, need_labels=True)
    side = sam.image_encoder.img_size
    dataset = PromptedImages(rows, side, 16, with_targets=False, with_masks=True)
    loader = make_loader(dataset, side, BATCH, 0, pin_memory=False)
    scored = [(metrics.iou(p.mask, p.truth), p.truth.mean(), p.predicted_iou)
              for p in predict(sam, batches(loader), contextlib.nullcontext())]
    iou, whole, predicted = np.array(scored).T
    return {"n": len(iou), "points": round(float(iou.mean()), 4), "whole_crop_as_mask": round(float(whole.mean()), 4),
            "spearman_predicted_iou": round(spearman(predicted, iou), 4)}


def spearman(first, second) -> float:
    """Rank correlation."""
    import pandas as pd
    ranks = pd.DataFrame({"first": first, "second": second}).rank()
    return float(ranks["first"].corr(ranks["second"]))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
