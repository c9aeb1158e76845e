"""A machine with an NVIDIA card, as its driver's files and a real program called nvidia-smi show it."""

import os
from pathlib import Path

import pytest

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  12\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs@host)  Fri Jan 24\n"

posix = pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")


def driver_files(root: Path, version: str | None = CLOSED, model: str | None = "Tesla T4", device: bool = True) -> Path:
    folder = root / "proc/driver/nvidia"
    folder.mkdir(parents=True)
    if version is not None:
        (folder / "version").write_text(version)
    if model is not None:
        (folder / "gpus/0000:00:04.0").mkdir(parents=True)
        (folder / "gpus/0000:00:04.0/information").write_text(
            f"Model: \t\t {model}\nIRQ:   \t\t 11\nGPU UUID: \t GPU-????\nBus Type: \t PCIe\n")
    if device:
        (root / "dev").mkdir()
        (root / "dev/nvidia0").touch()
    return root


def nvidia_smi(folder: Path, script: str) -> str:
    """A folder for PATH with a program nvidia-smi, which runs these lines of shell."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(folder)
