"""What benchmarks/gpu_run.sh starts: all that is to be shown on a GPU, in parts, within a given time.

    bash benchmarks/gpu_run.sh
    bash benchmarks/gpu_run.sh --parts a b --minutes 4
    bash benchmarks/gpu_run.sh --device cpu --quick

Parts, the most important first; each consists of steps, every one a process with a time limit of its own:

    a  parity with segment_anything's own modules on the CPU           d  memory of a training step by flags
    b  speed of a training step beside segment_anything's own          e  train.py for real: demo, loader, resume
    c  attention alone, by each candidate                              f  inference; the exported file's parity
    g  the small SAM, trained further for as long as time is left

A step that fails or takes too long is noted, and the next one starts; one that no longer fits into --minutes is
skipped. Writes summary.md (tables), results.json (all figures) and log.txt (all output) into the folder that $OUT
names, anew after each step, so that a run that is killed keeps what it did; part g adds its sam_vit_mini.pth. Packages
that are missing are taken from wheels/ (fetch_wheels.sh). Ends with exit code 1 if a step failed.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpu_parts import LEAST_SECONDS, PARTS, Step, steps_of  # noqa: E402
from gpu_summary import final_lines, read_figures, summary  # noqa: E402

from sam_lora import cli  # noqa: E402
from sam_lora.errors import UserError  # noqa: E402

MODULES = {  # what the steps import -> its package
    "torch": "torch", "torchvision": "torchvision", "segment_anything": "segment_anything", "peft": "peft",
    "cv2": "opencv_python_headless", "numpy": "numpy", "pandas": "pandas", "PIL": "pillow", "yaml": "pyyaml",
    "pycocotools": "pycocotools", "safetensors": "safetensors", "jinja2": "jinja2", "psutil": "psutil", "tqdm": "tqdm",
    "matplotlib": "matplotlib", "transformers": "transformers",
}
GRACE = 5   # seconds between asking a process to end and ending it
MACHINE = """
import json, sys, torch
on_gpu = torch.cuda.is_available()
print(json.dumps({"python": sys.version.split()[0], "torch": torch.__version__, "threads": torch.get_num_threads(),
                  "card": torch.cuda.get_device_name() if on_gpu else None}))
"""


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="LETTER",
                        help="parts to run, in the order of the list above")
    parser.add_argument("--minutes", type=float, default=9, help="of the whole run")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true",
                        help="small models and few steps: shows that every part runs; its figures mean nothing")
    parser.add_argument("--wheels", default=str(ROOT / "wheels"), metavar="DIR",
                        help="where to look for packages that are not installed")
    return parser


def main(args: argparse.Namespace) -> None:
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what runs is ended with it
    out = Path(os.environ.get("OUT") or "gpu_run").resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="g-", ignore_cleanup_errors=True) as name:  # short: sockets lie in it
        work = Path(name)
        env = os.environ | {"TMPDIR": name, "PYTHONUNBUFFERED": "1"}
        if missing := [module for module in MODULES if importlib.util.find_spec(module) is None]:
            env["PYTHONPATH"] = install(missing, Path(args.wheels), work / "site")
            sys.path.insert(0, str(work / "site"))
        (out / "log.txt").write_bytes(b"")
        results = {"run": describe(args, env), "parts": {}}
        try:
            for part in sorted(args.parts):
                results["parts"][part] = {"title": PARTS[part], "steps": {}}
                for step in steps_of(part, args.device, args.quick, work, out):
                    left = started + args.minutes * 60 - time.monotonic()
                    results["parts"][part]["steps"][step.name] = run_step(step, left, env, work, out / "log.txt")
                    write(results, out)
        finally:
            write(results, out)
    print("\n".join(final_lines(results)))
    states = [step["state"] for part in results["parts"].values() for step in part["steps"].values()]
    if not set(states) <= {"done", "skipped"}:
        sys.exit(1)


def install(missing: list[str], wheels: Path, site: Path) -> str:
    """Unpack the wheels of missing modules into `site`; returns the PYTHONPATH that has it."""
    found = {module: sorted(wheels.glob(f"{MODULES[module]}-*.whl")) for module in missing}
    if lacking := [module for module, files in found.items() if not files]:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UserError(f"{sys.executable}: has no {', '.join(lacking)}, and neither has {wheels}; run "
                        f"benchmarks/fetch_wheels.sh {version} where there is a network, or give another PYTHON")
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps",
               "--no-compile", "--no-cache-dir", "--target", site, *(files[-1] for files in found.values())]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{wheels}: cannot be installed ({(done.stderr.strip().splitlines() or ['?'])[-1]})")
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))


def describe(args: argparse.Namespace, env: Mapping[str, str]) -> dict[str, Any]:
    """The machine and what is run on it. UserError if torch does not see the card."""
    done = subprocess.run([sys.executable, "-c", MACHINE], capture_output=True, text=True, env=env)
    if done.returncode:
        raise UserError(f"{sys.executable}: torch cannot be imported ({done.stderr.strip().splitlines()[-1]})")
    machine = json.loads(done.stdout.splitlines()[-1])
    if args.device == "cuda" and not machine["card"]:
        raise UserError(f"{sys.executable}: torch {machine['torch']} sees no GPU; give another PYTHON, or --device cpu "
                        "--quick to try the run itself")
    return {"date": time.strftime("%Y-%m-%d %H:%M"), "device": args.device, "quick": args.quick, "driver": driver(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), **machine}


def driver() -> str | None:
    """The NVIDIA driver's version; None without one."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=20)
        if not done.returncode:
            return done.stdout.strip().splitlines()[0]
    return None


def run_step(step: Step, left: float, env: Mapping[str, str], work: Path, log: Path) -> dict[str, Any]:
    """One process to its end or its limit; its output goes to the end of `log`. `left`: seconds of the whole run."""
    seconds = min(step.seconds, left)
    command = step.command(seconds)
    shown = " ".join(command).replace(f"{work}/", "").replace(f"{ROOT}/", "").replace(f"{log.parent}/", "")
    result = {"command": f"python {shown}", "limit": round(seconds)}
    if seconds < min(LEAST_SECONDS, step.seconds):
        print(f"{step.name}: skipped, {max(0, left):.0f} s are left", flush=True)
        return result | {"state": "skipped"}
    print(f"{step.name}: {result['command']}", flush=True)
    with log.open("ab") as file:
        file.write(f"\n==== {step.name}: {result['command']}\n".encode())
        file.flush()
        begins = file.tell()
        began = time.monotonic()
        with process_group([sys.executable, str(ROOT / command[0]), *command[1:]], env, work, file) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            code = process.poll()
        result["seconds"] = round(time.monotonic() - began, 1)
        result["state"] = {None: "timed out", 0: "done"}.get(code, "failed")
        file.write(f"==== {result['state']} after {result['seconds']} s, exit code {code}\n".encode())
    with log.open("rb") as file:
        file.seek(begins)
        output = file.read().decode(errors="replace")
    figures = read_figures(step, output)
    if result["state"] == "done" and not figures:
        result["state"] = "no figures"
    if result["state"] != "done":
        print("    " + "\n    ".join(output.strip().splitlines()[-4:]), flush=True)
    print(f"    {result['state']}, {result['seconds']} s", flush=True)
    return result | {"figures": figures}


@contextlib.contextmanager
def process_group(command: list[str], env: Mapping[str, str], cwd: Path, output) -> Iterator[subprocess.Popen]:
    """A process; it and all that it started have ended when the block is left."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env,
                               cwd=cwd, process_group=0)
    try:
        yield process
    finally:
        for which, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, which)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def write(results: dict[str, Any], out: Path) -> None:
    from sam_lora.files import atomic_path
    for name, text in (("results.json", json.dumps(results, indent=1) + "\n"), ("summary.md", summary(results))):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
