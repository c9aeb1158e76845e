"""The stages of pretraining: each trains at one image size until its time is up."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from held_out import MODEL_TYPE, Judge
from muon import make_optimisers
from objective import sharpness_at, training_loss
from run_state import Progress, State
from scene_batches import Batches
from starting_weights import initialise
from torch import Tensor
from torch.utils.data import DataLoader

from sam_lora.errors import UserError
from sam_lora.model.meta import Sam
from sam_lora.model.sam import build_sam, resize_position_embeddings

LOG_FILE = "log.csv"
PREFETCHED = 6  # batches that a worker makes ahead


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one image size. `rate` falls from its peak to `last_rate` over `seconds`."""

    number: int
    side: int
    seconds: float
    images: int
    masks: int
    rate: float
    last_rate: float
    whole_share: float  # of the samples: whole scenes instead of crops


def make_stages(sides: Sequence[int], minutes: Sequence[float], images: Sequence[int], masks: Sequence[int],
                learning_rates: Sequence[float]) -> list[Stage]:
    """One stage for each entry of the flags of the same names. Raises UserError where they differ in number."""
    values = sides, minutes, images, masks, learning_rates
    if len(set(map(len, values))) > 1:
        raise UserError("--sides, --minutes, --images, --masks and --learning_rates: expected one value per stage each")
    last = len(sides) - 1
    return [Stage(number, side, length * 60, batch, regions, rate, 0.0 if number == last else rate * 0.5,
                  0.12 if number == 0 else 0.22)
            for number, (side, length, batch, regions, rate) in enumerate(zip(*values))]


@dataclass(frozen=True)
class Settings:
    """What is the same in all stages: the flags of the same names."""

    warmup: int
    weight_decay: float
    clip: float
    ema: float
    seed: int
    threads: int
    num_workers: int
    evaluate_every: float


class Trainer:
    """The model of one stage, its moving average, its optimisers and the random numbers of its prompts."""

    def __init__(self, stage: Stage, state: State, settings: Settings, device: torch.device) -> None:
        self.stage, self.clip, self.decay, self.device = stage, settings.clip, settings.ema, device
        sam = build_sam(MODEL_TYPE, stage.side)
        if state.model is None:
            initialise(sam, next(iter(Batches(settings.seed, stage.side, 64, 1, 0.1))))
            torch.set_num_threads(settings.threads)  # drawing the batch took it to one
            ema = copy.deepcopy(sam.state_dict())
        else:
            sam.load_state_dict(resize_position_embeddings(state.model, sam))
            ema = resize_position_embeddings(state.ema, sam)
        self.sam: Sam = sam.to(device).train()
        self.ema = {name: value.clone().to(device) for name, value in ema.items()}
        self.optimisers = make_optimisers(sam, settings.weight_decay)
        for optimiser, saved in zip(self.optimisers, state.optimisers or ()):
            optimiser.load_state_dict(saved)
        self.rng = np.random.default_rng((settings.seed, stage.number, state.progress.step))

    def step(self, batch: dict[str, Tensor], rate: float, number: int) -> tuple[Tensor, Tensor]:
        """Step `number` of the run: (loss, mean IoU). A gradient that is not finite changes no weight."""
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = group["lr_scale"] * rate
        loss, iou = training_loss(self.sam, batch, self.rng, sharpness_at(number))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.sam.parameters(), self.clip)
        if torch.isfinite(norm):
            for optimiser in self.optimisers:
                optimiser.step()
        self.sam.zero_grad(set_to_none=True)
        self.average(min(self.decay, (1 + number) / (10 + number)))
        return loss.detach(), iou.mean()

    @torch.no_grad()
    def average(self, keep: float) -> None:
        """Move the average towards the weights, keeping a share of `keep` of it."""
        weights = self.sam.state_dict()
        names = [name for name, value in weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.ema[name] for name in names], [weights[name] for name in names], 1 - keep)

    def state(self, progress: Progress) -> State:
        """To be saved at once: on a CPU it shares the memory of the weights."""
        return State(progress, *({name: value.cpu() for name, value in weights.items()}
                                 for weights in (self.sam.state_dict(), self.ema)),
                     [optimiser.state_dict() for optimiser in self.optimisers])


@dataclass
class Meter:
    """What a row of the log sums up, since `began`."""

    began: float
    losses: list[Tensor] = field(default_factory=list)
    ious: list[Tensor] = field(default_factory=list)
    waited: float = 0.0

    def add(self, loss: Tensor, iou: Tensor, waited: float) -> None:
        self.losses.append(loss)
        self.ious.append(iou)
        self.waited += waited

    def row(self, progress: Progress, side: int, rate: float, now: float) -> dict[str, object]:
        steps = len(self.losses)
        return {"minutes": round(progress.seconds / 60, 2), "step": progress.step, "side": side,
                "loss": round(float(torch.stack(self.losses).mean()), 4),
                "iou": round(float(torch.stack(self.ious).mean()), 4), "learning_rate": f"{rate:.2e}",
                "seconds_a_step": round((now - self.began) / steps, 3), "waiting": round(self.waited / steps, 3)}


def learning_rate(peak: float, end: float, step: int, warmup: int, progress: float) -> float:
    """Warm-up by steps, then a cosine over the progress (0 to 1) of the stage."""
    return min(1.0, (step + 1) / warmup) * (end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def make_batches(stage: Stage, step: int, settings: Settings) -> Iterator[dict[str, Tensor]]:
    """Batches without end. Their seed depends on the step, so that a resumed run gets new ones."""
    batches = Batches(settings.seed * 1000 + step * 7 + stage.number, stage.side, stage.images, stage.masks,
                      stage.whole_share)
    return iter(DataLoader(batches, batch_size=None, num_workers=settings.num_workers,
                           prefetch_factor=PREFETCHED if settings.num_workers else None))


def run_stage(stage: Stage, state: State, judge: Judge, settings: Settings) -> State:
    """Train until the stage's time is up; returns the state that the next stage starts from."""
    if stage.number != state.progress.stage:
        state.progress = replace(state.progress, stage=stage.number, stage_step=0, stage_seconds=0.0)
        state.optimisers = None
    progress = state.progress
    trainer = Trainer(stage, state, settings, judge.device)
    batches = make_batches(stage, progress.step, settings)
    last_judged = time.perf_counter()
    meter = Meter(last_judged)
    while progress.stage_seconds < stage.seconds:
        begin = time.perf_counter()
        batch = {name: tensor.to(judge.device, non_blocking=True) for name, tensor in next(batches).items()}
        waited = time.perf_counter() - begin
        rate = learning_rate(stage.rate, stage.last_rate, progress.stage_step, settings.warmup,
                             progress.stage_seconds / stage.seconds)
        loss, iou = trainer.step(batch, rate, progress.step)
        now = time.perf_counter()
        progress = progress.after_step(now - begin)
        meter.add(loss, iou, waited)
        if now - meter.began > (60 if progress.step > 300 else 15):
            judge.log(LOG_FILE, meter.row(progress, stage.side, rate, now))
            meter = Meter(now)
        if now - last_judged > settings.evaluate_every * 60:
            state = trainer.state(progress)
            judge.judge(state, stage.side, "")
            progress = state.progress
            last_judged = time.perf_counter()
            meter = Meter(last_judged)
    state = trainer.state(progress)
    judge.judge(state, stage.side, "end of stage")
    return state
