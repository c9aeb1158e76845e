"""The stages of pretraining."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import stages


def test_the_learning_rate_warms_up_and_falls():
    rates = [stages.learning_rate(1e-3, 0.0, step, 10, progress)
             for step, progress in ((0, 0), (9, 0), (99, 0.5), (999, 1))]
    assert rates == pytest.approx([1e-4, 1e-3, 5e-4, 0])


def test_each_stage_ends_at_half_its_rate_and_the_last_at_zero():
    first, last = stages.make_stages([128, 256], [30, 65], [16, 8], [4, 4], [1e-3, 7e-4])
    assert (first.number, first.side, first.seconds, first.images, first.masks) == (0, 128, 1800, 16, 4)
    assert (first.rate, first.last_rate) == (1e-3, 5e-4) and (last.rate, last.last_rate) == (7e-4, 0)


@pytest.mark.parametrize("spoilt", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_counts_as_zero(spoilt):
    model = torch.nn.Linear(3, 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    stages.clip_gradients(model, 1.0)
    assert torch.nn.utils.get_total_norm([model.weight.grad, model.bias.grad]) == pytest.approx(1, abs=1e-4)
    model.bias.grad[0] = spoilt
    stages.clip_gradients(model, 1.0)
    assert not model.weight.grad.any() and not model.bias.grad.any()
