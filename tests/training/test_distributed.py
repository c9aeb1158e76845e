"""Several real processes by torchrun (gloo, on the CPU): the same numbers as one, and what becomes of a lost one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_crops
from test_train import MEASURED, command_line, run

import train
from sam_lora.errors import UserError
from sam_lora.model.checkpoints import load_checkpoint
from sam_lora.training import distributed
from sam_lora.training.distributed import Ranks

ROOT = Path(train.__file__).parent


def torchrun(*arguments: str, processes: int = 2) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
            str(ROOT / "train.py"), "--device", "cpu", *arguments]


def together(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess:
    return subprocess.run(torchrun(*arguments, processes=processes), capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def log_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "training_log.csv").drop(columns=MEASURED)


@pytest.fixture(scope="module")
def module_crops(tmp_path_factory):
    return make_crops(tmp_path_factory.mktemp("crops") / "data")


@pytest.fixture(scope="module")
def two_ranks(module_crops, mini_weights, tmp_path_factory) -> Path:
    """The folder of a run of two processes with batch 2: 6 rows, so the last of its two batches is short."""
    out = tmp_path_factory.mktemp("two") / "checkpoints"
    done = together(*command_line(module_crops, mini_weights, out, "--num_epochs", "3"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1:") == 1 and "2 processes" in done.stdout
    return out


def test_two_ranks_with_batch_2_are_one_with_batch_4(two_ranks, module_crops, mini_weights, tmp_path):
    run(*command_line(module_crops, mini_weights, tmp_path / "one", "--num_epochs", "3", "--batch_size", "4"))
    pd.testing.assert_frame_equal(log_of(two_ranks), log_of(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    states = [load_checkpoint(folder / "last.ckpt")["state"] for folder in (two_ranks, tmp_path / "one")]
    assert max((states[0][name] - states[1][name]).abs().max().item() for name in states[0]) < 1e-4
    assert {path.name for path in two_ranks.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_it_goes_on_under_another_world_size(two_ranks, module_crops, mini_weights, tmp_path):
    flags = ("--num_epochs", "3")
    one = command_line(module_crops, mini_weights, tmp_path / "out", *flags, "--batch_size", "4")
    run(*one, "--stop_after_epoch", "2")
    two = command_line(module_crops, mini_weights, tmp_path / "out", *flags)
    done = together(*two, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed after epoch 2") == 1
    pd.testing.assert_frame_equal(log_of(tmp_path / "out"), log_of(two_ranks), rtol=1e-5, atol=1e-6)


def test_three_ranks_two_of_which_have_nothing_in_the_last_batch(module_crops, mini_weights, tmp_path):
    """7 rows in batches of 3 x 2: one is left for the last. Accumulated, the gradients stay at home in between."""
    table = pd.read_csv(module_crops.train_csv)
    seven = module_crops.folder / "seven.csv"
    pd.concat([table, table.iloc[:1].assign(points="[[20,20]]")]).to_csv(seven, index=False)
    flags = ("--num_epochs", "2", "--train_csv", str(seven), "--prompts_per_image", "1")
    done = together(*command_line(module_crops, mini_weights, tmp_path / "three", *flags, "--grad_accum", "2"),
                    processes=3)
    assert done.returncode == 0, done.stderr
    run(*command_line(module_crops, mini_weights, tmp_path / "one", *flags, "--grad_accum", "2", "--batch_size", "6"))
    pd.testing.assert_frame_equal(log_of(tmp_path / "three"), log_of(tmp_path / "one"), rtol=1e-5, atol=1e-6)


def test_a_killed_rank_ends_the_run_with_a_message_and_a_usable_checkpoint(module_crops, mini_weights, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        torchrun(*command_line(module_crops, mini_weights, out, "--num_epochs", "500", "--patience", "500")),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (out / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    ranks = {}
    for pid in workers:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {int(pair[5:]): pid for pair in pairs if pair.startswith(b"RANK=")}
    os.kill(ranks[1], signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "another process of this run has ended" in said and "--resume" in said
    content = load_checkpoint(out / "last.ckpt")
    assert content["header"]["epoch"] >= 1
    assert not [path for path in out.iterdir() if path.name.startswith(".partial-")]
    run(*command_line(module_crops, mini_weights, out, "--num_epochs", "500", "--patience", "500", "--stop_after_epoch",
                      str(content["header"]["epoch"] + 1), "--resume"))


def test_bad_data_is_told_once_and_ends_all(module_crops, mini_weights, tmp_path):
    done = together(*command_line(module_crops, mini_weights, tmp_path / "out", "--train_csv", "nowhere.csv"))
    assert done.returncode != 0
    assert done.stderr.count("nowhere.csv: ") == 1
    assert not (tmp_path / "out").exists()


def test_processes_with_other_flags_are_refused(module_crops, mini_weights, tmp_path):
    """Two processes by hand, as on two machines, with different seeds."""
    processes = []
    for rank in range(2):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank),
                       "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"}
        processes.append(subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "--device", "cpu", "--seed", str(rank),
             *command_line(module_crops, mini_weights, tmp_path / "out")],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment))
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert any("the flags or tables differ between the processes" in text for text in said)
    assert not any("Traceback" in text for text in said)


@pytest.mark.parametrize(("environment", "expected"), [
    pytest.param({}, Ranks(0, 1, 0), id="no torchrun"),
    pytest.param({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Ranks(3, 4, 1), id="two machines"),
])
def test_which_process_this_is(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.ranks_of_environment() == expected


@pytest.mark.parametrize("environment", [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_an_environment_that_is_none_of_torchruns(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK"):
        distributed.ranks_of_environment()


def test_a_single_process_needs_no_group():
    ranks = Ranks()
    assert distributed.add_up([1.5, 2], ranks).tolist() == [1.5, 2.0]
    layer = torch.nn.Linear(2, 2)
    function = distributed.replicate(lambda module, value: module(value), layer, ranks, torch.device("cpu"))
    assert torch.equal(function(torch.ones(2)), layer(torch.ones(2)))
    distributed.check_agreement(ranks, b"x", "flags")
    assert distributed.own_device("auto", ranks) == "auto"
