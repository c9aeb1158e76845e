"""The moving average of weights: its formula, applying it for a while, and its state."""

import pytest
import torch
from torch import nn

from sam_lora.training.ema import WeightAverage


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def moved(layer, steps, average):
    """The layer after `steps` random moves, and what the average should be, computed the plain way."""
    expected, generator = None, torch.Generator().manual_seed(1)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        average.update()
        now = [parameter.detach().clone() for parameter in layer.parameters()]
        expected = now if expected is None else [0.9 * old + 0.1 * new for old, new in zip(expected, now)]
    return expected


def test_it_is_the_average_the_formula_says(layer):
    average = WeightAverage(dict(layer.named_parameters()), 0.9)
    expected = moved(layer, 4, average)
    state = average.state()
    assert list(state) == ["weight", "bias", "n_averaged"] and state["n_averaged"] == 4
    for name, value in zip(("weight", "bias"), expected):
        assert torch.allclose(state[name], value, atol=1e-6)


def test_applied_for_a_block_and_put_back_even_after_an_error(layer):
    average = WeightAverage(dict(layer.named_parameters()), 0.9)
    expected = moved(layer, 3, average)
    own = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="inside"), average.applied():
        assert torch.allclose(layer.weight, expected[0], atol=1e-6)
        assert not torch.equal(layer.weight, own)
        raise ValueError("inside")
    assert torch.equal(layer.weight, own)


def test_a_loaded_state_goes_on_as_if_never_stopped(layer):
    first = WeightAverage(dict(layer.named_parameters()), 0.9)
    moved(layer, 3, first)
    second = WeightAverage(dict(layer.named_parameters()), 0.9)
    second.load_state(first.state())
    for average in (first, second):
        average.update()
    assert all(torch.equal(a, b) for a, b in zip(first.state().values(), second.state().values()))
    with pytest.raises(KeyError):
        WeightAverage({"other": layer.weight}, 0.9).load_state(first.state())
