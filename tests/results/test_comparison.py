"""comparison.py: the difference by hand, the interval over whole photos, the verdict."""

import numpy as np
import pandas as pd
import pytest

from sam_lora import contracts
from sam_lora.results import comparison


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
