"""arguments.py: the flags of both inference scripts, what they ask for, and which contradict each other."""

import argparse
from pathlib import Path

import pytest
import torch

from sam_lora import cli
from sam_lora.ranks import Ranks
from sam_lora.results import arguments
from sam_lora.results.requests import (
    Destination,
    FindPhotos,
    FindTable,
    PhotoFolder,
    Runtime,
    SampleTable,
    SinglePhoto,
    Wanted,
)


def parsed(*flags: str) -> argparse.Namespace:
    parser = cli.make_parser("A script.")
    arguments.add_inference(parser, "results", "test.csv")
    args = parser.parse_args([*flags])
    arguments.check_inference(args, parser)
    return args


@pytest.mark.parametrize(("flags", "request_"), [
    pytest.param([], SampleTable("test.csv"), id="the default table"),
    pytest.param(["--test_csv", "t.csv", "--compare_to", "r.csv", "--prompt_kinds"],
                 SampleTable("t.csv", "r.csv", True), id="a table, compared, by kinds of prompts"),
    pytest.param(["--image", "a.png", "--points", "5,5 6.5,7", "--labels", "1,0", "--box", "1,2,3,4"],
                 SinglePhoto("a.png", [([(5, 5), (6.5, 7)], [1, 0], (1, 2, 3, 4))]), id="one object"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "none", "--box", "None", "--box", "1,2,3,4"],
                 SinglePhoto("a.png", [([(5, 5)], None, None), (None, None, (1, 2, 3, 4))]), id="two objects"),
    pytest.param(["--images_dir", "d", "--prompts_csv", "p.csv", "--save_yolo"], PhotoFolder("d", "p.csv", True),
                 id="a folder"),
])
def test_what_the_flags_ask_for(flags, request_):
    assert arguments.request_of(parsed(*flags)) == request_


def test_where_the_results_go():
    assert arguments.destination_of(parsed()) == Destination(Path("results"))
    assert arguments.destination_of(parsed("--output_dir", "o", "--overwrite", "--num_pictures", "3", "--seed", "7")
                                    ) == Destination(Path("o"), overwrite=True, num_pictures=3, seed=7)


def test_without_prompts_everything_is_found():
    assert arguments.request_of(parsed("--test_csv", "t.csv", "--find", "--score_threshold", "0.5")) == FindTable(
        "t.csv", Wanted(0.5))
    assert arguments.request_of(parsed("--images_dir", "d", "--save_yolo")) == FindPhotos("d", None, Wanted(), True)
    assert arguments.request_of(parsed("--image", "a.png")) == FindPhotos(None, "a.png", Wanted())
    assert isinstance(arguments.request_of(parsed("--image", "a.png", "--points", "1,2")), SinglePhoto)


def test_what_it_runs_on(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert arguments.runtime_of(parsed("--device", "cpu")) == Runtime(torch.device("cpu"), precision="auto")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert arguments.runtime_of(parsed("--device", "cpu", "--batch_size", "3", "--num_workers", "1", "--precision",
                                       "bf16")) == Runtime(torch.device("cpu"), 3, 1, "bf16", Ranks(1, 2))


@pytest.mark.parametrize(("flags", "message"), [
    pytest.param(["--image", "a.png", "--find"], "--find: with --test_csv", id="scores without ground truth"),
    pytest.param(["--images_dir", "d", "--find"], "--find: with --test_csv", id="scores of a folder"),
    pytest.param(["--find", "--prompt_kinds"], "--prompt_kinds: is about prompts", id="prompts where none are"),
    pytest.param(["--find", "--compare_to", "r.csv"], "--compare_to: is about prompts", id="comparing what was found"),
    pytest.param(["--score_threshold", "0.5"], "--score_threshold: only where", id="a threshold for prompts"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--score_threshold", "0.5"], "--score_threshold: only where",
                 id="a threshold for a prompted image"),
    pytest.param(["--find", "--score_threshold", "1.5"], "must be at least 0 and below 1", id="a score above 1"),
    pytest.param(["--image", "a.png", "--test_csv", "t.csv", "--box", "1,1,5,5"], "not allowed with", id="two sources"),
    pytest.param(["--points", "5,5"], "--points: only with --image", id="points for a table"),
    pytest.param(["--box", "1,1,5,5", "--labels", "1"], "--labels, --box: only with --image", id="box for a table"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--compare_to", "r.csv"], "--compare_to: not with --image",
                 id="comparing an image"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--prompt_kinds"], "--prompt_kinds: not with --image",
                 id="kinds of prompts for an image"),
    pytest.param(["--seed", "-1"], "must not be negative", id="a seed below zero"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--labels", "1 0"], "--labels: 2 for 1 points", id="labels"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "6,6", "--box", "1,1,5,5"],
                 "found 2 --points, 1 --box; expected the same number of each, one per object: write none",
                 id="counts"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "6,6", "--labels", "1"],
                 "found 2 --points, 1 --labels; expected the same number", id="labels for one of two"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "none"],
                 "--image needs a prompt of object 2: --points, --box, or both", id="an object without prompt"),
    pytest.param(["--image", "a.png", "--points", "none", "--box", "1,1,5,5", "--labels", "1"],
                 "--labels: 1 for 0 points; expected one each", id="labels for a box"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--points", "6,6 7,7", "--labels", "1", "--labels", "1"],
                 "--labels of object 2: 1 for 2 points; expected one each", id="labels of the second"),
    pytest.param(["--image", "a.png", "--labels", "1"], "--labels belong to --points", id="labels only"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--save_yolo"], "--save_yolo: only with --images_dir",
                 id="YOLO of one image"),
    pytest.param(["--save_yolo"], "--save_yolo: only with --images_dir", id="YOLO of a table"),
    pytest.param(["--prompts_csv", "p.csv"], "--prompts_csv needs --images_dir", id="prompts without images"),
    pytest.param(["--image", "a.png", "--box", "1,1,5,5", "--prompts_csv", "p.csv"],
                 "--prompts_csv needs --images_dir", id="a table of prompts for one image"),
    pytest.param(["--images_dir", "d", "--image", "a.png"], "not allowed with", id="a folder and an image"),
    pytest.param(["--images_dir", "d", "--prompts_csv", "p.csv", "--test_csv", "t.csv"], "not allowed with",
                 id="a folder and a table"),
    pytest.param(["--images_dir", "d", "--prompts_csv", "p.csv", "--points", "5,5"],
                 "--points: only with --image", id="points for a folder"),
    pytest.param(["--images_dir", "d", "--prompts_csv", "p.csv", "--compare_to", "r.csv"],
                 "--compare_to: not with --images_dir", id="comparing a folder"),
    pytest.param(["--image", "a.png", "--points", "5;5"], "expected numbers as x,y", id="another separator"),
    pytest.param(["--image", "a.png", "--points", "5,nan"], "expected numbers as x,y", id="not a number"),
    pytest.param(["--image", "a.png", "--points", ""], "expected points as x,y", id="empty points"),
    pytest.param(["--image", "a.png", "--box", "1,2,3"], "expected numbers as x0,y0,x1,y1", id="three numbers"),
    pytest.param(["--image", "a.png", "--box", "9,2,3,7"], "expected x0 < x1 and y0 < y1", id="box inside out"),
    pytest.param(["--image", "a.png", "--points", "5,5", "--labels", "2"], "expected 1 (foreground)", id="label 2"),
    pytest.param(["--batch_size", "0"], "must be at least 1", id="empty batches"),
])
def test_flags_that_contradict(capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        parsed(*flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
