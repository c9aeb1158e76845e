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
from sam_lora.sam_types import SAM_TYPES


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


def photo_pattern(text: str) -> re.Pattern[str]:
    """argparse type: a regular expression with a group."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}; got {text}") from error
    if not pattern.groups:
        raise argparse.ArgumentTypeError(f"expected a group, ( and ), around the photo's name; got {text}")
    return pattern


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


def add_follow_links(group: argparse._ActionsContainer) -> None:
    group.add_argument("--follow_links", action="store_true",
                       help="also follow symbolic links that lead out of the data set's folder")


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
                      help="objects that have a box but no outline, or that a COCO export marks as boxes: skip them, "
                           "or use the box as the mask")
    shape = crop.add_mutually_exclusive_group()
    shape.add_argument("--no_crop", action="store_true",
                       help="keep whole photos (each written once) with one full-size mask per object")
    shape.add_argument("--square", action="store_true",
                       help="make crops square by adding context on the shorter side, as far as the photo extends")
    shape.add_argument("--tile", type=tile_size, metavar="PX",
                       help="cut huge photos into overlapping tiles with sides of this many pixels, kept whole as with "
                            "--no_crop; an object that fits into no tile is divided among several")
    run_group = parser.add_argument_group("run")
    add_follow_links(run_group)
    add_num_workers(run_group, min(8, os.cpu_count() or 1))
    run_group.add_argument("--strict", action="store_true",
                           help="stop with an error at the first row or annotation that would be skipped")


class SplitFractions(argparse.Action):
    """Three fractions that sum to 1."""

    def __call__(self, parser, namespace, values, option_string=None):
        if abs(sum(values) - 1) > 1e-6:
            raise argparse.ArgumentError(self, f"expected three fractions that sum to 1; got "
                                               f"{' '.join(map(str, values))}")
        setattr(namespace, self.dest, values)


def add_split_tables(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the arguments of both scripts that make split tables; return the output group."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_dir", default="processed_dataset", metavar="DIR",
                      help="the class folders of step 1")
    data.add_argument("--split_label_maps", action="store_true",
                      help="for masks of your own that number their objects (1, 2, 3 ...): make a mask of each object, "
                           "and keep the numbered file in label_maps/")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default=".", metavar="DIR", help="where to write the tables")
    add_overwrite(out)
    split = parser.add_argument_group("split")
    split.add_argument("--split", nargs=3, type=non_negative_float, action=SplitFractions, default=[0.6, 0.2, 0.2],
                       metavar=("TRAIN", "VAL", "TEST"),
                       help="fractions for the part of the data set that comes without a split of its own; 0 0 1: "
                            "a test table alone")
    add_seed(split)
    told = split.add_mutually_exclusive_group()
    told.add_argument("--group_by", type=photo_pattern, metavar="REGEX",
                      help="which photo a file shows, where its name does not say so in a common way: the first group "
                           "of this pattern, searched in its path below the data set's folder, e.g. 'site([0-9]+)_'")
    told.add_argument("--group_csv", metavar="FILE",
                      help="the same by a table with the columns source_image (as in instances.csv, or the file's "
                           "name) and photo; a column photo in instances.csv counts without a flag")
    split.add_argument("--split_by", choices=("auto", "photo", "area"), default="auto",
                       help="area: cut every photo into blocks for train, val and test, with gaps between them, as far "
                            "as its crops or tiles allow (frames of a video: by time); photo: keep photos whole; auto: "
                            "by area only where there is but one photo")
    split.add_argument("--resplit", action="store_true", help="ignore the data set's own split and make a new one")
    run_group = parser.add_argument_group("run")
    add_num_workers(run_group, min(8, os.cpu_count() or 1))
    return out


def add_model(group: argparse._ActionsContainer) -> None:
    """Add the choice of SAM and its weights."""
    group.add_argument("--model_type", choices=SAM_TYPES, default="vit_b",
                       help="one of SAM's published sizes, or the small vit_mini that ships with this project")
    group.add_argument("--checkpoint", metavar="FILE",
                       help="base SAM weights (.pth); default: from weights/, downloaded there if missing")


def add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", default="auto", metavar="NAME",
                       help="auto (the GPU if there is one), cuda, cuda:1, mps or cpu")


def add_precision(group: argparse._ActionsContainer) -> None:
    group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                       help="auto: bf16 on a GPU that has it, fp16 on one that has not; on a CPU fp32, or bf16 if it "
                            "has instructions for it and measures faster")
