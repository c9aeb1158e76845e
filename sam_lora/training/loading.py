"""A table in batches: which items each process gets, what a batch counts for in its step, and loading them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from sam_lora.model.batches import Batch, PromptedImages, batches, make_loader
from sam_lora.training.distributed import Ranks
from sam_lora.training.feature_cache import FeatureCache


def epoch_seed(seed: int, epoch: int) -> int:
    """Every epoch starts its generators from (seed, epoch), so that a resumed run draws what an unbroken one would."""
    return seed * 1_000_003 + epoch


def seed_epoch(seed: int, epoch: int, ranks: Ranks) -> None:
    """Start torch's global generator, from which dropout draws: differently in each process."""
    torch.manual_seed(epoch_seed(seed, epoch) * ranks.world_size + ranks.rank)


class ProcessBatches(Sampler):
    """The batches of one of several processes, which together see what one with the whole batch would.

    `masks_per_item`: how many masks each item of the data set has. Yields lists of keys (epoch, index). The order of
    the items, shuffled by `seed` and `epoch` unless `seed` is None, is cut into batches of `batch_size` x processes,
    each batch into equal runs, one for each process. The last batch may be too small to give every process an item:
    without a seed (validation) such a process gets none; with one (training) it gets an item that others have too,
    because all must take part in every step, and `masks` counts it as nothing.
    """

    def __init__(self, masks_per_item: Sequence[int], batch_size: int, ranks: Ranks, seed: int | None = None) -> None:
        self.masks_per_item, self.batch_size, self.ranks, self.seed = masks_per_item, batch_size, ranks, seed
        self.epoch = 0

    def _batches(self) -> Iterator[tuple[list[int], list[int]]]:
        """(the items of all processes, those of this one) of each batch of the epoch; every process knows them all."""
        order = list(range(len(self.masks_per_item)))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
            order = torch.randperm(len(order), generator=generator).tolist()
        rank, processes = self.ranks.rank, self.ranks.world_size
        for start in range(0, len(order), self.batch_size * processes):
            everyones = order[start:start + self.batch_size * processes]
            size = len(everyones)
            yield everyones, everyones[rank * size // processes:(rank + 1) * size // processes]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for everyones, ours in self._batches():
            if ours or self.seed is not None:
                yield [(self.epoch, index) for index in ours or everyones[:1]]

    def __len__(self) -> int:
        return sum(bool(ours) or self.seed is not None for _, ours in self._batches())

    def masks(self) -> list[tuple[int, int]]:
        """For each batch of the epoch how many masks are this process's to count, and how many all processes have."""
        return [tuple(sum(self.masks_per_item[index] for index in items) for items in (ours, everyones))
                for everyones, ours in self._batches()]


@dataclass(frozen=True)
class Part:
    """What one batch is of its step.

    `masks`: how many count in the epoch's means; 0 for a batch that only fills up. `weight`: the factor of its loss.
    """

    masks: int
    weight: float
    ends_step: bool


def parts_of_steps(masks: Iterable[tuple[int, int]], processes: int, grad_accum: int) -> list[Part]:
    """The parts of an epoch's batches, of which up to `grad_accum` make a step. `masks` as in `ProcessBatches.masks`.

    DistributedDataParallel takes the mean of the processes' gradients; what is wanted is the mean over all masks of a
    batch, and the mean over the batches of a step, the last of which may have fewer.
    """
    masks = list(masks)
    parts = []
    for number, (ours, everyones) in enumerate(masks):
        batches = min(grad_accum, len(masks) - number // grad_accum * grad_accum)
        ends_step = (number + 1) % grad_accum == 0 or number + 1 == len(masks)
        parts.append(Part(ours, ours * processes / everyones / batches, ends_step))
    return parts


class Loader:
    """A table in batches for this process, with features instead of images where those are kept.

    `seed` None: in table order, as for validation; otherwise shuffled anew in each epoch.
    """

    def __init__(self, images: PromptedImages, *, batch_size: int, num_workers: int, pin_memory: bool, ranks: Ranks,
                 seed: int | None = None, features: FeatureCache | None = None) -> None:
        self.images, self.features, self.ranks = images, features, ranks
        self.order = ProcessBatches([len(rows) for rows in images.groups], batch_size, ranks, seed)
        self.loader = make_loader(images, images.transform.target_length, batch_size, num_workers,
                                  pin_memory, self.order)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        loaded = batches(self.loader)
        return self.features.complete(loaded) if self.features else loaded

    def epoch(self, number: int, grad_accum: int) -> Iterator[tuple[Batch, Part]]:
        """The batches of an epoch, each with its part in a step of up to `grad_accum` batches."""
        self.order.epoch = number
        return zip(self, parts_of_steps(self.order.masks(), self.ranks.world_size, grad_accum), strict=True)
