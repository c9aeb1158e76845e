"""How much memory training takes, and what to try when a GPU has too little."""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sam_lora.errors import UserError


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use so far: on a GPU since the last `start_peak`, on a CPU since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def start_peak(device: torch.device) -> None:
    """Measure a GPU's peak from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def advice(flags: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """A block in which a full GPU is a UserError that says which of train.py's `flags` to change."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(device).total_memory
        raise UserError(out_of_memory(flags, torch.cuda.max_memory_allocated(device), total)) from error


def out_of_memory(flags: Mapping[str, Any], used: int, total: int) -> str:
    """The text of that error, for a GPU of `total` bytes of which `used` were in use at the peak."""
    batch_size, image_size, blocks = flags["batch_size"], flags["image_size"], flags["lora_blocks"]
    advice = [
        ("--grad_checkpoint", not flags["grad_checkpoint"]),
        (f"--batch_size {batch_size // 2} --grad_accum {flags['grad_accum'] * 2}", batch_size > 1),
        ("--prompts_per_image 2", flags["prompts_per_image"] > 2),
        ("--image_size 512", image_size is None or image_size > 512),
        ("--lora_blocks 4", blocks is None or blocks > 4),
        ("a smaller --model_type", flags["model_type"] in ("vit_l", "vit_h"))]
    to_try = ", ".join(flag for flag, applies in advice if applies) or "a GPU with more memory"
    return (f"out of GPU memory: {used / 1e9:.1f} of {total / 1e9:.1f} GB were in use with --model_type "
            f"{flags['model_type']} --batch_size {batch_size}" + (f" --image_size {image_size}" if image_size else "")
            + f"; expected a step that fits; try in this order: {to_try}")
