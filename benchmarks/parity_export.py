"""Does each exported file compute what the checkpoint computes? The largest difference in logits over random images.

A SAM with random weights in Meta's published format (vit_mini: the weights that ship) and a checkpoint with random LoRA
on it are made in a temporary folder; export_sam.py exports the checkpoint to every format. Each file is then loaded by
the library it is made for, and run on the same images and prompts as the checkpoint, unmerged, in this project's code.

    python benchmarks/parity_export.py --model_type vit_mini --images 10
    python benchmarks/parity_export.py --model_type vit_b --images 1         1024 px; about a minute an image on a CPU
    python benchmarks/parity_export.py --model_type vit_b --device cuda --formats pth

--device is where the checkpoint and the merged .pth run; the others stay on the CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from drawn_photos import write_weights  # noqa: E402

from sam_lora import cli  # noqa: E402
from sam_lora.errors import UserError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from sam_lora.export.parity import Probe
    from sam_lora.model.meta import Sam

FORMATS = ("pth", "onnx", "hf")


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_type", choices=("vit_b", "vit_l", "vit_mini"), default="vit_mini",
                        help="SAM architecture")
    parser.add_argument("--images", type=cli.positive_int, default=10, metavar="N",
                        help="random images, alternately landscape and portrait, five prompts each")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, metavar="FORMAT",
                        help=f"some of {', '.join(FORMATS)}")
    parser.add_argument("--output", metavar="FILE", help="write the differences as JSON too")
    cli.add_device(parser)
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    import torch

    from sam_lora.export import parity
    from sam_lora.model import checkpoints
    from sam_lora.model.precision import select_device
    from sam_lora.model.weights import find_weights
    device = select_device(args.device)
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32 proper, on a GPU too
    torch.manual_seed(args.seed)
    with tempfile.TemporaryDirectory(prefix="parity_export-") as name:
        folder = Path(name)
        base = find_weights("vit_mini") if args.model_type == "vit_mini" else folder / "base.pth"
        if not base.exists():
            write_weights(base, args.model_type, args.seed, position_std=0.2)
        checkpoint = folder / "sam_lora_final.ckpt"
        save_random_checkpoint(args.model_type, base, checkpoint)
        export(checkpoint, base, folder, args.formats)
        tuned, _ = checkpoints.load_tuned_sam(checkpoint, base, merge=False)
        probes = list(parity.make_probes(tuned, args.images, args.seed))
        compare(tuned.to(device), load_formats(folder, args.model_type, args.formats, device), probes, args)


def export(checkpoint: Path, base: Path, folder: Path, formats: "Sequence[str]") -> None:
    """Run export_sam.py for these formats; it always writes the merged .pth."""
    command = [sys.executable, str(ROOT / "export_sam.py"), "--checkpoint", str(checkpoint), "--base_checkpoint",
               str(base), "--output", str(folder / "sam.pth")]
    if "onnx" in formats:
        command += ["--onnx", str(folder / "decoder.onnx"), "--onnx_encoder", str(folder / "encoder.onnx")]
    if "hf" in formats:
        command += ["--hf", str(folder / "hf")]
    if subprocess.run(command).returncode:
        raise UserError("export_sam.py failed")


def load_formats(folder: Path, model_type: str, formats: "Sequence[str]", device: "torch.device"
                 ) -> dict[str, "Callable[[Probe], Tensor]"]:
    """For each format the function that computes a probe's logits, in the library the format is made for."""
    from sam_lora.export import hf_export, onnx_export, parity
    from sam_lora.model.meta import sam_model_registry
    from sam_lora.model.sam import load_sam
    found = {}
    if "pth" in formats:
        if model_type == "vit_mini":
            stock, _ = load_sam("vit_mini", folder / "sam.pth")
        else:
            stock = sam_model_registry[model_type](checkpoint=folder / "sam.pth").eval()
        stock = stock.to(device)
        found["merged .pth in segment_anything"] = lambda probe: parity.predictor_logits(stock, moved(probe, device))
    if "onnx" in formats:
        encoder, decoder = (onnx_export.open_session(folder / f"{part}.onnx") for part in ("encoder", "decoder"))
        found["ONNX encoder + decoder in onnxruntime"] = \
            lambda probe: onnx_export.onnx_logits(encoder, decoder, probe)
    if "hf" in formats:
        hf = hf_export.load_hf(folder / "hf")
        found["SamModel in transformers"] = lambda probe: hf_export.hf_logits(hf, probe)
    return found


def moved(probe: "Probe", device: "torch.device") -> "Probe":
    """A probe whose tensors are on `device`."""
    return replace(probe, frame=probe.frame.to(device), prompts=[prompts.to(device) for prompts in probe.prompts],
                   mask_inputs=[None if mask is None else mask.to(device) for mask in probe.mask_inputs])


def compare(tuned: "Sam", formats: dict[str, "Callable[[Probe], Tensor]"], probes: "Sequence[Probe]",
            args: argparse.Namespace) -> None:
    """Print each format's largest difference of logits and the number of mask pixels that differ."""
    from tqdm import tqdm

    from sam_lora.export import parity
    from sam_lora.files import atomic_path
    largest, size, flipped, pixels = dict.fromkeys(formats, 0.0), 0.0, dict.fromkeys(formats, 0), 0
    for probe in tqdm(probes, unit="image", disable=None):
        expected = parity.our_logits(tuned, moved(probe, tuned.device)).cpu()
        size, pixels = max(size, float(expected.abs().max())), pixels + expected.numel()
        for name, logits_of in formats.items():
            logits = logits_of(probe).cpu()
            largest[name] = parity.largest([largest[name], parity.largest_difference(logits, expected)])
            flipped[name] += int(((logits > 0) != (expected > 0)).sum())
    side = tuned.image_encoder.img_size
    print(f"\n{args.model_type}, {side} px on {args.device}, {args.images} images x 5 prompts x 4 masks; "
          f"largest logit {size:.3g}\n{'':<40}{'largest difference':>20}{'mask pixels that differ':>26}")
    rows = [{"format": name, "largest difference": largest[name], "largest logit": size,
             "mask pixels that differ": flipped[name], "mask pixels": pixels} for name in formats]
    for row in rows:
        differ = f"{row['mask pixels that differ']:,} of {pixels:,}"
        print(f"{row['format']:<40}{row['largest difference']:>20.1e}{differ:>26}")
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def save_random_checkpoint(model_type: str, base: Path, path: Path) -> None:
    """A checkpoint as train.py writes it: LoRA of rank 8 on qkv and the decoder, all moved a little at random."""
    import torch

    from sam_lora.model import checkpoints
    from sam_lora.model.lora import LoraSettings
    from sam_lora.model.sam import load_sam
    sam, sha256 = load_sam(model_type, base)
    lora = LoraSettings(8, 16.0)
    checkpoints.prepare_for_training(sam, lora, train_decoder=True)
    state = {name: tensor + torch.randn_like(tensor) * 0.02 for name, tensor in checkpoints.trained_state(sam).items()}
    header = {"model_type": model_type, "image_size": sam.image_encoder.img_size, "base_sha256": sha256,
              "lora": lora.to_header(), "train_decoder": True, "prompt": "points", "epoch": 0, "metrics": {},
              "args": {}, "versions": checkpoints.library_versions()}
    checkpoints.save_checkpoint(path, header, state)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
