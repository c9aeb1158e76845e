"""The other model's results on the same test table: read, and paired with the samples by image and label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError
from sam_lora.tables import read_table

RESULTS_SUFFIX = contracts.results_table("")
MADE_BY = "run_base_sam_inference.py or run_inference.py"


@dataclass(frozen=True)
class OtherResults:
    """The other run's scores and masks of the labelled samples, in the samples' order."""

    table: Path
    iou: np.ndarray
    masks: list[str]    # paths below the table's folder, as the table has them; "" where it has none

    def mask(self, position: int, shape: tuple[int, int]) -> np.ndarray:
        """(H, W) bool, the other model's prediction. UserError unless it is in the table's folder and has `shape`."""
        folder, text = self.table.parent.resolve(), self.masks[position]
        if not text:
            raise UserError(f"{self.table} names no mask")
        path = (folder / text).resolve()
        if not path.is_relative_to(folder):
            raise UserError(f"{self.table} names a mask outside its own folder ({text})")
        mask = imaging.load_mask(path)
        if mask.shape != shape:
            raise UserError(f"{path} is {mask.shape[1]}x{mask.shape[0]} px, its image {shape[1]}x{shape[0]} px")
        return mask


    def prompt_kinds(self, ours: pd.DataFrame) -> pd.DataFrame | None:
        """The other run's scores by kind of prompt, if they lie beside its results and are of the objects of `ours`."""
        name = self.table.name.removesuffix(RESULTS_SUFFIX)
        path = self.table.with_name(contracts.prompt_kinds_table(name))
        if name == self.table.name or not path.is_file():
            return None
        table = read_table(path, contracts.PROMPT_KINDS_COLUMNS, f"{MADE_BY} with --prompt_kinds")
        if not table[["image", "label"]].equals(ours[["image", "label"]].astype(str)):
            return None
        numbers = list(contracts.PROMPT_KINDS_COLUMNS[3:])
        return table.assign(**{column: pd.to_numeric(table[column], errors="coerce") for column in numbers})


def read_other_results(path: str | Path, samples: Sequence[Sample], test_csv: str | Path) -> OtherResults:
    """Another run's results, paired with the labelled samples by image and label.

    Raises UserError unless that table scored exactly these pairs.
    """
    table = read_table(path, ("image", "label", "iou"), MADE_BY)
    table = table[table["label"] != ""].reset_index(drop=True)
    theirs = {key: row for row, key in enumerate(_keys(zip(table["image"], table["label"])))}
    ours = _keys((sample.image_text, sample.label_text) for sample in samples if sample.label is not None)
    if not ours:
        raise UserError(f"{test_csv}: no row has a label, so there is nothing to compare with {path}")
    only_ours, only_theirs = [key for key in ours if key not in theirs], theirs.keys() - set(ours)
    if only_ours or only_theirs:
        example = only_ours[0][0] if only_ours else min(only_theirs)[0]
        raise UserError(f"{path}: scored different samples than {test_csv} ({len(only_ours)} only in {test_csv}, "
                        f"{len(only_theirs)} only in {path}, e.g. {example}); run both models on the same table")
    table = table.iloc[[theirs[key] for key in ours]]
    iou = pd.to_numeric(table["iou"], errors="coerce").to_numpy(float)
    if not np.all((iou >= 0) & (iou <= 1)):
        raise UserError(f"{path}: column iou holds values outside 0 to 1; make it with {MADE_BY}")
    return OtherResults(Path(path), iou, table["mask"].tolist() if "mask" in table else [""] * len(ours))


def _keys(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str, int]]:
    """Image, label and a running count, which tells rows apart that differ only in their points."""
    counts: dict[tuple[str, str], int] = {}
    keys = []
    for pair in pairs:
        counts[pair] = counts.get(pair, 0) + 1
        keys.append((*pair, counts[pair]))
    return keys
