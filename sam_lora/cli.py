"""Command line: the parser every script uses, arguments that scripts share, and one-line errors.

Nothing here imports torch, so `--help` and a wrong flag answer at once.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence

from sam_lora.errors import UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default and keeps the line breaks of the script's docstring."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or action.default == []:
            return action.help or ""
        return super()._get_help_string(action) or ""


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser whose description is the script's module docstring. Abbreviated flags are refused."""
    return argparse.ArgumentParser(description=docstring, formatter_class=HelpFormatter, allow_abbrev=False)


def run(main: Callable[[argparse.Namespace], object], parser: argparse.ArgumentParser,
        argv: Sequence[str] | None = None) -> None:
    """Parse `argv`, call `main(args)` and exit: 0, 1 (bad data, one line), 2 (flags), 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe that lacks a class name's letters is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parser.parse_args(argv)
    # before torch is imported: threads that spin while they wait halve the speed where other work shares the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        main(args)
    except UserError as error:
        message = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(error))  # file names may hold line breaks
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped by Ctrl-C; nothing half-written was left", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # an unwritable folder, a full disk: the user's machine, not a bug
        where = f"{error.filename}: " if error.filename else ""
        print(f"{parser.prog}: error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def positive_int(text: str) -> int:
    """argparse type: a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def non_negative_int(text: str) -> int:
    """argparse type: a whole number, zero included."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def tile_size(text: str) -> int:
    """argparse type: a side of 64 pixels or more."""
    value = int(text)
    if value < 64:
        raise argparse.ArgumentTypeError(f"must be at least 64 pixels, got {value}")
    return value


def non_negative_float(text: str) -> float:
    """argparse type: a finite number, zero included."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text}")
    return value


# ---- arguments that several scripts share: the same name, type and help everywhere -------------------------

def add_overwrite(group: argparse._ActionsContainer) -> None:
    group.add_argument("--overwrite", action="store_true",
                       help="replace what an earlier run of this script wrote there; other files are kept")


def add_seed(group: argparse._ActionsContainer) -> None:
    group.add_argument("--seed", type=int, default=42, help="same seed, same machine: same result")


def add_num_workers(group: argparse._ActionsContainer, default: int) -> None:
    group.add_argument("--num_workers", type=non_negative_int, default=default, metavar="N",
                       help="processes that work in parallel; 0 does everything in this one")


def add_conversion(parser: argparse.ArgumentParser) -> None:
    """The arguments of both converters."""
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default="processed_dataset", metavar="DIR", help="class folders go here")
    add_overwrite(out)
    out.add_argument("--dry_run", action="store_true", help="report what would be made; write nothing")
    crop = parser.add_argument_group("crops")
    crop.add_argument("--padding", type=non_negative_float, default=0.1, metavar="F",
                      help="context around each object, as a share of its box's width and height")
    crop.add_argument("--min_size", type=positive_int, default=10, metavar="PX",
                      help="skip objects whose box is smaller than this on both sides")
    crop.add_argument("--boxes", choices=("skip", "rectangle"), default="skip",
                      help="objects that are only a box: skip them, or take the rectangle as the mask")
    shape = crop.add_mutually_exclusive_group()
    shape.add_argument("--no_crop", action="store_true",
                       help="keep whole images (written once each) with one full-size mask per object")
    shape.add_argument("--square", action="store_true",
                       help="make crops square: more context on the shorter side, as far as the picture goes")
    shape.add_argument("--tile", type=tile_size, metavar="PX",
                       help="cut huge images into overlapping tiles of so many pixels, kept whole as by --no_crop; "
                            "an object goes to the tile that holds all of it, else in pieces to several")
    run_group = parser.add_argument_group("run")
    add_num_workers(run_group, min(8, os.cpu_count() or 1))
    run_group.add_argument("--strict", action="store_true", help="the first skipped row or annotation is an error")


class SplitFractions(argparse.Action):
    """Three shares that make 1, train above 0."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values[0] == 0 or abs(sum(values) - 1) > 1e-6:
            raise argparse.ArgumentError(self, f"expected three shares that make 1, train above 0; got "
                                               f"{' '.join(map(str, values))}")
        setattr(namespace, self.dest, values)


def add_split_tables(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The arguments of both scripts that make split tables; returns the group on output."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_dir", default="processed_dataset", metavar="DIR",
                      help="the class folders that a converter made")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default=".", metavar="DIR", help="tables go here")
    add_overwrite(out)
    split = parser.add_argument_group("split")
    split.add_argument("--split", nargs=3, type=non_negative_float, action=SplitFractions, default=[0.6, 0.2, 0.2],
                       metavar=("TRAIN", "VAL", "TEST"), help="shares of what the data set does not split itself")
    add_seed(split)
    split.add_argument("--resplit", action="store_true", help="put the data set's own split aside and make a new one")
    run_group = parser.add_argument_group("run")
    add_num_workers(run_group, min(8, os.cpu_count() or 1))
    return out


def add_model(group: argparse._ActionsContainer) -> None:
    """Which SAM, and where its weights are."""
    group.add_argument("--model_type", choices=("vit_b", "vit_l", "vit_h", "vit_mini"), default="vit_b",
                       help="SAM's published sizes, or the small one that ships with this project")
    group.add_argument("--checkpoint", metavar="FILE",
                       help="base SAM weights (.pth); default: looked up in weights/ and downloaded there")


def add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", default="auto", metavar="NAME",
                       help="auto takes the GPU if there is one; cuda, cuda:1, mps or cpu")


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
    data = parser.add_argument_group("data").add_mutually_exclusive_group()
    data.add_argument("--test_csv", default=test_csv, metavar="FILE", help="table of step 3; every row is scored")
    data.add_argument("--image", metavar="FILE", help="one image without ground truth, instead of a table")
    prompt = parser.add_argument_group("prompt for --image")
    prompt.add_argument("--points", type=xy_points, metavar='"X,Y X,Y"', help="clicks, in pixels of the image")
    prompt.add_argument("--labels", type=point_labels, metavar='"1 0"',
                        help="for each point 1 (on the object) or 0 (not on it); default: all 1")
    prompt.add_argument("--box", type=xyxy_box, metavar="X0,Y0,X1,Y1", help="a box around the object, in pixels")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default=output_dir, metavar="DIR", help="results go here")
    out.add_argument("--num_pictures", type=non_negative_int, default=30, metavar="N",
                     help="samples to draw, every class among them; 0 draws none")
    out.add_argument("--compare_to", metavar="RESULTS.csv",
                     help="results table of the other model on the same test table: adds comparison.csv and a verdict")
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
    if args.image is None:
        given = [f"--{name}" for name in ("points", "labels", "box") if getattr(args, name) is not None]
        if given:
            parser.error(f"{', '.join(given)}: only with --image; a table has its own prompts")
        return
    if args.compare_to is not None:
        parser.error("--compare_to: not with --image, which has no ground truth to score")
    if args.points is None and args.box is None:
        parser.error("--image needs a prompt: --points, --box, or both")
    if args.labels is not None and len(args.labels) != len(args.points or ()):
        parser.error(f"--labels: {len(args.labels)} for {len(args.points or ())} points; expected one each")
