"""Linear layers on a CPU by oneDNN, which PyTorch ships but only asks for half precision.

PyTorch multiplies float32 matrices by MKL, which leaves AVX-512 alone on AMD's processors: oneDNN takes less than half
the time there (benchmarks/RESULTS.md, Inference). The results differ by rounding.
"""

from functools import cache

import torch
from torch import Tensor, nn

FEWEST_ROWS = 128  # below them the call itself is what takes time


@cache
def has_onednn_linear() -> bool:
    """Is there an AVX-512 CPU and a PyTorch with the operation that torch.compile uses for linear layers?"""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class FastLinear(nn.Linear):
    """A linear layer that predicts by oneDNN where that can be faster; it has no gradient there, so training does not.

    The choice depends on the machine and the layer's input only, so that runs on one machine agree.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not (torch.is_inference_mode_enabled() and has_onednn_linear()) or self.weight.dtype != torch.float32 \
                or x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() < FEWEST_ROWS * self.in_features \
                or torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def speed_up_linear(model: nn.Module) -> None:
    """Make the linear layers of `model` FastLinear. Parameters and their names stay the same."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
