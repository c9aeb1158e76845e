"""Runs of a script by several real processes under torchrun: gloo, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def torchrun(folder: Path, script: str, *arguments: object, processes: int = 2) -> subprocess.Popen:
    """The script under torchrun, whose own temporary files stay below `folder`, where it runs; the operating system
    chooses the port."""
    (folder / "temporary").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
               str(ROOT / script), "--device", "cpu", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder / "temporary")})


def together(folder: Path, script: str, *arguments: object, processes: int = 2) -> subprocess.CompletedProcess:
    """A run of several processes to its end."""
    with torchrun(folder, script, *arguments, processes=processes) as process:
        printed, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)
