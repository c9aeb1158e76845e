"""Does each exported file compute what the checkpoint computes? The largest difference of logits over random images.

A SAM with random weights in Meta's published format (vit_mini: the weights that ship) and a checkpoint with random
LoRA on it are made in a temporary folder; export_sam.py exports it to every format; each file is then loaded by the
library it is for and run on the same pictures and prompts as the checkpoint, unmerged, by this project's code.

    python benchmarks/parity_export.py --model_type vit_mini --images 10
    python benchmarks/parity_export.py --model_type vit_b --images 1         1024 px; about a minute an image on a CPU
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sam_lora import cli  # noqa: E402
from sam_lora.errors import UserError  # noqa: E402


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_type", choices=("vit_b", "vit_l", "vit_mini"), default="vit_mini", help="which SAM")
    parser.add_argument("--images", type=cli.positive_int, default=10, metavar="N",
                        help="random pictures, lying and standing by turns, five prompts each")
    cli.add_seed(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from sam_lora.export import hf_export, onnx_export, parity
    from sam_lora.model import checkpoints
    from sam_lora.model.sam import load_sam
    from sam_lora.model.sam_types import SAM_TYPES
    from sam_lora.model.weights import find_weights
    torch.manual_seed(args.seed)
    kind = SAM_TYPES[args.model_type]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        base = find_weights("vit_mini") if args.model_type == "vit_mini" else folder / "base.pth"
        if not base.exists():
            save_random_weights(args.model_type, base)
        checkpoint = folder / "sam_lora_final.ckpt"
        save_random_checkpoint(args.model_type, base, checkpoint)
        command = [sys.executable, str(ROOT / "export_sam.py"), "--checkpoint", str(checkpoint), "--base_checkpoint",
                   str(base), "--output", str(folder / "sam.pth"), "--onnx", str(folder / "decoder.onnx"),
                   "--onnx_encoder", str(folder / "encoder.onnx"), "--hf", str(folder / "hf")]
        if subprocess.run(command).returncode:
            raise UserError("export_sam.py failed")

        ours, _ = checkpoints.load_tuned_sam(checkpoint, base, merge=False)
        if args.model_type == "vit_mini":
            stock, _ = load_sam("vit_mini", folder / "sam.pth")
        else:
            from segment_anything import sam_model_registry
            stock = sam_model_registry[args.model_type](checkpoint=folder / "sam.pth").eval()
        encoder, decoder = (onnx_export.open_session(folder / f"{part}.onnx") for part in ("encoder", "decoder"))
        hf = hf_export.load_hf(folder / "hf")
        formats = {
            "merged .pth in segment_anything": lambda probe: parity.predictor_logits(stock, probe),
            "ONNX encoder + decoder in onnxruntime": lambda probe: onnx_export.onnx_logits(encoder, decoder, probe),
            "SamModel in transformers": lambda probe: hf_export.hf_logits(hf, probe)}
        largest, size, flipped, pixels = dict.fromkeys(formats, 0.0), 0.0, dict.fromkeys(formats, 0), 0
        for probe in tqdm(parity.make_probes(ours, args.images, args.seed), total=args.images, unit="image",
                          disable=None):
            expected = parity.our_logits(ours, probe)
            size, pixels = max(size, float(expected.abs().max())), pixels + expected.numel()
            for name, logits_of in formats.items():
                found = logits_of(probe)
                largest[name] = parity.largest([largest[name], parity.largest_difference(found, expected)])
                flipped[name] += int(((found > 0) != (expected > 0)).sum())
    print(f"\n{args.model_type}, {kind.image_size} px, {args.images} images x 5 prompts x 4 masks; "
          f"largest logit {size:.3g}\n{'':<40}{'largest difference':>20}{'mask pixels that differ':>26}")
    for name in formats:
        print(f"{name:<40}{largest[name]:>20.1e}{f'{flipped[name]:,} of {pixels:,}':>26}")


def save_random_weights(model_type: str, path: Path) -> None:
    """Random weights in Meta's format; the position tables too, which are zero when fresh."""
    import torch

    from sam_lora.model.sam import build_sam
    sam = build_sam(model_type)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "pos_embed" in name or "rel_pos" in name:
                parameter.normal_(std=0.2)
    torch.save(sam.state_dict(), path)


def save_random_checkpoint(model_type: str, base: Path, path: Path) -> None:
    """A checkpoint as train.py writes it: LoRA of rank 8 on qkv and the decoder, all moved a little at random."""
    import torch

    from sam_lora.model import checkpoints
    from sam_lora.model.sam import load_sam
    sam, sha256 = load_sam(model_type, base)
    lora = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": ["qkv"], "blocks": None}
    checkpoints.prepare_for_training(sam, lora, train_decoder=True)
    state = {name: tensor + torch.randn_like(tensor) * 0.02 for name, tensor in checkpoints.trained_state(sam).items()}
    header = {"model_type": model_type, "image_size": sam.image_encoder.img_size, "base_sha256": sha256, "lora": lora,
              "train_decoder": True, "prompt": "points", "epoch": 0, "metrics": {}, "args": {},
              "versions": checkpoints.library_versions()}
    checkpoints.save_checkpoint(path, header, state)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
