"""processes.py: what the processes of a run tell one another, here two of them without torchrun."""

import json
import os

import pytest
from conftest import ROOT, run_python

from sam_lora.errors import UserError
from sam_lora.model import processes
from sam_lora.ranks import ALONE, Ranks

TWO = """\
import json, multiprocessing, os, sys
from pathlib import Path

def run(rank, store, answers):
    import torch
    from sam_lora.model import processes
    from sam_lora.ranks import Ranks
    ranks = Ranks(rank, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    answers.put((rank, {
        "gathered": processes.gathered({"rank": rank, "text": "ä" * (1 + 40 * rank), "score": 0.1 + rank}, ranks),
        "told": processes.told_by_first([None, 1.5] if ranks.first else "something longer", ranks),
        "sum": processes.add_up([rank, 1], ranks).tolist()}))
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    pair = [context.Process(target=run, args=(rank, Path("store").resolve(), answers)) for rank in range(2)]
    for process in pair:
        process.start()
    print(json.dumps(dict(answers.get(timeout=120) for _ in pair)))
    for process in pair:
        process.join()
"""


def test_two_processes(tmp_path):
    (tmp_path / "two.py").write_text(TWO, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = run_python("two.py", cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers["0"]["gathered"] == [{"rank": 0, "text": "ä", "score": 0.1},
                                        {"rank": 1, "text": "ä" * 41, "score": 1.1}]
    assert answers["1"]["gathered"] == []
    assert [answers[rank]["told"] for rank in "01"] == [[None, 1.5]] * 2
    assert [answers[rank]["sum"] for rank in "01"] == [[1.0, 2.0]] * 2


def test_a_single_process_needs_no_group(tmp_path):
    value = object()
    assert processes.gathered(value, ALONE) == [value] and processes.told_by_first(value, ALONE) is value
    assert processes.add_up([1.5, 2], ALONE).tolist() == [1.5, 2.0]
    processes.check_agreement(ALONE, {"seed": 1}, [])
    with processes.joined(ALONE, "gloo", "lost"), processes.one_first(ALONE), \
            processes.shared_folder(ALONE, tmp_path / "out", ("a",), False) as folder:
        (folder / "a").touch()
    assert (tmp_path / "out" / "a").exists()


def test_a_folder_on_another_machine_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "told_by_first", lambda value, ranks: str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="elsewhere: made by another process .* on a disk that all machines share"), \
            processes.shared_folder(Ranks(1, 2), tmp_path / "out", (), False):
        pass
