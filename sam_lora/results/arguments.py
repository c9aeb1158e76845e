"""The flags that both inference scripts share, and the requests they make. Free of torch, for `--help`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from sam_lora import cli, contracts
from sam_lora.ranks import ranks_of_environment
from sam_lora.results.requests import (
    Destination,
    FindPhotos,
    FindTable,
    PhotoFolder,
    Request,
    Runtime,
    SampleTable,
    SinglePhoto,
    Wanted,
)

PROMPT_FLAGS = ("points", "labels", "box")
FIND_FLAGS = ("score_threshold", "classes", "points_per_side")


# ---- types --------------------------------------------------------------------------------------------------

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
    """argparse type: like `kind`, but also accepts "none" for an object without such a prompt."""
    return lambda text: None if text.strip().casefold() == "none" else kind(text)


def _numbers(text: str, count: int, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(abs(value) < 1e9 for value in values):  # NaN fails too
        raise argparse.ArgumentTypeError(f"expected numbers as {form}, got {text!r}")
    return values


# ---- flags --------------------------------------------------------------------------------------------------

def add_inference(parser: argparse.ArgumentParser, output_dir: str, test_csv: str) -> argparse._ArgumentGroup:
    """Add the flags that both inference scripts share; returns the group "model", for their own flags."""
    model = parser.add_argument_group("model")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group()
    source.add_argument("--test_csv", default=test_csv, metavar="FILE", help="table of step 3; every row is scored")
    source.add_argument("--image", metavar="FILE", help="predict one photo without ground truth instead of a table")
    source.add_argument("--images_dir", metavar="DIR",
                        help="predict a folder of photos without ground truth: the objects that --prompts_csv names, "
                             "or without it all that are found")
    data.add_argument("--prompts_csv", metavar="FILE",
                      help="table with one object per row: image (path below --images_dir), points as [[x,y],…] "
                           "and/or box as [x0,y0,x1,y1], optionally point_labels as [1,0,…] and class_name")
    prompt = parser.add_argument_group("prompt for --image", "For several objects, repeat the flags: the n-th of each "
                                       "belongs to object n; write `none` where it has no such prompt.")
    prompt.add_argument("--points", type=_or_none(xy_points), action="append", metavar='"X,Y X,Y"',
                        help="clicks, in pixels of the photo")
    prompt.add_argument("--labels", type=_or_none(point_labels), action="append", metavar='"1 0"',
                        help="for each point, 1 (on the object) or 0 (not on it); default: all 1")
    prompt.add_argument("--box", type=_or_none(xyxy_box), action="append", metavar="X0,Y0,X1,Y1",
                        help="box around the object, in pixels of the photo")
    find = parser.add_argument_group("without a prompt", "find all objects: --image without a prompt, --images_dir "
                                     "without --prompts_csv, --test_csv with --find")
    find.add_argument("--find", action="store_true",
                      help="with --test_csv: search its photos without its prompts and score what was found")
    find.add_argument("--score_threshold", type=cli.fraction, metavar="T",
                      help="leave out what has a lower score; default: the model's own, with the best F1 on its "
                           "validation table (as released: 0.88)")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default=output_dir, metavar="DIR", help="folder for the results")
    out.add_argument("--num_pictures", type=cli.non_negative_int, default=30, metavar="N",
                     help="number of samples to draw, spread over all classes; 0 draws none")
    out.add_argument("--save_yolo", action="store_true",
                     help="with --images_dir: also write yolo/: photos, masks as YOLO polygons, data.yaml")
    out.add_argument("--compare_to", metavar="RESULTS.csv",
                     help="results table of the other model on the same test table: adds comparison.csv, pictures of "
                          "the objects that changed most, and a verdict")
    out.add_argument("--prompt_kinds", action="store_true",
                     help="also score every object with other kinds of prompts: other points, one click, boxes, and up "
                          f"to {contracts.MAX_CLICKS} clicks that correct the mask")
    cli.add_seed(out)
    cli.add_overwrite(out)
    run_group = parser.add_argument_group("run")
    run_group.add_argument("--batch_size", type=cli.positive_int, metavar="N",
                           help="images encoded together; default: chosen to suit the model's image size and the "
                                "device, e.g. 8 at 256 px on the CPU, 4 at 1024 px on a GPU")
    cli.add_num_workers(run_group, 0)
    cli.add_device(run_group)
    cli.add_precision(run_group)
    return model


def check_inference(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exit by parser.error if flags of `add_inference` contradict each other."""
    source = next((name for name in ("image", "images_dir") if getattr(args, name) is not None), None)
    for name in ("compare_to", "prompt_kinds"):
        if source is not None and getattr(args, name):
            parser.error(f"--{name}: not with --{source}, which has no ground truth to score")
    if args.save_yolo and source != "images_dir":
        parser.error("--save_yolo: only with --images_dir; YOLO labels belong to whole images")
    _check_finding(args, parser, source)
    if args.prompts_csv is not None and args.images_dir is None:
        parser.error("--prompts_csv needs --images_dir")
    given = [f"--{name}" for name in PROMPT_FLAGS if getattr(args, name) is not None]
    if source != "image" and given:
        parser.error(f"{', '.join(given)}: only with --image; the prompts for a table are in the table")
    if source == "image" and given:
        _check_prompts(args, parser)


def _check_finding(args: argparse.Namespace, parser: argparse.ArgumentParser, source: str | None) -> None:
    if args.find and source is not None:
        parser.error(f"--find: with --test_csv; --{source} without prompts finds all objects by itself")
    for name in ("compare_to", "prompt_kinds"):
        if args.find and getattr(args, name):
            parser.error(f"--{name}: is about prompts and --find has none: give one of them")
    if finds(args):
        return
    for name in FIND_FLAGS:
        if getattr(args, name, None) is not None:
            parser.error(f"--{name}: only where objects are found without a prompt (--find; --image or --images_dir "
                         "without prompts)")


def finds(args: argparse.Namespace) -> bool:
    """Is everything to be found, rather than what prompts name?"""
    prompted = args.prompts_csv is not None or any(getattr(args, name) is not None for name in PROMPT_FLAGS)
    return args.find or ((args.images_dir is not None or args.image is not None) and not prompted)


def _check_prompts(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    counts = {name: len(getattr(args, name)) for name in PROMPT_FLAGS if getattr(args, name) is not None}
    if not counts.keys() & {"points", "box"}:
        parser.error("--labels belong to --points: give both")
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{count} --{name}" for name, count in counts.items())
        parser.error(f"found {given}; expected the same number of each, one per object: write none for an object "
                     "without such a prompt")
    prompts = image_prompts(args)
    for number, (points, labels, box) in enumerate(prompts, start=1):
        which = f" of object {number}" if len(prompts) > 1 else ""
        if not points and box is None:
            parser.error(f"--image needs a prompt{which}: --points, --box, or both")
        if labels is not None and len(labels) != len(points or ()):
            parser.error(f"--labels{which}: {len(labels)} for {len(points or ())} points; expected one each")


def request_of(args: argparse.Namespace) -> Request:
    """What the flags of `add_inference` ask for."""
    if finds(args):
        classes = getattr(args, "classes", None)
        wanted = Wanted(args.score_threshold, classes and tuple(classes), getattr(args, "points_per_side", None))
        if args.find:
            return FindTable(args.test_csv, wanted)
        return FindPhotos(args.images_dir, args.image, wanted, args.save_yolo)
    if args.image is not None:
        return SinglePhoto(args.image, image_prompts(args))
    if args.images_dir is not None:
        return PhotoFolder(args.images_dir, args.prompts_csv, args.save_yolo)
    return SampleTable(args.test_csv, args.compare_to, args.prompt_kinds)


def destination_of(args: argparse.Namespace) -> Destination:
    return Destination(Path(args.output_dir), args.overwrite, args.num_pictures, args.seed)


def runtime_of(args: argparse.Namespace) -> Runtime:
    """The device of this process and what it does there. Raises UserError for one that is not there. Imports torch."""
    from sam_lora.model.precision import device_of_process, select_device
    ranks = ranks_of_environment()
    device = select_device(device_of_process(args.device, ranks))
    return Runtime(device, args.batch_size, args.num_workers, args.precision, ranks)


def image_prompts(args: argparse.Namespace) -> list[tuple]:
    """The prompts given for --image: (points, labels, box) of each object, None for what it lacks."""
    count = max(len(getattr(args, name) or ()) for name in PROMPT_FLAGS)
    return list(zip(*(getattr(args, name) or [None] * count for name in PROMPT_FLAGS)))
