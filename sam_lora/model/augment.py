"""Augmentation of a batch: mirror, change colours, draw other points."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sam_lora.data.samples import Sample
from sam_lora.model.batches import Batch
from sam_lora.model.prompts import Prompts


def augmentation_draws(samples: Sequence[Sample], generator: torch.Generator) -> Tensor:
    """(rows, 3 + most points + 3) uniform numbers that decide on one epoch's augmentation.

    The columns: mirrored in y, in x (`mirror`); new points, their ranks (`draw_points_anew`); brightness, contrast,
    saturation (`jitter_colours`). One line for each row of the table, so that what happens to a row does not depend on
    the batch it is in.
    """
    most = max(len(sample.points) for sample in samples)
    draws = torch.rand(len(samples), 3 + most, generator=generator, dtype=torch.float64)
    return torch.cat([draws, torch.rand(len(samples), 3, generator=generator, dtype=torch.float64)], dim=1)


def mirror(batch: Batch, draws: Tensor) -> Batch:
    """The batch with each image, its targets and prompts mirrored left to right, top to bottom, both or not at all.

    The picture stays in the upper left corner of the model frame. `draws` (rows, 2 or more) is uniform in [0, 1): the
    first row of an image decides for the image. Not for batches that hold full-resolution masks.
    """
    image_index, side = batch.image_index, batch.images.shape[-1]
    images = torch.arange(len(batch.images), device=image_index.device)
    first = torch.searchsorted(image_index, images).cpu()
    flips = (draws[torch.tensor(batch.rows)[first], :2] < 0.5).to(image_index.device)   # (B, 2): rows, columns
    ahead = torch.arange(side, device=image_index.device).expand(len(flips), 2, side)
    back = batch.input_sizes[..., None] - 1 - ahead
    order = torch.where(flips[..., None] & (back >= 0), back, ahead)                    # (B, 2, S): where from

    def moved(pictures: Tensor, order: Tensor) -> Tensor:
        return torch.stack([picture.index_select(-2, rows).index_select(-1, columns)
                            for picture, (rows, columns) in zip(pictures, order)])

    coords, boxes = batch.prompts.point_coords, batch.prompts.boxes
    size = batch.input_sizes.flip(1)[image_index].to(coords.dtype)                      # (N, 2): w, h
    turned = flips.flip(1)[image_index]                                                 # (N, 2): x, y
    coords = torch.where(turned[:, None], size[:, None] - 1 - coords, coords)
    if boxes is not None:
        low, high = boxes[:, :2], boxes[:, 2:]
        boxes = torch.cat([torch.where(turned, size - high, low), torch.where(turned, size - low, high)], dim=1)
    return replace(batch, images=moved(batch.images, order), targets=moved(batch.targets, order[image_index]),
                   prompts=Prompts(coords, batch.prompts.point_labels, boxes))


def jitter_colours(batch: Batch, draws: Tensor, strength: float) -> Batch:
    """The batch with each picture's brightness, contrast and saturation changed by up to `strength` (0 to 1) of it.

    The factors are uniform in [1 - strength, 1 + strength]; the last three columns of `draws`, in the first row of an
    image, decide. The padding stays.
    """
    from torchvision.transforms.v2 import functional
    images = batch.images.clone()
    first = torch.searchsorted(batch.image_index, torch.arange(len(images), device=batch.image_index.device)).cpu()
    factors = 1 + strength * (2 * draws[torch.tensor(batch.rows)[first], -3:] - 1)      # (B, 3)
    for image, (height, width), (brightness, contrast, saturation) in zip(
            images, batch.input_sizes.tolist(), factors.tolist()):
        picture = functional.adjust_brightness(image[:, :height, :width], brightness)
        picture = functional.adjust_contrast(picture, contrast)
        image[:, :height, :width] = functional.adjust_saturation(picture, saturation)
    return replace(batch, images=images)


def draw_points_anew(batch: Batch, draws: Tensor, share: float) -> Batch:
    """The batch with other foreground points in about `share` (0 to 1) of its rows: as many, anywhere in the mask.

    Every pixel that the object covers by half or more is equally likely; where it covers none by half, those it covers
    most. Background points, boxes, and rows without any mask stay. `draws` (rows, 3 + points) is uniform in [0, 1);
    its first two columns are those of `mirror`.
    """
    coords, labels = batch.prompts.point_coords, batch.prompts.point_labels
    side = batch.targets.shape[-1]
    chosen, ranks = draws[batch.rows, 2].to(coords.device) < share, draws[batch.rows, 3:].to(coords.device)
    covered = batch.targets.flatten(1)
    inside = covered >= covered.amax(dim=1, keepdim=True).clamp(1, 128)
    counted = inside.cumsum(dim=1, dtype=torch.int32)                                   # (N, S * S)
    wanted = (ranks[:, :coords.shape[1]] * counted[:, -1:]).int() + 1                   # the how manieth one inside
    pixels = torch.searchsorted(counted, wanted)
    drawn = torch.stack([pixels % side, pixels // side], dim=2).to(coords.dtype)
    replaced = (chosen & (counted[:, -1] > 0))[:, None] & (labels == 1)
    coords = torch.where(replaced[..., None], drawn, coords)
    return replace(batch, prompts=Prompts(coords, labels, batch.prompts.boxes))
