"""One pass over the training table: what its batches add up to, how long it took, and its row of the log."""

import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.training import distributed, memory
from sam_lora.training.distributed import Ranks
from sam_lora.training.run_state import LogRow
from sam_lora.training.update import Update


class Epoch:
    """Sums of an epoch's losses and IoUs, kept on the device so that no batch makes the host wait, and its times."""

    def __init__(self, number: int, device: torch.device, ranks: Ranks) -> None:
        self.number, self.device, self.ranks = number, device, ranks
        wide = torch.float32 if device.type == "mps" else torch.float64   # Apple's GPUs have no float64
        self.sums = torch.zeros(3, dtype=wide, device=device)             # loss x masks, IoU x masks, masks
        self.loss = self.iou = math.nan                                   # means over all processes, once it is trained
        self.waited = 0.0                                                 # seconds for batches
        self.training_seconds = 0.0
        self.began = time.perf_counter()
        memory.start_peak(device)

    def timed(self, batches: Iterable, total: int) -> Iterator:
        """The batches, with a progress bar in the first process; counts the seconds spent waiting for them."""
        iterator = iter(batches)
        with tqdm(desc=f"epoch {self.number}", total=total, unit="batch", leave=False,
                  disable=None if self.ranks.first else True) as bar:
            while True:
                began = time.perf_counter()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                finally:
                    self.waited += time.perf_counter() - began
                yield batch
                bar.update()

    def add(self, loss: Tensor, iou: Tensor, masks: int) -> None:
        """Count a batch of `masks` masks, unless its loss is not finite."""
        loss = loss.detach()
        values = torch.stack([loss, iou, torch.ones_like(loss)]).to(self.sums.dtype) * masks
        self.sums += torch.where(loss.isfinite(), values, 0)

    def trained(self) -> None:
        """The last batch has gone: take the means over all processes. NaN if no batch counted."""
        loss, iou, masks = distributed.add_up(self.sums, self.ranks).tolist()
        if masks:
            self.loss, self.iou = loss / masks, iou / masks
        self.training_seconds = time.perf_counter() - self.began

    def log_row(self, val_loss: float, val_iou: float, find_f1: float | None, images: int, update: Update) -> LogRow:
        """`images`: how many were trained on, by all processes; `find_f1`: None without a finder."""
        return LogRow(self.number, self.loss, val_loss, self.iou, val_iou, learning_rate=update.learning_rate_now,
                      seconds=time.perf_counter() - self.began, images_per_s=images / self.training_seconds,
                      data_wait=self.waited / self.training_seconds,
                      peak_memory_mb=memory.peak_memory_mb(self.device), skipped_steps=update.skipped,
                      val_find_f1=find_f1)
