"""Where a model computes, and in what precision."""

import contextlib
import time
from contextlib import AbstractContextManager

import torch

from sam_lora.errors import UserError
from sam_lora.model.meta import Sam


def select_device(name: str) -> torch.device:
    """"auto" -> cuda, else mps, else cpu. UserError for any other name that this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here ({str(error).splitlines()[0]}); "
                        "expected auto, cuda, cuda:N, mps or cpu") from error
    return device


def choose_precision(name: str, device: torch.device, sam: Sam) -> str:
    """--precision -> fp32, bf16 or fp16. auto: on a GPU bf16, or fp16 if it has no bf16; on a CPU what is faster.

    On a CPU float32 matrices are multiplied as `multiply_faster` says from here on. Raises UserError for fp16 there.
    """
    if device.type == "cpu":
        multiply_faster()
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and bf16_is_faster(sam) else "fp32"
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
