"""Several real processes by torchrun (gloo, on the CPU): the same numbers as one, and what becomes of a lost one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_crops
from several_processes import together, torchrun
from training_runs import ROOT, command_line, files, log_of, run

from sam_lora.model.checkpoints import load_checkpoint
from sam_lora.training import distributed
from sam_lora.training.distributed import Ranks


def free_port() -> int:
    """A port that no program has, below those that the system hands out by itself: so none gets it before its use."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


@pytest.fixture(scope="module")
def module_crops(tmp_path_factory):
    return make_crops(tmp_path_factory.mktemp("crops") / "data")


@pytest.fixture(scope="module")
def two_ranks(module_crops, mini_weights, tmp_path_factory) -> Path:
    """The folder of a run of two processes with batch 2: 6 rows, so the last of its two batches is short."""
    out = tmp_path_factory.mktemp("two") / "checkpoints"
    done = together(out.parent, "train.py", *command_line(module_crops, mini_weights, out, "--num_epochs", "3"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1:") == 1 and "2 processes" in done.stdout
    return out


def test_two_ranks_with_batch_2_are_one_with_batch_4(two_ranks, module_crops, mini_weights, tmp_path):
    run(*command_line(module_crops, mini_weights, tmp_path / "one", "--num_epochs", "3", "--batch_size", "4"))
    pd.testing.assert_frame_equal(log_of(two_ranks), log_of(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    states = [load_checkpoint(folder / "last.ckpt")["state"] for folder in (two_ranks, tmp_path / "one")]
    assert max((states[0][name] - states[1][name]).abs().max().item() for name in states[0]) < 1e-4
    assert files(two_ranks) == files(tmp_path / "one")


def test_it_goes_on_under_another_world_size(two_ranks, module_crops, mini_weights, tmp_path):
    flags = ("--num_epochs", "3")
    one = command_line(module_crops, mini_weights, tmp_path / "out", *flags, "--batch_size", "4")
    run(*one, "--stop_after_epoch", "2")
    two = command_line(module_crops, mini_weights, tmp_path / "out", *flags)
    done = together(tmp_path, "train.py", *two, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed after epoch 2") == 1
    pd.testing.assert_frame_equal(log_of(tmp_path / "out"), log_of(two_ranks), rtol=1e-5, atol=1e-6)


def test_three_ranks_two_of_which_have_nothing_in_the_last_batch(module_crops, mini_weights, tmp_path):
    """7 rows in batches of 3 x 2: one is left for the last. Two batches make a step, and exchange gradients once."""
    table = pd.read_csv(module_crops.train_csv)
    seven = module_crops.folder / "seven.csv"
    pd.concat([table, table.iloc[:1].assign(points="[[20,20]]")]).to_csv(seven, index=False)
    flags = ("--num_epochs", "2", "--train_csv", str(seven), "--prompts_per_image", "1", "--grad_accum", "2")
    three = command_line(module_crops, mini_weights, tmp_path / "three", *flags)
    done = together(tmp_path, "train.py", *three, processes=3)
    assert done.returncode == 0, done.stderr
    run(*command_line(module_crops, mini_weights, tmp_path / "one", *flags, "--batch_size", "6"))
    pd.testing.assert_frame_equal(log_of(tmp_path / "three"), log_of(tmp_path / "one"), rtol=1e-5, atol=1e-6)


def processes_by_rank(launcher: subprocess.Popen) -> dict[int, int]:
    """RANK -> process id of the processes that torchrun has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for pid in map(int, children):
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {int(pair[5:]): pid for pair in pairs if pair.startswith(b"RANK=")}
    return ranks


def test_a_killed_rank_ends_the_run_with_a_message_and_a_usable_checkpoint(module_crops, mini_weights, tmp_path):
    out = tmp_path / "out"
    flags = ("--num_epochs", "500", "--patience", "500")
    with torchrun(tmp_path, "train.py", *command_line(module_crops, mini_weights, out, *flags)) as process:
        for line in process.stdout:
            if line.startswith("epoch 1:"):  # printed once last.ckpt is there
                break
        os.kill(processes_by_rank(process)[1], signal.SIGKILL)
        printed = process.communicate(timeout=600)[1]
    assert process.returncode != 0
    assert "another process of this run has ended" in printed and "--resume" in printed
    content = load_checkpoint(out / "last.ckpt")
    assert content["header"]["epoch"] >= 1
    assert not [name for name in files(out) if name.startswith(".partial-")]
    run(*command_line(module_crops, mini_weights, out, *flags, "--stop_after_epoch",
                      str(content["header"]["epoch"] + 1), "--resume"))


def test_bad_data_is_reported_once_and_ends_all(module_crops, mini_weights, tmp_path):
    two = command_line(module_crops, mini_weights, tmp_path / "out", "--train_csv", "nowhere.csv")
    done = together(tmp_path, "train.py", *two)
    assert done.returncode != 0
    assert done.stderr.count("nowhere.csv: ") == 1
    assert not (tmp_path / "out").exists()


def test_processes_with_other_flags_are_refused(module_crops, mini_weights, tmp_path):
    """Two processes by hand, as on two machines, with different seeds."""
    processes, port = [], str(free_port())
    for rank in range(2):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank),
                       "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "--device", "cpu", "--seed", str(rank),
             *command_line(module_crops, mini_weights, tmp_path / "out")],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment))
    printed = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert any("the flags or tables differ between the processes" in text for text in printed)
    assert not any("Traceback" in text for text in printed)


def test_a_single_process_needs_no_group():
    ranks = Ranks()
    layer = torch.nn.Linear(2, 2)
    function = distributed.replicate(lambda module, value: module(value), layer, ranks, torch.device("cpu"))
    assert torch.equal(function(torch.ones(2)), layer(torch.ones(2)))
    distributed.check_agreement(ranks, {"seed": 1}, [])
