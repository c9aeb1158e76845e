"""Where a model computes, and in what precision."""

import contextlib
import os
import sys
import time
import warnings
from contextlib import AbstractContextManager

import torch

from sam_lora.errors import UserError
from sam_lora.model import nvidia
from sam_lora.model.meta import Sam
from sam_lora.model.processes import add_up
from sam_lora.ranks import Ranks


def select_device(name: str) -> torch.device:
    """"auto" -> cuda, else mps, else cpu. UserError for any other name that this machine does not have.

    An NVIDIA card that is there but that torch cannot use is reported with what to install: for "auto" in one line on
    stderr, once on each machine of a torchrun, for "cuda" in the error.
    """
    if name == "auto":
        complaint = _complaint_of("cuda")
        if complaint is None:
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        _report_unused_card(complaint)
        return torch.device("cpu")
    complaint = _complaint_of(name)
    if complaint is None:
        return torch.device(name)
    if name.partition(":")[0] == "cuda" and (reason := _why_unused(complaint)):
        raise UserError(f"--device {name}: not available here: {reason}")
    raise UserError(f"--device {name}: not available here ({complaint}); expected auto, cuda, cuda:N, mps or cpu")


def _complaint_of(device: str) -> str | None:
    """The first line of what torch says when it is to compute on `device`; None if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a driver or card too old: also in the error that follows
            torch.ones(1, device=device).add_(1)  # a kernel: an old card has memory to give and then cannot compute
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0].strip() or type(error).__name__
    return None


def _why_unused(complaint: str) -> str | None:
    """One line on why torch, with this `complaint`, cannot use the NVIDIA card that is there; None if none is there.

    None, too, where torch works with the cards: then the complaint is about a number that no card has, or a full card.
    """
    if torch.cuda.is_available() and "no kernel image" not in complaint:
        return None
    card = nvidia.find_card()
    build = nvidia.TorchBuild(torch.__version__, torch.version.cuda)
    return card and nvidia.why_unused(card, build, complaint, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _report_unused_card(complaint: str) -> None:
    if nvidia.hidden(os.environ.get("CUDA_VISIBLE_DEVICES")) or os.environ.get("LOCAL_RANK", "0") != "0":
        return  # as the user wants it, or said by the first process of this machine
    reason = _why_unused(complaint) or (complaint if torch.cuda.is_available() else None)
    if reason:
        print(f"warning: going on on the CPU: {reason}", file=sys.stderr)


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


def choose_precision(name: str, device: torch.device, sam: Sam, ranks: Ranks) -> str:
    """--precision -> fp32, bf16 or fp16, the same in all processes of a run.

    auto: on a GPU bf16, or fp16 if it has no bf16; on CPUs bf16 if it is faster on all machines of the run. On a GPU
    products of float32 matrices are TF32 from here on, on a CPU as `multiply_faster` says. Raises UserError for fp16 on
    a CPU.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    elif device.type == "cpu":
        multiply_faster()
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        if device.type != "cpu":
            return "fp32"
        return "bf16" if add_up([bf16_is_faster(sam)], ranks).item() == ranks.world_size else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; on the CPU give fp32 or bf16")
    return name


def multiply_faster() -> None:
    """Let PyTorch multiply float32 matrices by oneDNN on the CPU from here on, unless that loses precision.

    It takes MKL, which leaves AVX-512 alone on AMD's processors, and oneDNN, in half the time there, only where
    products may be less precise. On most CPUs oneDNN makes no use of that; where it does (AMX), all stays as it was.
    """
    torch.set_float32_matmul_precision("medium")
    numbers = torch.full((256, 256), 1 + 2**-12)  # 1 in bfloat16 and in TF32
    if (numbers @ numbers).min() < 256.1:         # 256.125 in float32
        torch.set_float32_matmul_precision("highest")


def autocast(name: str, device: torch.device) -> AbstractContextManager:
    """The block in which a model computes in `name`: fp32, bf16 or fp16."""
    if name == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[name])


def bf16_is_faster(sam: Sam, margin: float = 1.5) -> bool:
    """Does this CPU multiply matrices of the model's width at least `margin` times as fast in bfloat16 as in float32?

    Measured only where it has instructions for bfloat16 (elsewhere that is emulated, ten times slower), and only for
    SAM's own sizes: a small model spends its time elsewhere. The margin is wide, and the best of ten tries counts, so
    that noise does not decide.
    """
    width = sam.image_encoder.pos_embed.shape[-1]
    if width < 512 or not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        tokens, weight = torch.ones(2048, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
        times = []
        for _ in range(10):
            started = time.perf_counter()
            torch.mm(tokens, weight)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    return seconds[torch.float32] > margin * seconds[torch.bfloat16]
