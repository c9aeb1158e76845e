"""Predicting a table, classes and photos, summaries, other points, choice of pictures."""

import contextlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_sam
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.data.manifest import class_names, source_photos
from sam_lora.data.samples import Sample, read_samples
from sam_lora.errors import UserError
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.results import evaluation
from sam_lora.training.losses import bce_iou

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


# ---- other points ---------------------------------------------------------------------------------------------

def test_trials_score_each_mask_with_other_points_and_encode_no_more(mini, shared_image_samples):
    seen = []
    hook = mini.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        found = predictions(mini, shared_image_samples, batch_size=2, trials=evaluation.PromptTrials(4, seed=0))
    finally:
        hook.remove()
    assert seen == [2, 1]
    plain = predictions(mini, shared_image_samples, batch_size=2)
    for sample, prediction, alone in zip(shared_image_samples, found, plain):
        assert (prediction.mask != alone.mask).mean() < 1e-3 and not alone.trial_ious
        assert len(prediction.trial_ious) == (0 if sample.label is None else 4)   # the box has no label and no points
        assert all(0 <= iou <= 1 for iou in prediction.trial_ious)
    assert len({iou for prediction in found for iou in prediction.trial_ious}) > 8


@pytest.mark.parametrize(("batch_size", "prompts_per_image", "prompts_per_decode"), [
    pytest.param(1, 1, 1, id="all alone"), pytest.param(3, 64, 2, id="decoded in several calls")])
def test_trials_do_not_depend_on_how_rows_travel(mini, shared_image_samples, monkeypatch, batch_size,
                                                 prompts_per_image, prompts_per_decode):
    trials = evaluation.PromptTrials(3, seed=5)
    expected = predictions(mini, shared_image_samples, batch_size=8, trials=trials)
    monkeypatch.setattr(evaluation, "PROMPTS_PER_DECODE", prompts_per_decode)
    for ours, theirs in zip(predictions(mini, shared_image_samples, batch_size, prompts_per_image, trials=trials),
                            expected):
        assert list(ours.trial_ious) == pytest.approx(list(theirs.trial_ious), abs=0.02)


def test_trials_equal_sam_predictor_s_with_the_same_points(mini, shared_image_samples):
    from segment_anything import SamPredictor

    from sam_lora.data.clicks import random_points
    from sam_lora.results import metrics
    found = predictions(mini, shared_image_samples[:2], batch_size=2, trials=evaluation.PromptTrials(3, seed=9))
    predictor = SamPredictor(mini)
    for row, sample in enumerate(shared_image_samples[:2]):
        predictor.set_image(imaging.load_image(sample.image))
        truth = imaging.load_mask(sample.label)
        points = random_points(truth, 3, 3, np.random.default_rng((9, row)))
        expected = [metrics.iou(predictor.predict(drawn.astype(float), np.ones(3), multimask_output=False)[0][0], truth)
                    for drawn in points]
        assert list(found[row].trial_ious) == pytest.approx(expected, abs=0.01)


def batch_of(samples: list[Sample]):
    return next(iter(make_loader(PromptedImages(samples, SIDE, 64, False, True), SIDE, 8, 0, pin_memory=False)))


def test_other_points_are_as_many_in_the_mask_and_leave_the_rest(crops):
    first, second, *_ = read_samples(crops.test_csv)
    rows = [replace(first, points=(*first.points[:2], (1.0, 2.0)), point_labels=(1, 1, 0), box=(1, 2, 40, 30)),
            replace(first, points=((1.0, 2.0),), point_labels=(0,)), second, replace(second, label=None)]
    batch = batch_of(rows)
    drawn = evaluation.other_points(batch, slice(0, 4), SIDE, evaluation.PromptTrials(20, seed=3))
    assert len(drawn) == 20
    own = batch.prompts
    for prompts in drawn:
        assert torch.equal(prompts.point_labels, own.point_labels)
        torch.testing.assert_close(prompts.boxes, own.boxes, equal_nan=True)
        assert torch.equal(prompts.point_coords[0, 2], own.point_coords[0, 2])   # a background point
        for row in (1, 3):                                                       # no foreground point; no mask
            assert torch.equal(prompts.point_coords[row], own.point_coords[row])
        for row, points in ((0, 2), (2, 3)):
            mask = batch.masks[row]
            scale = SIDE / max(mask.shape)
            xy = prompts.point_coords[row, :points].numpy() / scale
            np.testing.assert_allclose(xy, xy.round(), atol=0.3)   # pixels of the image
            xy = xy.round().astype(int)
            assert mask[xy[:, 1], xy[:, 0]].all() and len(np.unique(xy, axis=0)) == points
    assert len({tuple(prompts.point_coords[2].ravel().tolist()) for prompts in drawn}) == 20
    part = evaluation.other_points(batch, slice(2, 4), SIDE, evaluation.PromptTrials(20, seed=3))
    assert all(torch.equal(whole.point_coords[2:], some.point_coords) for whole, some in zip(drawn, part))


RESULTS = pd.DataFrame({"class_name": ["a", "b", "a"], "image": ["1", "2", "3"], "label": ["m1", "", "m3"],
                        "iou": [0.9, "", 0.5]})


def test_trials_table_and_sentence_by_hand():
    trials = {2: [0.2, 0.4, 0.6], 0: [0.8, 0.8, 0.8]}
    expected = pd.DataFrame([("a", "1", "m1", 0.9, 3, 0.8, 0, 0.8, 0.8), ("a", "3", "m3", 0.5, 3, 0.4, 0.2, 0.2, 0.6)],
                            columns=contracts.PROMPT_TRIALS_COLUMNS)
    pd.testing.assert_frame_equal(evaluation.trials_table(RESULTS, trials), expected, check_dtype=False)
    assert evaluation.trials_sentence(RESULTS, trials) == (
        "With 3 other random sets of points in each mask, mean IoU is 0.600 against 0.700 with the table's own points "
        "(-0.100) on 2 objects; from set to set the mean varies by 0.100 and one object's IoU by 0.100 (standard "
        "deviations).")


def test_one_trial_has_no_spread_and_none_is_told():
    assert evaluation.trials_table(RESULTS, {0: [0.8]})["std_iou"].isna().all()
    assert evaluation.trials_sentence(RESULTS, {0: [0.8]}) == (
        "With 1 other random set of points in each mask, mean IoU is 0.800 against 0.900 with the table's own points "
        "(-0.100) on 1 object.")
    assert evaluation.trials_sentence(RESULTS, {}).startswith("No row has both a mask and foreground points")


@pytest.mark.parametrize(("cores", "batch_size"), [
    pytest.param(2, 4, id="two threads, two images each"), pytest.param(3, 2, id="fewer images than cores")])
def test_several_cores_give_the_same_in_the_same_order(mini, shared_image_samples, cores, batch_size):
    def finish(prediction):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.05)
        return prediction

    def predicted():
        return evaluation.predict_rows(mini, shared_image_samples, finish, batch_size, 0, CPU, with_masks=True,
                                       trials=evaluation.PromptTrials(2, 0))
    seen = set()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = predicted()
        seen.clear()
        torch.set_num_threads(cores)
        found = predicted()
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 2 and {share for _, share in seen} == {1}
    assert [prediction.row for prediction in found] == list(range(len(shared_image_samples)))
    for ours, theirs in zip(found, expected):
        assert (ours.mask != theirs.mask).mean() < 1e-3
        assert ours.predicted_iou == pytest.approx(theirs.predicted_iou, abs=1e-5)
        assert ours.trial_ious == pytest.approx(theirs.trial_ious, abs=1e-2)


def test_an_error_in_a_thread_leaves_pytorch_s_threads_as_they_were(mini, shared_image_samples):
    before = torch.get_num_threads()
    broken = [*shared_image_samples, replace(shared_image_samples[0], image=Path("gone.png"))]
    try:
        torch.set_num_threads(2)
        with pytest.raises(UserError, match="gone.png: no such file"):
            evaluation.predict_rows(mini, broken, lambda prediction: None, 2, 0, CPU, with_masks=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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
    assert class_names([sample_at(label, str(tmp_path / image))]) == [name]


def test_true_class_names_come_from_the_manifest_else_from_classes_json(tmp_path):
    samples = [sample_at(str(tmp_path / folder / "masks" / "a.png")) for folder in ("Class_0_a_b", "Class_1_c")]
    classes = tmp_path / contracts.CLASSES_FILE
    classes.write_text(json.dumps({"Class_0_a_b": {"class_id": 0, "class_name": "a/b"}}), encoding="utf-8")
    assert class_names(samples) == ["a/b", "c"]
    manifest = pd.DataFrame({"mask_path": ["Class_1_c/masks/a.png", "Class_0_a_b/masks/a.png"],
                             "class_name": ["ç", "a:b"]})
    manifest.to_csv(tmp_path / contracts.MANIFEST_FILE, index=False)
    assert class_names(samples) == ["a:b", "ç"]


@pytest.mark.parametrize("text", ["", "[1]", '{"Class_1_c": 3}', '{"Class_1_c": {}}'])
def test_a_broken_classes_json_is_told(tmp_path, text):
    (tmp_path / contracts.CLASSES_FILE).write_text(text)
    with pytest.raises(UserError, match="classes.json: cannot be read as the converter's list of classes"):
        class_names([sample_at(str(tmp_path / "Class_1_c" / "masks" / "a.png"))])


# ---- photos -----------------------------------------------------------------------------------------------------

def same_photo(samples: list[Sample]) -> list[int]:
    """The number of each sample's photo, in order of appearance."""
    photos = source_photos(samples)
    return [list(dict.fromkeys(photos)).index(photo) for photo in photos]


def in_folder(tmp_path: Path, stem: str, folder: str = "Class_a", image: str = "") -> Sample:
    return sample_at(str(tmp_path / folder / "masks" / f"{stem}.png"),
                     str(tmp_path / folder / "images" / f"{image or stem}.png"))


def write_manifest(tmp_path: Path, rows: list[tuple], columns=("mask_path", "image_path", "source_image",
                                                               "source_digest")) -> None:
    pd.DataFrame(rows, columns=["class_name", *columns]).to_csv(tmp_path / contracts.MANIFEST_FILE, index=False)


def test_photos_come_from_the_manifest_across_classes_and_copies(tmp_path):
    write_manifest(tmp_path, [
        ("a", "Class_a/masks/1.png", "Class_a/images/1.png", "train/images/p_jpg.rf.0123456789abcdef.jpg", "d1"),
        ("b", "Class_b/masks/2.png", "Class_b/images/2.png", "valid/images/p_jpg.rf.fedcba9876543210.jpg", "d2"),
        ("a", "Class_a/masks/3.png", "Class_a/images/3.png", "q.jpg", "d3"),
        ("a", "Class_a/masks/4.png", "Class_a/images/4.png", "copy of q.jpg", "d3"),
        ("a", "Class_a/masks/5.png", "Class_a/images/5.png", "r.jpg", "")])
    samples = [in_folder(tmp_path, "1"), in_folder(tmp_path, "2", "Class_b"), in_folder(tmp_path, "3"),
               in_folder(tmp_path, "4"), in_folder(tmp_path, "5"), replace(in_folder(tmp_path, "5"), label=None)]
    assert same_photo(samples) == [0, 0, 1, 1, 2, 2]


def test_an_older_manifest_and_one_without_photos(tmp_path):
    samples = [in_folder(tmp_path, "p_0001"), in_folder(tmp_path, "q_0001"), in_folder(tmp_path, "p_0002")]
    rows = [("a", f"Class_a/masks/{name}.png", "photo.jpg") for name in ("p_0001", "q_0001", "p_0002")]
    write_manifest(tmp_path, rows, ("mask_path", "source_image"))
    assert same_photo(samples) == [0, 0, 0]
    write_manifest(tmp_path, [row[:2] for row in rows], ("mask_path",))
    assert same_photo(samples) == [0, 1, 0]


def test_photos_without_a_manifest_go_by_name_in_class_folders_else_by_image(tmp_path):
    samples = [in_folder(tmp_path, "wall_0001"), in_folder(tmp_path, "wall_0002", "Class_b"),
               in_folder(tmp_path, "door_0001"), in_folder(tmp_path, "door_0002", image="door"),
               sample_at("m1.png", "x_0001.png"), sample_at("m2.png", "x_0002.png"), sample_at("m3.png", "x_0002.png")]
    assert same_photo(samples) == [0, 0, 1, 1, 2, 3, 3]


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


@pytest.mark.parametrize(("area", "size"), [
    (0, "small"), (1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (10 ** 8, "large")])
def test_sizes_are_coco_s(area, size):
    assert evaluation.size_of(area) == size


def test_summary_by_size_by_hand():
    results = pd.DataFrame({"size": ["large", "small", "large"], "iou": [0.2, 0.9, 0.4], "dice": [0.3, 1, 0.5],
                            "boundary_iou": [0.1, 0.7, 0.2]})
    nan = float("nan")
    expected = pd.DataFrame([
        ("small", "under 1024", 1, 0.9, 0.9, 0.9, 1, 0.7, 0), ("medium", "1024 to 9215", 0, *[nan] * 6),
        ("large", "9216 and more", 2, 0.3, 0.3, 0.21, 0.4, 0.15, 1)], columns=contracts.SIZE_SUMMARY_COLUMNS)
    pd.testing.assert_frame_equal(evaluation.summarise_sizes(results), expected, atol=1e-6, check_dtype=False)


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
