"""How batches are dealt out to processes and steps, and that loading them is the same everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.data.samples import read_samples
from sam_lora.model.augment import Augmentation
from sam_lora.model.batches import Batch, PromptedImages
from sam_lora.model.prompt_mix import PromptMix
from sam_lora.training.distributed import Ranks
from sam_lora.training.loading import Loader, Part, ProcessBatches, parts_of_steps

SIDE = 64
ALONE = Ranks()


@settings(max_examples=200, deadline=None)
@given(masks=st.lists(st.integers(1, 8), min_size=1, max_size=60), batch_size=st.integers(1, 5),
       processes=st.integers(1, 4), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_the_batches_of_all_processes_are_those_of_one(masks, batch_size, processes, seed, epoch):
    def dealt(batch: int, rank: int, world: int, seed: int | None) -> ProcessBatches:
        order = ProcessBatches(masks, batch, Ranks(rank, world), seed)
        order.epoch = epoch
        return order
    whole = [[index for _, index in batch] for batch in dealt(batch_size * processes, 0, 1, seed)]
    assert sorted(index for batch in whole for index in batch) == list(range(len(masks)))
    orders = [dealt(batch_size, rank, processes, seed) for rank in range(processes)]
    keys = [list(order) for order in orders]
    assert all(len(batches) == len(order) == len(whole) for batches, order in zip(keys, orders))
    assert all(key[0] == epoch for batches in keys for batch in batches for key in batch)
    for number, batch in enumerate(whole):  # every process takes part in every step, and the parts are the batch
        counted = []
        for batches, order in zip(keys, orders):
            ours, everyones = order.masks()[number]
            indices = [index for _, index in batches[number]]
            assert indices and everyones == sum(masks[index] for index in batch)
            assert ours == sum(masks[index] for index in indices) or (ours == 0 and len(indices) == 1)
            counted += indices if ours else []
        assert counted == batch
    kept = [[index for batch in dealt(batch_size, rank, processes, None) for _, index in batch]
            for rank in range(processes)]
    assert sorted(index for indices in kept for index in indices) == list(range(len(masks)))
    assert all(len(list(order)) == len(order) for order in
               (dealt(batch_size, rank, processes, None) for rank in range(processes)))


def test_shuffling_follows_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        batches = ProcessBatches([1] * 20, 4, Ranks(), seed)
        batches.epoch = epoch
        return [index for batch in batches for _, index in batch]
    assert order(3, 1) == order(3, 1)
    assert len({tuple(order(seed, epoch)) for seed in (3, 4) for epoch in (1, 2)}) == 4


def test_parts_weigh_masks_alike_in_all_processes_and_batches_alike_in_a_step():
    parts = parts_of_steps([(4, 6), (2, 8), (0, 3)], processes=2, grad_accum=2)
    assert parts == [Part(4, 4 * 2 / 6 / 2, False), Part(2, 2 * 2 / 8 / 2, True), Part(0, 0.0, True)]
    assert [part.weight for part in parts_of_steps([(5, 5)] * 4, 1, 3)] == pytest.approx([1 / 3] * 3 + [1.0])


@pytest.fixture
def images(crops) -> PromptedImages:
    augment = Augmentation(5, True, 0.3, PromptMix(table=1, points=1, box=1), correction_rounds=2)
    return PromptedImages(read_samples(crops.train_csv), SIDE, 8, True, False, augment=augment)


def epoch_of(images: PromptedImages, number: int, *, batch_size: int = 2, num_workers: int = 0,
             ranks: Ranks = ALONE) -> dict[int, tuple]:
    """row -> (image, target, points, box, draws of corrective rounds) as the epoch sees them."""
    loader = Loader(images, batch_size=batch_size, num_workers=num_workers, pin_memory=False, ranks=ranks, seed=5)
    rows = {}
    for epoch in sorted({1, number}):  # workers persist from epoch to epoch
        rows = {row: (batch.images[place], batch.targets[place], *prompt_of(batch, place),
                      batch.correction_draws[place])
                for batch, part in loader.epoch(epoch, 1) if part.masks for place, row in enumerate(batch.rows)}
    return rows


def prompt_of(batch: Batch, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    prompts = batch.prompts.rows(torch.tensor([place]))
    return prompts.point_coords, torch.zeros(0) if prompts.boxes is None else prompts.boxes


def same(first: dict[int, tuple], second: dict[int, tuple]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for row in first for a, b in zip(first[row], second[row]))


def test_augmentation_does_not_depend_on_batches_workers_or_processes(images):
    expected = epoch_of(images, 2)
    assert same(epoch_of(images, 2, batch_size=5), expected)
    assert same(epoch_of(images, 2, num_workers=2), expected)
    halves = [epoch_of(images, 2, batch_size=1, ranks=Ranks(rank, 2)) for rank in (0, 1)]
    assert not halves[0].keys() & halves[1].keys() and same(halves[0] | halves[1], expected)


def test_every_epoch_is_augmented_differently_even_by_workers_that_persist(images):
    first, second = (epoch_of(images, number, num_workers=1) for number in (1, 2))
    assert first.keys() == second.keys() and not same(first, second)
    differing = np.mean([not torch.equal(first[row][0], second[row][0]) for row in first])
    assert differing > 0.5
