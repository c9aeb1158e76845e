"""What a training step minimises: losses, and gradients for every part."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_lora.model.sam import build_sam

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import objective
from scene_batches import Batches
from starting_weights import initialise


@pytest.fixture(scope="module")
def batch():
    return next(iter(Batches(3, 64, 3, 4, 0.2)))


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
    chance = objective.Chance(np.random.default_rng(2), torch.Generator().manual_seed(2))
    for _ in range(8):  # kinds of prompts are drawn at random: enough draws to meet them all
        loss, _ = objective.training_loss(sam, batch, chance)
        loss.backward()
    without = {name for name, parameter in sam.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    ambiguous = {name for name in without if any(f"hypernetworks_mlps.{i}." in name for i in (1, 2, 3))}
    assert len(ambiguous) <= 12  # of three times six: the best of three masks learns, the others not
    assert without - ambiguous == set()


def test_a_single_image_trains(batch):
    alone = {name: tensor[:1 if name in ("images", "input_sizes") else 4] for name, tensor in batch.items()}
    chance = objective.Chance(np.random.default_rng(0), torch.Generator().manual_seed(0))
    loss, iou = objective.training_loss(build_sam("vit_mini", 64), alone, chance)
    assert loss.isfinite()
    assert iou.shape == (4,)
