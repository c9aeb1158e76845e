"""Command line: the parser of every script, the arguments that scripts share, and one-line errors.

Nothing here imports torch, so `--help` and complaints about flags appear at once.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence

from sam_lora.errors import UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default and keeps the docstring's line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or action.default == []:
            return action.help or ""
        return super()._get_help_string(action) or ""


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser that describes the script by its docstring and refuses abbreviated flags."""
    return argparse.ArgumentParser(description=docstring, formatter_class=HelpFormatter, allow_abbrev=False)


def run(main: Callable[[argparse.Namespace], object], parser: argparse.ArgumentParser,
        argv: Sequence[str] | None = None) -> None:
    """Parse `argv`, call `main(args)` and exit: 0, 1 (bad data, one line), 2 (wrong flags), 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):  # letters that a terminal or pipe cannot show are escaped, not an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main(parser.parse_args(argv))
    except (Exception, KeyboardInterrupt) as error:
        code = _report(error, parser.prog)
        if code is None:
            raise
        sys.exit(code)


def _report(error: BaseException, program: str) -> int | None:
    """Print in one line why the script ends; return its exit code, or None for a bug, which deserves a traceback."""
    if _caused_by_ctrl_c(error):
        print(f"{program}: stopped by Ctrl-C; nothing half-written was left", file=sys.stderr)
        return 130
    if isinstance(error, UserError):
        message = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(error))  # file names may contain line breaks
        print(f"{program}: error: {message}", file=sys.stderr)
        return 1
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
        return 1
    if isinstance(error, OSError):  # an unwritable folder, a full disk: the user's machine, not a bug
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return None


def _caused_by_ctrl_c(error: BaseException | None) -> bool:
    """Also true of an error that a library raised because Ctrl-C interrupted it or its cleanup."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def non_negative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def tile_size(text: str) -> int:
    """argparse type: the side of a tile, at least 64 pixels."""
    value = int(text)
    if value < 64:
        raise argparse.ArgumentTypeError(f"must be at least 64 pixels, got {value}")
    return value


def non_negative_float(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text}")
    return value


def fraction(text: str) -> float:
    """argparse type: a number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return value


share = fraction  # train.py's name for it, until the branches are merged


# ---- arguments of several scripts: one name, type and help text for each -----------------------------------

def add_overwrite(group: argparse._ActionsContainer) -> None:
    group.add_argument("--overwrite", action="store_true",
                       help="replace the output of an earlier run of this script; other files in the folder are kept")


def add_seed(group: argparse._ActionsContainer) -> None:
    group.add_argument("--seed", type=non_negative_int, default=42,
                       help="the same seed on the same machine gives the same result")


def add_num_workers(group: argparse._ActionsContainer, default: int) -> None:
    group.add_argument("--num_workers", type=non_negative_int, default=default, metavar="N",
                       help="number of worker processes; 0 does the work in the main process")


def add_conversion(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both converters."""
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default="processed_dataset", metavar="DIR",
                     help="where to write the class folders")
    add_overwrite(out)
    out.add_argument("--dry_run", action="store_true", help="report what would be converted, but write nothing")
    crop = parser.add_argument_group("crops")
    crop.add_argument("--padding", type=non_negative_float, default=0.1, metavar="F",
                      help="context around each object, as a fraction of its box's width and height")
    crop.add_argument("--min_size", type=positive_int, default=10, metavar="PX",
                      help="skip objects whose box is smaller than this on both sides")
    crop.add_argument("--boxes", choices=("skip", "rectangle"), default="skip",
                      help="objects that have a box but no outline: skip them, or use the box as the mask")
    shape = crop.add_mutually_exclusive_group()
    shape.add_argument("--no_crop", action="store_true",
                       help="keep whole photos (each written once) with one full-size mask per object")
    shape.add_argument("--square", action="store_true",
                       help="make crops square by adding context on the shorter side, as far as the photo extends")
    shape.add_argument("--tile", type=tile_size, metavar="PX",
                       help="cut huge photos into overlapping tiles with sides of this many pixels, kept whole as with "
                            "--no_crop; an object that fits into no tile is divided among several")
    run_group = parser.add_argument_group("run")
    add_num_workers(run_group, min(8, os.cpu_count() or 1))
    run_group.add_argument("--strict", action="store_true",
                           help="stop with an error at the first row or annotation that would be skipped")


class SplitFractions(argparse.Action):
    """Three fractions that sum to 1, the first (train) above 0."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values[0] == 0 or abs(sum(values) - 1) > 1e-6:
            raise argparse.ArgumentError(self, "expected three fractions that sum to 1, with train above 0; "
                                               f"got {' '.join(map(str, values))}")
        setattr(namespace, self.dest, values)


def add_split_tables(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the arguments of both scripts that make split tables; return the output group."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_dir", default="processed_dataset", metavar="DIR",
                      help="the class folders of step 1")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default=".", metavar="DIR", help="where to write the tables")
    add_overwrite(out)
    split = parser.add_argument_group("split")
    split.add_argument("--split", nargs=3, type=non_negative_float, action=SplitFractions, default=[0.6, 0.2, 0.2],
                       metavar=("TRAIN", "VAL", "TEST"),
                       help="fractions for the part of the data set that comes without a split of its own")
    add_seed(split)
    split.add_argument("--resplit", action="store_true", help="ignore the data set's own split and make a new one")
    run_group = parser.add_argument_group("run")
    add_num_workers(run_group, min(8, os.cpu_count() or 1))
    return out


def add_model(group: argparse._ActionsContainer) -> None:
    """Add the choice of SAM and its weights."""
    group.add_argument("--model_type", choices=("vit_b", "vit_l", "vit_h", "vit_mini"), default="vit_b",
                       help="one of SAM's published sizes, or the small vit_mini that ships with this project")
    group.add_argument("--checkpoint", metavar="FILE",
                       help="base SAM weights (.pth); default: from weights/, downloaded there if missing")


def add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", default="auto", metavar="NAME",
                       help="auto (the GPU if there is one), cuda, cuda:1, mps or cpu")


# ---- both inference scripts -------------------------------------------------------------------------------

def xy_points(text: str) -> list[tuple[float, float]]:
    """argparse type: "x,y x,y" -> [(x, y), …], pixels of the image."""
    points = [tuple(_numbers(point, 2, "x,y")) for point in text.split()]
    if not points:
        raise argparse.ArgumentTypeError("expected points as x,y x,y")
    return points


def point_labels(text: str) -> list[int]:
    """argparse type: "1 0" -> [1, 0]; 1 is foreground, 0 background."""
    labels = text.replace(",", " ").split()
    if not labels or not set(labels) <= {"0", "1"}:
        raise argparse.ArgumentTypeError(f"expected 1 (foreground) or 0 (background) for each point, got {text!r}")
    return [int(label) for label in labels]


def xyxy_box(text: str) -> tuple[float, ...]:
    """argparse type: "x0,y0,x1,y1" -> four numbers, x0 < x1 and y0 < y1."""
    box = _numbers(text, 4, "x0,y0,x1,y1")
    if not (box[0] < box[2] and box[1] < box[3]):
        raise argparse.ArgumentTypeError(f"expected x0 < x1 and y0 < y1, got {text!r}")
    return tuple(box)


def _or_none(kind: Callable[[str], object]) -> Callable[[str], object]:
    """argparse type: as `kind`, and "none" for an object that has no such prompt."""
    return lambda text: None if text.strip().casefold() == "none" else kind(text)


def _numbers(text: str, count: int, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(abs(value) < 1e9 for value in values):  # NaN fails too
        raise argparse.ArgumentTypeError(f"expected numbers as {form}, got {text!r}")
    return values


def add_inference(parser: argparse.ArgumentParser, output_dir: str, test_csv: str) -> argparse._ArgumentGroup:
    """The arguments of both inference scripts, after their own; returns the group on the model."""
    model = parser.add_argument_group("model")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group()
    source.add_argument("--test_csv", default=test_csv, metavar="FILE", help="table of step 3; every row is scored")
    source.add_argument("--image", metavar="FILE", help="one image without ground truth, instead of a table")
    source.add_argument("--images_dir", metavar="DIR",
                        help="many images without ground truth, with --prompts_csv: masks, overlays, predictions.json")
    data.add_argument("--prompts_csv", metavar="FILE",
                      help="an object a row: image (path below --images_dir), points as [[x,y],…] and/or box as "
                           "[x0,y0,x1,y1], optionally point_labels as [1,0,…] and class_name")
    prompt = parser.add_argument_group("prompt for --image", "For several objects give a flag several times: the n-th "
                                       "of each is object n's, `none` where it has no such prompt.")
    prompt.add_argument("--points", type=_or_none(xy_points), action="append", metavar='"X,Y X,Y"',
                        help="clicks, in pixels of the image")
    prompt.add_argument("--labels", type=_or_none(point_labels), action="append", metavar='"1 0"',
                        help="for each point 1 (on the object) or 0 (not on it); default: all 1")
    prompt.add_argument("--box", type=_or_none(xyxy_box), action="append", metavar="X0,Y0,X1,Y1",
                        help="a box around the object, in pixels")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default=output_dir, metavar="DIR", help="results go here")
    out.add_argument("--num_pictures", type=non_negative_int, default=30, metavar="N",
                     help="samples to draw, every class among them; 0 draws none")
    out.add_argument("--save_yolo", action="store_true",
                     help="with --images_dir: also yolo/, the images with YOLO polygons of the masks and a data.yaml")
    out.add_argument("--compare_to", metavar="RESULTS.csv",
                     help="results table of the other model on the same test table: adds comparison.csv, pictures of "
                          "what changed most, and a verdict")
    out.add_argument("--prompt_trials", type=non_negative_int, default=0, metavar="K",
                     help="score each mask with K other random sets of points inside it too, as many as the table has: "
                          "shows how much the result depends on the click")
    add_seed(out)
    add_overwrite(out)
    run_group = parser.add_argument_group("run")
    run_group.add_argument("--batch_size", type=positive_int, metavar="N",
                           help="images encoded together; default: as many as suit the model's image size and the "
                                "device, e.g. 8 at 256 px on the CPU, 4 at 1024 px on a GPU")
    add_num_workers(run_group, 0)
    add_device(run_group)
    return model


def check_inference(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """parser.error for flags of `add_inference` that contradict each other."""
    source = next((name for name in ("image", "images_dir") if getattr(args, name) is not None), None)
    for name in ("compare_to", "prompt_trials"):
        if source is not None and getattr(args, name):
            parser.error(f"--{name}: not with --{source}, which has no ground truth to score")
    if args.save_yolo and source != "images_dir":
        parser.error("--save_yolo: only with --images_dir and --prompts_csv; YOLO labels belong to whole images")
    if (args.images_dir is None) != (args.prompts_csv is None):
        given, lacking = ("prompts_csv", "images_dir") if args.images_dir is None else ("images_dir", "prompts_csv")
        parser.error(f"--{given} needs --{lacking}")
    given = [f"--{name}" for name in PROMPT_FLAGS if getattr(args, name) is not None]
    if source != "image" and given:
        parser.error(f"{', '.join(given)}: only with --image; a table has its own prompts")
    if source == "image":
        _check_prompts(args, parser)


PROMPT_FLAGS = ("points", "labels", "box")


def _check_prompts(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    counts = {name: len(getattr(args, name)) for name in PROMPT_FLAGS if getattr(args, name) is not None}
    if not counts.keys() & {"points", "box"}:
        parser.error("--image needs a prompt: --points, --box, or both")
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} --{name}" for name, count in counts.items())
        parser.error(f"found {found}; expected as many of each, one for each object: write none where it has no such "
                     "prompt")
    prompts = image_prompts(args)
    for number, (points, labels, box) in enumerate(prompts, start=1):
        which = f" of object {number}" if len(prompts) > 1 else ""
        if not points and box is None:
            parser.error(f"--image needs a prompt{which}: --points, --box, or both")
        if labels is not None and len(labels) != len(points or ()):
            parser.error(f"--labels{which}: {len(labels)} for {len(points or ())} points; expected one each")


def inference_values(args: argparse.Namespace) -> dict[str, object]:
    """The flags of `add_inference` as keywords for `inference.infer`."""
    names = ("test_csv", "image", "images_dir", "prompts_csv", "save_yolo", "output_dir", "num_pictures", "compare_to",
             "prompt_trials", "seed", "overwrite", "batch_size", "num_workers", "device")
    return {name: getattr(args, name) for name in names} | {"prompts": image_prompts(args)}


def image_prompts(args: argparse.Namespace) -> list[tuple]:
    """The prompts given for --image: (points, labels, box) of each object, None for what it lacks."""
    count = max(len(getattr(args, name) or ()) for name in PROMPT_FLAGS)
    return list(zip(*(getattr(args, name) or [None] * count for name in PROMPT_FLAGS)))
