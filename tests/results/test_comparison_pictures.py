"""comparison_pictures.py: which objects changed most, and what is drawn of them."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from labelled_samples import sample_at

from sam_lora.results import comparison, comparison_pictures, pictures
from sam_lora.results.other_results import read_other_results


def test_most_changed_are_the_ten_largest_either_way():
    difference = np.array([0.1, -0.2, 0, 0.3, -0.1, 0.1])
    assert comparison_pictures.most_changed(difference) == {"improved.jpg": [3, 0, 5], "regressed.jpg": [1, 4]}
    many = np.linspace(-1, 1, 101)
    assert comparison_pictures.most_changed(many) == {"improved.jpg": list(range(100, 90, -1)),
                                                      "regressed.jpg": list(range(10))}
    assert comparison_pictures.most_changed(np.zeros(3)) == {"improved.jpg": [], "regressed.jpg": []}


@pytest.fixture
def runs(tmp_path):
    """Three samples in tmp_path, results of this run in tmp_path/this, of the other in tmp_path/other."""
    rng = np.random.default_rng(0)
    samples, scored = [], []
    for i, (other_iou, this_iou) in enumerate([(0.1, 0.6), (0.5, 0.5), (0.7, 0.3)]):
        image, label = tmp_path / f"image{i}.png", tmp_path / f"label{i}.png"
        assert cv2.imwrite(str(image), rng.integers(0, 255, (30, 44 + i, 3)).astype(np.uint8))
        for path in (label, tmp_path / f"this/masks/{i}.png", tmp_path / f"other/masks/{i}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = np.zeros((30, 44 + i), np.uint8)
            mask[5:20, 5:20 + len(scored)] = 255
            assert cv2.imwrite(str(path), mask)
        samples.append(sample_at(str(label), str(image)))
        scored.append({"class_name": "a", "image": str(image), "label": str(label), "iou": this_iou,
                       "other": other_iou, "mask": f"masks/{i}.png"})
    scored = pd.DataFrame(scored)
    return samples, scored.drop(columns="other"), scored.drop(columns="iou").rename(columns={"other": "iou"})


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def draw(tmp_path: Path, runs, tuned: bool = True) -> list[str]:
    samples, this, other = runs
    other.to_csv(tmp_path / "other" / "r.csv", index=False)
    others = read_other_results(tmp_path / "other" / "r.csv", samples, "t.csv")
    ious = [others.iou, this["iou"].to_numpy()]
    table = comparison.compare(["a"] * 3, ["p", "q", "r"], *(ious if tuned else ious[::-1]), seed=0)
    return comparison_pictures.draw(this, samples, others, tmp_path / "this", tuned, table)


@pytest.mark.parametrize("tuned", [True, False])
def test_pictures_of_the_comparison(tmp_path, runs, tuned):
    assert draw(tmp_path, runs, tuned) == []
    assert names_in(tmp_path / "this") == {"masks", "comparison.png", "improved.jpg", "regressed.jpg"}
    widths = [cv2.imread(str(tmp_path / "this" / name)).shape[1] for name in ("improved.jpg", "regressed.jpg")]
    assert widths[0] == widths[1] > pictures.CHANGE_CELL


def test_no_sample_worse_gives_no_picture_and_a_word(tmp_path, runs):
    samples, this, other = runs
    assert draw(tmp_path, (samples, this.assign(iou=[0.6, 0.5, 0.8]), other)) == [
        "no sample regressed: no regressed.jpg"]
    assert names_in(tmp_path / "this") == {"masks", "comparison.png", "improved.jpg"}
def test_without_the_other_masks_the_pictures_are_left_out_in_one_line(tmp_path, runs):
    samples, this, other = runs
    notes = draw(tmp_path, (samples, this, other.assign(mask="masks/gone.png")))
    assert len(notes) == 1 and notes[0].startswith("no improved.jpg nor regressed.jpg, which need the other model's "
                                                   "masks: ") and "gone.png: no such file" in notes[0]
    assert names_in(tmp_path / "this") == {"masks", "comparison.png"}
