"""One step of the optimiser: learning rate, unscale, clip, step or skip, moving average, zero."""

import contextlib
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sam_lora.errors import UserError
from sam_lora.model.lora import check_gradients, trainable_parameters
from sam_lora.model.meta import Sam
from sam_lora.training.ema import WeightAverage

GRADIENT_CLIP = 1.0
FINDER_RATE = 3.0    # times the learning rate: the finder starts from nothing
MAX_BAD_STEPS = 10   # steps in a row without a finite gradient that end the run


@dataclass(frozen=True)
class LearningRate:
    """A line up to `peak` over the first `warmup` (0 to 1) of all steps, then half a cosine down to zero."""

    peak: float
    total_steps: int
    warmup: float

    def at(self, step: int) -> float:
        rise = max(1, round(self.total_steps * self.warmup))
        if step < rise:
            return self.peak * ((step + 1) / rise)
        fallen = min(1.0, (step - rise) / max(1, self.total_steps - rise))
        return self.peak * (0.5 * (1 + math.cos(math.pi * fallen)))


@dataclass
class Update:
    """What turns gradients into better weights. `average` None: no moving average."""

    sam: Sam
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    learning_rate: LearningRate
    average: WeightAverage | None = None
    number: int = 0             # of the next step of the run
    skipped: int = 0            # steps of this epoch
    bad_in_a_row: int = 0       # steps, over epochs
    weights: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = list(trainable_parameters(self.sam).values())

    @classmethod
    def by_adamw(cls, sam: Sam, scaler: torch.amp.GradScaler, learning_rate: LearningRate, weight_decay: float,
                 ema: float = 0.0) -> "Update":
        """AdamW on what trains; `ema` above 0 keeps a moving average of it too."""
        trainable = trainable_parameters(sam)
        of_finder = [value for name, value in trainable.items() if name.startswith("finder.")]
        others = [value for name, value in trainable.items() if not name.startswith("finder.")]
        groups = [{"params": weights, "factor": factor} for weights, factor in ((others, 1.0), (of_finder, FINDER_RATE))
                  if weights]
        optimizer = torch.optim.AdamW(groups, lr=learning_rate.peak, weight_decay=weight_decay,
                                      fused=sam.device.type in ("cpu", "cuda"))
        return cls(sam, optimizer, scaler, learning_rate, WeightAverage(trainable, ema) if ema else None)

    def start_epoch(self, first_step: int) -> None:
        self.sam.train()
        self.number, self.skipped = first_step, 0

    @property
    def learning_rate_now(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def backward(self, loss: Tensor, weight: float) -> None:
        """Add `weight` times the gradient of a batch's loss.

        A loss that is not finite makes every gradient NaN, here and, once DistributedDataParallel has taken the mean,
        in all processes: so all of them skip the step, and none has to ask the others.
        """
        self.scaler.scale(loss * torch.where(loss.detach().isfinite(), weight, math.nan)).backward()

    def step(self) -> None:
        """The next step of the run; skipped if a gradient is not finite. Only here does the host wait for the GPU.

        Raises UserError after MAX_BAD_STEPS skipped ones in a row, or if part of the model has no gradient at all.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate.at(self.number) * group.get("factor", 1.0)   # none in old checkpoints
        self.scaler.unscale_(self.optimizer)
        finite = bool(torch.isfinite(nn.utils.clip_grad_norm_(self.weights, GRADIENT_CLIP)))  # the one wait
        if finite:
            if self.number == 0:  # once a run
                check_gradients(self.sam)
            self.scaler.step(self.optimizer)
            self.bad_in_a_row = 0
            if self.average:
                self.average.update()
        else:
            self.skipped += 1
            self.bad_in_a_row += 1
            if self.bad_in_a_row == MAX_BAD_STEPS:
                raise UserError(f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite; "
                                "try --precision fp32, a smaller --learning_rate, and look at the masks")
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1

    def averaged(self) -> AbstractContextManager:
        """A block in which the model has its averaged weights, if there is an average."""
        return self.average.applied() if self.average else contextlib.nullcontext()
