"""Measure the small SAM: held-out procedural crops and whole scenes, and real pictures it never saw.

Reads   the weights; training tables ({split}_reformatted.csv) of real data, if any are named
Writes  OUTPUT (JSON), and prints it

    python pretrain/evaluate.py --num_crops 1000 --num_scenes 1000 --output pretrain/evaluation.json
    python pretrain/evaluate.py --num_crops 0 --num_scenes 0 --tables brain=brain/test_reformatted.csv …
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sam_lora import cli

if TYPE_CHECKING:
    from sam_lora.model.meta import Sam

MODEL_TYPE = "vit_mini"
SEEDS = {"crops": 2_000_000, "scenes": 3_000_000, "simple": 4_000_000}  # training: < 1_000_000
BATCH = 16


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--num_crops", type=cli.non_negative_int, default=1000, metavar="N", help="procedural crops")
    data.add_argument("--num_scenes", type=cli.non_negative_int, default=1000, metavar="N",
                      help="procedural whole scenes, one region prompted in each")
    data.add_argument("--num_simple", type=cli.non_negative_int, default=40, metavar="N",
                      help="simple scenes for SamAutomaticMaskGenerator")
    data.add_argument("--tables", nargs="*", default=[], metavar="NAME=CSV", help="training tables of real data")
    run = parser.add_argument_group("run")
    run.add_argument("--checkpoint", metavar="FILE", help="weights; default: the ones that ship")
    run.add_argument("--threads", type=cli.positive_int, default=2, metavar="N")
    cli.add_device(run)
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="FILE", help="JSON file; default: only printed")
    return parser


def main(args: argparse.Namespace) -> None:
    import json
    import os
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
    """Mean IoU by prompt of the single mask, the best of three for one point, and the rank correlation of its scores.

    Masks are compared on the half-size grid of the model frame that training uses.
    """
    import cv2
    import numpy as np
    import torch

    from sam_lora.model.encode import preprocess
    from sam_lora.model.prompts import Prompts, decode_all, upscale_to_frame
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from scenes import samples
    cv2.setNumThreads(1)
    device = sam.pixel_mean.device
    stream = samples(SEEDS[kind], sam.image_encoder.img_size, 1, float(kind == "scenes"), crops_a_scene=1)
    scores: dict[str, list[float]] = {}
    predicted, true, shares = [], [], []
    for start in range(0, count, BATCH):
        batch = [next(stream) for _ in range(min(BATCH, count - start))]
        images = torch.from_numpy(np.stack([sample.image for sample in batch])).permute(0, 3, 1, 2).to(device)
        sizes = torch.tensor([sample.input_size for sample in batch], device=device)
        masks = torch.from_numpy(np.concatenate([sample.masks for sample in batch])).bool().to(device)
        points = torch.from_numpy(np.concatenate([sample.positive for sample in batch])).to(device)
        boxes = torch.from_numpy(np.concatenate([sample.boxes for sample in batch])).to(device)
        shares += [float(mask.sum()) * 4 / (size[0] * size[1]) for mask, size in zip(masks, sizes.tolist())]
        with torch.inference_mode():
            embeddings = sam.image_encoder(preprocess(images, sizes, sam))
            for number in (1, 3, 5, 0):
                labels = torch.ones(len(batch), number, device=device)
                prompts = Prompts(points[:, :number], labels, boxes if number == 0 else None)
                low_res, scored = decode_all(sam, embeddings, prompts)
                found = upscale_to_frame(low_res, masks.shape[-1]) > 0
                inside = (found & masks[:, None]).sum(dim=(2, 3))
                iou = inside / (found | masks[:, None]).sum(dim=(2, 3)).clamp(min=1)
                scores.setdefault(f"points_{number}" if number else "box", []).extend(iou[:, 0].tolist())
                if number == 1:
                    scores.setdefault("points_1_best_of_3", []).extend(iou[:, 1:].amax(dim=1).tolist())
                    chosen = scored[:, 1:].argmax(dim=1, keepdim=True)
                    scores.setdefault("points_1_chosen_of_3", []).extend(iou[:, 1:].gather(1, chosen)[:, 0].tolist())
                    predicted += scored[:, 1:].flatten().tolist()
                    true += iou[:, 1:].flatten().tolist()
    report = {name: round(float(np.mean(values)), 4) for name, values in scores.items()}
    report["whole_frame_as_mask"] = round(float(np.mean(shares)), 4)
    report["spearman_predicted_iou"] = round(spearman(predicted, true), 4)
    return {"n": count, **report}


def measure_automatic(sam: "Sam", count: int) -> dict[str, float]:
    """SamAutomaticMaskGenerator, 16 x 16 points, on simple scenes, with its own thresholds and with lower ones.

    A region counts as found where one of the masks has an IoU of 0.5 (0.75) with it or more.
    """
    import cv2
    import numpy as np
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from scenes import OBJECT, simple_scene
    from segment_anything import SamAutomaticMaskGenerator
    from textures import TextureBank

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
            masks = [found["segmentation"] for found in generator.generate(scene.image)]
            masks_made.append(len(masks))
            labels = scene.labels[OBJECT]
            best += [max((metrics.iou(mask, labels == number) for mask in masks), default=0.0)
                     for number in np.unique(labels[labels > 0])]
        report |= {"n_regions": len(best), f"{name}_masks_a_scene": round(float(np.mean(masks_made)), 1),
                   f"{name}_found_at_0.5": round(float(np.mean(np.array(best) >= 0.5)), 4),
                   f"{name}_found_at_0.75": round(float(np.mean(np.array(best) >= 0.75)), 4)}
    return report


def measure_table(sam: "Sam", path: str) -> dict[str, float]:
    """Mean IoU at full resolution with the table's own points, beside taking each whole crop as its mask."""
    import contextlib

    import numpy as np

    from sam_lora.data.samples import check_samples, read_samples
    from sam_lora.model.batches import PromptedImages, batches, make_loader
    from sam_lora.results import metrics
    from sam_lora.results.evaluation import predict
    rows = read_samples(path)
    check_samples(rows, path, need_labels=True)
    side = sam.image_encoder.img_size
    dataset = PromptedImages(rows, side, 16, with_targets=False, with_masks=True)
    loader = make_loader(dataset, side, BATCH, 0, pin_memory=False)
    found = [(metrics.iou(p.mask, p.truth), p.truth.mean(), p.predicted_iou)
             for p in predict(sam, batches(loader), sam.pixel_mean.device, contextlib.nullcontext())]
    iou, whole, scored = np.array(found).T
    return {"n": len(iou), "points": round(float(iou.mean()), 4), "whole_crop_as_mask": round(float(whole.mean()), 4),
            "spearman_predicted_iou": round(spearman(scored, iou), 4)}


def spearman(first, second) -> float:
    """Rank correlation."""
    import pandas as pd
    ranks = pd.DataFrame({"first": first, "second": second}).rank()
    return float(ranks["first"].corr(ranks["second"]))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
