"""benchmarks/gpu_run.sh: every part runs, small and on the CPU; a step that fails, hangs or no longer fits is noted."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import ROOT, files_below, run_python

from sam_lora.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_parts
import gpu_run
import gpu_summary


@pytest.mark.slow
def test_every_part_runs_small(tmp_path):
    done = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu_run.sh"), "--device", "cpu", "--quick", "--minutes",
                           "60"], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out")})
    log = (tmp_path / "out" / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    assert files_below(tmp_path) == {f"out/{name}" for name in ("summary.md", "results.json", "log.txt",
                                                                 "sam_vit_mini.pth")}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    steps = {name: step for part in results["parts"].values() for name, step in part["steps"].items()}
    assert list(results["parts"]) == list(gpu_parts.PARTS)
    assert {name: step["state"] for name, step in steps.items()} == dict.fromkeys(steps, "done")
    assert steps["parity"]["command"] == \
        "python benchmarks/gpu_parity.py --device cpu --quick --output parity.json"
    assert all(row["ok"] for row in steps["parity"]["figures"]["rows"])
    assert {row["case"] for row in steps["parity"]["figures"]["rows"]} == {"vit_mini 256", "vit_b 128"}
    assert set(steps["train 64 px"]["figures"]["ratios"]) == {"reference fp32", "reference bf16"}
    assert [row["flags"] for row in steps["memory vit_mini"]["figures"]] == ["none"]
    trained = steps["train.py"]["figures"]
    assert trained["demo"]["test_rows"] > 0 and trained["large"]["weights_difference_resumed"] == 0
    found = steps["train.py find"]["figures"]["find"]
    assert found["objects"] > 0 and 0 <= found["ap"] <= found["ap50"] and found["seconds_a_photo"] > 0
    assert steps["inference"]["figures"]["speedup"] > 0
    assert steps["export"]["figures"][0]["mask pixels that differ"] == 0
    assert {"step", "iou_3"} <= set(steps["pretraining"]["figures"][0])
    assert all(row[2] == "-" for row in gpu_summary.goal_rows(results))
    summary = (tmp_path / "out" / "summary.md").read_text()
    for heading in ("goal", "part", "model, px", "side", "blocks", "flags", "figure", "comparison", "format"):
        assert f"\n| {heading} |" in summary
    assert "A quick run" in summary and "A quick run" in done.stdout


@pytest.mark.parametrize(("device", "quick"), [("cuda", False), ("cpu", True)])
def test_every_step_has_flags_that_its_script_takes(tmp_path, device, quick):
    names = []
    for part in gpu_parts.PARTS:
        for step in gpu_parts.steps_of(part, device, quick, tmp_path, tmp_path):
            script, *flags = step.command(100)
            parser_of(script).parse_args(flags)
            names.append(step.name)
    assert len(set(names)) == len(names) and len(names) >= len(gpu_parts.PARTS)


def parser_of(script: str) -> argparse.ArgumentParser:
    path = ROOT / script
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module.get_args_parser()


def test_the_limits_of_the_steps_leave_the_first_parts_their_time():
    """Even if every step took its limit, parity and the speed of training would be measured."""
    limits = {part: sum(step.seconds for step in gpu_parts.steps_of(part, "cuda", False, ROOT, ROOT))
              for part in gpu_parts.PARTS}
    assert limits["a"] + limits["b"] + limits["c"] + limits["d"] <= 540


# ---- steps that do not end well ------------------------------------------------------------------------------

@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Scripts of a made-up checkout, in place of this one."""
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    (tmp_path / "fails.py").write_text("print('before')\nraise SystemExit('no good')\n")
    (tmp_path / "works.py").write_text("import pathlib, sys\nprint('done it')\n"
                                       "pathlib.Path(sys.argv[1]).write_text('{\"value\": 3}')\n")
    (tmp_path / "silent.py").write_text("")
    (tmp_path / "hangs.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{{\"child\": {child.pid}}}')\ntime.sleep(600)\n")
    return tmp_path


def run_step(folder, script: str, seconds: float, left: float = 1000):
    figures = folder / "figures.json"
    step = gpu_parts.Step("a step", seconds, lambda _: [script, str(figures)], figures)
    return gpu_run.run_step(step, left, dict(os.environ), folder, folder / "log.txt")


def test_a_step_that_works(scripts):
    result = run_step(scripts, "works.py", 100)
    assert (result["state"], result["figures"], result["limit"]) == ("done", {"value": 3}, 100)
    assert "done it" in (scripts / "log.txt").read_text()


def test_a_step_that_fails_or_measures_nothing(scripts, capsys):
    assert run_step(scripts, "fails.py", 100)["state"] == "failed"
    assert run_step(scripts, "silent.py", 100)["state"] == "no figures"
    assert "no good" in capsys.readouterr().out
    assert (scripts / "log.txt").read_text().count("====") == 4


def test_a_step_that_hangs_ends_with_all_that_it_started(scripts):
    import psutil
    result = run_step(scripts, "hangs.py", 15)   # Python must have started by then, on a busy machine too
    assert result["state"] == "timed out"
    child = result["figures"]["child"]
    deadline = time.monotonic() + 60
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_step_that_no_longer_fits_is_skipped(scripts):
    assert run_step(scripts, "works.py", 100, left=gpu_parts.LEAST_SECONDS - 1)["state"] == "skipped"
    assert not (scripts / "figures.json").exists()
    assert run_step(scripts, "works.py", 100, left=gpu_parts.LEAST_SECONDS + 1)["limit"] == gpu_parts.LEAST_SECONDS + 1


# ---- packages that are missing -------------------------------------------------------------------------------

def test_missing_packages_come_from_wheels(tmp_path):
    name = "segment_anything-1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        information = "segment_anything-1.0.dist-info"
        wheel.writestr("segment_anything/__init__.py", "carried = True\n")
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: segment-anything\nVersion: 1.0\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
                                               "Tag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    path = gpu_run.install(["segment_anything"], tmp_path, tmp_path / "site")
    done = run_python("-c", "import segment_anything; print(segment_anything.carried)", env={"PYTHONPATH": path})
    assert done.stdout == "True\n", done.stderr


def test_a_package_that_is_nowhere_is_named_with_what_fetches_it(tmp_path):
    with pytest.raises(UserError, match=r"has no pycocotools, and neither .*fetch_wheels.sh 3\.\d+"):
        gpu_run.install(["pycocotools"], tmp_path, tmp_path / "site")


# ---- goals ---------------------------------------------------------------------------------------------------

def test_goals_without_figures_are_dashes_and_others_are_judged():
    def results(figures):
        steps = {name: {"figures": value} for name, value in figures.items()}
        return {"run": {"quick": False}, "parts": {"x": {"steps": steps}}}
    empty = gpu_summary.goal_rows(results({}))
    assert len(empty) == len(gpu_summary.GOALS) and {row[1:] for row in empty} == {("-", "-")}
    rows = gpu_summary.goal_rows(results({
        "parity": {"rows": [{"ok": True}, {"ok": False}]},
        "train 1024 px": {"ratios": {"reference fp32": {"speedup": 5.0, "memory": 9.0},
                                     "reference bf16": {"speedup": 1.5, "memory": 5.0}},
                          "sides": {"ours": {"share_of_matrix_rate": 0.41}}},
        "memory vit_h": [{"flags": "none", "seconds": 1.0, "peak_gb": 41.0}]}))
    assert [row[1:] for row in rows] == [("1", "**no**"), ("5.00x", "yes"), ("1.50x", "**no**"), ("0.20", "yes"),
                                         ("41 %", "yes"), ("41.0 GB", "**no**"), ("-", "-"), ("-", "-")]


def test_the_tables_of_bench_memory_are_read_as_far_as_they_go(tmp_path):
    step = gpu_parts.Step("memory", 1, lambda _: [])
    output = ("| vit_h, batch 4, flags | seconds a step | peak memory |\n|---|---|---|\n"
              "| none | 1.25 | 33.10 GB |\n| --dora | | train.py failed: out of memory |\n| --grad_checkpoint | 1.5")
    figures = gpu_summary.read_figures(step, output)
    assert figures == [{"flags": "none", "seconds": 1.25, "peak_gb": 33.1},
                       {"flags": "--dora", "problem": "train.py failed: out of memory"}]
    assert gpu_summary.memory_table(figures)[2:] == ["| none | 1.25 | 33.10 GB |",
                                                     "| --dora |  | train.py failed: out of memory |"]
    assert gpu_summary.read_figures(step, "killed") == []
