"""Muon: momentum with orthogonalised steps, for the weight matrices inside a network (Jordan et al. 2024).

torch.optim.Muon iterates in bfloat16, which a CPU without bfloat16 units emulates ten times slower; this one takes the
type to iterate in, and handles all matrices of one shape together.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sam_lora.model.meta import Sam


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(K, rows, columns) -> roughly the nearest matrices with all singular values one: quintic Newton-Schulz."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Steps are scaled to the usual size of AdamW's, so that both take the same learning rate and weight decay."""

    def __init__(self, params: Iterable[Tensor] | list[dict], lr: float, momentum: float = 0.95,
                 weight_decay: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype  # of the iterations; weights and momenta keep theirs
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            by_shape: dict[torch.Size, list[int]] = {}
            for index, parameter in enumerate(parameters):
                by_shape.setdefault(parameter.shape, []).append(index)
            for shape, members in by_shape.items():
                updates = orthogonalise(torch.stack([directions[index] for index in members]).to(self.dtype))
                updates = updates.to(parameters[members[0]].dtype)
                size = 0.2 * max(shape) ** 0.5
                torch._foreach_add_([parameters[index] for index in members], list(updates),
                                    alpha=-group["lr"] * size)


def make_optimisers(sam: Sam, weight_decay: float, dtype: torch.dtype = torch.float32) -> list[torch.optim.Optimizer]:
    """[Muon for the matrices between features, AdamW for everything else]; `lr_scale` multiplies the learning rate.

    The patch embedding learns at a tenth of the rate: its inputs are so much alike that a full step upsets everything.
    """
    matrices = [module.weight for module in sam.modules() if isinstance(module, nn.Linear) and module.out_features > 4]
    patch = list(sam.image_encoder.patch_embed.parameters())
    taken = {id(parameter) for parameter in matrices + patch}
    rest = [parameter for parameter in sam.parameters() if id(parameter) not in taken]
    return [Muon([{"params": matrices, "lr_scale": 2.0}], lr=1e-3, weight_decay=weight_decay, dtype=dtype),
            torch.optim.AdamW([{"params": rest, "lr_scale": 1.0}, {"params": patch, "lr_scale": 0.1}], lr=1e-3,
                              betas=(0.9, 0.99), weight_decay=0.0, fused=True)]
