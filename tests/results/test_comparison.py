"""Base against tuned: pairing, the interval by photos, the verdict, pictures of what changed most."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from sam_lora import contracts
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError
from sam_lora.results import comparison, pictures


def sample_at(label: str, image: str = "photo.png") -> Sample:
    return Sample(Path(image), Path(label) if label else None, ((1, 1),), (1,), None, image, label)


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- the difference -------------------------------------------------------------------------------------------

def test_comparison_by_hand():
    base, tuned = np.array([0.2, 0.4, 0.6, 0.5]), np.array([0.5, 0.6, 0.5, 0.5])
    table = comparison.compare(["b", "b", "b", "a"], ["p", "q", "q", "p"], base, tuned, seed=0)
    assert list(table.columns) == list(contracts.COMPARISON_COLUMNS)
    numbers = table.drop(columns=["ci95_low", "ci95_high"]).to_dict("split")["data"]
    expected = [("a", 1, 1, 0.5, 0.5, 0, 0, 0), ("b", 3, 2, 0.4, 1.6 / 3, 0.4 / 3, 2, 1),
                ("all classes (by object)", 4, 2, 0.425, 0.525, 0.1, 2, 1),
                ("all classes (by class)", 2, 2, 0.45, 1.55 / 3, 0.2 / 3, 2, 1)]
    for found, wanted in zip(numbers, expected, strict=True):
        assert found[0] == wanted[0] and found[1:] == pytest.approx(wanted[1:], abs=1e-6)
    low, high = table["ci95_low"].tolist(), table["ci95_high"].tolist()
    assert np.isnan(low[0]) and np.isnan(high[0])  # one photo has no spread
    # two photos: a resample has both, p alone or q alone, and the rarest of these is a quarter of all
    assert (low[1], high[1]) == pytest.approx((0.05, 0.3), abs=1e-6)
    assert (low[2], high[2]) == pytest.approx((0.05, 0.15), abs=1e-6)
    assert (low[3], high[3]) == pytest.approx((0.05, 0.15), abs=1e-6)   # q alone has no a: the mean of b is all


def test_interval_agrees_with_the_normal_approximation_on_many_photos():
    rng = np.random.default_rng(5)
    base = rng.uniform(0.3, 0.6, 400)
    tuned = base + rng.normal(0.05, 0.1, 400)
    row = comparison.compare(["a"] * 400, [f"{i}" for i in range(400)], base, tuned, seed=0).iloc[1]
    half_width = 1.96 * np.std(tuned - base) / 20
    assert row["ci95_high"] - row["mean_difference"] == pytest.approx(half_width, rel=0.1)
    assert row["mean_difference"] - row["ci95_low"] == pytest.approx(half_width, rel=0.1)


def test_objects_that_only_repeat_their_photo_make_the_interval_no_narrower():
    rng = np.random.default_rng(6)
    base, change = rng.uniform(0.3, 0.6, 30), rng.normal(0.05, 0.1, 30)
    photos = [f"p{i}" for i in range(30)]
    once = comparison.compare(["a"] * 30, photos, base, base + change, seed=0).iloc[1]
    base, change, often = (np.repeat(values, 10) for values in (base, change, photos))
    again = comparison.compare(["a"] * 300, often, base, base + change, seed=0).iloc[1]
    naive = comparison.compare(["a"] * 300, [f"{i}" for i in range(300)], base, base + change, seed=0).iloc[1]
    assert list(again[["ci95_low", "ci95_high"]]) == pytest.approx(list(once[["ci95_low", "ci95_high"]]), abs=1e-6)
    width, naive_width = (row["ci95_high"] - row["ci95_low"] for row in (again, naive))
    assert width > 2.5 * naive_width   # the square root of ten, about


def test_the_interval_holds_the_truth_about_as_often_as_it_says(monkeypatch):
    """Crops of one photo that share half their variance, three to nine a photo, 25 photos; the truth is +0.05."""
    monkeypatch.setattr(comparison, "BOOTSTRAP_DRAWS", 300)
    rng = np.random.default_rng(7)
    held = {True: 0, False: 0}
    for _ in range(150):
        photo = np.repeat(np.arange(25), rng.integers(3, 10, 25))
        change = 0.05 + rng.normal(0, 0.1, 25)[photo] + rng.normal(0, 0.1, len(photo))
        for by_photo in held:
            photos = [str(i) for i in (photo if by_photo else range(len(photo)))]
            row = comparison.compare(["a"] * len(photo), photos, np.zeros(len(photo)), change, seed=1).iloc[1]
            held[by_photo] += row["ci95_low"] <= 0.05 <= row["ci95_high"]
    assert 0.87 < held[True] / 150 < 0.99
    assert held[False] / 150 < 0.75   # as if each crop were a photo: far too sure


def test_comparison_follows_its_seed():
    base, tuned = np.random.default_rng(0).uniform(size=(2, 30))
    names, photos = ["a", "b", "b"] * 10, [str(i // 2) for i in range(30)]
    first, again, other = (comparison.compare(names, photos, base, tuned, seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize(("base", "tuned", "sentence"), [
    pytest.param([0.5, 0.6, 0.5], [0.7, 0.7, 0.8], "The tuned model is better than the base model: mean IoU 0.733 "
                 "tuned against 0.533 base on the same 3 objects of 3 photos, +0.200 (95 % interval +0.100 to +0.300), "
                 "better on 3 and worse on 0.", id="better"),
    pytest.param([0.7, 0.7, 0.8], [0.5, 0.6, 0.5], "The tuned model is WORSE than the base model: mean IoU 0.533 tuned "
                 "against 0.733 base on the same 3 objects of 3 photos, -0.200 (95 % interval -0.300 to -0.100), "
                 "better on 0 and worse on 3.", id="worse"),
    pytest.param([0.5, 0.5], [0.6, 0.4], "No clear difference between the tuned and the base model: mean IoU 0.500 "
                 "tuned against 0.500 base on the same 2 objects of 2 photos, +0.000 (95 % interval -0.100 to +0.100), "
                 "better on 1 and worse on 1.", id="even"),
    pytest.param([0.5], [0.9], "One photo is too few to tell base and tuned apart: mean IoU 0.900 tuned against 0.500 "
                 "base on the same 1 object of 1 photo, +0.400, better on 1 and worse on 0.", id="one object"),
])
def test_verdict(base, tuned, sentence):
    photos = [str(i) for i in range(len(base))]
    table = comparison.compare(["a"] * len(base), photos, np.array(base), np.array(tuned), seed=0)
    assert comparison.verdict(table) == sentence


def test_many_objects_of_one_photo_prove_nothing():
    table = comparison.compare(["a"] * 9, ["p"] * 9, np.full(9, 0.2), np.full(9, 0.9), seed=0)
    assert table[["ci95_low", "ci95_high"]].isna().all(axis=None)
    assert comparison.verdict(table).startswith("One photo is too few to tell base and tuned apart: ")


# ---- the other model's results ----------------------------------------------------------------------------------

SAMPLES = [sample_at("m1.png", "a.png"), sample_at("m2.png", "a.png"), sample_at("", "b.png"),
           sample_at("m1.png", "a.png")]


def write_results(path: Path, rows: list[tuple]) -> Path:
    pd.DataFrame(rows, columns=["image", "label", "iou"]).to_csv(path, index=False)
    return path


def test_other_results_are_put_in_the_samples_order(tmp_path):
    path = write_results(tmp_path / "r.csv", [("b.png", "", ""), ("a.png", "m2.png", 0.2), ("a.png", "m1.png", 0.1),
                                              ("a.png", "m1.png", 0.3)])
    other = comparison.read_other_results(path, SAMPLES, "t.csv")
    np.testing.assert_array_equal(other.iou, [0.1, 0.2, 0.3])
    assert other.masks == [""] * 3   # a table without that column


def test_other_masks_come_in_the_samples_order(tmp_path):
    table = pd.DataFrame({"image": ["a.png"] * 3, "label": ["m2.png", "m1.png", "m1.png"], "iou": [0.2, 0.1, 0.3],
                          "mask": ["2", "1", "3"]})
    table.to_csv(tmp_path / "r.csv", index=False)
    assert comparison.read_other_results(tmp_path / "r.csv", SAMPLES, "t.csv").masks == ["1", "2", "3"]


@pytest.mark.parametrize(("rows", "message"), [
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", 0.2)],
                 r"scored other samples than t.csv has \(1 only in t.csv, 0 only in .*, e.g. a.png\)",
                 id="one row less"),
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", 0.2), ("a.png", "m1.png", 0.2), ("c.png", "m.png", 1)],
                 r"\(0 only in t.csv, 1 only in .*, e.g. c.png\); run both models on the same table", id="one more"),
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", ""), ("a.png", "m1.png", 0.3)],
                 "holds values that are no IoU", id="an empty score"),
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", "high"), ("a.png", "m1.png", 0.3)],
                 "holds values that are no IoU", id="a word"),
    pytest.param([("a.png", "m1.png", 0.1), ("a.png", "m2.png", 1.5), ("a.png", "m1.png", 0.3)],
                 "holds values that are no IoU", id="more than 1"),
])
def test_other_results_that_do_not_pair(tmp_path, rows, message):
    path = write_results(tmp_path / "r.csv", rows)
    with pytest.raises(UserError, match=message) as error:
        comparison.read_other_results(path, SAMPLES, "t.csv")
    assert "\n" not in str(error.value)


def test_nothing_to_compare_without_labels(tmp_path):
    path = write_results(tmp_path / "r.csv", [("b.png", "", "")])
    with pytest.raises(UserError, match="t.csv: no row has a label, so there is nothing to compare"):
        comparison.read_other_results(path, SAMPLES[2:3], "t.csv")


# ---- pictures ---------------------------------------------------------------------------------------------------

def test_most_changed_are_the_ten_largest_either_way():
    difference = np.array([0.1, -0.2, 0, 0.3, -0.1, 0.1])
    assert comparison.most_changed(difference) == {"improved.jpg": [3, 0, 5], "regressed.jpg": [1, 4]}
    many = np.linspace(-1, 1, 101)
    assert comparison.most_changed(many) == {"improved.jpg": list(range(100, 90, -1)), "regressed.jpg": list(range(10))}
    assert comparison.most_changed(np.zeros(3)) == {"improved.jpg": [], "regressed.jpg": []}


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


def draw(tmp_path: Path, runs, tuned: bool = True) -> list[str]:
    samples, this, other = runs
    other.to_csv(tmp_path / "other" / "r.csv", index=False)
    others = comparison.read_other_results(tmp_path / "other" / "r.csv", samples, "t.csv")
    ious = [others.iou, this["iou"].to_numpy()]
    table = comparison.compare(["a"] * 3, ["p", "q", "r"], *(ious if tuned else ious[::-1]), seed=0)
    return comparison.draw(this, samples, others, tmp_path / "this", tuned, table)


@pytest.mark.parametrize("tuned", [True, False])
def test_pictures_of_the_comparison(tmp_path, runs, tuned):
    assert draw(tmp_path, runs, tuned) == []
    assert files_of(tmp_path / "this") == {"masks", "comparison.png", "improved.jpg", "regressed.jpg"}
    widths = [cv2.imread(str(tmp_path / "this" / name)).shape[1] for name in ("improved.jpg", "regressed.jpg")]
    assert widths[0] == widths[1] > pictures.CHANGE_CELL


def test_no_sample_worse_gives_no_picture_and_a_word(tmp_path, runs):
    samples, this, other = runs
    assert draw(tmp_path, (samples, this.assign(iou=[0.6, 0.5, 0.8]), other)) == [
        "no sample regressed: no regressed.jpg"]
    assert files_of(tmp_path / "this") == {"masks", "comparison.png", "improved.jpg"}


@pytest.mark.parametrize(("spoil", "reason"), [
    pytest.param(lambda folder, other: (folder / "other/masks/2.png").unlink(), "masks/2.png: no such file", id="gone"),
    pytest.param(lambda folder, other: (folder / "other/masks/2.png").write_bytes(b"no"), "not an image", id="text"),
    pytest.param(lambda folder, other: other.assign(mask=""), "names no mask", id="none named"),
    pytest.param(lambda folder, other: other.drop(columns="mask"), "names no mask", id="no column"),
    pytest.param(lambda folder, other: other.assign(mask="../this/masks/0.png"), "outside its own folder", id="above"),
    pytest.param(lambda folder, other: other.assign(mask=str(folder / "label0.png")), "outside its own folder",
                 id="absolute"),
    pytest.param(lambda folder, other: other.assign(mask="masks/1.png"), "is 45x30 px, its image 44x30 px", id="size"),
    pytest.param(lambda folder, other: (folder / "other/masks/0.png").unlink() or
                 (folder / "other/masks/0.png").symlink_to(folder / "label0.png"), "outside its own folder",
                 id="a link"),
])
def test_other_masks_that_cannot_be_had(tmp_path, runs, spoil, reason):
    samples, _, other = runs
    changed = spoil(tmp_path, other)
    (other if changed is None or isinstance(changed, int) else changed).to_csv(tmp_path / "other/r.csv", index=False)
    others = comparison.read_other_results(tmp_path / "other" / "r.csv", samples, "t.csv")
    with pytest.raises(UserError, match=reason) as error:
        for place in range(3):
            others.mask(place, (30, 44 + place))
    assert "\n" not in str(error.value)


def test_without_the_other_masks_the_pictures_are_left_out_in_one_line(tmp_path, runs):
    samples, this, other = runs
    notes = draw(tmp_path, (samples, this, other.assign(mask="masks/gone.png")))
    assert len(notes) == 1 and notes[0].startswith("no improved.jpg nor regressed.jpg, which need the other model's "
                                                   "masks: ") and "gone.png: no such file" in notes[0]
    assert files_of(tmp_path / "this") == {"masks", "comparison.png"}
