"""tests/tools/fuzz_converters.py: a short run breaks no promise, and the fuzzer notices promises that are broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parent / "tools" / "fuzz_converters.py"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits and alarms are POSIX")


def test_a_short_run(tmp_path: Path):
    """The long one: python tests/tools/fuzz_converters.py --count 10000 --seed 0"""
    done = subprocess.run([sys.executable, FUZZER, "--count", "160", "--seed", "2", "--processes", "1", "--work_dir",
                           tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    lines = done.stdout.splitlines()
    assert lines[0].startswith("160 cases in ") and lines[-1] == "0 promises broken"
    assert sum(int(line.split()[0]) for line in lines[1:-1]) == 160
    assert any("converted whole" in line for line in lines) and any("error: broken JSON" in line for line in lines)


BREAK = """
import os, pathlib, sys
sys.argv[0] = {fuzzer!r}
sys.path.insert(0, os.path.dirname({fuzzer!r}))
import fuzz_converters as fuzz
real = fuzz.run_case
def run_case(number, seed, folder, known):
    if number == 1: os.kill(os.getpid(), 11)
    if number == 2: raise KeyError("no such thing")
    if number == 3: (folder.parent / "escaped.png").write_text("x")
    outcome = real(number, seed, folder, known)
    return outcome
fuzz.run_case = run_case
fuzz.child({first}, {count}, 0, pathlib.Path({folder!r}))
"""


def broken_fuzzer(folder: Path, first: int, count: int) -> subprocess.CompletedProcess:
    code = BREAK.format(fuzzer=str(FUZZER), first=first, count=count, folder=str(folder / "cases"))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_crashes_tracebacks_and_strays_are_noticed(tmp_path: Path):
    done = broken_fuzzer(tmp_path, 0, 4)
    assert done.returncode == -11
    assert [json.loads(line).get("start", "end") for line in done.stdout.splitlines()] == [0, "end", 1]
    done = broken_fuzzer(tmp_path, 2, 2)
    broken = [json.loads(line)["broken"] for line in done.stdout.splitlines() if "broken" in line]
    assert broken[0].startswith("traceback: KeyError in <string>:9") and broken[1] == "a file beside the case's folder"
