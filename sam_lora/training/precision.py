"""The precision of a training run: autocast and the gradient scaler, the same in all processes."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from sam_lora.model import precision
from sam_lora.model.meta import Sam
from sam_lora.training import distributed
from sam_lora.training.distributed import Ranks


@dataclass(frozen=True)
class Precision:
    """`name` is fp32, bf16 or fp16; `scaler` does nothing but for fp16, whose gradients would vanish without it."""

    name: str
    autocast: AbstractContextManager
    scaler: torch.amp.GradScaler


def choose_precision(name: str, device: torch.device, sam: Sam, ranks: Ranks) -> Precision:
    """--precision -> what a run computes in. On CPUs auto is bf16 only if it is faster on all machines of the run.

    Matrix products in float32 on a GPU are TF32. Raises UserError for fp16 on a CPU.
    """
    chosen = precision.choose_precision(name, device, sam)
    if name == "auto" and device.type == "cpu":
        everywhere = distributed.add_up([chosen == "bf16"], ranks).item() == ranks.world_size
        chosen = "bf16" if everywhere else "fp32"
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return Precision(chosen, precision.autocast(chosen, device),
                     torch.amp.GradScaler(device.type, enabled=chosen == "fp16"))
