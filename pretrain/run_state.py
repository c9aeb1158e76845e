"""The state of a pretraining run, which outlives its stages and is kept in state.pt."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from objective import SHARP_STEP
from torch import Tensor

from sam_lora.errors import UserError
from sam_lora.files import atomic_path
from sam_lora.model.weights import read_state_dict


@dataclass(frozen=True)
class Progress:
    """How far a run has come. Times are training time in seconds, without evaluations; `best` is a held-out IoU."""

    stage: int = 0
    step: int = 0
    stage_step: int = 0
    stage_seconds: float = 0.0
    seconds: float = 0.0
    best: float = 0.0

    def after_step(self, seconds: float) -> "Progress":
        return replace(self, step=self.step + 1, stage_step=self.stage_step + 1,
                       stage_seconds=self.stage_seconds + seconds, seconds=self.seconds + seconds)


@dataclass
class State:
    """What state.pt keeps: progress, weights, their moving average, the optimisers' states. None before the start."""

    progress: Progress = field(default_factory=Progress)
    model: dict[str, Tensor] | None = None
    ema: dict[str, Tensor] | None = None
    optimisers: list[dict[str, Any]] | None = None

    def save(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            torch.save({"state": asdict(self.progress), "model": self.model, "ema": self.ema,
                        "optimisers": self.optimisers}, temporary)


def first_state(path: Path, resume: bool, init: str | None) -> State:
    """A fresh state, that of an earlier run in the file `path`, or one that starts from the weights in `init`."""
    if resume:
        if not path.is_file():
            raise UserError(f"{path}: no such file; start without --resume")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return State(Progress(**saved["state"]), saved["model"], saved["ema"], saved["optimisers"])
    if init:
        weights = {name: value.float() for name, value in read_state_dict(Path(init)).items()}
        return State(Progress(step=SHARP_STEP), weights, weights)
    return State()
