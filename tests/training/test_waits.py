"""A training step on a device that nobody can look into: `meta` stands for a GPU, where each look makes the host wait.

A tensor on `meta` has no values, so whatever needs one (`.item()`, `if tensor`, boolean indexing, `.cpu()`) fails, but
for the looks at single numbers, which are counted here and answered.
"""

import contextlib
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_sam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam_lora.model import checkpoints
from sam_lora.model.attention import speed_up
from sam_lora.model.batches import Batch
from sam_lora.model.finder_targets import Cells, Scene, stack_cells
from sam_lora.model.lora import LoraSettings
from sam_lora.model.prompts import Prompts
from sam_lora.training.distributed import Ranks
from sam_lora.training.epoch import Epoch
from sam_lora.training.losses import batch_loss, bce_iou
from sam_lora.training.update import LearningRate, Update

SIDE = 128
PACKAGE = str(Path(checkpoints.__file__).parents[1])


class Watched(TorchDispatchMode):
    """Notes the functions of the package that look at a number on the device, or mix it with the CPU's tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[str] = []
        self.blocking: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if function is torch.ops.aten._local_scalar_dense.default and tensors[0].is_meta:
            self.looks.append(caller())
            return 1
        out = function(*args, **kwargs)
        copies = function is torch.ops.aten._to_copy.default
        devices = {tensor.device.type for tensor in (*tensors, *tree_leaves(out)) if isinstance(tensor, torch.Tensor)
                   and (copies or tensor.ndim)}     # a kernel takes a single number with its arguments
        if len(devices) > 1 and not (copies and kwargs.get("non_blocking")):
            self.blocking.append(f"{function} in {caller()}")
        return out


def caller() -> str:
    """The innermost function of the package that is running."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
    return f"{Path(frames[-1].filename).name}: {frames[-1].name}" if frames else "PyTorch"


def model(find: bool = False):
    sam = random_sam("vit_mini", SIDE)
    speed_up(sam)
    checkpoints.prepare_for_training(sam, LoraSettings(4, 8.0, targets=("qkv", "lin1")), train_decoder=True,
                                     find={"classes": ["crack", "spall"]} if find else None)
    return sam.to("meta")


def batch(boxes: torch.Tensor | None, labels: list[list[int]], find: bool = False) -> Batch:
    """`find`: of whole photos, the last of which has no object."""
    prompts = Prompts(torch.rand(3, 2, 2) * 100, torch.tensor(labels), boxes)
    return Batch([0, 1, 2], torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8), [0, 1],
                 torch.tensor([[SIDE, 96], [100, SIDE]]), [(90, 80)] * 2, torch.tensor([0, 1, 1]), prompts,
                 torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), [], [],
                 counted=torch.tensor([1.0, 0, 0]) if find else None, cells=cells() if find else None)


def cells() -> Cells:
    """Of two images, an object in the first."""
    owner = np.zeros((SIDE, 96), np.int16)
    owner[20:70, 10:60] = 1
    scenes = [Scene(owner, (1,), 8), Scene(np.zeros((100, SIDE), np.int16), (), 8)]
    return stack_cells([scene.cells(SIDE) for scene in scenes])


@pytest.mark.parametrize("find", [False, True])
@pytest.mark.parametrize(("boxes", "labels"), [
    pytest.param(None, [[1, 1], [1, 0], [1, 1]], id="points"),
    pytest.param(None, [[1, 1], [1, -1], [1, 1]], id="points of two numbers"),
    pytest.param(torch.tensor([[1., 2, 30, 40]] * 3), [[1, 1], [-1, -1], [1, 1]], id="points and boxes")])
def test_a_step_looks_at_the_device_once(boxes, labels, find, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())   # it knows no meta
    sam = model(find)
    update = Update.by_adamw(sam, torch.amp.GradScaler("cpu", enabled=False), LearningRate(1e-3, 10, 0.0), 0.01, 0.9)
    update.number = 1       # the run's first step also looks at every gradient
    epoch = Epoch(1, torch.device("meta"), Ranks())
    with Watched() as watched:
        for _ in range(2):  # what the first step makes, the second finds
            loss, iou = batch_loss(sam, batch(boxes, labels, find).to(sam.device), bce_iou, 0.25)
            update.backward(loss, 0.5)
            epoch.add(loss, iou, 3)
            update.step()
    assert watched.looks == 2 * ["update.py: step"]
    assert not watched.blocking


def test_the_watch_sees_what_makes_the_host_wait():
    there, here = torch.ones(3, device="meta"), torch.ones(3)
    with Watched() as watched:
        if there.sum():
            there.sum().item()
        here.to("meta", non_blocking=True)
        assert not watched.blocking
        here.to("meta")
        there[torch.tensor([0, 1])]
    assert len(watched.looks) == 2 and len(watched.blocking) == 2
    with pytest.raises(NotImplementedError):
        there.cpu()
