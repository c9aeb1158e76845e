"""Several processes that train one model, each on its part of every batch: gradients are averaged over them.

Which process this is, and other messages than gradients, are no matter of training: sam_lora/ranks and model/processes.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn

from sam_lora.model import processes
from sam_lora.model.precision import device_of_process
from sam_lora.model.processes import add_up, check_agreement, one_first
from sam_lora.ranks import Ranks, ranks_of_environment

__all__ = ["Ranks", "add_up", "check_agreement", "device_of_process", "joined", "no_exchange", "one_first",
           "ranks_of_environment", "replicate"]

LOST_PEER = ("another process of this run has ended or was killed, so this one stops too; "
             "the last finished epoch is in last.ckpt: go on with --resume")


def joined(ranks: Ranks, device: torch.device) -> AbstractContextManager[None]:
    """A block in which the processes of the run can reach one another: by NCCL on GPUs, by gloo on CPUs.

    Where another process has died it raises a UserError that says so.
    """
    if device.type == "cuda" and ranks.world_size > 1:
        torch.cuda.set_device(device)
    return processes.joined(ranks, "nccl" if device.type == "cuda" else "gloo", LOST_PEER)


class _Through(nn.Module):
    """A function of a module as a module's forward pass, which is all that DistributedDataParallel can wrap."""

    def __init__(self, function: Callable, module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *values):
        return self.function(self.module, *values)


def replicate(function: Callable, module: nn.Module, ranks: Ranks, device: torch.device) -> Callable:
    """`function(module, ...)` as a function of the remaining arguments.

    With several processes it goes through DistributedDataParallel: a backward pass leaves the mean of the processes'
    gradients in each of them.
    """
    if ranks.world_size == 1:
        return partial(function, module)
    return nn.parallel.DistributedDataParallel(_Through(function, module), broadcast_buffers=False,
                                               device_ids=[device] if device.type == "cuda" else None)


def no_exchange(function: Callable, unless: bool) -> AbstractContextManager[None]:
    """A block in which a backward pass of `replicate`'s function keeps its gradients to this process.

    For all batches of a step but the last, which passes on the sum: so `unless` the step ends here.
    """
    if not unless and isinstance(function, nn.parallel.DistributedDataParallel):
        return function.no_sync()
    return contextlib.nullcontext()
