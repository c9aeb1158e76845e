"""Step 3: split tables -> training tables, what train.py and the inference scripts read.

Reads   train.csv val.csv test.csv, made by Create_yolo_csv.py (YOLO) or Create_csv.py (COCO)
Writes  train_reformatted.csv val_reformatted.csv test_reformatted.csv: image, label (its mask), points
        ([[x1,y1],[x2,y2],[x3,y3]], x and y in pixels of the image); with --prompts also box ([x0,y0,x1,y1])

    python reformated_csv.py
    python reformated_csv.py --prompts box          prompt with each mask's box instead of three points; both: with both
    python reformated_csv.py --input_dir tables --splits train test --overwrite      written to tables, too

A split table that does not exist (a small data set may have no val) is passed over. Next step: python train.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sam_lora import cli, contracts, files
from sam_lora.errors import UserError
from sam_lora.tables import box_to_json, points_to_json, read_table, resolve_path, row_lines, write_tables

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5  # bad rows listed one by one
PROMPTS = ("points", "box", "both")


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--input_dir", default=".", metavar="DIR", help="folder of the split tables")
    data.add_argument("--splits", nargs="+", choices=contracts.SPLITS, default=list(contracts.SPLITS),
                      help="which tables to reformat")
    data.add_argument("--prompts", choices=PROMPTS, default="points",
                      help="what the rows prompt with: the three points, the box tight around the mask, or both")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", metavar="DIR", help="training tables go here (default: --input_dir)")
    cli.add_overwrite(output)
    return parser


def training_rows(table: "pd.DataFrame", lines: Sequence[int]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows of a split table -> (image, label, points as JSON) of the good ones, and what is wrong with the others.

    `lines`: the line of the file that each row is on.
    """
    good, bad = [], []
    for line, row in zip(lines, table.to_dict("records")):
        if row["image_path"].strip() and not any(row[name].strip() for name in ("mask_path", *contracts.POINT_COLUMNS)):
            good.append((row["image_path"], "", ""))    # a photo without objects
            continue
        wrong = [f"{name} is {row[name]!r}" for name in contracts.POINT_COLUMNS if pixel(row[name]) is None]
        wrong += [f"{name} is empty" for name in ("image_path", "mask_path") if not row[name].strip()]
        if wrong:
            bad.append(f"row {line}: {', '.join(wrong)}")
            continue
        values = [pixel(row[name]) for name in contracts.POINT_COLUMNS]
        points = points_to_json(list(zip(values[::2], values[1::2])))
        good.append((row["image_path"], row["mask_path"], points))
    return good, bad


def add_boxes(table: "pd.DataFrame", path: Path, keep_points: bool) -> tuple["pd.DataFrame", list[str]]:
    """The rows of a training table with the box of each mask, and what is wrong with those left out.

    `path`: the split table, which relative paths of masks belong to.
    """
    from tqdm import tqdm

    from sam_lora import workers
    masks = [resolve_path(label, path) if label else None for label in table["label"]]
    boxes = list(tqdm(workers.map_in_threads(box_of_mask, masks), desc=f"boxes of {path.name}", total=len(masks),
                      unit="mask", leave=False, disable=None))
    bad = [f"{mask}: {box}" for mask, box in zip(masks, boxes) if isinstance(box, str)]
    boxed = table[[not isinstance(box, str) for box in boxes]].copy()
    boxed[contracts.BOX_COLUMN] = [box_to_json(box) if box else "" for box in boxes if not isinstance(box, str)]
    if not keep_points:
        boxed["points"] = ""
    return boxed, bad


def box_of_mask(path: Path | None) -> tuple[int, int, int, int] | str | None:
    """xyxy in pixels, tight around the mask, x1 and y1 exclusive, or the reason why there is none; None of no mask."""
    if path is None:
        return None
    from sam_lora.data.geometry import mask_to_xyxy
    from sam_lora.data.imaging import ImageError, load_mask
    try:
        return mask_to_xyxy(load_mask(path)) or "empty mask"
    except ImageError as error:
        return error.reason


def pixel(text: str) -> float | None:
    """A coordinate, None where `text` is no finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def main(args: argparse.Namespace) -> None:
    import pandas as pd  # heavy, not needed for --help
    inputs = {split: Path(args.input_dir) / contracts.split_table(split) for split in args.splits}
    output_dir = Path(args.input_dir if args.output_dir is None else args.output_dir)
    outputs = {split: output_dir / contracts.training_table(split) for split in args.splits}
    files.refuse_existing(list(outputs.values()), args.overwrite)
    if not any(path.exists() for path in inputs.values()):
        raise UserError(f"{args.input_dir}: no {', '.join(path.name for path in inputs.values())} in it; "
                        f"make them with {contracts.MADE_BY['split']}")

    tables, notes = {}, []
    for split, path in inputs.items():
        if not path.exists():
            old = " (the old one is removed)" if outputs[split].exists() else ""
            notes.append(f"no {path}, so no {outputs[split].name}{old}")
            continue
        table = read_table(path, contracts.SPLIT_COLUMNS, contracts.MADE_BY["split"])
        good, bad = training_rows(table, row_lines(path, len(table)))
        if not good:
            raise UserError(f"{path}: none of {len(bad)} rows can be used, e.g. {bad[0]}; expected paths, and points "
                            f"in pixels; make it with {contracts.MADE_BY['split']}")
        tables[split] = pd.DataFrame(good, columns=contracts.TRAINING_COLUMNS)
        if args.prompts != "points":
            tables[split], without_box = add_boxes(tables[split], path, keep_points=args.prompts == "both")
            bad += without_box
            if tables[split].empty:
                raise UserError(f"{path}: no mask has a box, e.g. {without_box[0]}; expected masks with an object, as "
                                f"the converters write them; paths are relative to {path.parent} or this folder")
        notes.append(f"{outputs[split]}: {len(tables[split])} rows")
        if bad:
            more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            notes.append(f"  skipped {len(bad)} rows of {path}: {'; '.join(bad[:SHOWN])}{more}")

    write_tables({outputs[split]: table for split, table in tables.items()})
    for split in outputs.keys() - tables.keys():
        outputs[split].unlink(missing_ok=True)
    print(*notes, sep="\n")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
