"""predict.py: masks equal SamPredictor's, however rows travel; several cores; batch size."""

import contextlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_sam
from predicted_rows import CPU, SIDE, predictions, rows_of_three_images

from sam_lora.data import imaging
from sam_lora.data.samples import Sample, read_samples
from sam_lora.errors import UserError
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.ranks import ALONE, Ranks
from sam_lora.results import predict
from sam_lora.results.predict import default_batch_size, own_batches, predict_rows
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


# ---- a GPU, without one ---------------------------------------------------------------------------------------

def test_nothing_but_masks_scores_and_losses_leaves_the_device(shared_image_samples, monkeypatch):
    """On `meta` whatever the host wants to know of a tensor is an error."""
    copied = []
    monkeypatch.setattr(predict, "to_host", lambda tensor: copied.append(tuple(tensor.shape)) or tensor)
    monkeypatch.setattr(predict, "PROMPTS_PER_DECODE", 4)
    sam = random_sam("vit_mini").to("meta")
    dataset = PromptedImages([sample for sample in shared_image_samples if sample.label], SIDE, 64, True, True)
    loader = make_loader(dataset, SIDE, 2, 0, pin_memory=False)
    calls = 0
    for decoded in predict._decoded(sam, batches(loader), contextlib.nullcontext(), bce_iou, None):
        rows, calls = [*decoded.masks], calls + 1
        assert {mask.device.type for mask in rows} == {decoded.losses.device.type} == {"meta"}
        # losses and scores of the model itself at once, then each mask
        assert copied == [(len(rows),), (len(rows),), *(tuple(mask.shape) for mask in rows)]
        copied.clear()
    assert calls == 3


def test_masks_handed_out_while_the_next_are_decoded_are_the_same(mini, shared_image_samples, monkeypatch):
    """As on a GPU: the next decode begins before the rows of the last one are handed out."""
    monkeypatch.setattr(predict, "PROMPTS_PER_DECODE", 2)
    expected = predictions(mini, shared_image_samples, batch_size=2)
    monkeypatch.setitem(predict.AHEAD, "cpu", 1)
    decodes = []
    hook = mini.mask_decoder.iou_prediction_head.register_forward_hook(lambda *_: decodes.append(1))
    try:
        dataset = PromptedImages(shared_image_samples, SIDE, 64, with_targets=False, with_masks=True)
        found = predict.predict(mini, batches(make_loader(dataset, SIDE, 2, 0, False)), contextlib.nullcontext())
        first = next(found)
        assert len(decodes) >= 2
        found = sorted([first, *found], key=lambda prediction: prediction.row)
    finally:
        hook.remove()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.row == theirs.row and ours.predicted_iou == theirs.predicted_iou
        np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_threads_load_for_a_gpu_and_the_default_loader_for_a_cpu(mini, shared_image_samples, monkeypatch):
    loaded = []
    monkeypatch.setattr(predict, "load_in_threads", lambda *arguments, **more: loaded.append(more) or iter(()))
    dataset = PromptedImages(shared_image_samples, SIDE, 64, with_targets=False, with_masks=True)
    assert list(predict._loaded(dataset, SIDE, [[0]], Runtime(torch.device("cuda")))) == []
    assert len(list(predict._loaded(dataset, SIDE, [[0], [1, 2]], Runtime(CPU)))) == 2
    assert [more["pin_memory"] for more in loaded] == [True]


# ---- several processes ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_batches_that_one_would_have(processes):
    alone = own_batches(7, 3, ALONE)
    assert alone == [[0, 1, 2], [3, 4, 5], [6]]
    shares = [own_batches(7, 3, Ranks(rank, processes)) for rank in range(processes)]
    assert sorted(batch for share in shares for batch in share) == alone
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


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
