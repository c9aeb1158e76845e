"""One step: its learning rate, clipping, skipping, and how often the host waits for the device."""

import contextlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import random_sam
from torch.utils._python_dispatch import TorchDispatchMode

from sam_lora.data.samples import read_samples
from sam_lora.errors import UserError
from sam_lora.model.augment import Augmentation
from sam_lora.model.batches import PromptedImages
from sam_lora.model.checkpoints import prepare_for_training
from sam_lora.model.prompt_mix import PromptMix
from sam_lora.training.distributed import Ranks
from sam_lora.training.epoch import Epoch
from sam_lora.training.loading import Loader
from sam_lora.training.losses import batch_loss, bce_iou
from sam_lora.training.update import GRADIENT_CLIP, MAX_BAD_STEPS, LearningRate, Update

CPU = torch.device("cpu")
MIX = PromptMix(table=1, other_points=1, points=1, box=1, box_and_points=1)


class HostWaits(TorchDispatchMode):
    """Counts what would make the host wait if the tensors were on a GPU: reading a value, and shapes that values give.

    That is item(), bool(), int(); nonzero, unique, masked_select, indexing by a mask; tolist(), cpu() and numpy() of
    tensors of numbers (lists of row numbers are on the host anyway).
    """

    BY_VALUE = ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::unique_dim",
                "aten::masked_select", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen = []
        self.reading = contextlib.ExitStack()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_mask = name in ("aten::index", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1])
        if name in self.BY_VALUE or by_mask:
            self.seen.append(name)
        return func(*args, **kwargs or {})

    def __enter__(self):
        for name in ("tolist", "cpu", "numpy"):
            patch = pytest.MonkeyPatch()
            patch.setattr(torch.Tensor, name, self._counted(name, getattr(torch.Tensor, name)))
            self.reading.callback(patch.undo)
        return super().__enter__()

    def __exit__(self, *error):
        self.reading.close()
        return super().__exit__(*error)

    def _counted(self, name, method):
        def counted(tensor, *args, **kwargs):
            if tensor.is_floating_point():
                self.seen.append(name)
            return method(tensor, *args, **kwargs)
        return counted


@pytest.mark.parametrize("read", [
    pytest.param(lambda x: bool(x.sum() > 0), id="bool"), pytest.param(lambda x: x[0].item(), id="item"),
    pytest.param(lambda x: x[x > 0], id="mask"), pytest.param(lambda x: x.tolist(), id="tolist"),
    pytest.param(lambda x: x.cpu(), id="cpu"), pytest.param(torch.nonzero, id="nonzero")])
def test_the_counter_sees_every_way_to_wait(read):
    with HostWaits() as waits:
        read(torch.ones(3))
    assert len(waits.seen) == 1


def make_update(sam, total_steps: int = 100, **settings) -> Update:
    settings = {"weight_decay": 0.01, "ema": 0.0} | settings
    return Update.by_adamw(sam, torch.amp.GradScaler("cpu", enabled=False), LearningRate(1e-3, total_steps, 0.0),
                           **settings)


@pytest.fixture
def sam():
    sam = random_sam("vit_mini", 128)
    prepare_for_training(sam, {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["qkv"], "blocks": None}, True)
    return sam


@pytest.fixture
def mixed_batches(crops):
    """An epoch whose rows prompt with one, two or three points, and boxes, each with two corrective clicks."""
    import pandas as pd
    rows = pd.read_csv(crops.train_csv, dtype=str)
    rows["box"] = ""
    rows.loc[0, "points"], rows.loc[1, "points"], rows.loc[2, "box"] = "[[20,20]]", "[[20,20],[22,21]]", "[2,2,30,30]"
    rows.to_csv(crops.train_csv, index=False)
    augment = Augmentation(1, True, 0.2, MIX, correction_rounds=2)
    images = PromptedImages(read_samples(crops.train_csv), 128, 8, True, False, augment=augment)
    return list(Loader(images, batch_size=3, num_workers=0, pin_memory=False, ranks=Ranks(), seed=1).epoch(1, 1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_host_waits_once_a_step(sam, mixed_batches, precision):
    """The body of the loop in train.py."""
    update, epoch = make_update(sam), Epoch(1, CPU, Ranks())
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    update.start_epoch(first_step=1)
    for batch, part in mixed_batches:
        with HostWaits() as waits:
            with autocast:
                loss, iou = batch_loss(sam, batch.to(CPU), bce_iou, 0.25)
            update.backward(loss, part.weight)
            epoch.add(loss, iou, part.masks)
            before = len(waits.seen)
            update.step()
        assert (before, waits.seen) == (0, ["aten::_local_scalar_dense"])
    assert update.skipped == 0 and update.number == 3
    epoch.trained()
    assert 0 < epoch.loss < 10 and 0 <= epoch.iou <= 1


def take_steps(sam, update: Update, losses: list[float]) -> list[bool]:
    """For each loss: did its step change the weights? Every trained weight has the loss's gradient."""
    changed = []
    for value in losses:
        before = [weight.detach().clone() for weight in update.weights]
        update.backward(sum(weight.sum() for weight in update.weights) * 1e-3 + value, 1.0)
        update.step()
        changed.append(any(not torch.equal(*pair) for pair in zip(before, update.weights)))
    return changed


def test_a_step_without_a_finite_loss_is_skipped_and_the_next_one_is_taken(sam):
    update = make_update(sam)
    assert take_steps(sam, update, [1.0, math.nan, 1.0, math.inf, -math.inf, 1.0]) == [True, False, True, False, False,
                                                                                      True]
    assert (update.skipped, update.bad_in_a_row, update.number) == (3, 0, 6)
    assert all(weight.isfinite().all() for weight in update.weights)
    assert all(weight.grad is None for weight in update.weights)
    update.start_epoch(first_step=6)
    assert update.skipped == 0


def test_ten_bad_steps_in_a_row_end_the_run_but_not_nine(sam):
    update = make_update(sam)
    take_steps(sam, update, [math.nan] * (MAX_BAD_STEPS - 1) + [1.0] + [math.nan] * (MAX_BAD_STEPS - 1))
    assert update.skipped == 2 * (MAX_BAD_STEPS - 1)
    with pytest.raises(UserError, match="10 steps in a row had a loss or gradient that is not finite"):
        take_steps(sam, update, [math.nan])


def test_a_bad_batch_spoils_neither_the_means_nor_the_rest_of_its_step():
    epoch = Epoch(1, CPU, Ranks())
    for loss, iou, masks in ((1.0, 0.5, 2), (math.nan, 0.9, 5), (4.0, 0.8, 1), (math.inf, 0.1, 3), (9.0, 0.9, 0)):
        epoch.add(torch.tensor(loss), torch.tensor(iou), masks)
    epoch.trained()
    assert (epoch.loss, epoch.iou) == pytest.approx((2.0, 0.6))
    nothing = Epoch(1, CPU, Ranks())
    nothing.add(torch.tensor(math.nan), torch.tensor(0.5), 2)
    nothing.trained()
    assert math.isnan(nothing.loss) and math.isnan(nothing.iou)


def test_gradients_are_clipped_to_the_norm_and_the_scaler_is_undone_first(sam):
    """Half-precision training multiplies the loss: the step must be the same as without it."""
    scaled = make_update(sam)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    scaled.optimizer = torch.optim.SGD(scaled.weights, lr=1.0)
    before = [weight.detach().clone() for weight in scaled.weights]
    scaled.learning_rate = LearningRate(1.0, 100, 0.0)
    scaled.backward(sum(weight.sum() for weight in scaled.weights), 3.0)
    scaled.step()
    moved = torch.cat([(old - new.detach()).flatten() for old, new in zip(before, scaled.weights)])
    assert moved.norm().item() == pytest.approx(GRADIENT_CLIP, rel=1e-2)


def test_a_weight_without_a_gradient_is_reported_at_the_first_step(sam):
    update = make_update(sam)
    update.backward(update.weights[0].sum(), 1.0)
    with pytest.raises(UserError, match="trainable tensors have no finite gradient"):
        update.step()


def test_weight_decay_and_moving_average_reach_the_optimizer(sam):
    update = make_update(sam, weight_decay=0.3, ema=0.9)
    assert update.optimizer.param_groups[0]["weight_decay"] == 0.3
    before = update.weights[0].detach().clone()
    take_steps(sam, update, [1.0, 1.0])
    with update.averaged():
        average = update.weights[0].detach().clone()
    assert not torch.equal(average, update.weights[0]) and not torch.equal(average, before)
    plain = make_update(sam)
    with plain.averaged():
        assert torch.equal(plain.weights[0], update.weights[0])


def test_the_learning_rate_rises_then_falls_to_zero():
    rate = LearningRate(peak=2.0, total_steps=100, warmup=0.1)
    rates = [rate.at(step) for step in range(101)]
    assert rates[:10] == pytest.approx(np.linspace(0.2, 2, 10))
    assert rates[10] == 2 and rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
