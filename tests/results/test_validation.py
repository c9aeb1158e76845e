"""validation.py: loss and IoU of each row, whatever the batches; rows that another process has stay zero."""

import contextlib

import pytest
import torch
from conftest import random_sam
from predicted_rows import SIDE, predictions

from sam_lora.data.samples import read_samples
from sam_lora.model.batches import PromptedImages, batches, make_loader
from sam_lora.results import metrics
from sam_lora.results.validation import validation_scores
from sam_lora.training.losses import bce_iou


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


def batches_of(samples, batch_size: int):
    dataset = PromptedImages(samples, SIDE, 64, with_targets=True, with_masks=True)
    return batches(make_loader(dataset, SIDE, batch_size, 0, pin_memory=False))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_row_has_the_loss_and_iou_of_its_prediction(mini, crops, batch_size):
    samples = read_samples(crops.val_csv)
    scores = validation_scores(mini, batches_of(samples, batch_size), len(samples), contextlib.nullcontext(), bce_iou,
                               quiet=True)
    expected = [(found.loss, metrics.iou(found.mask, found.truth))
                for found in predictions(mini, samples, 4, targets=True, mask_loss=bce_iou)]
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-3)


def test_rows_of_other_processes_stay_zero(mini, crops):
    samples = read_samples(crops.val_csv)
    part = [batch for batch in batches_of(samples, 1) if 1 not in batch.rows]
    scores = validation_scores(mini, part, len(samples), contextlib.nullcontext(), bce_iou, quiet=True)
    assert scores[1].tolist() == [0, 0] and (scores[0] != 0).any() and (scores[2:, 0] != 0).all()
