"""The README's own commands, run as a person would, and the README's options against the scripts' own."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from sam_lora import contracts

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
BLOCK = re.compile(r"<!-- walkthrough: (\w+) -->\n```bash\n(.*?)```", re.DOTALL)


def run(folder: Path, command: str) -> str:
    program, script, *flags = shlex.split(command)
    assert program == "python"
    done = subprocess.run([sys.executable, str(ROOT / script), *flags], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    return done.stdout


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("form", "class_folders", "tables"), [
    pytest.param("yolo", {"Class_berry", "Class_cell", "Class_beetle"}, {"output.csv"}, id="YOLO"),
    pytest.param("coco", {"Class_1_berry", "Class_2_cell", "Class_3_beetle"}, set(), id="COCO"),
])
def test_the_readmes_commands_in_their_order(tmp_path, form, class_folders, tables):
    run(tmp_path, "python demo/make_dataset.py --output_dir data --num_images 6 --seed 3")
    (tmp_path / "data" / form).rename(tmp_path / f"my_{form}_dataset")
    commands = [line for kind, block in BLOCK.findall(README) if kind in (form, "both") for line in block.splitlines()]
    assert len(commands) == 7
    said = [run(tmp_path, command) for command in commands]

    assert files(tmp_path / "processed_dataset") == class_folders | {"instances.csv", "classes.json",
                                                                     "conversion_report.csv", "preview.jpg"}
    splits = {f"{split}{end}.csv" for split in contracts.SPLITS for end in ("", "_reformatted")}
    assert files(tmp_path) == {"data", f"my_{form}_dataset", "processed_dataset", "checkpoints", "base_sam_results",
                               "finetuned_sam_results2", "sam_finetuned.pth", "sam_finetuned.json"} | splits | tables
    log = pd.read_csv(tmp_path / "checkpoints" / "training_log.csv")
    assert log["epoch"][0] == 0 and len(log) > 2 and f"LoRA on {6} layers" in said[3]
    base = pd.read_csv(tmp_path / "base_sam_results" / "base_sam_results.csv")
    tuned = pd.read_csv(tmp_path / "finetuned_sam_results2" / "finetuned_sam_results.csv")
    test = pd.read_csv(tmp_path / "test_reformatted.csv")
    for results in (base, tuned):
        assert list(results["image"]) == list(test["image"]) and list(results["label"]) == list(test["label"])
        assert results["iou"].between(0, 1).all()
    for name in ("base_sam_results", "finetuned_sam_results2"):
        assert {"predictions.jpg", "samples", "masks"} < files(tmp_path / name)
        assert len(files(tmp_path / name / "masks")) == len(test)
    assert "comparison.csv" in files(tmp_path / "finetuned_sam_results2")
    plain = torch.load(tmp_path / "sam_finetuned.pth", weights_only=True)
    assert not [name for name in plain if "lora" in name or "base_layer" in name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_stands_in_the_readme(script):
    parser = importlib.import_module(script).get_args_parser()
    flags = {flag for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")}
    assert not {flag for flag in flags if f"{flag}" not in README}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_the_docstring_and_no_heavy_library_is_imported(script):
    code = (f"import sys; sys.argv = ['{script}.py', '--help']\n"
            f"import runpy\ntry:\n    runpy.run_path('{script}.py', run_name='__main__')\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'peft', 'matplotlib', 'pandas', 'cv2', 'segment_anything'} & set(sys.modules)\n"
            "assert not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module = importlib.import_module(script)
    assert module.__doc__.strip().splitlines()[0] in done.stdout and "default:" in done.stdout


def test_readme_names_every_script_in_its_tree():
    tree = README[README.index("## What is where"):]
    assert not [script for script in SCRIPTS if f"\n{script}.py " not in tree]
