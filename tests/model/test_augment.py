"""Augmentation of one item: image, targets and prompts change together, and what happens depends on the row alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_lora.model.augment import Augmentation, jitter_colors, mirror
from sam_lora.model.batches import Item
from sam_lora.model.prompt_mix import PromptMix
from sam_lora.model.prompts import Prompts

SIZE_HW = (40, 64)
OTHER_POINTS = PromptMix(other_points=1.0)


def make_item(rows: tuple[int, ...] = (0,), box_xyxy: tuple[int, int, int, int] = (8, 4, 32, 20)) -> Item:
    """A white object on grey; every row has two foreground points, a background point and the object's box."""
    x0, y0, x1, y1 = box_xyxy
    target = torch.zeros(SIZE_HW, dtype=torch.uint8)
    target[y0:y1, x0:x1] = 255
    image = torch.randint(0, 90, (3, *SIZE_HW), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image[:, target > 0] += torch.tensor([150, 100, 60], dtype=torch.uint8)[:, None]
    prompts = Prompts(torch.tensor([[[x0, y0], [x1 - 1, y1 - 1], [50, 35]]]).float(), torch.tensor([[1, 1, 0]]),
                      torch.tensor([[x0, y0, x1, y1]]).float())
    return Item(list(rows), Path("image.png"), image, None, SIZE_HW, SIZE_HW, [prompts] * len(rows),
                [target] * len(rows), [])


@pytest.mark.parametrize(("top_to_bottom", "left_to_right"), [(False, False), (True, False), (False, True),
                                                              (True, True)])
def test_mirroring_moves_image_targets_points_and_box_together(top_to_bottom, left_to_right):
    item, (height, width) = make_item(rows=(0, 3)), SIZE_HW
    mirrored = mirror(item, top_to_bottom, left_to_right)
    axes = [axis for axis, wanted in ((-2, top_to_bottom), (-1, left_to_right)) if wanted]
    assert torch.equal(mirrored.image, item.image.flip(axes))
    for before, after, target, prompts in zip(item.targets, mirrored.targets, mirrored.targets, mirrored.prompts):
        assert torch.equal(after, before.flip(axes))
        for (x, y), (new_x, new_y) in zip(item.prompts[0].point_coords[0], prompts.point_coords[0]):
            assert new_x == (width - 1 - x if left_to_right else x)
            assert new_y == (height - 1 - y if top_to_bottom else y)
        ys, xs = np.nonzero(target.numpy())  # the box still surrounds the object
        assert prompts.boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_jitter_multiplies_brightness_contrast_and_saturation():
    image = make_item().image
    assert torch.equal(jitter_colors(image, np.ones(3)), image)
    bright = jitter_colors(image, np.array([1.2, 1, 1])).float()
    assert (bright - (image.float() * 1.2).clamp(max=255)).abs().max() <= 1
    flat = jitter_colors(image, np.array([1, 0.6, 1])).float()
    assert (flat.std() / image.float().std()).item() < 0.85
    pale = jitter_colors(image, np.array([1, 1, 0.6])).float()  # the channels move towards one another
    assert (pale.std(dim=0).mean() / image.float().std(dim=0).mean()).item() == pytest.approx(0.6, abs=0.05)


def flips(augmentation: Augmentation, rows: range, epoch: int = 1) -> list[tuple[bool, bool]]:
    """For each row: was its item mirrored top to bottom, left to right?"""
    found = []
    for row in rows:
        item = make_item(rows=(row,))
        coords = augmentation(item, epoch).prompts[0].point_coords[0, 2].tolist()  # of the background point
        found.append((coords[1] != 35, coords[0] != 50))
    return found


def test_half_of_the_images_are_mirrored_either_way_and_epochs_and_seeds_differ():
    found = flips(Augmentation(7, flip=True), range(400))
    for way in (0, 1):
        assert 160 < sum(flip[way] for flip in found) < 240
    assert sum(both for both in map(all, found)) > 60
    assert found == flips(Augmentation(7, flip=True), range(400))
    assert found != flips(Augmentation(7, flip=True), range(400), epoch=2)
    assert found != flips(Augmentation(8, flip=True), range(400))


def test_the_first_row_of_an_image_decides_how_it_is_mirrored():
    augmentation = Augmentation(7, flip=True)
    alone, together = augmentation(make_item(rows=(5,)), 1), augmentation(make_item(rows=(5, 9)), 1)
    assert torch.equal(alone.image, together.image)
    assert torch.equal(together.targets[0], together.targets[1]) and torch.equal(together.targets[0], alone.targets[0])


def test_clicks_of_a_row_do_not_depend_on_its_companions_or_on_other_augmentation():
    alone = Augmentation(7, prompts=OTHER_POINTS)(make_item(rows=(9,)), 1).prompts[0]
    together = Augmentation(7, prompts=OTHER_POINTS)(make_item(rows=(5, 9)), 1).prompts
    assert torch.equal(together[1].point_coords, alone.point_coords)
    assert not torch.equal(together[0].point_coords, alone.point_coords)
    colored = Augmentation(7, color_jitter=0.5, prompts=OTHER_POINTS)(make_item(rows=(9,)), 1)
    assert torch.equal(colored.prompts[0].point_coords, alone.point_coords)
    assert not torch.equal(colored.image, make_item().image)


def test_an_item_with_features_gets_new_clicks_only():
    item = replace(make_item(), image=None, features=torch.zeros(2, 2))
    changed = Augmentation(7, flip=True, color_jitter=0.5, prompts=OTHER_POINTS)(item, 1)
    assert changed.image is None and changed.features is item.features and changed.targets is item.targets
    assert not torch.equal(changed.prompts[0].point_coords[0, :2], item.prompts[0].point_coords[0, :2])


def test_corrective_rounds_get_random_numbers_of_the_row_alone():
    draws = Augmentation(7, correction_rounds=3)(make_item(rows=(5, 9)), 1).correction_draws
    alone = Augmentation(7, flip=True, prompts=OTHER_POINTS, correction_rounds=3)(make_item(rows=(9,)), 1)
    assert [row.shape for row in draws] == [(3,), (3,)] and (draws[1] == alone.correction_draws[0]).all()
    assert (draws[0] != draws[1]).all() and all(0 <= number < 1 for row in draws for number in row)
    assert (Augmentation(7, correction_rounds=3)(make_item(rows=(9,)), 2).correction_draws[0] != draws[1]).all()
    assert make_item().correction_draws == Augmentation(7)(make_item(), 1).correction_draws == []
