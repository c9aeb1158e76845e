"""LoRA on SAM through peft: add it, count and check what trains, merge it.

A low-rank pair beside a frozen linear layer W (out x in):   y = W x + (alpha / rank) * B A x
    A (rank x in) starts random, B (out x rank) starts at zero, so the first step still is the base model.

segment_anything's image encoder has one fused `qkv` layer per block. The names `q_proj` and `v_proj`, which a ViT from
elsewhere would have, match 14 layers of the mask decoder here and none of the encoder; so targets are named within
`image_encoder.blocks`, and the count of adapted layers is checked.
"""

import re
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from sam_lora.errors import UserError
from sam_lora.model.meta import Sam

TARGETS = {"qkv": "attn.qkv", "proj": "attn.proj", "lin1": "mlp.lin1", "lin2": "mlp.lin2"}


def add_lora(sam: Sam, rank: int, alpha: float, dropout: float, targets: Sequence[str],
             blocks: int | None = None, rslora: bool = False, dora: bool = False) -> list[str]:
    """Freeze `sam` and put LoRA beside the named layers of its image encoder; return the adapted layers' names.

    `targets` are keys of TARGETS; `blocks` is the number of last blocks to adapt, None for all. `rslora` scales by
    alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023); `dora` trains the length of each output's weights
    beside their direction (Liu et al. 2024). Raises UserError when the count of adapted layers is not targets x blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer
    depth = len(sam.image_encoder.blocks)
    count = depth if blocks is None else blocks
    if not 0 <= count <= depth:
        raise UserError(f"--lora_blocks {blocks}: this SAM has {depth} blocks")
    sam.requires_grad_(False)
    if count == 0:
        return []
    numbers = "|".join(str(number) for number in range(depth - count, depth))
    layers = "|".join(re.escape(TARGETS[target]) for target in targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none",
                        use_rslora=rslora, use_dora=dora,
                        target_modules=rf"image_encoder\.blocks\.({numbers})\.({layers})")
    inject_adapter_in_model(config, sam)
    for module in sam.modules():
        if type(module) is Linear:
            module.__class__ = fused_linear()
    adapted = [name for name, module in sam.named_modules() if isinstance(module, LoraLayer)]
    if len(adapted) != count * len(set(targets)) or not all(name.startswith("image_encoder.") for name in adapted):
        raise UserError(f"LoRA reached {len(adapted)} layers, "
                        f"expected {count * len(set(targets))} in the image encoder")
    return adapted


@cache
def fused_linear() -> type[nn.Module]:
    """peft's LoRA layer, whose last product adds to the base layer's output: no passes over it to scale and to add."""
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
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_gradients(model: nn.Module) -> None:
    """Raise UserError unless every trainable tensor has a finite gradient.

    LoRA's A has a zero one at step 1, since B is zero; zero is finite.
    """
    bad = [name for name, parameter in trainable_parameters(model).items()
           if parameter.grad is None or not bool(torch.isfinite(parameter.grad).all())]
    if bad:
        raise UserError(f"after the first backward {len(bad)} trainable tensors have no finite gradient, "
                        f"e.g. {bad[0]}; try --precision fp32 or a smaller --learning_rate")


def merge_lora(sam: Sam) -> None:
    """Fold every low-rank pair into its base layer, in place; afterwards `sam` has Meta's own keys again."""
    from peft.tuners.lora import LoraLayer
    for name, module in list(sam.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(sam.get_submodule(parent), child, module.get_base_layer())
