"""Scene samples as batches of tensors, made by worker processes."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from scene_samples import TRAINING, Sample, samples
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

SHARED_MEMORY = Path("/dev/shm")


class Batches(IterableDataset):
    """Batches without end from one seed; each worker process has a seed of its own."""

    def __init__(self, seed: int, side: int, images: int, masks: int, whole_share: float) -> None:
        self.seed, self.side, self.images, self.masks, self.whole_share = seed, side, images, masks, whole_share
        self.through_pipes = False  # batches of arrays, which travel through a pipe; tensors go by shared memory

    @property
    def size(self) -> int:
        """Bytes of the images and masks of a batch."""
        return self.images * self.side ** 2 * (3 + self.masks / 4)

    def __iter__(self) -> Iterator[dict[str, Tensor | np.ndarray]]:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        info = get_worker_info()
        seed = self.seed + (info.id if info else 0)
        stream = samples(seed, self.side, self.masks, self.whole_share, mix=TRAINING)
        while True:
            batch = collate([next(stream) for _ in range(self.images)])
            yield {name: tensor.numpy() for name, tensor in batch.items()} if self.through_pipes else batch


def make_loader(batches: Batches, num_workers: int, ahead: int) -> DataLoader:
    """Worker processes that each make up to `ahead` batches ahead.

    A container's shared memory may be as small as 64 MB, and a process that fills it is killed; arrays do without.
    """
    needed = batches.size * num_workers * (ahead + 1)
    if num_workers and SHARED_MEMORY.is_dir():
        batches.through_pipes = shutil.disk_usage(SHARED_MEMORY).free < 2 * needed
    return DataLoader(batches, batch_size=None, num_workers=num_workers, prefetch_factor=ahead if num_workers else None)


def collate(batch: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples -> tensors. Each region has a row of its own, in the order of the images."""
    images = np.stack([sample.image for sample in batch]).transpose(0, 3, 1, 2)
    rows = {name: np.concatenate([getattr(sample, name) for sample in batch])
            for name in ("masks", "positive", "negative", "boxes")}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in rows.items()}
    tensors["images"] = torch.from_numpy(np.ascontiguousarray(images))
    tensors["input_sizes"] = torch.tensor([sample.input_size for sample in batch])
    return tensors
