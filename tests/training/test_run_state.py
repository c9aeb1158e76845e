"""The state of a run: its log, its best epochs, and files that are whole whenever the process ends."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import ROOT, files

from sam_lora.model.checkpoints import load_checkpoint
from sam_lora.training.run_state import LogRow, Run, keep_top


def test_keep_top_ranks_by_iou_and_drops_the_displaced(tmp_path):
    top = []
    for epoch, iou in enumerate((0.3, 0.5, 0.2, 0.6), start=1):
        keep_top(top, 2, tmp_path, {"epoch": epoch, "metrics": {"val_iou": iou}}, {})
    assert files(tmp_path) == {"sam-lora-epoch=02-val_iou=0.5000.ckpt", "sam-lora-epoch=04-val_iou=0.6000.ckpt"}
    assert top == [[0.6, 4], [0.5, 2]]


def test_the_best_epoch_and_how_long_ago_it_was(tmp_path):
    run = Run(tmp_path, {}, validated=True, log=[LogRow(0, val_iou=0.4)])
    for epoch, iou in enumerate((0.3, 0.5, 0.5, 0.2), start=1):
        run.finish(LogRow(epoch, train_loss=1.0, train_iou=0.6, val_iou=iou, seconds=7.4), {"x": epoch})
    assert (run.best.epoch, run.best.iou, run.best.state, run.stale) == (2, 0.5, {"x": 2}, 2)
    assert run.best.metrics == {"val_iou": 0.5, "train_iou": 0.6, "untuned_val_iou": 0.4}
    assert run.line() == "epoch 4: loss 1.0000, train IoU 0.6000, validation IoU 0.2000, 7 s"


def test_without_validation_the_last_epoch_is_the_best(tmp_path):
    run = Run(tmp_path, {}, validated=False, log=[LogRow(0)])
    for epoch in (1, 2):
        run.finish(LogRow(epoch, train_loss=1.0, train_iou=0.6, seconds=2.0), {"x": epoch})
    assert (run.best.epoch, run.stale) == (2, 0)
    assert run.line() == "epoch 2: loss 1.0000, train IoU 0.6000, 2 s"


def test_a_log_row_is_rounded_where_it_was_measured():
    row = LogRow(1, 0.123456789, seconds=1.23456, data_wait=0.123456, peak_memory_mb=1.26).rounded()
    assert (row["train_loss"], row["seconds"], row["data_wait"], row["peak_memory_mb"]) == (0.123456789, 1.23, 0.1235,
                                                                                            1.3)
    assert math.isnan(row["val_iou"]) and row["skipped_steps"] == 0


SAVE_THEN_STOP_INSIDE_A_SAVE = """
import os, sys, torch
from pathlib import Path
from sam_lora.model.checkpoints import save_checkpoint
header = {"model_type": "vit_mini", "image_size": 256, "base_sha256": "", "train_decoder": True, "epoch": 1,
          "prompt": "", "metrics": {}, "lora": {"rank": 1, "alpha": 1, "dropout": 0, "targets": [], "blocks": None}}

def stop(*_):
    print("inside a save", flush=True)
    sys.stdin.read()

class StopsWhenPickled:
    __reduce__ = stop

path, moment = Path(sys.argv[1]), sys.argv[2]
save_checkpoint(path, header, {"x": torch.full((500_000,), 1.0)})
state = {"x": torch.full((500_000,), 2.0)}
if moment == "begun":
    state["y"] = StopsWhenPickled()
else:
    os.fsync = stop
save_checkpoint(path, header | {"epoch": 2}, state)
"""


@pytest.mark.parametrize(("moment", "least_bytes"), [pytest.param("begun", 0, id="hardly begun"),
                                                     pytest.param("written", 2_000_000, id="all but renamed")])
def test_a_process_killed_inside_a_save_leaves_the_earlier_checkpoint(tmp_path, moment, least_bytes):
    path = tmp_path / "last.ckpt"
    with subprocess.Popen([sys.executable, "-c", SAVE_THEN_STOP_INSIDE_A_SAVE, str(path), moment], cwd=ROOT,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "inside a save\n"
        unfinished: list[Path] = list(tmp_path.glob(".partial-*"))
        assert len(unfinished) == 1 and unfinished[0].stat().st_size >= least_bytes
        process.kill()
    content = load_checkpoint(path)
    assert content["header"]["epoch"] == 1 and bool((content["state"]["x"] == 1).all())
