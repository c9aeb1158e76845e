"""Where and in what precision a run computes."""

import time

import torch

from sam_lora.errors import UserError
from sam_lora.model.meta import Sam


def select_device(name: str) -> torch.device:
    """"auto" -> cuda, else mps, else cpu; any other name is checked to exist on this machine."""
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


def bf16_is_faster(sam: Sam, margin: float = 2.0) -> bool:
    """Does this CPU multiply matrices of the model's width `margin` times as fast in bfloat16 as in float32, or faster?

    Measured only where it has instructions for it (elsewhere bfloat16 is emulated, ten times slower), and for SAM's own
    sizes only: in a small model the products are not what takes the time. The margin is wide, and the best of many
    tries counts, so that the noise of the moment does not decide.
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
