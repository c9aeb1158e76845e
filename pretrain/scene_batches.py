"""Scene samples as batches of tensors, made by worker processes."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from scene_samples import Sample, samples
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

SIMPLE_SHARE = 0.12  # of the training scenes; the held-out ones include no simple scene


class Batches(IterableDataset):
    """Batches without end from one seed; each worker process has a seed of its own."""

    def __init__(self, seed: int, side: int, images: int, masks: int, whole_share: float) -> None:
        self.seed, self.side, self.images, self.masks, self.whole_share = seed, side, images, masks, whole_share

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        info = get_worker_info()
        seed = self.seed + (info.id if info else 0)
        stream = samples(seed, self.side, self.masks, self.whole_share, simple_share=SIMPLE_SHARE)
        while True:
            yield collate([next(stream) for _ in range(self.images)])


def collate(batch: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples -> tensors. Each region has a row of its own, in the order of the images."""
    images = np.stack([sample.image for sample in batch]).transpose(0, 3, 1, 2)
    rows = {name: np.concatenate([getattr(sample, name) for sample in batch])
            for name in ("masks", "positive", "negative", "boxes")}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in rows.items()}
    tensors["images"] = torch.from_numpy(np.ascontiguousarray(images))
    tensors["input_sizes"] = torch.tensor([sample.input_size for sample in batch])
    return tensors
