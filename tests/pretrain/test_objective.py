"""What a training step minimises: prompts that fit their masks, losses, gradients for every part."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_lora.model.prompts import Prompts
from sam_lora.model.sam import build_sam

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import objective
from scene_batches import Batches
from starting_weights import initialise


@pytest.fixture(scope="module")
def batch():
    return next(iter(Batches(3, 64, 3, 4, 0.2)))


def test_prompts_keep_the_pairing_of_points_and_masks(batch):
    rng = np.random.default_rng(0)
    for _ in range(30):
        prompts, alone = objective.draw_prompts(rng, batch)
        counts = (prompts.point_labels >= 0).sum(dim=1)
        boxed = ~prompts.boxes.isnan().any(dim=1)
        assert (counts + boxed > 0).all()
        assert (alone == ((counts == 1) & ~boxed)).all()
        for row in range(len(counts)):
            for x, y, label in zip(*prompts.point_coords[row].T.int().tolist(), prompts.point_labels[row].tolist()):
                if label >= 0:
                    assert batch["masks"][row, y // 2, x // 2] == label


def test_a_correction_clicks_where_the_prediction_is_wrong(batch):
    masks = batch["masks"]
    count = len(masks)
    prompts = Prompts(batch["positive"][:, :2], torch.ones(count, 2), batch["boxes"])
    logits = torch.where(torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)) < 0.9, 1.0, -1.0)
    better = objective.correction(logits, masks, prompts)
    assert better.point_labels.shape == (count, 3)
    x, y = (better.point_coords[:, 2] // 2).long().T
    rows = torch.arange(count)
    assert ((logits[rows, y, x] > 0) != (masks[rows, y, x] > 0)).all()
    assert (better.point_labels[:, 2] == masks[rows, y, x]).all()


@pytest.mark.parametrize("sharpness", [0.0, 1.0])
def test_the_loss_is_lowest_for_the_right_mask(sharpness):
    masks = torch.zeros(1, 12, 20, dtype=torch.uint8)
    masks[0, 3:8, 5:15] = 1
    signs = masks[:, None].float() * 2 - 1
    logits = torch.cat([signs * 8, -torch.ones_like(signs) * 8, signs.roll(4, 3) * 8], dim=1)
    losses, iou = objective.mask_losses(logits, masks, sharpness)
    assert losses[0].argmin() == 0
    assert losses[0, 0] < 0.05
    assert iou[0].tolist() == pytest.approx([1, 0, 6 / 14])


def test_training_gradients_reach_every_part(batch):
    sam = build_sam("vit_mini", 64).train()
    initialise(sam, batch)
    rng = np.random.default_rng(2)
    for _ in range(8):  # kinds of prompts are drawn at random: enough draws to meet them all
        loss, _ = objective.training_loss(sam, batch, rng)
        loss.backward()
    without = {name for name, parameter in sam.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    ambiguous = {name for name in without if any(f"hypernetworks_mlps.{i}." in name for i in (1, 2, 3))}
    assert len(ambiguous) <= 12  # of three times six: the best of three masks learns, the others not
    assert without - ambiguous == set()
