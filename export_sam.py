"""Step 6: turn the fine-tuned checkpoint into a plain SAM that any SAM tool loads.

LoRA is merged into the base weights and written with Meta's own keys:
sam_model_registry["vit_b"](checkpoint="sam_finetuned.pth") loads it, SamPredictor and SamAutomaticMaskGenerator work.
The file is kept only if segment_anything, given that file, computes the logits that this project computes.

Reads   checkpoints/sam_lora_final.ckpt (step 4), SAM's weights
Writes  sam_finetuned.pth; sam_finetuned.json, what it is: the checkpoint's header, SHA-256, how to load it

    python export_sam.py --checkpoint checkpoints/sam_lora_final.ckpt --output sam_finetuned.pth
"""

import argparse
import json
from pathlib import Path

from sam_lora import cli, contracts
from sam_lora.errors import UserError
from sam_lora.files import atomic_path, refuse_existing

TOLERANCE = 1e-4  # of a logit


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", default=f"{contracts.CHECKPOINTS_FOLDER}/{contracts.FINAL_CHECKPOINT}",
                       metavar="FILE", help="checkpoint of train.py")
    model.add_argument("--base_checkpoint", metavar="FILE",
                       help="the SAM weights it was trained on (.pth); default: found by its type, as in train.py")
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="sam_finetuned.pth", metavar="FILE",
                     help="the plain SAM; a .json of the same name beside it says what it is")
    cli.add_overwrite(out)
    return parser


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if output.suffix not in (".pth", ".pt"):
        get_args_parser().error(f"--output {output}: expected a name that ends in .pth")
    refuse_existing([output, output.with_suffix(".json")], args.overwrite)
    import torch

    from sam_lora import checkpoints, lora
    from sam_lora.sam import sha256_of
    tuned, header = checkpoints.load_tuned_sam(args.checkpoint, args.base_checkpoint, merge=False)
    expected = our_logits(tuned)
    lora.merge_lora(tuned)
    with atomic_path(output) as temporary:
        torch.save(tuned.state_dict(), temporary)
        exported, how_to_load = load_exported(temporary, header, output.name)
        difference = float((segment_anything_logits(exported) - expected).abs().max())
        if not difference <= TOLERANCE:  # NaN fails too
            raise UserError(f"{output}: not kept, its logits differ by {difference:.2g} from those of "
                            f"{args.checkpoint} (at most {TOLERANCE:g}); please report this")
    about = {"file": output.name, "sha256": sha256_of(output), "load": how_to_load,
             "largest_logit_difference": difference, "made_from": str(args.checkpoint),
             "exported_with": checkpoints.library_versions(), **header}
    with atomic_path(output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    print(f"{output}: {output.stat().st_size / 1e6:.0f} MB, logits within {difference:.1e} of the checkpoint's; "
          f"load it with\n{how_to_load}")


def load_exported(path: Path, header: dict, name: str):
    """(the file as segment_anything loads it, strictly; the code that does so).

    A type or image size that segment_anything does not know is built of its classes by `sam_lora.sam.build_sam`.
    """
    from segment_anything import sam_model_registry

    from sam_lora.sam import SAM_TYPES, load_sam
    model_type, image_size = header["model_type"], header["image_size"]
    if model_type in sam_model_registry and image_size == SAM_TYPES[model_type].image_size:
        return (sam_model_registry[model_type](checkpoint=path).eval(),
                f'sam = segment_anything.sam_model_registry["{model_type}"](checkpoint="{name}")')
    sam, _ = load_sam(model_type, path, image_size)
    return sam, f'sam, _ = sam_lora.sam.load_sam("{model_type}", "{name}", image_size={image_size})'


def probe(side: int):
    """A non-square picture of the model frame's width, (H, W, 3) uint8, and three points, (1, 3, 2) xy, on it."""
    import numpy as np
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (side * 3 // 4, side, 3)).astype(np.uint8)
    return image, rng.uniform(0, side * 3 // 4, (1, 3, 2)).astype(np.float32)


def our_logits(sam):
    """All four masks of the probe, (1, 4, 4h, 4w), by this project's code."""
    import torch

    from sam_lora.sam import Prompts, decode_all, preprocess
    side = sam.image_encoder.img_size
    image, points = probe(side)
    frame = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    frame[0, :, :image.shape[0]] = torch.from_numpy(image).permute(2, 0, 1)
    with torch.inference_mode():
        embeddings = sam.image_encoder(preprocess(frame, torch.tensor([image.shape[:2]]), sam))
        prompts = Prompts(torch.from_numpy(points), torch.ones(1, 3, dtype=torch.long))
        return decode_all(sam, embeddings, prompts)[0]


def segment_anything_logits(sam):
    """The same by segment_anything's SamPredictor."""
    import torch
    from segment_anything import SamPredictor
    image, points = probe(sam.image_encoder.img_size)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    coords, labels = torch.from_numpy(points), torch.ones(1, 3, dtype=torch.long)
    with torch.inference_mode():
        return torch.cat([predictor.predict_torch(coords, labels, multimask_output=several, return_logits=True)[2]
                          for several in (False, True)], dim=1)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
