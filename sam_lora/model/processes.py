"""Several processes of one run: the few messages they exchange, and a folder that they fill together.

Without torchrun everything here works for a single process and costs nothing.
"""

import contextlib
import hashlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam_lora.errors import UserError
from sam_lora.files import staged_folder
from sam_lora.ranks import Ranks

MAY_DIFFER = ("device", "num_workers", "save_dir", "cache_dir", "cache_ram_gb")  # flags of machines, not of the run


@contextmanager
def joined(ranks: Ranks, backend: str, lost_peer: str, timeout: timedelta | None = None) -> Iterator[None]:
    """A block in which the processes of the run can reach one another by `backend`, nccl or gloo.

    `timeout`: how long one waits for another; None is PyTorch's default. When one process has died, torchrun sends
    SIGTERM to the others: there it raises a UserError with the message `lost_peer`.
    """
    if ranks.world_size == 1:
        yield
        return

    def stop(*_) -> None:
        if sys.exc_info()[0] is None:  # otherwise it is ending already, and shall finish cleaning up
            raise UserError(lost_peer)

    before = signal.signal(signal.SIGTERM, stop)
    # with NCCL a barrier would otherwise guess the GPU, and may hang
    bound = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else None
    torch.distributed.init_process_group(backend, timeout=timeout, device_id=bound)
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise once another process is gone
        if _is_lost_peer(error):
            raise UserError(lost_peer) from error
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


def gathered(value: Any, ranks: Ranks) -> list[Any]:
    """In the first process the `value` of each, by rank; nothing in the others. Values are what JSON can hold."""
    if ranks.world_size == 1:
        return [value]
    data = _bytes_of(value)
    sizes = [torch.zeros(1, dtype=torch.int64, device=data.device) for _ in range(ranks.world_size)]
    torch.distributed.all_gather(sizes, torch.tensor([len(data)], device=data.device))
    sizes = [int(size) for size in sizes]
    padded = data.new_zeros(max(sizes))
    padded[:len(data)] = data
    received = [torch.empty_like(padded) for _ in sizes] if ranks.first else None
    torch.distributed.gather(padded, received)
    return [_value_of(part[:size]) for part, size in zip(received or (), sizes)]


def told_by_first(value: Any, ranks: Ranks) -> Any:
    """The first process's `value`, which is what JSON can hold; that of the others does not matter."""
    if ranks.world_size == 1:
        return value
    data = _bytes_of(value)
    size = torch.tensor([len(data)], device=data.device)
    torch.distributed.broadcast(size, 0)
    if not ranks.first:
        data = data.new_empty(int(size))
    torch.distributed.broadcast(data, 0)
    return _value_of(data)


@contextmanager
def shared_folder(ranks: Ranks, final: str | Path, owned: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """`files.staged_folder` of the first process, into which all may write.

    It is finished when the first process leaves the block, which must have heard by then that the others have written.
    UserError where the folder is not to be seen.
    """
    if ranks.first:
        with staged_folder(final, owned, overwrite) as folder:
            told_by_first(str(folder.resolve()), ranks)
            yield folder
        return
    folder = Path(told_by_first(None, ranks))
    if not folder.is_dir():
        raise UserError(f"{folder}: made by another process of this run and not to be seen by this one; expected an "
                        "--output_dir on a disk that all machines share")
    yield folder


def _bytes_of(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_device())


def _value_of(data: Tensor) -> Any:
    return json.loads(data.cpu().numpy().tobytes())


def _device() -> torch.device:
    """Where tensors must be to be sent to the other processes."""
    if torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
