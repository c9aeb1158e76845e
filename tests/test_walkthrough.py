"""The README's own commands, run as a person would, and the README's options against the scripts' own."""

import importlib
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, run_script

from sam_lora import contracts

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
BLOCK = re.compile(r"<!-- walkthrough: (\w+) -->\n```bash\n(.*?)```", re.DOTALL)


def run(folder: Path, command: str) -> str:
    program, script, *flags = shlex.split(command)
    assert program == "python"
    done = run_script(script, *flags, cwd=folder)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    return done.stdout


def names_in(folder: Path) -> set[str]:
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
    printed = [run(tmp_path, command) for command in commands]

    assert names_in(tmp_path / "processed_dataset") == class_folders | {"instances.csv", "classes.json",
                                                                     "conversion_report.csv", "preview.jpg"}
    splits = {f"{split}{end}.csv" for split in contracts.SPLITS for end in ("", "_reformatted")}
    assert names_in(tmp_path) == {"data", f"my_{form}_dataset", "processed_dataset", "checkpoints", "base_sam_results",
                               "finetuned_sam_results2", "sam_finetuned.pth", "sam_finetuned.json"} | splits | tables
    log = pd.read_csv(tmp_path / "checkpoints" / "training_log.csv")
    assert log["epoch"][0] == 0 and len(log) > 2 and f"LoRA on {6} layers" in printed[3]
    base = pd.read_csv(tmp_path / "base_sam_results" / "base_sam_results.csv")
    tuned = pd.read_csv(tmp_path / "finetuned_sam_results2" / "finetuned_sam_results.csv")
    test = pd.read_csv(tmp_path / "test_reformatted.csv")
    for results in (base, tuned):
        assert list(results["image"]) == list(test["image"]) and list(results["label"]) == list(test["label"])
        assert results["iou"].between(0, 1).all()
    for name in ("base_sam_results", "finetuned_sam_results2"):
        assert {"predictions.jpg", "samples", "masks"} < names_in(tmp_path / name)
        assert len(names_in(tmp_path / name / "masks")) == len(test)
    assert "comparison.csv" in names_in(tmp_path / "finetuned_sam_results2")
    plain = torch.load(tmp_path / "sam_finetuned.pth", weights_only=True)
    assert not [name for name in plain if "lora" in name or "base_layer" in name]


# ---- the README's options -----------------------------------------------------------------------------------

FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")  # a whole word: not the --output in --output_dir
OPTIONS = README[README.index("\n## Options\n"):README.index("\n## Formats\n")]
NOT_OURS = {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--index-url"}  # of torchrun and pip


def flags_of(script: str) -> set[str]:
    parser = importlib.import_module(script).get_args_parser()
    return {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}


def sections() -> list[tuple[list[str], set[str]]]:
    """For each section of options: the scripts in its heading and the flags in its table's first column."""
    found = []
    for section in OPTIONS.split("\n### ")[1:]:
        heading, table = section.split("\n", 1)
        first_column = re.findall(r"^\| (.*?) (?<!\\)\| ", table, re.MULTILINE)
        found.append((re.findall(r"`(\w+)\.py`", heading), set(FLAG.findall(" ".join(first_column)))))
    return found


def test_each_script_has_its_options_in_one_section():
    assert sorted(script for scripts, _ in sections() for script in scripts) == SCRIPTS


@pytest.mark.parametrize(("scripts", "in_readme"), [pytest.param(*section, id=section[0][0]) for section in sections()])
def test_options_of_the_readme_and_of_its_scripts_are_the_same(scripts, in_readme):
    assert in_readme == set().union(*map(flags_of, scripts))


def test_the_readme_names_no_option_that_no_script_has():
    elsewhere = {flag for path in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("demo/*.py"))
                 for flag in re.findall(r'add_argument\("(--\w+)"', path.read_text(encoding="utf-8"))}
    assert not set(FLAG.findall(README)) - set().union(*map(flags_of, SCRIPTS)) - elsewhere - NOT_OURS - {"--help"}
