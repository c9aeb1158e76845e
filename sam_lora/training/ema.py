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
        self.own = nn.ParameterList(parameters.values())  # holds the model's own parameters, not copies
        self.model = AveragedModel(self.own, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def update(self) -> None:
        """Take the parameters' present values in: after each step of the optimiser."""
        self.model.update_parameters(self.own)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold their averages; afterwards their own values again."""
        kept = [parameter.detach().clone() for parameter in self.own]
        self._copy(self.model.module)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, values) -> None:
        for parameter, value in zip(self.own, values):
            parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """A CPU copy of the averages by name, and under `n_averaged` how many updates there were."""
        state = {name: value.detach().cpu().clone() for name, value in zip(self.names, self.model.module)}
        return state | {"n_averaged": self.model.n_averaged.cpu().clone()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take `state` back. KeyError or RuntimeError if it is another model's."""
        for name, value in zip(self.names, self.model.module):
            value.copy_(state[name])
        self.model.n_averaged.copy_(state["n_averaged"])
