"""Several processes that train one model: torchrun's environment, and the few things they tell one another.

torchrun starts the same script once for each GPU and says in RANK, WORLD_SIZE and LOCAL_RANK which one it is. Without
torchrun everything here works for a single process and costs nothing.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sam_lora.errors import UserError

LOST_PEER = ("another process of this run has ended or was killed, so this one stops too; "
             "the last finished epoch is in last.ckpt: go on with --resume")


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is; `local_rank` counts the processes of this machine only."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """The process that prints and writes."""
        return self.rank == 0


def ranks_of_environment() -> Ranks:
    """What torchrun says; a single process without it. UserError for values that are no such numbers."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        ranks = Ranks(*(int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0))))
    except ValueError as error:
        raise UserError(f"environment variables {', '.join(names)}: expected numbers as torchrun sets them; "
                        "unset them, or start with torchrun") from error
    if not 0 <= ranks.rank < ranks.world_size:
        raise UserError(f"environment variables RANK {ranks.rank} and WORLD_SIZE {ranks.world_size}: expected RANK "
                        "below WORLD_SIZE; unset them, or start with torchrun")
    return ranks


def own_device(name: str, ranks: Ranks) -> str:
    """`--device` for this process: with several on a machine each takes the GPU of its number."""
    if ranks.world_size == 1 or name not in ("auto", "cuda"):
        return name
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if ranks.local_rank >= torch.cuda.device_count():
        raise UserError(f"process {ranks.local_rank} of this machine has no GPU of its own: "
                        f"{torch.cuda.device_count()} found; give torchrun --nproc_per_node as many as there are GPUs")
    return f"cuda:{ranks.local_rank}"


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Within the block the processes of the run can reach one another: NCCL on GPUs, gloo on CPUs.

    SIGTERM, with which torchrun ends the others when one process has died, is a UserError that says so.
    """
    if ranks.world_size == 1:
        yield
        return

    def stop(*_) -> None:
        raise UserError(LOST_PEER)

    before = signal.signal(signal.SIGTERM, stop)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's own complaint when a peer is gone, wherever it comes up
        if _is_lost_peer(error):
            raise UserError(LOST_PEER) from error
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()
        signal.signal(signal.SIGTERM, before)


def _is_lost_peer(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        sign in text for sign in ("connection closed", "connection reset", "broken pipe", "gloo", "nccl"))


@contextmanager
def one_first(ranks: Ranks) -> Iterator[None]:
    """Rank 0 goes through the block while the others wait, then they do: for what is downloaded, or checked, once."""
    if ranks.world_size > 1 and not ranks.first:
        torch.distributed.barrier()
    yield
    if ranks.world_size > 1 and ranks.first:
        torch.distributed.barrier()


def check_agreement(ranks: Ranks, digest: bytes, what: str) -> None:
    """UserError unless every process brings the same `digest`, which is one of `what`."""
    if ranks.world_size == 1:
        return
    own = torch.tensor(list(digest), dtype=torch.int64, device=_device())
    first = own.clone()
    torch.distributed.broadcast(first, 0)
    differs = torch.tensor([float(not torch.equal(own, first))], device=own.device)
    torch.distributed.all_reduce(differs)
    if differs.item():
        raise UserError(f"{what} differ between the processes of this run; "
                        "start all of them with the same command on the same files")


def add_up(values: Sequence[float] | Tensor, ranks: Ranks) -> Tensor:
    """(K,) float64: each value summed over all processes, the same on every one."""
    total = torch.as_tensor(values, dtype=torch.float64)
    if ranks.world_size > 1:
        device = _device()
        total = total.to(device)
        torch.distributed.all_reduce(total)
    return total.cpu()


class _Through(nn.Module):
    """A function of a module as a forward pass, for DistributedDataParallel sees only what passes through one."""

    def __init__(self, function: Callable, module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *values):
        return self.function(self.module, *values)


def replicate(function: Callable, module: nn.Module, ranks: Ranks, device: torch.device) -> Callable:
    """`function(module, ...)` as a function of the rest.

    With several processes it goes through DistributedDataParallel, so that a backward pass leaves the same gradients,
    the mean over all processes, on every one.
    """
    if ranks.world_size == 1:
        return partial(function, module)
    return nn.parallel.DistributedDataParallel(_Through(function, module), broadcast_buffers=False,
                                               device_ids=[device] if device.type == "cuda" else None)


def without_exchange(function: Callable, wanted: bool) -> contextlib.AbstractContextManager:
    """A block in which the backward pass of `replicate`'s function leaves gradients at home, if `wanted`.

    For all batches but the last of an accumulation.
    """
    if wanted and isinstance(function, nn.parallel.DistributedDataParallel):
        return function.no_sync()
    return contextlib.nullcontext()


def _device() -> torch.device:
    """Where tensors must be for the processes' messages."""
    if torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
