"""The stages of pretraining: each trains at one image size until its time is up."""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from held_out import MODEL_TYPE, Judge
from muon import make_optimisers
from objective import Chance, sharpness_at, training_loss
from replay import Feeder, Replay, replayed
from run_state import Progress, State
from scene_batches import Batches, make_loader
from starting_weights import initialise
from torch import Tensor

from sam_lora.errors import UserError
from sam_lora.model.meta import Sam
from sam_lora.model.precision import autocast
from sam_lora.model.sam import build_sam, resize_position_embeddings

LOG_FILE = "log.csv"
PREFETCHED = 6  # batches that a worker makes ahead
CHUNK, CHUNKS_AHEAD = 64, 2  # images that a worker sends at a time to a store of samples, and chunks it makes ahead
FIRST_DRAW = 8  # a store has to hold this many batches before the first is drawn


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
    precision: str  # fp32 or bf16, of the model's passes and Muon's iterations; losses and weights are float32
    replay: int     # images kept on the device; 0: each batch is used once


class Trainer:
    """The model of one stage, its moving average, its optimisers and the random numbers of its prompts."""

    def __init__(self, stage: Stage, state: State, settings: Settings, device: torch.device) -> None:
        self.stage, self.settings, self.device = stage, settings, device
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
        trained = {name: value for name, value in sam.state_dict().items() if value.is_floating_point()}
        self.weights = list(trained.values())  # they share the memory of the parameters
        self.averages = [self.ema[name] for name in trained]
        self.optimisers = make_optimisers(sam, settings.weight_decay,
                                          torch.bfloat16 if settings.precision == "bf16" else torch.float32)
        for optimiser, saved in zip(self.optimisers, state.optimisers or ()):
            optimiser.load_state_dict(saved)
        seeds = np.random.SeedSequence((settings.seed, stage.number, state.progress.step))
        generator = torch.Generator(device).manual_seed(int(seeds.generate_state(1)[0]))
        self.chance = Chance(np.random.default_rng(seeds), generator)

    def step(self, batch: dict[str, Tensor], rate: float, number: int) -> tuple[Tensor, Tensor]:
        """Step `number` of the run: (loss, mean IoU), both still on the device."""
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = group["lr_scale"] * rate
        with autocast(self.settings.precision, self.device):
            loss, iou = training_loss(self.sam, batch, self.chance, sharpness_at(number))
        loss.backward()
        clip_gradients(self.sam, self.settings.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self.sam.zero_grad(set_to_none=True)
        self.average(min(self.settings.ema, (1 + number) / (10 + number)))
        return loss.detach(), iou.mean()

    @torch.no_grad()
    def average(self, keep: float) -> None:
        """Move the average towards the weights, keeping a share of `keep` of it."""
        torch._foreach_lerp_(self.averages, self.weights, 1 - keep)

    def state(self, progress: Progress) -> State:
        """To be saved at once: on a CPU it shares the memory of the weights."""
        return State(progress, *({name: value.cpu() for name, value in weights.items()}
                                 for weights in (self.sam.state_dict(), self.ema)),
                     [optimiser.state_dict() for optimiser in self.optimisers])


def clip_gradients(sam: Sam, largest: float) -> None:
    """Scale the gradient to a norm of at most `largest`; one that is not finite becomes zero, unseen by the host."""
    torch.nn.utils.clip_grad_norm_(sam.parameters(), largest)
    for parameter in sam.parameters():
        if parameter.grad is not None:
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)


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


class Source:
    """Batches without end for one stage, on its device: each as the workers made it, or drawn from a store of samples.

    The workers' seed depends on the step, so that a resumed run gets new scenes.
    """

    def __init__(self, stage: Stage, step: int, settings: Settings, trainer: Trainer) -> None:
        self.replay = self.feeder = None
        images = min(CHUNK, max(1, settings.replay // 4)) if settings.replay else stage.images
        scenes = Batches(settings.seed * 1000 + step * 7 + stage.number, stage.side, images, stage.masks,
                         stage.whole_share)
        ahead = CHUNKS_AHEAD if settings.replay else PREFETCHED
        self.batches = iter(make_loader(scenes, settings.num_workers, ahead))
        self.device, self.count = trainer.device, stage.images
        if settings.replay:
            self.replay = Replay(settings.replay, self.device, trainer.chance.device)
            self.feeder = Feeder(self.batches, self.device)
            self.batches = replayed(self.feeder, self.replay, stage.images,
                                    min(FIRST_DRAW * stage.images, settings.replay))

    def next(self) -> dict[str, Tensor]:
        return {name: torch.as_tensor(array).to(self.device, non_blocking=True)
                for name, array in next(self.batches).items()}

    def use(self) -> dict[str, object]:
        """For the log: how many images were painted, and how often each was drawn on average."""
        if self.replay is None:
            return {}
        return {"painted": self.replay.added, "reuse": round(self.replay.drawn / max(self.replay.added, 1), 2)}

    def close(self) -> None:
        if self.feeder is not None:
            self.feeder.stop()


def run_stage(stage: Stage, state: State, judge: Judge, settings: Settings) -> State:
    """Train until the stage's time is up; returns the state that the next stage starts from."""
    if stage.number != state.progress.stage:
        state.progress = replace(state.progress, stage=stage.number, stage_step=0, stage_seconds=0.0)
        state.optimisers = None
    trainer = Trainer(stage, state, settings, judge.device)
    source = Source(stage, state.progress.step, settings, trainer)
    try:
        return train(trainer, source, state, judge)
    finally:
        source.close()


def train(trainer: Trainer, source: Source, state: State, judge: Judge) -> State:
    """The steps of a stage, with a row of the log about every minute and an evaluation now and then."""
    stage, settings, progress = trainer.stage, trainer.settings, state.progress
    last_judged = time.perf_counter()
    meter = Meter(last_judged)
    while progress.stage_seconds < stage.seconds:
        begin = time.perf_counter()
        batch = source.next()
        waited = time.perf_counter() - begin
        rate = learning_rate(stage.rate, stage.last_rate, progress.stage_step, settings.warmup,
                             progress.stage_seconds / stage.seconds)
        loss, iou = trainer.step(batch, rate, progress.step)
        now = time.perf_counter()
        progress = progress.after_step(now - begin)
        meter.add(loss, iou, waited)
        if now - meter.began > (60 if progress.step > 300 else 15):
            judge.log(LOG_FILE, {**meter.row(progress, stage.side, rate, now), **source.use()})
            meter = Meter(time.perf_counter())
        if now - last_judged > settings.evaluate_every * 60:
            state = trainer.state(progress)
            judge.judge(state, stage.side, "")
            progress = state.progress
            last_judged = time.perf_counter()
            meter = Meter(last_judged)
    state = trainer.state(progress)
    judge.judge(state, stage.side, "end of stage")
    return state
