"""predict.py: masks equal SamPredictor's, however rows travel; several cores; batch size."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_sam
from predicted_rows import CPU, predictions, rows_of_three_images

from sam_lora.data import imaging
from sam_lora.data.samples import Sample, read_samples
from sam_lora.errors import UserError
from sam_lora.results import predict
from sam_lora.results.predict import default_batch_size, predict_rows
from sam_lora.results.requests import Runtime
from sam_lora.training.losses import bce_iou


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


@pytest.fixture
def shared_image_samples(crops) -> list[Sample]:
    return rows_of_three_images(crops.test_csv)


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
    monkeypatch.setattr(predict, "PROMPTS_PER_DECODE", prompts_per_decode)
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
    monkeypatch.setattr(predict, "PROMPTS_PER_DECODE", 3)
    alone = [p.loss for p in predictions(mini, samples, 1, targets=True, mask_loss=bce_iou)]
    assert len(set(losses)) == 4 and losses == pytest.approx(alone, rel=1e-4)


# ---- several cores --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("cores", "batch_size"), [
    pytest.param(2, 4, id="two threads, two images each"), pytest.param(3, 2, id="fewer images than cores")])
def test_several_cores_give_the_same_in_the_same_order(mini, shared_image_samples, cores, batch_size):
    meeting = threading.Barrier(2, timeout=60)
    waiting = threading.local()

    def finish(prediction):
        """The first row of each thread waits for the other thread: so both are there, however fast one is."""
        seen.add((threading.get_ident(), torch.get_num_threads()))
        if together and not getattr(waiting, "met", False):
            waiting.met = True
            meeting.wait()
        return prediction

    def predicted():
        return predict_rows(mini, shared_image_samples, finish, Runtime(CPU, batch_size), with_masks=True,
                            kinds_seed=0)
    seen, together = set(), False
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = predicted()
        seen.clear()
        together = True
        torch.set_num_threads(cores)
        found = predicted()
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 2 and {threads for _, threads in seen} == {1}
    assert [prediction.row for prediction in found] == list(range(len(shared_image_samples)))
    for ours, theirs in zip(found, expected):
        assert (ours.mask != theirs.mask).mean() < 1e-3
        assert ours.predicted_iou == pytest.approx(theirs.predicted_iou, abs=1e-5)
        assert (ours.by_prompt is None) == (theirs.by_prompt is None)
        if ours.by_prompt is not None:
            assert ours.by_prompt.by_kind == pytest.approx(theirs.by_prompt.by_kind, abs=1e-2)


def test_an_error_in_a_thread_leaves_pytorch_s_threads_as_they_were(mini, shared_image_samples):
    before = torch.get_num_threads()
    broken = [*shared_image_samples, replace(shared_image_samples[0], image=Path("gone.png"))]
    try:
        torch.set_num_threads(2)
        with pytest.raises(UserError, match="gone.png: no such file"):
            predict_rows(mini, broken, lambda prediction: None, Runtime(CPU, 2), with_masks=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("side", "device", "expected"), [
    (256, "cpu", 16), (1024, "cpu", 1), (256, "cuda", 32), (1024, "cuda", 4), (64, "cpu", 32)])
def test_default_batch_size(side, device, expected):
    assert default_batch_size(side, torch.device(device)) == expected
