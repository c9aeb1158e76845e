"""Predicting a table, classes, summary, comparison, choice of pictures."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_sam
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora import contracts, evaluation, imaging
from sam_lora.dataset import PromptedImages, Sample, batches, make_loader, read_samples
from sam_lora.errors import UserError
from sam_lora.losses import bce_iou

CPU = torch.device("cpu")
SIDE = 256


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


def predictions(sam, samples, batch_size: int, prompts_per_image: int = 64, targets: bool = False, **more) -> list:
    dataset = PromptedImages(samples, SIDE, prompts_per_image, with_targets=targets, with_masks=True)
    loader = make_loader(dataset, SIDE, batch_size, 0, pin_memory=False)
    found = list(evaluation.predict(sam, batches(loader), CPU, contextlib.nullcontext(), **more))
    return sorted(found, key=lambda prediction: prediction.row)


# ---- predicting -----------------------------------------------------------------------------------------------

@pytest.fixture
def shared_image_samples(crops) -> list[Sample]:
    """Rows of three images, two of which have several rows with different prompts."""
    samples = read_samples(crops.test_csv)[:3]
    more = [Sample(samples[0].image, samples[0].label, ((5.0 + i, 6.0),), (1,), None, "", "") for i in range(3)]
    box = Sample(samples[2].image, None, (), (), (4.0, 5.0, 30.0, 20.0), "", "")
    return [samples[0], samples[1], more[0], box, samples[2], *more[1:]]


def test_predictions_equal_sam_predictor_s_one_at_a_time(mini, shared_image_samples):
    from segment_anything import SamPredictor
    found = predictions(mini, shared_image_samples, batch_size=2)
    assert [prediction.row for prediction in found] == list(range(7))
    predictor = SamPredictor(mini)
    for sample, prediction in zip(shared_image_samples, found):
        predictor.set_image(imaging.load_image(sample.image))
        masks, iou, _ = predictor.predict(np.array(sample.points) if sample.points else None,
                                          np.array(sample.point_labels) if sample.points else None,
                                          None if sample.box is None else np.array(sample.box), multimask_output=False)
        assert prediction.mask.shape == masks[0].shape and prediction.mask.dtype == bool
        assert (prediction.mask != masks[0]).mean() < 1e-3  # a logit of exactly 0 may fall either way
        assert prediction.predicted_iou == pytest.approx(iou[0], abs=1e-5)
        if sample.label is None:
            assert prediction.truth is None
        else:
            np.testing.assert_array_equal(prediction.truth, imaging.load_mask(sample.label))


@pytest.mark.parametrize(("batch_size", "prompts_per_image", "prompts_per_decode"), [
    pytest.param(1, 1, 1, id="all alone"), pytest.param(3, 64, 2, id="decoded in several calls"),
    pytest.param(2, 2, 64, id="an image split over batches"),
])
def test_how_rows_travel_changes_nothing(mini, shared_image_samples, monkeypatch, batch_size, prompts_per_image,
                                         prompts_per_decode):
    expected = predictions(mini, shared_image_samples, batch_size=8)
    monkeypatch.setattr(evaluation, "PROMPTS_PER_DECODE", prompts_per_decode)
    for ours, theirs in zip(predictions(mini, shared_image_samples, batch_size, prompts_per_image), expected):
        assert ours.row == theirs.row and (ours.mask != theirs.mask).mean() < 1e-3
        assert ours.predicted_iou == pytest.approx(theirs.predicted_iou, abs=1e-5)


def test_each_image_is_encoded_once_whatever_its_rows(mini, shared_image_samples):
    seen = []
    hook = mini.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        predictions(mini, shared_image_samples, batch_size=2)
    finally:
        hook.remove()
    assert seen == [2, 1]


def test_losses_of_a_validation_table_come_row_by_row(mini, crops, monkeypatch):
    samples = read_samples(crops.val_csv)
    losses = [p.loss for p in predictions(mini, samples, 4, targets=True, mask_loss=bce_iou)]
    monkeypatch.setattr(evaluation, "PROMPTS_PER_DECODE", 3)
    alone = [p.loss for p in predictions(mini, samples, 1, targets=True, mask_loss=bce_iou)]
    assert len(set(losses)) == 4 and losses == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(("side", "device", "expected"), [
    (256, "cpu", 8), (1024, "cpu", 1), (256, "cuda", 32), (1024, "cuda", 4), (64, "cpu", 32)])
def test_default_batch_size(side, device, expected):
    assert evaluation.default_batch_size(side, torch.device(device)) == expected


# ---- classes --------------------------------------------------------------------------------------------------

def sample_at(label: str, image: str = "photo.png") -> Sample:
    return Sample(Path(image), Path(label) if label else None, ((1, 1),), (1,), None, image, label)


@pytest.mark.parametrize(("label", "image", "name"), [
    pytest.param("data/Class_crack/masks/a.png", "x.png", "crack", id="a YOLO folder"),
    pytest.param("data/Class_3_red_disc/masks/a.png", "x.png", "red_disc", id="a COCO folder"),
    pytest.param("data/Class_12/masks/a.png", "x.png", "12", id="a class called 12"),
    pytest.param("data/Class_3_red_disc/a.png", "x.png", "red_disc", id="no masks folder"),
    pytest.param("", "data/Class_crack/images/a.png", "crack", id="no label: the image's folder"),
    pytest.param("labels/a.png", "images/a.png", "(no class)", id="no class folders"),
])
def test_class_names_from_folders(tmp_path, label, image, name):
    label = str(tmp_path / label) if label else ""
    assert evaluation.class_names([sample_at(label, str(tmp_path / image))]) == [name]


def test_true_class_names_come_from_the_manifest_else_from_classes_json(tmp_path):
    samples = [sample_at(str(tmp_path / folder / "masks" / "a.png")) for folder in ("Class_0_a_b", "Class_1_c")]
    classes = tmp_path / contracts.CLASSES_FILE
    classes.write_text(json.dumps({"Class_0_a_b": {"class_id": 0, "class_name": "a/b"}}), encoding="utf-8")
    assert evaluation.class_names(samples) == ["a/b", "c"]
    manifest = pd.DataFrame({"mask_path": ["Class_1_c/masks/a.png", "Class_0_a_b/masks/a.png"],
                             "class_name": ["ç", "a:b"]})
    manifest.to_csv(tmp_path / contracts.MANIFEST_FILE, index=False)
    assert evaluation.class_names(samples) == ["a:b", "ç"]


@pytest.mark.parametrize("text", ["", "[1]", '{"Class_1_c": 3}', '{"Class_1_c": {}}'])
def test_a_broken_classes_json_is_told(tmp_path, text):
    (tmp_path / contracts.CLASSES_FILE).write_text(text)
    with pytest.raises(UserError, match="classes.json: cannot be read as the converter's list of classes"):
        evaluation.class_names([sample_at(str(tmp_path / "Class_1_c" / "masks" / "a.png"))])


# ---- summary ----------------------------------------------------------------------------------------------------

def test_summary_by_hand():
    results = pd.DataFrame({"class_name": ["b", "a", "b", "b"], "iou": [0.2, 0.9, 0.5, 0.8], "dice": [0.3, 1, 0.6, 0.9],
                            "boundary_iou": [0.1, 0.7, 0.2, 0.3]})
    expected = pd.DataFrame([
        ("a", 1, 0.9, 0.9, 0.9, 1, 0.7, 0),
        ("b", 3, 0.5, 0.5, 0.2 + 0.1 * 0.3, 0.6, 0.2, 1 / 3),
        ("all classes (by object)", 4, 0.6, 0.65, 0.2 + 0.15 * 0.3, 0.7, 0.325, 0.25),
        ("all classes (by class)", 2, 0.7, 0.7, 0.565, 0.8, 0.45, 1 / 6),
    ], columns=contracts.SUMMARY_COLUMNS)
    pd.testing.assert_frame_equal(evaluation.summarise(results), expected, atol=1e-6, check_dtype=False)


# ---- comparison -------------------------------------------------------------------------------------------------

def test_comparison_by_hand():
    base, tuned = np.array([0.2, 0.4, 0.6, 0.5]), np.array([0.5, 0.6, 0.5, 0.5])
    table = evaluation.compare(["b", "b", "b", "a"], base, tuned, seed=0)
    assert list(table.columns) == list(contracts.COMPARISON_COLUMNS)
    numbers = table.drop(columns=["ci95_low", "ci95_high"]).to_dict("split")["data"]
    expected = [("a", 1, 0.5, 0.5, 0, 0, 0), ("b", 3, 0.4, 1.6 / 3, 0.4 / 3, 2, 1),
                ("all classes (by object)", 4, 0.425, 0.525, 0.1, 2, 1),
                ("all classes (by class)", 2, 0.45, 1.55 / 3, 0.2 / 3, 2, 1)]
    for found, wanted in zip(numbers, expected, strict=True):
        assert found[0] == wanted[0] and found[1:] == pytest.approx(wanted[1:], abs=1e-6)
    low, high = table["ci95_low"], table["ci95_high"]
    assert np.isnan(low[0]) and np.isnan(high[0])  # one object has no spread
    assert (low[1:] < table["mean_difference"][1:]).all() and (table["mean_difference"][1:] < high[1:]).all()
    assert low[1] >= -0.1 and high[1] <= 0.3       # a mean of resamples stays among the samples


def test_interval_agrees_with_the_normal_approximation_on_many_objects():
    rng = np.random.default_rng(5)
    base = rng.uniform(0.3, 0.6, 400)
    tuned = base + rng.normal(0.05, 0.1, 400)
    row = evaluation.compare(["a"] * 400, base, tuned, seed=0).iloc[1]
    half_width = 1.96 * np.std(tuned - base) / 20
    assert row["ci95_high"] - row["mean_difference"] == pytest.approx(half_width, rel=0.1)
    assert row["mean_difference"] - row["ci95_low"] == pytest.approx(half_width, rel=0.1)


def test_comparison_follows_its_seed():
    base, tuned = np.random.default_rng(0).uniform(size=(2, 30))
    names = ["a", "b", "b"] * 10
    first, again, other = (evaluation.compare(names, base, tuned, seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize(("base", "tuned", "sentence"), [
    pytest.param([0.5, 0.6, 0.5], [0.7, 0.7, 0.8], "The tuned model is better than the base model: mean IoU 0.733 "
                 "tuned against 0.533 base on the same 3 objects, +0.200 (95 % interval +0.100 to +0.300), "
                 "better on 3 and worse on 0.", id="better"),
    pytest.param([0.7, 0.7, 0.8], [0.5, 0.6, 0.5], "The tuned model is WORSE than the base model: mean IoU 0.533 tuned "
                 "against 0.733 base on the same 3 objects, -0.200 (95 % interval -0.300 to -0.100), better on 0 and "
                 "worse on 3.", id="worse"),
    pytest.param([0.5, 0.5], [0.6, 0.4], "No clear difference between the tuned and the base model: mean IoU 0.500 "
                 "tuned against 0.500 base on the same 2 objects, +0.000 (95 % interval -0.100 to +0.100), better on 1 "
                 "and worse on 1.", id="even"),
    pytest.param([0.5], [0.9], "One object is too few to tell base and tuned apart: mean IoU 0.900 tuned against 0.500 "
                 "base on the same 1 objects, +0.400.", id="one object"),
])
def test_verdict(base, tuned, sentence):
    table = evaluation.compare(["a"] * len(base), np.array(base), np.array(tuned), seed=0)
    assert evaluation.verdict(table) == sentence


SAMPLES = [sample_at("m1.png", "a.png"), sample_at("m2.png", "a.png"), sample_at("", "b.png"),
           sample_at("m1.png", "a.png")]


def write_results(path: Path, rows: list[tuple]) -> Path:
    pd.DataFrame(rows, columns=["image", "label", "iou"]).to_csv(path, index=False)
    return path


def test_other_results_are_put_in_the_samples_order(tmp_path):
    path = write_results(tmp_path / "r.csv", [("b.png", "", ""), ("a.png", "m2.png", 0.2), ("a.png", "m1.png", 0.1),
                                              ("a.png", "m1.png", 0.3)])
    np.testing.assert_array_equal(evaluation.read_other_results(path, SAMPLES, "t.csv"), [0.1, 0.2, 0.3])


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
        evaluation.read_other_results(path, SAMPLES, "t.csv")
    assert "\n" not in str(error.value)


def test_nothing_to_compare_without_labels(tmp_path):
    path = write_results(tmp_path / "r.csv", [("b.png", "", "")])
    with pytest.raises(UserError, match="t.csv: no row has a label, so there is nothing to compare"):
        evaluation.read_other_results(path, SAMPLES[2:3], "t.csv")


# ---- choice of pictures -----------------------------------------------------------------------------------------

@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_pictures_cover_all_classes_evenly(names, count, seed):
    chosen = evaluation.choose_pictures(names, count, seed)
    assert chosen == sorted(set(chosen)) == evaluation.choose_pictures(names, count, seed)
    assert len(chosen) == min(count, len(names))
    shown = {name: sum(names[row] == name for row in chosen) for name in set(names)}
    assert min(shown.values()) >= 1 or count < len(shown)
    for name, number in shown.items():  # a class has fewer pictures than another only if it has no more rows
        assert number >= max(shown.values()) - 1 or number == names.count(name)


def test_pictures_are_drawn_by_lot():
    assert len({tuple(evaluation.choose_pictures(["a"] * 50, 5, seed)) for seed in range(5)}) == 5
