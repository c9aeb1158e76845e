"""Command line: the parser every script uses, arguments that scripts share, and one-line errors.

Nothing here imports torch, so `--help` and a wrong flag answer at once.
"""

import argparse
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
    args = parser.parse_args(argv)
    try:
        main(args)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
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
    import os
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
    crop.add_argument("--no_crop", action="store_true",
                      help="keep whole images (written once each) with one full-size mask per object")
    run_group = parser.add_argument_group("run")
    add_num_workers(run_group, min(8, os.cpu_count() or 1))
    run_group.add_argument("--strict", action="store_true", help="the first skipped row or annotation is an error")


def add_model(group: argparse._ActionsContainer) -> None:
    """Which SAM, and where its weights are."""
    group.add_argument("--model_type", choices=("vit_b", "vit_l", "vit_h", "vit_mini"), default="vit_b",
                       help="SAM's published sizes, or the small one that ships with this project")
    group.add_argument("--checkpoint", metavar="FILE",
                       help="base SAM weights (.pth); default: looked up in weights/ and downloaded there")


def add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", default="auto", metavar="NAME",
                       help="auto takes the GPU if there is one; cuda, cuda:1, mps or cpu")
