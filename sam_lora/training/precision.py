"""The precision of a training run: autocast and the gradient scaler, the same in all processes."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from sam_lora.model import precision
from sam_lora.model.meta import Sam
from sam_lora.ranks import Ranks


@dataclass(frozen=True)
class Precision:
    """`name` is fp32, bf16 or fp16; `scaler` does nothing but for fp16, whose gradients would vanish without it."""

    name: str
    autocast: AbstractContextManager
    scaler: torch.amp.GradScaler


def choose_precision(name: str, device: torch.device, sam: Sam, ranks: Ranks) -> Precision:
    """--precision -> what a run computes in. Raises UserError for fp16 on a CPU."""
    chosen = precision.choose_precision(name, device, sam, ranks)
    return Precision(chosen, precision.autocast(chosen, device),
                     torch.amp.GradScaler(device.type, enabled=chosen == "fp16"))
