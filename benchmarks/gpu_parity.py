"""Does a GPU compute what segment_anything's own modules compute on the CPU? For gpu_run.sh.

    python benchmarks/gpu_parity.py --device cuda --output parity.json
    python benchmarks/gpu_parity.py --device cpu --quick

The reference is segment_anything's modules on the CPU in float32. On --device run ours, in float32 without TF32 and in
bf16, and segment_anything's in bf16; all have the same weights, with LoRA whose two matrices are both random. A
difference is the norm of the difference over the norm of the reference. Ours in float32 must be within rounding; ours
in bf16 no further off than segment_anything's in bf16, but for what one rounding to bf16 makes.

vit_mini has the weights that ship, ViT-B random ones with random position tables. Pictures are a landscape and a
portrait, so padded on either side; 1024 and 512 px have windows that reach over the edge, and global blocks. Gradients
and the loss are those of a batch of mixed prompts, as in training. Exit code 1 if anything is out of bounds.
"""

import argparse
import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam_lora import cli  # noqa: I001 - before torch, as in the scripts: it says how threads wait

import cv2
import numpy as np
import torch
from drawn_photos import draw_position_tables
from torch import Tensor

from sam_lora.export.parity import Probe, make_probes
from sam_lora.files import atomic_path
from sam_lora.model import attention, checkpoints
from sam_lora.model.batches import Batch, Collate, Item, collate_prompts
from sam_lora.model.encode import encode_frozen, encode_rest, image_embeddings
from sam_lora.model.lora import LoraSettings, trainable_parameters
from sam_lora.model.meta import Sam
from sam_lora.model.precision import autocast, select_device
from sam_lora.model.prompts import decode_all
from sam_lora.model.sam import build_sam, resize_position_embeddings
from sam_lora.model.weights import find_weights, read_state_dict
from sam_lora.sam_types import SAM_TYPES
from sam_lora.training.losses import batch_loss, bce_iou

LORA = LoraSettings(rank=16, alpha=32.0)
LORA_STD = 0.02             # of both matrices: B starts at zero, and then neither path nor gradient would show
MULTIMASK_WEIGHT = 0.0      # which of three masks is the best is a choice that one rounding may turn
KEPT_BLOCKS = 4             # the last ones, which would train with --lora_blocks 4
EMBEDDINGS = ("encoder", f"kept features, {KEPT_BLOCKS} blocks open", "embeddings of kept features")
FLOAT32, FLOAT32_GRADIENTS = 1e-4, 1e-3     # allowed differences
# Times segment_anything's: two ways to round are never equally far off, least so on a few prompts.
BFLOAT16_EMBEDDINGS, BFLOAT16, BFLOAT16_GRADIENTS = 1.5, 2.0, 2.5
BFLOAT16_STEP = 2 ** -8     # one rounding: a difference below it proves nothing


@dataclass(frozen=True)
class Case:
    model_type: str
    image_size: int
    images: int
    gradients: bool


CASES = (Case("vit_mini", 256, 2, True), Case("vit_b", 512, 2, True), Case("vit_b", 1024, 1, False))
QUICK_CASES = (Case("vit_mini", 256, 2, True), Case("vit_b", 128, 1, False))


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    cli.add_device(parser)
    parser.add_argument("--quick", action="store_true", help="the small SAM, and ViT-B at 128 px")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON, anew after each model")
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    device = select_device(args.device)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # of convolutions; PyTorch's default is True
    rows = []
    for case in QUICK_CASES if args.quick else CASES:
        rows += compare(case, device, args.seed)
        if args.output:
            with atomic_path(args.output) as temporary:
                temporary.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    outside = sum(not row["ok"] for row in rows)
    print(f"{len(rows)} quantities, {outside} out of bounds")
    if outside:
        sys.exit(1)


def compare(case: Case, device: torch.device, seed: int) -> list[dict[str, object]]:
    """One row for each quantity of a model."""
    stock = make_sam(case, seed)
    probes = list(make_probes(stock, case.images, seed))
    expected = compute(stock, probes, case, "fp32", stock_decoder=True)
    embeddings = expected["encoder"]
    ours = copy.deepcopy(stock)
    attention.speed_up(ours)
    ours, stock = ours.to(device), stock.to(device)
    found = {"fp32": compute(ours, probes, case, "fp32", embeddings=embeddings),
             "bf16": compute(ours, probes, case, "bf16", embeddings=embeddings),
             "stock_bf16": compute(stock, probes, case, "bf16", embeddings=embeddings, stock_decoder=True)}
    rows = []
    for quantity, reference in expected.items():
        differences = {key: relative_difference(values[quantity], reference) for key, values in found.items()}
        allowed, times = FLOAT32, BFLOAT16_EMBEDDINGS if quantity in EMBEDDINGS else BFLOAT16
        if "gradients" in quantity:
            allowed, times = FLOAT32_GRADIENTS, BFLOAT16_GRADIENTS
        ok = differences["fp32"] <= allowed and \
            differences["bf16"] <= max(times * differences["stock_bf16"], BFLOAT16_STEP)
        rows.append({"case": f"{case.model_type} {case.image_size}", "quantity": quantity, **differences,
                     "fp32_allowed": allowed, "ok": bool(ok)})
        print(f"{case.model_type:<8} {case.image_size:>4} px  {quantity:<42}float32 {differences['fp32']:.1e}   "
              f"bf16 {differences['bf16']:.1e}, segment_anything's {differences['stock_bf16']:.1e}"
              f"{'' if ok else '   OUT OF BOUNDS'}", flush=True)
    return rows


def make_sam(case: Case, seed: int) -> Sam:
    """segment_anything's modules, prepared for training, every trained tensor moved at random."""
    torch.manual_seed(seed)
    sam = build_sam(case.model_type, case.image_size)
    if SAM_TYPES[case.model_type].weights_sha256:
        draw_position_tables(sam, 0.2)
    else:
        sam.load_state_dict(resize_position_embeddings(read_state_dict(find_weights(case.model_type)), sam))
    checkpoints.prepare_for_training(sam, LORA, train_decoder=True)
    with torch.no_grad():
        for parameter in trainable_parameters(sam).values():
            parameter.add_(torch.randn_like(parameter) * LORA_STD)
    return sam


def compute(sam: Sam, probes: list[Probe], case: Case, precision: str, *, embeddings: Tensor | None = None,
            stock_decoder: bool = False) -> dict[str, Tensor]:
    """Every quantity, on the CPU. The decoder starts from `embeddings` (B, C, h, w), the reference's, else its own."""
    device = sam.pixel_mean.device
    batch = make_batch(probes, case.image_size).to(device)
    found = {}
    with torch.no_grad(), autocast(precision, device):
        frames = torch.cat([probe.frame for probe in probes]).to(device)
        features = encode_frozen(sam, frames, KEPT_BLOCKS)
        found |= zip(EMBEDDINGS, (image_embeddings(sam, batch), features,
                                  encode_rest(sam, features.float(), KEPT_BLOCKS)))
        start = (found["encoder"].cpu() if embeddings is None else embeddings).float().to(device)
        decoded = decode_one_by_one if stock_decoder else decode_together
        found |= decoded(sam, start, probes)
    if case.gradients:
        sam.zero_grad(set_to_none=True)
        with autocast(precision, device):
            loss, _ = batch_loss(sam, batch, bce_iou, MULTIMASK_WEIGHT)
        loss.backward()
        found["loss"] = loss.detach()
        for name, is_lora in (("gradients of LoRA", True), ("gradients of the decoder", False)):
            found[name] = torch.cat([parameter.grad.flatten() for key, parameter in trainable_parameters(sam).items()
                                     if key.startswith("image_encoder.") == is_lora])
        sam.zero_grad(set_to_none=True)
    return {name: value.float().cpu() for name, value in found.items()}


def decode_together(sam: Sam, embeddings: Tensor, probes: list[Probe]) -> dict[str, Tensor]:
    """Logits by our code: prompts of all kinds in one call, and those with an earlier mask in another."""
    device, groups = embeddings.device, {"masks of mixed prompts": False, "masks of an earlier mask": True}
    found = {}
    for name, has_mask in groups.items():
        chosen = [(number, prompts, mask) for number, probe in enumerate(probes)
                  for prompts, mask in zip(probe.prompts, probe.mask_inputs) if (mask is not None) == has_mask]
        index = torch.tensor([number for number, _, _ in chosen], device=device)
        masks = torch.cat([mask for _, _, mask in chosen]).to(device) if has_mask else None
        prompts = collate_prompts([prompts for _, prompts, _ in chosen]).to(device)
        found[name], found[f"{name}: predicted IoU"] = decode_all(sam, embeddings[index], prompts, masks)
    return found


def decode_one_by_one(sam: Sam, embeddings: Tensor, probes: list[Probe]) -> dict[str, Tensor]:
    """The same by segment_anything's prompt encoder and decoder, each prompt by itself."""
    device = embeddings.device
    found = {"masks of mixed prompts": [], "masks of an earlier mask": []}
    for embedding, probe in zip(embeddings, probes):
        for prompts, mask in zip(probe.prompts, probe.mask_inputs):
            prompts = prompts.to(device)
            points = (prompts.point_coords, prompts.point_labels) if prompts.point_labels.shape[1] else None
            sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes,
                                               masks=None if mask is None else mask.to(device))
            found["masks of mixed prompts" if mask is None else "masks of an earlier mask"].append(
                sam.mask_decoder.predict_masks(
                    image_embeddings=embedding[None], image_pe=sam.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense))
    joined = {}
    for name, pairs in found.items():
        joined[name], joined[f"{name}: predicted IoU"] = (torch.cat(tensors) for tensors in zip(*pairs))
    return joined


def make_batch(probes: list[Probe], side: int) -> Batch:
    """The probes' images with their prompts, without an earlier mask; targets are ellipses in their boxes."""
    items = []
    for number, probe in enumerate(probes):
        size = probe.image.shape[:2]
        prompts = [prompts for prompts, mask in zip(probe.prompts, probe.mask_inputs) if mask is None]
        target = np.zeros(size, np.uint8)
        x0, y0, x1, y1 = next(prompts.boxes[0].tolist() for prompts in probe.prompts if prompts.boxes is not None)
        cv2.ellipse(target, (((x0 + x1) / 2, (y0 + y1) / 2), (x1 - x0, y1 - y0), 0), 255, -1)
        image = torch.from_numpy(probe.image).permute(2, 0, 1)
        items.append(Item([number * len(prompts) + row for row in range(len(prompts))], Path(f"{number}.png"), image,
                          None, size, size, prompts, [torch.from_numpy(target)] * len(prompts), []))
    return Collate(side)(items)


def relative_difference(values: Tensor, reference: Tensor) -> float:
    return float((values - reference).norm() / reference.norm())


if __name__ == "__main__":
    cli.run(main, get_args_parser())
