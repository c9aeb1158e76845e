"""The store of samples on the training device, its feeder, and how samples are seen anew."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import augmentation
import replay
from scene_batches import Batches, make_loader

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch():
    return next(iter(Batches(3, 64, 8, 3, 0.2)))


def store(capacity):
    return replay.Replay(capacity, CPU, torch.Generator().manual_seed(0))


def numbered(first, count):
    """Images and three rows each that carry their image's number."""
    numbers = torch.arange(first, first + count)
    return {"images": numbers[:, None], "masks": numbers.repeat_interleave(3)}


def test_the_newest_samples_replace_the_oldest_and_rows_stay_with_their_image():
    kept = store(10)
    for first in (0, 4, 8):
        kept.add(numbered(first, 4))
    assert len(kept) == 10
    assert sorted(kept.entries["images"].flatten().tolist()) == list(range(2, 12))
    assert (kept.entries["masks"] == kept.entries["images"][:, 0]).all()


def test_draws_are_views_of_what_was_stored(batch):
    kept = store(8)
    kept.add(batch)
    drawn = kept.draw(5)
    assert {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in drawn.items()} == {
        name: (tensor.dtype, tensor.shape[1:]) for name, tensor in batch.items()}
    assert len(drawn["images"]) == 5 and len(drawn["masks"]) == 15
    assert (kept.added, kept.drawn) == (8, 5)


@pytest.mark.parametrize("change", [augmentation.transposed, augmentation.mirrored, augmentation.augmented])
def test_clicks_boxes_and_masks_move_with_the_image(batch, change):
    moved = change(batch, torch.Generator().manual_seed(4))
    assert not torch.equal(moved["masks"], batch["masks"])
    for row, mask in enumerate(moved["masks"]):
        for name, inside in (("positive", 1), ("negative", 0)):
            for x, y in moved[name][row].long().tolist():
                if x >= 0:
                    assert mask[y // 2, x // 2] == inside
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        tight = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * 2
        height, width = moved["input_sizes"][row // 3].tolist()
        assert (moved["boxes"][row] - tight).abs().max() <= 2 * 0.08 * max(height, width) + 2  # as jittered


def test_pixels_under_the_mask_stay_the_same_when_moved(batch):
    moved = augmentation.mirrored(augmentation.transposed(batch, torch.Generator().manual_seed(1)),
                                  torch.Generator().manual_seed(2))
    for seen, other in zip(pixels_under_masks(batch), pixels_under_masks(moved)):
        torch.testing.assert_close(seen, other)


def pixels_under_masks(batch):
    """Of each row: the values under its mask, in order of size, each the mean of a square of four pixels."""
    halved = torch.nn.functional.avg_pool2d(batch["images"].float(), 2)
    return [halved[row // 3][:, mask.bool()].sort(dim=1).values for row, mask in enumerate(batch["masks"])]


def test_recolouring_changes_images_only(batch):
    seen = augmentation.recoloured(batch, torch.Generator().manual_seed(0))
    assert not torch.equal(seen["images"], batch["images"])
    assert all(seen[name] is batch[name] for name in batch if name != "images")


@pytest.mark.parametrize("room", [pytest.param(10**9, id="shared memory"), pytest.param(10**4, id="pipes")])
def test_workers_fill_the_store_and_end(room, monkeypatch):
    scenes = Batches(3, 64, 4, 2, 0.2)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": room}))
    loader = make_loader(scenes, num_workers=1, ahead=1)
    assert scenes.through_pipes == (room < 10**6)
    feeder, kept = replay.Feeder(iter(loader), CPU), store(16)
    drawn = replay.replayed(feeder, kept, count=6, least=12)
    assert len(next(drawn)["images"]) == 6
    assert kept.added >= 12
    feeder.stop()
    assert not feeder.thread.is_alive()


def test_an_error_of_a_worker_ends_training():
    def broken():
        yield numbered(0, 2)
        raise ValueError("no scene")

    drawn = replay.replayed(replay.Feeder(broken(), CPU), store(4), count=1, least=4)
    with pytest.raises(ValueError, match="no scene"):
        next(drawn)
