"""Step 6: turn the fine-tuned checkpoint into a plain SAM that any SAM tool loads.

LoRA is merged into the base weights, which are written with Meta's own keys:
sam_model_registry["vit_b"](checkpoint="sam_finetuned.pth") loads them, SamPredictor and SamAutomaticMaskGenerator work.
On request it also writes ONNX (decoder, image encoder, either as int8) and a folder for Hugging Face transformers.
A file is kept only if the library it is meant for loads it and computes the same logits as this project.

Reads   checkpoints/sam_lora_final.ckpt (step 4), SAM's weights; test_reformatted.csv (step 3) for the cost of int8
Writes  sam_finetuned.pth; sam_finetuned.json: the checkpoint's header and, for each file, its SHA-256, the largest
        difference in logits and the code that loads it; where the checkpoint finds objects without a prompt,
        sam_finetuned.finder.pth with what it needs for that; with --onnx, --onnx_encoder and --hf what they name; with
        --int8 also NAME_int8.onnx beside each NAME.onnx

A SAM tuned at another --image_size than SAM's own 1024 px is written as it was tuned; --image_size 1024 writes it for
the frame that Meta's registry and most tools assume, with the base's own position tables, which training leaves alone.

    python export_sam.py --checkpoint checkpoints/sam_lora_final.ckpt --output sam_finetuned.pth
    python export_sam.py --onnx sam_decoder.onnx --onnx_encoder sam_encoder.onnx --int8 --test_csv test_reformatted.csv
    python export_sam.py --onnx sam_decoder.onnx --onnx_encoder sam_encoder.onnx --onnx_for anylabeling
    python export_sam.py --image_size 1024 --test_csv test_reformatted.csv
    python export_sam.py --hf sam_hf
"""

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_lora import cli, contracts
from sam_lora.errors import UserError
from sam_lora.files import atomic_path, refuse_existing, staged_folder

if TYPE_CHECKING:
    from sam_lora.data.samples import Sample
    from sam_lora.export.int8 import Int8Cost
    from sam_lora.export.parity import Reference
    from sam_lora.model.finder import Finder
    from sam_lora.model.meta import Sam

ONNX_LOAD = 'import onnxruntime; session = onnxruntime.InferenceSession("NAME")'
FINDER_LOAD = ('from sam_lora.sam import FindSettings, find_objects, load_finder; sam.finder = load_finder("NAME"); '
               "objects = find_objects(sam, rgb, FindSettings.of(sam.finder))")
HF_LOAD = ('from transformers import SamModel, SamProcessor; model = SamModel.from_pretrained("NAME").eval(); '
           'processor = SamProcessor.from_pretrained("NAME")')


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", default=f"{contracts.CHECKPOINTS_FOLDER}/{contracts.FINAL_CHECKPOINT}",
                       metavar="FILE", help="the tuned checkpoint, written by train.py")
    model.add_argument("--base_checkpoint", metavar="FILE",
                       help="the SAM weights it was trained on (.pth); default: found by its type, as in train.py")
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="sam_finetuned.pth", metavar="FILE",
                     help="the plain SAM; a .json of the same name beside it describes every file")
    out.add_argument("--hf", metavar="DIR", help="also write a folder for transformers' SamModel and SamProcessor")
    out.add_argument("--image_size", type=cli.positive_int, metavar="PX",
                     help="write it for a model frame of this side, e.g. SAM's own 1024; default: the one it was tuned "
                          "at, where it is best")
    out.add_argument("--test_csv", metavar="FILE",
                     help="table of step 3 on which to measure the IoU that --image_size and --int8 cost; without it "
                          "--int8 says how well masks agree on drawn images")
    cli.add_overwrite(out)
    onnx = parser.add_argument_group("ONNX")
    onnx.add_argument("--onnx", metavar="FILE",
                      help="also write the decoder, with the inputs and outputs of Meta's own export")
    onnx.add_argument("--return_single_mask", action="store_true",
                      help="the decoder returns only the best mask instead of all four")
    onnx.add_argument("--onnx_encoder", metavar="FILE",
                      help="also write the image encoder: x (1, 3, S, S), normalised -> image_embeddings")
    onnx.add_argument("--int8", action="store_true",
                      help="also write each of these with 8-bit weights, and measure the cost")
    onnx.add_argument("--onnx_for", choices=("meta", "anylabeling"), default="meta",
                      help="what --onnx and --onnx_encoder take: what Meta's own export takes; or what AnyLabeling and "
                           "X-AnyLabeling feed, pixels as (H, W, 3) and clicks in a frame of 1024 px")
    onnx.add_argument("--onnx_finder", metavar="FILE",
                      help="also write what finds objects without a prompt: image_embeddings -> objectness, classes, "
                           "boxes on a grid of cells")
    return parser


def main(args: argparse.Namespace) -> None:
    targets = check_flags(args)
    refuse_existing([*targets.files, targets.finder], args.overwrite)
    from sam_lora.export import hf_export, onnx_export, table_iou
    if targets.onnx or targets.onnx_finder:
        onnx_export.require_onnx()
    if targets.hf:
        hf_export.require_transformers()
    samples = table_iou.read_rows(args.test_csv) if args.test_csv else None

    with ExitStack() as stack:  # at its end everything is renamed into place; an error leaves nothing behind
        export = prepare(args, targets, stack)
        load = export_plain(export)
        if "decoder" in targets.onnx:
            export_decoder(export, args.return_single_mask, args.onnx_for)
        if "encoder" in targets.onnx:
            export_encoder(export, args.onnx_for)
        if args.int8:
            export_int8(export, samples)
        if export.finder is not None:
            export_finder(export, stack)
        if targets.hf:
            export_hf(export)
        about_size = describe_size(export, args, samples)
        write_description(export)
    print(f"load the SAM with\n{load}\nwhat each file is and how to load it: {targets.description}")
    print(*about_size, sep="\n", end="\n" * bool(about_size))


@dataclass(frozen=True)
class Targets:
    """What is written: the plain SAM, the .json that describes all files, ONNX files by part, a transformers folder.

    The parts are decoder, encoder, decoder_int8 and encoder_int8, as far as they were asked for.
    """

    plain: Path
    onnx: dict[str, Path]
    hf: Path | None
    onnx_finder: Path | None = None

    @property
    def finder(self) -> Path:
        """Written where the checkpoint has a finder."""
        return self.plain.with_suffix(".finder.pth")

    @property
    def description(self) -> Path:
        return self.plain.with_suffix(".json")

    @property
    def files(self) -> list[Path]:
        return [self.plain, self.description, *self.onnx.values(), *filter(None, [self.onnx_finder])]


@dataclass
class Export:
    """An export in progress: the merged model, what its files have to reproduce, and the files made so far.

    `staged` maps each target to the temporary path that becomes it. `header` is the checkpoint's, but its image_size is
    the one that is written; `tuned_size` is the checkpoint's own.
    """

    targets: Targets
    staged: dict[Path, Path]
    sam: "Sam"
    header: dict[str, Any]
    reference: "Reference"
    tuned_size: int
    finder: "Finder | None" = None      # taken off the SAM, whose keys are Meta's
    entries: list[dict[str, Any]] = field(default_factory=list)
    int8_together: "Int8Cost | None" = None
    table_iou: dict[int, float] = field(default_factory=dict)   # by image size

    def add(self, path: Path, load: str, difference: float | None = None, cost: "Int8Cost | None" = None) -> None:
        """Describe a finished file or folder for the .json, naming it as seen from there; and print a summary."""
        from sam_lora.model.weights import sha256_of
        name = Path(os.path.relpath(path, self.targets.description.parent)).as_posix()
        staged = self.staged[path]
        files = [staged] if staged.is_file() else sorted(staged.iterdir())
        digests = {file.name: sha256_of(file) for file in files}
        entry = {"file": name, "sha256": digests if staged.is_dir() else digests[staged.name]}
        summary = [f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"]
        if difference is not None:
            entry["largest_logit_difference"] = difference
            summary.append(f"logits within {difference:.1e} of the checkpoint's")
        if cost is not None:
            entry["int8_cost"] = vars(cost)
            summary.append(str(cost))
        self.entries.append({**entry, "load": load.replace("NAME", name)})
        print(f"{path}: {', '.join(summary)}", flush=True)


# ---- the steps ----------------------------------------------------------------------------------------------

def prepare(args: argparse.Namespace, targets: Targets, stack: ExitStack) -> Export:
    """Stage every target, load the checkpoint, compute the reference while LoRA is apart, then merge it."""
    from sam_lora.export import hf_export
    from sam_lora.export.parity import Reference
    from sam_lora.model import checkpoints, lora
    from sam_lora.model.finder import take_finder
    staged = {path: stack.enter_context(atomic_path(path)) for path in targets.files}
    if targets.hf:
        staged[targets.hf] = stack.enter_context(staged_folder(targets.hf, hf_export.OWNED_FILES, args.overwrite))
    tuned, header = checkpoints.load_tuned_sam(args.checkpoint, args.base_checkpoint, False, args.image_size)
    tuned_size, size = header["image_size"], tuned.image_encoder.img_size
    reference = Reference.of(tuned, args.checkpoint)
    lora.merge_lora(tuned)
    finder = take_finder(tuned)
    if finder is not None and size != tuned_size:
        print(f"what finds objects without a prompt is left out: it works at {tuned_size} px")
        finder = None
    if finder is None and targets.onnx_finder:
        raise UserError(f"--onnx_finder: {args.checkpoint} finds no objects without a prompt at {size} px; expected a "
                        "checkpoint trained on whole photos or tiles, at its own size")
    if finder is None:
        targets.finder.unlink(missing_ok=True)      # of an earlier export: it is not this SAM's
    return Export(targets, staged, tuned, {**header, "image_size": size}, reference, tuned_size, finder)


def export_plain(export: Export) -> str:
    """Write the plain SAM; returns the code that loads it."""
    import torch

    from sam_lora.export.parity import predictor_logits
    path = export.targets.plain
    torch.save(export.sam.state_dict(), export.staged[path])
    loaded, load = load_exported(export.staged[path], export.header, path.name)
    difference = export.reference.compare(lambda probe: predictor_logits(loaded, probe), path)
    export.add(path, load, difference)
    return load


def export_decoder(export: Export, return_single_mask: bool, onnx_for: str) -> None:
    from sam_lora.export import labeling_export, onnx_export
    write, check = (onnx_export.export_decoder, onnx_export.check_decoder)
    if onnx_for == "anylabeling":
        write, check = (labeling_export.export_decoder, labeling_export.check_labeling_decoder)
    path = export.targets.onnx["decoder"]
    write(export.sam, export.staged[path], return_single_mask)
    export.add(path, ONNX_LOAD, check(export.staged[path], export.sam, export.reference, path, return_single_mask))


def export_encoder(export: Export, onnx_for: str) -> None:
    from sam_lora.export import labeling_export, onnx_export
    module = labeling_export if onnx_for == "anylabeling" else onnx_export
    path = export.targets.onnx["encoder"]
    module.export_encoder(export.sam, export.staged[path])
    export.add(path, ONNX_LOAD, module.check_encoder(export.staged[path], export.sam, export.reference, path))


def export_int8(export: Export, samples: "Sequence[Sample] | None") -> None:
    """Write an 8-bit copy of each ONNX file, and measure what it costs."""
    from sam_lora.export import int8
    onnx = export.targets.onnx
    for part in int8.parts(onnx):
        int8.quantise(export.staged[onnx[part]], export.staged[onnx[f"{part}_int8"]])
    costs = int8.int8_costs(export.sam, {name: export.staged[path] for name, path in onnx.items()}, samples)
    for part in int8.parts(onnx):
        export.add(onnx[f"{part}_int8"], ONNX_LOAD, cost=costs[part])
    if "both" in costs:
        export.int8_together = costs["both"]
        print(f"int8 decoder and encoder together: {costs['both']}")


def export_finder(export: Export, stack: ExitStack) -> None:
    """Write what finds objects without a prompt beside the plain SAM, and as ONNX where that is asked for."""
    from sam_lora.export import finder_export
    from sam_lora.model.finder import cell_side
    targets, cell = export.targets, cell_side(export.sam)
    export.staged[targets.finder] = stack.enter_context(atomic_path(targets.finder))
    writers = [(targets.finder, finder_export.export_finder, FINDER_LOAD)]
    if targets.onnx_finder:
        writers.append((targets.onnx_finder, finder_export.export_onnx_finder, ONNX_LOAD))
    for path, write, load in writers:
        export.add(path, load, write(export.finder, export.staged[path], export.reference, cell, path))


def export_hf(export: Export) -> None:
    from sam_lora.export import hf_export
    from sam_lora.model.torchvision_ops import loading_code
    path = export.targets.hf
    hf_export.save_hf(export.sam, export.header["model_type"], export.staged[path])
    export.add(path, loading_code(HF_LOAD), hf_export.check_hf(export.staged[path], export.reference, path))


def describe_size(export: Export, args: argparse.Namespace, samples: "Sequence[Sample] | None") -> list[str]:
    """What to know about the size of the model frame, as lines: none where it is the type's own, as tuned."""
    from sam_lora.export import table_iou
    from sam_lora.model.checkpoints import load_tuned_sam
    from sam_lora.sam_types import SAM_TYPES
    model_type, size, tuned_size = export.header["model_type"], export.header["image_size"], export.tuned_size
    own_size = SAM_TYPES[model_type].image_size
    if size == tuned_size:
        return [f"tuned at {size} px, where it is best; tools that assume {own_size} px do not load it: export_sam.py "
                f"--image_size {own_size} writes what they do"] * (size != own_size)
    written = f"tuned at {tuned_size} px, written for {size} px"
    if samples is None:
        return [f"{written}: masks differ; --test_csv measures by how much"]
    tuned, _ = load_tuned_sam(args.checkpoint, args.base_checkpoint)
    export.table_iou = {side: table_iou.mean_iou(sam, samples)
                        for side, sam in ((tuned_size, tuned), (size, export.sam))}
    figures = ", ".join(f"{iou:.4f} at {side} px" for side, iou in export.table_iou.items())
    return [f"{written}: IoU on {len(samples)} rows of {args.test_csv} {figures}"]


def write_description(export: Export) -> None:
    """The .json: the files, the versions of the libraries, and the checkpoint's header."""
    from sam_lora.model.checkpoints import library_versions
    targets = export.targets
    libraries = ["onnx", "onnxruntime"] * bool(targets.onnx or targets.onnx_finder)
    libraries += ["transformers"] * bool(targets.hf)
    optional = {"int8_together": export.int8_together and vars(export.int8_together),
                "tuned_image_size": export.tuned_size if export.tuned_size != export.header["image_size"] else None,
                "iou_by_image_size": export.table_iou}
    about = {"files": export.entries, "made_from": str(export.reference.source),
             **{name: value for name, value in optional.items() if value},
             "exported_with": {**library_versions(), **{name: version(name) for name in libraries}}, **export.header}
    export.staged[targets.description].write_text(
        json.dumps(about, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def check_flags(args: argparse.Namespace) -> Targets:
    """The paths to write. Flags that contradict each other end the script with exit code 2."""
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
        parser.error("--int8: needs --onnx or --onnx_encoder, whose files it makes smaller")
    if args.int8 and args.onnx_for != "meta":
        parser.error("--int8: only with --onnx_for meta")
    if args.onnx_for != "meta" and not files:
        parser.error(f"--onnx_for {args.onnx_for}: needs --onnx or --onnx_encoder")
    if args.test_csv and not (args.int8 or args.image_size):
        parser.error("--test_csv: only with --int8 or --image_size, whose cost it measures")
    if args.return_single_mask and args.onnx is None:
        parser.error("--return_single_mask: needs --onnx")
    if len({path.resolve() for path in files.values()}) < len(files):
        parser.error("--onnx and --onnx_encoder: two files would have the same name")
    onnx_finder = Path(args.onnx_finder) if args.onnx_finder else None
    taken = {path.resolve() for path in files.values()}
    if onnx_finder and (onnx_finder.suffix != ".onnx" or onnx_finder.resolve() in taken):
        parser.error(f"--onnx_finder {onnx_finder}: expected a name of its own that ends in .onnx")
    return Targets(output, files, Path(args.hf) if args.hf else None, onnx_finder)


def load_exported(path: Path, header: dict[str, Any], name: str) -> tuple["Sam", str]:
    """Load the plain SAM strictly, by segment_anything where it can: (model, the code that loads it).

    Types and image sizes that segment_anything does not know are loaded by `sam_lora.sam.load_sam`.
    """
    from sam_lora.model.meta import sam_model_registry
    from sam_lora.model.sam import load_sam
    from sam_lora.model.torchvision_ops import loading_code
    from sam_lora.sam_types import SAM_TYPES
    model_type, image_size = header["model_type"], header["image_size"]
    if model_type in sam_model_registry and image_size == SAM_TYPES[model_type].image_size:
        return (sam_model_registry[model_type](checkpoint=path).eval(),
                loading_code("from segment_anything import sam_model_registry; "
                             f'sam = sam_model_registry["{model_type}"](checkpoint="{name}")'))
    sam, _ = load_sam(model_type, path, image_size)
    return sam, ("from sam_lora.sam import load_sam; "
                 f'sam, _ = load_sam("{model_type}", "{name}", image_size={image_size})')


if __name__ == "__main__":
    cli.run(main, get_args_parser())
