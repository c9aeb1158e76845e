"""Muon, and which weights it gets."""

import sys
from pathlib import Path

import pytest
import torch

from sam_lora.model.sam import build_sam

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import muon


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    for wide in (matrices, matrices.transpose(1, 2)):
        values = torch.linalg.svdvals(muon.orthogonalise(wide))
        assert values.min() > 0.6
        assert values.max() < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_lowers_a_least_squares_loss(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(8, 5, requires_grad=True)
    inputs, wanted = torch.randn(64, 8, generator=generator), torch.randn(64, 5, generator=generator)
    optimiser = muon.Muon([weight], lr=0.05, dtype=dtype)
    losses = []
    for _ in range(60):
        loss = (inputs @ weight - wanted).square().mean()
        loss.backward()
        optimiser.step()
        weight.grad = None
        losses.append(loss.item())
    assert weight.dtype == torch.float32
    best = (inputs @ torch.linalg.lstsq(inputs, wanted).solution - wanted).square().mean().item()
    assert losses[0] > best + 0.05
    assert losses[-1] < best + 0.02


def test_every_weight_belongs_to_one_optimiser():
    sam = build_sam("vit_mini", 64)
    owned = [id(parameter) for optimiser in muon.make_optimisers(sam, 0.05)
             for group in optimiser.param_groups for parameter in group["params"]]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(parameter) for parameter in sam.parameters()}
