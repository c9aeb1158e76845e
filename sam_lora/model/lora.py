"""LoRA on SAM through peft: add it, count and check what trains, merge it.

A low-rank pair beside a frozen linear layer W (out x in):   y = W x + (alpha / rank) * B A x
    A (rank x in) starts at random, B (out x rank) at zero, so training starts from exactly the base model.

segment_anything's image encoder has one fused `qkv` layer per block. The names `q_proj` and `v_proj`, common in other
ViTs, would match 14 layers of the mask decoder and none of the encoder; so only layers of `image_encoder.blocks` are
targeted, and the adapted layers are counted.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import nn

from sam_lora.errors import UserError
from sam_lora.model.meta import Sam
from sam_lora.sam_types import LORA_TARGETS


@dataclass(frozen=True)
class LoraSettings:
    """Which layers get a low-rank pair, and what kind of pair.

    `targets` are keys of LORA_TARGETS; `blocks` counts the encoder's last blocks to adapt, None takes all of them.
    `rslora` scales by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023); `dora` also trains the length
    of each output's weight vector, apart from its direction (Liu et al. 2024).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("qkv",)
    blocks: int | None = None
    rslora: bool = False
    dora: bool = False

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "LoraSettings":
        """From the entry `lora` of a checkpoint's header; the first checkpoints lack `rslora` and `dora`."""
        known = {field.name: header[field.name] for field in fields(cls) if field.name in header}
        return cls(**known | {"targets": tuple(header["targets"])})

    def to_header(self) -> dict[str, Any]:
        """The entry `lora` of a checkpoint's header, in plain types."""
        return asdict(self) | {"targets": list(self.targets)}


def add_lora(sam: Sam, settings: LoraSettings) -> list[str]:
    """Freeze `sam` and put LoRA beside the chosen layers of its image encoder; return the adapted layers' names.

    Raises UserError when the SAM has too few blocks, or the adapted layers are not exactly targets x blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer
    depth = len(sam.image_encoder.blocks)
    count = depth if settings.blocks is None else settings.blocks
    if not 0 <= count <= depth:
        raise UserError(f"--lora_blocks {settings.blocks}: this SAM has {depth} blocks")
    sam.requires_grad_(False)
    if count == 0:
        return []
    numbers = "|".join(str(number) for number in range(depth - count, depth))
    layers = "|".join(re.escape(LORA_TARGETS[target]) for target in settings.targets)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, bias="none",
                        use_rslora=settings.rslora, use_dora=settings.dora,
                        target_modules=rf"image_encoder\.blocks\.({numbers})\.({layers})")
    inject_adapter_in_model(config, sam)
    for module in sam.modules():
        if type(module) is Linear:
            module.__class__ = fused_linear()
    adapted = [name for name, module in sam.named_modules() if isinstance(module, LoraLayer)]
    expected = count * len(set(settings.targets))
    if len(adapted) != expected or not all(name.startswith("image_encoder.") for name in adapted):
        raise UserError(f"LoRA was added to {len(adapted)} layers, expected {expected}, all in the image encoder")
    return adapted


@cache
def fused_linear() -> type[nn.Module]:
    """peft's LoRA layer with its last product, scaling and sum in one call, which saves two passes over the output."""
    from peft.tuners.lora import Linear

    class FusedLinear(Linear):
        def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
            name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
            if self.disable_adapters or self.merged or args or kwargs or name not in self.lora_A or self.lora_variant:
                return super().forward(x, *args, **kwargs)
            base, up = self.base_layer(x), self.lora_B[name]
            low = self.lora_A[name](self.lora_dropout[name](x))
            if up.bias is not None or base.dtype != low.dtype:
                return super().forward(x)
            weight = (up.weight * self.scaling[name]).T                 # (rank, out)
            return torch.addmm(base.flatten(0, -2), low.flatten(0, -2), weight).view(base.shape)

    return FusedLinear


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_gradients(model: nn.Module) -> None:
    """Raise UserError unless every trainable tensor has a finite gradient.

    At the first step LoRA's A has a gradient of zero, because B is zero; zero counts as finite.
    """
    bad = [name for name, parameter in trainable_parameters(model).items()
           if parameter.grad is None or not bool(torch.isfinite(parameter.grad).all())]
    if bad:
        raise UserError(f"after the first backward pass {len(bad)} trainable tensors have no finite gradient, "
                        f"e.g. {bad[0]}; try --precision fp32 or a smaller --learning_rate")


def merge_lora(sam: Sam) -> None:
    """Fold every low-rank pair into its base layer, in place; `sam` then has the keys of Meta's release again."""
    from peft.tuners.lora import LoraLayer
    for name, module in list(sam.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(sam.get_submodule(parent), child, module.get_base_layer())
