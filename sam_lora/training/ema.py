"""An exponential moving average of the weights that train (Polyak & Juditsky 1992), by torch's own AveragedModel."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Averages of named parameters: average = decay * average + (1 - decay) * parameter, after every `update`.

    The first update copies the parameters. Only what trains is copied, not the frozen base.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.names = list(parameters)
        self.parameters = nn.ParameterList(parameters.values())  # the model's parameters themselves, not copies
        self.model = AveragedModel(self.parameters, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.model.n_averaged = self.model.n_averaged.cpu()      # every update looks at it: no wait for the GPU

    def update(self) -> None:
        """Take in the parameters' present values: after each step of the optimiser."""
        self.model.update_parameters(self.parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A block in which the parameters hold their averages; afterwards they hold their own values again."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        self._copy(self.model.module)
        try:
            yield
        finally:
            self._copy(before)

    @torch.no_grad()
    def _copy(self, values) -> None:
        for parameter, value in zip(self.parameters, values):
            parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """A CPU copy of the averages by name, and under `n_averaged` how many updates there were."""
        state = {name: value.detach().cpu().clone() for name, value in zip(self.names, self.model.module)}
        return state | {"n_averaged": self.model.n_averaged.cpu().clone()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put `state` back. KeyError or RuntimeError if it is another model's."""
        for name, value in zip(self.names, self.model.module):
            value.copy_(state[name])
        self.model.n_averaged.copy_(state["n_averaged"])
