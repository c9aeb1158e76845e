"""Predicted annotations read back by the converters of step 1, for the tests of results."""

from pathlib import Path

import numpy as np
import pandas as pd

from sam_lora.data import imaging


def convert(script, *flags) -> dict[tuple[str, str], list[np.ndarray]]:
    """{(photo, class): its full-size masks in the order of their annotations or label rows} of a converter's output."""
    *flags, output = map(str, flags)
    script.main(script.get_args_parser().parse_args(
        [*flags, "--output_dir", output, "--no_crop", "--min_size", "1", "--num_workers", "0", "--strict"]))
    masks_of = {}
    for row in pd.read_csv(Path(output) / "instances.csv").to_dict("records"):
        key = (row["source_image"].removeprefix("images/"), row["class_name"])
        masks_of.setdefault(key, []).append(imaging.load_mask(Path(output) / row["mask_path"]))
    return masks_of


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return np.count_nonzero(first & second) / np.count_nonzero(first | second)
