"""An exponential moving average of the weights that train (Polyak & Juditsky 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Averages of named parameters: average = decay * average + (1 - decay) * parameter, after every `update`.

    The first update copies the parameters. Only what trains is copied, not the frozen base. torch's AveragedModel does
    the same, but sends its count to the GPU at every update, for which the host waits.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)  # the model's parameters themselves, not copies
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.blend = get_ema_multi_avg_fn(decay)
        self.updates = 0

    def update(self) -> None:
        """Take in the parameters' present values: after each step of the optimiser."""
        if self.updates:
            self.blend(list(self.averages.values()), [value.detach() for value in self.parameters.values()], None)
        else:
            self._copy(self.parameters, self.averages)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A block in which the parameters hold their averages; afterwards they hold their own values again."""
        before = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._copy(self.averages, self.parameters)
        try:
            yield
        finally:
            self._copy(before, self.parameters)

    def state(self) -> dict[str, Tensor]:
        """A CPU copy of the averages by name, and under `n_averaged` how many updates there were."""
        state = {name: value.to("cpu", copy=True) for name, value in self.averages.items()}
        return state | {"n_averaged": torch.tensor(self.updates)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put `state` back. KeyError or RuntimeError if it is another model's."""
        self._copy(state, self.averages)
        self.updates = int(state["n_averaged"])

    @staticmethod
    @torch.no_grad()
    def _copy(values: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
        for name, tensor in to.items():
            tensor.copy_(values[name])
