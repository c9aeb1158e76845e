"""The state of a run between epochs: its log, its best epochs, its files, and how it is resumed."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sam_lora import contracts, plots
from sam_lora.errors import UserError
from sam_lora.model import checkpoints
from sam_lora.model.meta import Sam
from sam_lora.tables import write_table
from sam_lora.training.distributed import Ranks
from sam_lora.training.update import Update

MUST_AGREE = ("model_type", "image_size", "base_sha256", "lora", "train_decoder", "find")  # with the run before


@dataclass(frozen=True)
class LogRow:
    """A row of training_log.csv; its columns in order. Epoch 0 is the untuned model."""

    epoch: int
    train_loss: float = math.nan
    val_loss: float = math.nan
    train_iou: float = math.nan
    val_iou: float = math.nan
    learning_rate: float = math.nan
    seconds: float = math.nan
    images_per_s: float = math.nan
    data_wait: float = math.nan         # fraction of the training time spent waiting for batches
    peak_memory_mb: float = math.nan
    skipped_steps: int = 0
    val_find_f1: float | None = None    # None, and no column, without a finder

    @property
    def quality(self) -> float:
        """What the best epoch has the most of, on the validation table: IoU, and where there is a finder its F1."""
        return self.val_iou if self.val_find_f1 is None else (self.val_iou + self.val_find_f1) / 2

    def rounded(self) -> dict[str, float]:
        digits = {"seconds": 2, "images_per_s": 2, "data_wait": 4, "peak_memory_mb": 1}
        return {name: round(value, digits[name]) if name in digits else value for name, value in asdict(self).items()
                if value is not None}


@dataclass(frozen=True)
class Best:
    """The epoch whose weights become the final checkpoint; on the validation table its `iou` and its
    `LogRow.quality`, -1 without one."""

    epoch: int = 0
    iou: float = -1.0
    quality: float = -1.0
    state: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """What a run knows after each epoch. `header` goes into every checkpoint; `validated`: there is a validation table.

    `top`: [validation IoU, epoch] of the best epochs, whose checkpoints are kept.
    """

    folder: Path
    header: dict[str, Any]
    validated: bool
    epoch: int = 0
    log: list[LogRow] = field(default_factory=list)
    top: list[list] = field(default_factory=list)
    best: Best = Best()

    @property
    def stale(self) -> int:
        """Epochs since the best one; 0 without a validation table."""
        return self.epoch - self.best.epoch if self.validated else 0

    def resume(self, update: Update) -> None:
        """Go on from last.ckpt. Raises UserError if it is of another kind of run."""
        path = self.folder / contracts.LAST_CHECKPOINT
        content = checkpoints.load_checkpoint(path)
        training = content.get("training")
        if not isinstance(training, dict):
            raise UserError(f"{path}: holds no training state; --resume needs the last.ckpt of train.py")
        self._check_kind(path, content["header"], averaged="average" in training, averages=update.average is not None)
        checkpoints.load_trained_state(update.sam, training.get("weights", content["state"]), path)
        try:
            if update.average:
                update.average.load_state(training["average"])
            update.optimizer.load_state_dict(training["optimizer"])
            update.scaler.load_state_dict(training["scaler"])
            columns = {column.name for column in fields(LogRow)}
            self.log = [LogRow(**{name: value for name, value in row.items() if name in columns})
                        for row in training["log"]]
            self.epoch, self.top = training["epoch"], training["top"]
            self.best = Best(training["best_epoch"], training["best_iou"],
                             training.get("best_quality", training["best_iou"]), training["best_state"],
                             training.get("best_metrics", {}))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{path}: its training state does not fit ({error}); "
                            "start anew in another --save_dir") from error

    def _check_kind(self, path: Path, before: dict[str, Any], averaged: bool, averages: bool) -> None:
        for name in MUST_AGREE:
            earlier = before.get(name)
            if name == "lora":
                earlier = {"rslora": False, "dora": False, **earlier}  # absent in the first checkpoints
            if earlier != self.header[name]:
                raise UserError(f"{path}: was trained with {name} {earlier}, this run has {self.header[name]}; "
                                "resume with the same flags, or start anew in another --save_dir")
        if averaged != averages:
            given, missing = ("with", "without") if averaged else ("without", "with")
            raise UserError(f"{path}: was trained {given} --ema, this run is {missing}; "
                            "resume with the same flags, or start anew in another --save_dir")

    def start(self, validation: Callable[[], tuple[float, float]], existing: Sequence[Path], ranks: Ranks) -> None:
        """Epoch 0, the untuned model. The files of an earlier run go only now that the new one is known to work."""
        began = time.perf_counter()
        val_loss, val_iou = validation()
        self.log.append(LogRow(0, val_loss=val_loss, val_iou=val_iou, seconds=time.perf_counter() - began))
        if ranks.first:
            for path in existing:
                path.unlink(missing_ok=True)
            self.write_log()
        if self.validated:
            ranks.say(f"epoch 0 (untuned): validation IoU {val_iou:.4f}")

    def finish(self, row: LogRow, state: dict[str, Tensor]) -> None:
        """The end of an epoch: `row` is its log, `state` the weights that were validated."""
        self.epoch = row.epoch
        self.log.append(row)
        self.header |= {"epoch": row.epoch, "metrics": {"val_iou": row.val_iou, "train_iou": row.train_iou,
                                                        "untuned_val_iou": self.log[0].val_iou}}
        if not self.validated or row.quality > self.best.quality:
            iou, quality = (row.val_iou, row.quality) if self.validated else (-1.0, -1.0)
            self.best = Best(row.epoch, iou, quality, state, self.header["metrics"])

    def save(self, update: Update, state: dict[str, Tensor], top_k: int) -> None:
        """The epoch's files: the `top_k` best checkpoints, last.ckpt, the log. `state` as for `finish`."""
        if self.validated and top_k:
            keep_top(self.top, top_k, self.folder, self.header, state)
        training = {"epoch": self.epoch, "log": [asdict(row) for row in self.log], "top": self.top,
                    "best_epoch": self.best.epoch, "best_iou": self.best.iou,
                    "best_quality": self.best.quality, "best_state": self.best.state,
                    "best_metrics": self.best.metrics, "optimizer": update.optimizer.state_dict(),
                    "scaler": update.scaler.state_dict(), "random_state": torch.get_rng_state()}
        if update.average:  # then `state` is the average
            training |= {"average": update.average.state(), "weights": checkpoints.trained_state(update.sam)}
        checkpoints.save_checkpoint(self.folder / contracts.LAST_CHECKPOINT, self.header, state, training)
        self.write_log()

    def write_log(self) -> None:
        """training_log.csv and its curves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = pd.DataFrame([row.rounded() for row in self.log])
        write_table(log, self.folder / contracts.TRAINING_LOG)
        plots.training_curves(log, self.folder / contracts.TRAINING_CURVES)

    def write_final(self) -> str:
        """The checkpoint of the best epoch; returns what to print about it."""
        path = self.folder / contracts.FINAL_CHECKPOINT
        header = self.header | {"epoch": self.best.epoch, "metrics": self.best.metrics}
        checkpoints.save_checkpoint(path, header, self.best.state)
        text = f"{path}: the weights of epoch {self.best.epoch}, {path.stat().st_size / 1e6:.1f} MB"
        if self.validated:
            untuned = self.log[0].val_iou
            text += f"\nvalidation IoU {untuned:.4f} untuned, {self.best.iou:.4f} tuned"
            if not self.best.iou > untuned:
                text += ": fine-tuning did NOT help; see the README's troubleshooting"
        return text

    def complete_finder(self, sam: Sam, threshold: float) -> None:
        """The finder of the best epoch is finished: keep its weights and its threshold."""
        self.header["find"] = self.header["find"] | {"threshold": threshold}
        self.best = replace(self.best, state=checkpoints.trained_state(sam))

    def line(self) -> str:
        """The last epoch in one line."""
        row = self.log[-1]
        validation = f", validation IoU {row.val_iou:.4f}" + (" (best)" if self.best.epoch == row.epoch else "")
        if row.val_find_f1 is not None:
            validation = f", finding F1 {row.val_find_f1:.3f}" + validation
        return (f"epoch {row.epoch}: loss {row.train_loss:.4f}, train IoU {row.train_iou:.4f}"
                + validation * self.validated + f", {row.seconds:.0f} s")


def keep_top(top: list[list], k: int, folder: Path, header: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write this epoch's checkpoint if it is among the k best, drop the one it displaces. `top` changes in place."""
    val_iou, epoch = header["metrics"]["val_iou"], header["epoch"]
    ranked = sorted([*top, [val_iou, epoch]], key=lambda entry: (-entry[0], entry[1]))
    if [val_iou, epoch] in ranked[:k]:
        checkpoints.save_checkpoint(folder / contracts.epoch_checkpoint(epoch, val_iou), header, state)
    for displaced_iou, displaced_epoch in ranked[k:]:
        (folder / contracts.epoch_checkpoint(displaced_epoch, displaced_iou)).unlink(missing_ok=True)
    top[:] = ranked[:k]
