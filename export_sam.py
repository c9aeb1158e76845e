"""Step 6: turn the fine-tuned checkpoint into a plain SAM that any SAM tool loads.

LoRA is merged into the base weights and written with Meta's own keys:
sam_model_registry["vit_b"](checkpoint="sam_finetuned.pth") loads it, SamPredictor and SamAutomaticMaskGenerator work.
On request also as ONNX (decoder, image encoder, either as int8) and as a folder for Hugging Face transformers.
Each is kept only if the library that will load it, given that file, computes the logits that this project computes.

Reads   checkpoints/sam_lora_final.ckpt (step 4), SAM's weights; test_reformatted.csv (step 3) for what int8 costs
Writes  sam_finetuned.pth; sam_finetuned.json: the checkpoint's header, and for each file made SHA-256, the largest
        difference of logits and how to load it; with --onnx, --onnx_encoder and --hf what they name; with --int8
        also NAME_int8.onnx beside each NAME.onnx

    python export_sam.py --checkpoint checkpoints/sam_lora_final.ckpt --output sam_finetuned.pth
    python export_sam.py --onnx sam_decoder.onnx --onnx_encoder sam_encoder.onnx --int8 --test_csv test_reformatted.csv
    python export_sam.py --hf sam_hf
"""

import argparse
import json
import os
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from sam_lora import cli, contracts
from sam_lora.files import atomic_path, refuse_existing, staged_folder

ONNX_LOAD = 'import onnxruntime; session = onnxruntime.InferenceSession("NAME")'
HF_LOAD = ('from transformers import SamModel, SamProcessor; model = SamModel.from_pretrained("NAME").eval(); '
           'processor = SamProcessor.from_pretrained("NAME")')


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
    out.add_argument("--hf", metavar="DIR", help="also a folder for transformers' SamModel and SamProcessor")
    cli.add_overwrite(out)
    onnx = parser.add_argument_group("ONNX")
    onnx.add_argument("--onnx", metavar="FILE",
                      help="also the decoder, with the inputs and outputs of Meta's own export")
    onnx.add_argument("--return_single_mask", action="store_true",
                      help="the decoder gives the best mask alone instead of all four")
    onnx.add_argument("--onnx_encoder", metavar="FILE",
                      help="also the image encoder: x (1, 3, S, S), normalised -> image_embeddings")
    onnx.add_argument("--int8", action="store_true", help="also each of these with 8-bit weights, and what that costs")
    onnx.add_argument("--test_csv", metavar="FILE",
                      help="table of step 3 to measure the IoU that --int8 costs; default: how far the masks of "
                           "drawn pictures agree")
    return parser


def main(args: argparse.Namespace) -> None:
    output, onnx_files = check_flags(args)
    described = output.with_suffix(".json")
    refuse_existing([output, described, *onnx_files.values()], args.overwrite)
    import torch

    from sam_lora.export import hf_export, onnx_export, parity
    from sam_lora.model import checkpoints, lora
    if onnx_files:
        onnx_export.require_onnx()
    if args.hf:
        hf_export.require_transformers()
    samples = onnx_export.read_int8_samples(args.test_csv) if args.test_csv else None

    with ExitStack() as stack:  # at its end everything is renamed into place; an error leaves nothing
        staged = {path: stack.enter_context(atomic_path(path)) for path in (described, output, *onnx_files.values())}
        if args.hf:
            staged[Path(args.hf)] = stack.enter_context(
                staged_folder(args.hf, hf_export.OWNED_FILES, args.overwrite))
        tuned, header = checkpoints.load_tuned_sam(args.checkpoint, args.base_checkpoint, merge=False)
        probes = list(parity.make_probes(tuned))
        embeddings = [parity.embed(tuned, probe) for probe in probes]
        expected = [parity.our_logits(tuned, probe, embedding) for probe, embedding in zip(probes, embeddings)]
        lora.merge_lora(tuned)
        made = []

        torch.save(tuned.state_dict(), staged[output])
        exported, load = load_exported(staged[output], header, output.name)
        difference = parity.largest(parity.largest_difference(parity.predictor_logits(exported, probe), logits)
                                    for probe, logits in zip(probes, expected))
        parity.check_difference(difference, output, args.checkpoint)
        made.append(entry(output, described, staged, load, difference))

        if args.onnx:
            path = onnx_files["decoder"]
            onnx_export.export_decoder(tuned, staged[path], args.return_single_mask)
            difference = onnx_export.check_decoder(staged[path], tuned, probes, embeddings, path, args.checkpoint,
                                                   args.return_single_mask)
            made.append(entry(path, described, staged, ONNX_LOAD, difference))
        if args.onnx_encoder:
            path = onnx_files["encoder"]
            onnx_export.export_encoder(tuned, staged[path])
            difference = onnx_export.check_encoder(staged[path], tuned, probes, expected, path, args.checkpoint)
            made.append(entry(path, described, staged, ONNX_LOAD, difference))
        costs: dict[str, onnx_export.Int8Cost] = {}
        if args.int8:
            for part in onnx_export.parts(onnx_files):
                onnx_export.quantise(staged[onnx_files[part]], staged[onnx_files[f"{part}_int8"]])
            costs = onnx_export.int8_costs(tuned, {name: staged[path] for name, path in onnx_files.items()}, samples)
            for part in onnx_export.parts(onnx_files):
                made.append(entry(onnx_files[f"{part}_int8"], described, staged, ONNX_LOAD, cost=costs[part]))
            if "both" in costs:
                print(f"int8 decoder and encoder together: {costs['both']}")
        if args.hf:
            path = Path(args.hf)
            hf_export.save_hf(tuned, header["model_type"], staged[path])
            difference = hf_export.check_hf(staged[path], probes, expected, path, args.checkpoint)
            made.append(entry(path, described, staged, HF_LOAD, difference))

        libraries = ["onnx", "onnxruntime"] * bool(onnx_files) + ["transformers"] * bool(args.hf)
        about = {"files": made, "made_from": str(args.checkpoint),
                 **({"int8_together": vars(costs["both"])} if "both" in costs else {}),
                 "exported_with": {**checkpoints.library_versions(), **{name: version(name) for name in libraries}},
                 **header}
        staged[described].write_text(json.dumps(about, indent=2, ensure_ascii=False, default=str) + "\n",
                                     encoding="utf-8")
    print(f"load the SAM with\n{load}\nwhat each file is and how to load it: {described}")


def check_flags(args: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """The .pth file and the ONNX files: decoder, encoder, decoder_int8, encoder_int8 as asked for."""
    parser = get_args_parser()
    output = Path(args.output)
    if output.suffix not in (".pth", ".pt"):
        parser.error(f"--output {output}: expected a name that ends in .pth")
    files = {}
    for part, flag, name in (("decoder", "--onnx", args.onnx), ("encoder", "--onnx_encoder", args.onnx_encoder)):
        if name is None:
            continue
        files[part] = Path(name)
        if files[part].suffix != ".onnx":
            parser.error(f"{flag} {name}: expected a name that ends in .onnx")
        if args.int8:
            files[f"{part}_int8"] = files[part].with_name(f"{files[part].stem}_int8.onnx")
    if args.int8 and not files:
        parser.error("--int8: needs --onnx or --onnx_encoder, which it makes smaller")
    if args.test_csv and not args.int8:
        parser.error("--test_csv: only with --int8, whose cost it measures")
    if args.return_single_mask and args.onnx is None:
        parser.error("--return_single_mask: needs --onnx")
    if len({path.resolve() for path in files.values()}) < len(files):
        parser.error("--onnx and --onnx_encoder: two files would have the same name")
    return output, files


def load_exported(path: Path, header: dict, name: str):
    """(the file as segment_anything loads it, strictly; the code that does so).

    A type or image size that segment_anything does not know is built of its classes by `sam_lora.sam.build_sam`.
    """
    from segment_anything import sam_model_registry

    from sam_lora.model.sam import load_sam
    from sam_lora.model.sam_types import SAM_TYPES
    model_type, image_size = header["model_type"], header["image_size"]
    if model_type in sam_model_registry and image_size == SAM_TYPES[model_type].image_size:
        return (sam_model_registry[model_type](checkpoint=path).eval(),
                "from segment_anything import sam_model_registry; "
                f'sam = sam_model_registry["{model_type}"](checkpoint="{name}")')
    sam, _ = load_sam(model_type, path, image_size)
    return sam, ("from sam_lora.sam import load_sam; "
                 f'sam, _ = load_sam("{model_type}", "{name}", image_size={image_size})')


def entry(path: Path, described: Path, staged: dict[Path, Path], load: str, difference: float | None = None,
          cost=None) -> dict:
    """What the .json says of one file or folder; printed in short. Names are as seen from the .json's folder."""
    from sam_lora.model.weights import sha256_of
    name = Path(os.path.relpath(path, described.parent)).as_posix()
    files = [staged[path]] if staged[path].is_file() else sorted(staged[path].iterdir())
    digests = {file.name: sha256_of(file) for file in files}
    says = [f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"]
    if difference is not None:
        says.append(f"logits within {difference:.1e} of the checkpoint's")
    if cost is not None:
        says.append(str(cost))
    print(f"{path}: {', '.join(says)}", flush=True)
    return {"file": name, "sha256": digests if staged[path].is_dir() else digests[staged[path].name],
            **({} if difference is None else {"largest_logit_difference": difference}),
            **({} if cost is None else {"int8_cost": vars(cost)}), "load": load.replace("NAME", name)}


if __name__ == "__main__":
    cli.run(main, get_args_parser())
