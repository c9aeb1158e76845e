"""Several processes that train one model: torchrun's environment, and the few messages they exchange.

torchrun starts the same script once for each GPU, with its number in RANK, WORLD_SIZE and LOCAL_RANK. Without torchrun
everything here works for a single process and costs nothing.
"""

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sam_lora.errors import UserError
from sam_lora.model.precision import select_device

LOST_PEER = ("another process of this run has ended or was killed, so this one stops too; "
             "the last finished epoch is in last.ckpt: go on with --resume")
MAY_DIFFER = ("device", "num_workers", "save_dir", "cache_dir", "cache_ram_gb")  # flags of machines, not of the run


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

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.first:
            print(text)


def ranks_of_environment() -> Ranks:
    """Which process torchrun made this; the only one without torchrun. UserError if the variables are no numbers."""
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


def device_of_process(name: str, ranks: Ranks) -> str:
    """`--device` for this process: with several on a machine, each takes the GPU of its number."""
    if ranks.world_size == 1 or name not in ("auto", "cuda"):
        return name
    if not torch.cuda.is_available():
        select_device(name)  # says why, where there is a card; an error for "cuda"
        return "cpu"
    if ranks.local_rank >= torch.cuda.device_count():
        raise UserError(f"process {ranks.local_rank} of this machine has no GPU of its own: "
                        f"{torch.cuda.device_count()} found; give torchrun --nproc_per_node as many as there are GPUs")
    return f"cuda:{ranks.local_rank}"


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """A block in which the processes of the run can reach one another: by NCCL on GPUs, by gloo on CPUs.

    When one process has died, torchrun sends SIGTERM to the others: there it raises a UserError that says so.
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
    except RuntimeError as error:  # what gloo and NCCL raise once another process is gone
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
    """A block that rank 0 passes first, then the others: for what is downloaded, or checked, once."""
    if ranks.world_size > 1 and not ranks.first:
        torch.distributed.barrier()
    yield
    if ranks.world_size > 1 and ranks.first:
        torch.distributed.barrier()


def check_agreement(ranks: Ranks, flags: Mapping[str, object], tables: Sequence[str | None]) -> None:
    """UserError unless all processes have the same `flags`, but for MAY_DIFFER, and the same content in `tables`."""
    if ranks.world_size == 1:
        return
    shared = sorted((name, value) for name, value in flags.items() if name not in MAY_DIFFER)
    sha256 = hashlib.sha256(repr(shared).encode())
    for path in filter(None, tables):
        sha256.update(Path(path).read_bytes())
    digest = sha256.digest()
    ours = torch.tensor(list(digest), dtype=torch.int64, device=_device())
    first = ours.clone()
    torch.distributed.broadcast(first, 0)
    differs = torch.tensor([float(not torch.equal(ours, first))], device=ours.device)
    torch.distributed.all_reduce(differs)
    if differs.item():
        raise UserError("the flags or tables differ between the processes of this run; "
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


def no_exchange(function: Callable, unless: bool) -> contextlib.AbstractContextManager:
    """A block in which a backward pass of `replicate`'s function keeps its gradients to this process.

    For all batches of a step but the last, which passes on the sum: so `unless` the step ends here.
    """
    if not unless and isinstance(function, nn.parallel.DistributedDataParallel):
        return function.no_sync()
    return contextlib.nullcontext()


def _device() -> torch.device:
    """Where tensors must be to be sent to the other processes."""
    if torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
