"""other_results.py: the other model's results, paired with the samples; its masks, from its own folder only."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from labelled_samples import sample_at

from sam_lora.data.samples import Sample
from sam_lora.errors import UserError
from sam_lora.results.other_results import read_other_results

SAMPLES = [sample_at("m1.png", "a.png"), sample_at("m2.png", "a.png"), sample_at("", "b.png"),
           sample_at("m1.png", "a.png")]


def write_results(path: Path, rows: list[tuple]) -> Path:
    pd.DataFrame(rows, columns=["image", "label", "iou"]).to_csv(path, index=False)
    return path


def test_other_results_are_put_in_the_samples_order(tmp_path):
    path = write_results(tmp_path / "r.csv", [("b.png", "", ""), ("a.png", "m2.png", 0.2), ("a.png", "m1.png", 0.1),
                                              ("a.png", "m1.png", 0.3)])
    other = read_other_results(path, SAMPLES, "t.csv")
    np.testing.assert_array_equal(other.iou, [0.1, 0.2, 0.3])
    assert other.masks == [""] * 3   # a table without that column


def test_other_masks_come_in_the_samples_order(tmp_path):
    table = pd.DataFrame({"image": ["a.png"] * 3, "label": ["m2.png", "m1.png", "m1.png"], "iou": [0.2, 0.1, 0.3],
                          "mask": ["2", "1", "3"]})
    table.to_csv(tmp_path / "r.csv", index=False)
    assert read_other_results(tmp_path / "r.csv", SAMPLES, "t.csv").masks == ["1", "2", "3"]


@pytest.mark.parametrize(("rows", "message"), [
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", 0.2)],
                 r"scored different samples than t.csv \(1 only in t.csv, 0 only in .*, e.g. a.png\)",
                 id="one row less"),
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", 0.2), ("a.png", "m1.png", 0.2), ("c.png", "m.png", 1)],
                 r"\(0 only in t.csv, 1 only in .*, e.g. c.png\); run both models on the same table", id="one more"),
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", ""), ("a.png", "m1.png", 0.3)],
                 "holds values outside 0 to 1", id="an empty score"),
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", "high"), ("a.png", "m1.png", 0.3)],
                 "holds values outside 0 to 1", id="a word"),
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", 1.5), ("a.png", "m1.png", 0.3)],
                 "holds values outside 0 to 1", id="more than 1"),
])
def test_other_results_that_do_not_pair(tmp_path, rows, message):
    path = write_results(tmp_path / "r.csv", rows)
    with pytest.raises(UserError, match=message) as error:
        read_other_results(path, SAMPLES, "t.csv")
    assert "\n" not in str(error.value)


def test_nothing_to_compare_without_labels(tmp_path):
    path = write_results(tmp_path / "r.csv", [("b.png", "", "")])
    with pytest.raises(UserError, match="t.csv: no row has a label, so there is nothing to compare"):
        read_other_results(path, SAMPLES[2:3], "t.csv")


def other_run(folder: Path) -> tuple[list[Sample], pd.DataFrame]:
    """Three samples labelled in `folder`; their results and masks, 44 to 46 px wide, are in `folder`/other."""
    (folder / "other/masks").mkdir(parents=True)
    samples, rows = [], []
    for i in range(3):
        label = folder / f"label{i}.png"
        for path in (label, folder / f"other/masks/{i}.png"):
            assert cv2.imwrite(str(path), np.zeros((30, 44 + i), np.uint8))
        samples.append(sample_at(str(label), f"image{i}.png"))
        rows.append({"image": f"image{i}.png", "label": str(label), "iou": 0.5, "mask": f"masks/{i}.png"})
    return samples, pd.DataFrame(rows)


@pytest.mark.parametrize(("spoil", "reason"), [
    pytest.param(lambda folder, other: (folder / "other/masks/2.png").unlink(), "masks/2.png: no such file", id="gone"),
    pytest.param(lambda folder, other: (folder / "other/masks/2.png").write_bytes(b"no"), "not an image", id="text"),
    pytest.param(lambda folder, other: other.assign(mask=""), "names no mask", id="none named"),
    pytest.param(lambda folder, other: other.drop(columns="mask"), "names no mask", id="no column"),
    pytest.param(lambda folder, other: other.assign(mask="../label0.png"), "outside its own folder", id="above"),
    pytest.param(lambda folder, other: other.assign(mask=str(folder / "label0.png")), "outside its own folder",
                 id="absolute"),
    pytest.param(lambda folder, other: other.assign(mask="masks/1.png"), "is 45x30 px, its image 44x30 px", id="size"),
    pytest.param(lambda folder, other: (folder / "other/masks/0.png").unlink() or
                 (folder / "other/masks/0.png").symlink_to(folder / "label0.png"), "outside its own folder",
                 id="a link"),
])
def test_other_masks_that_cannot_be_had(tmp_path, spoil, reason):
    samples, other = other_run(tmp_path)
    changed = spoil(tmp_path, other)
    (other if changed is None or isinstance(changed, int) else changed).to_csv(tmp_path / "other/r.csv", index=False)
    others = read_other_results(tmp_path / "other" / "r.csv", samples, "t.csv")
    with pytest.raises(UserError, match=reason) as error:
        for position in range(3):
            others.mask(position, (30, 44 + position))
    assert "\n" not in str(error.value)
