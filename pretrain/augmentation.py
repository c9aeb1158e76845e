"""Fresh views of stored samples, made where they are stored: mirrored, transposed, recoloured."""

import torch
from torch import Tensor

TRANSPOSED, GREY, INVERTED, SHUFFLED = 0.5, 0.08, 0.06, 0.15  # of the images
GAIN, SHIFT, TONE = 0.15, 12.0, 0.2  # standard deviations: of the log contrast, of grey levels, of the log exponent


def augmented(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """A batch as `scene_batches.collate` makes it -> the same samples seen anew."""
    return recoloured(mirrored(transposed(batch, generator), generator), generator)


def transposed(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Rows and columns swapped in some of the images, with their regions."""
    swap = _some(batch, TRANSPOSED, generator)
    of_row = _per_row(swap, batch)
    points = {name: torch.where(of_row[:, None, None], batch[name].flip(2), batch[name])
              for name in ("positive", "negative")}
    return {**batch, **points,
            "images": torch.where(swap[:, None, None, None], batch["images"].transpose(2, 3), batch["images"]),
            "masks": torch.where(of_row[:, None, None], batch["masks"].transpose(1, 2), batch["masks"]),
            "boxes": torch.where(of_row[:, None], batch["boxes"].view(-1, 2, 2).flip(2).flatten(1), batch["boxes"]),
            "input_sizes": torch.where(swap[:, None], batch["input_sizes"].flip(1), batch["input_sizes"])}


def mirrored(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Some of the images mirrored left to right, some upside down, within their picture: the padding stays.

    Sides of an odd length are not mirrored: the half-size grid of the masks would be off by a pixel.
    """
    batch = dict(batch)
    for axis in (0, 1):                                                          # 0: down, 1: across
        sizes = batch["input_sizes"][:, axis]
        turn = _some(batch, 0.5, generator) & (sizes % 2 == 0)
        of_row, row_sizes = _per_row(turn, batch), _per_row(sizes, batch)
        batch["images"] = _mirror(batch["images"], turn, sizes, 2 + axis)
        batch["masks"] = _mirror(batch["masks"][:, None], of_row, row_sizes // 2, 2 + axis)[:, 0]
        xy = 1 - axis
        for name in ("positive", "negative"):
            points = batch[name].clone()
            outside = points[..., xy] < 0                                        # a point that is none
            turned = (row_sizes[:, None] - points[..., xy]) % batch["images"].shape[2 + axis]  # padding stays padding
            points[..., xy] = torch.where(of_row[:, None] & ~outside, turned, points[..., xy])
            batch[name] = points
        low, high = batch["boxes"][:, xy], batch["boxes"][:, xy + 2]
        boxes = batch["boxes"].clone()
        boxes[:, xy] = torch.where(of_row, row_sizes - high, low)
        boxes[:, xy + 2] = torch.where(of_row, row_sizes - low, high)
        batch["boxes"] = boxes
    return batch


def _mirror(images: Tensor, turn: Tensor, sizes: Tensor, axis: int) -> Tensor:
    """(N, C, H, W) with the first `sizes` entries along `axis` in reverse order where `turn` is set."""
    steps = torch.arange(images.shape[axis], device=images.device)
    source = torch.where(turn[:, None] & (steps < sizes[:, None]), sizes[:, None] - 1 - steps, steps)
    shape = [len(images), 1, 1, 1]
    shape[axis] = -1
    return images.gather(axis, source.view(shape).expand_as(images))


def recoloured(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Other contrast, brightness and tone; colours mixed up in some images, others grey or inverted."""
    images = batch["images"].float()
    count = len(images)

    def normal(channels: int, deviation: float) -> Tensor:
        return torch.randn(count, channels, 1, 1, device=images.device, generator=generator) * deviation

    order = torch.rand(count, 3, device=images.device, generator=generator).argsort(dim=1)
    order = torch.where(_some(batch, SHUFFLED, generator)[:, None], order, torch.arange(3, device=images.device))
    images = images.gather(1, order[:, :, None, None].expand_as(images))
    images = torch.where(_some(batch, GREY, generator)[:, None, None, None], images.mean(dim=1, keepdim=True), images)
    images = torch.where(_some(batch, INVERTED, generator)[:, None, None, None], 255 - images, images)
    gain = (normal(1, GAIN) + normal(3, GAIN / 3)).exp()
    images = (images - 128) * gain + 128 + normal(1, SHIFT) + normal(3, SHIFT / 3)
    images = (images.clamp(0, 255) / 255) ** normal(1, TONE).exp() * 255
    return {**batch, "images": images.round().to(torch.uint8)}


def _some(batch: dict[str, Tensor], share: float, generator: torch.Generator) -> Tensor:
    """(B,) bool, true with probability `share`."""
    return torch.rand(len(batch["images"]), device=batch["images"].device, generator=generator) < share


def _per_row(of_image: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """A value per image -> a value per region of it, in the order of the rows."""
    return of_image.repeat_interleave(len(batch["masks"]) // len(batch["images"]))
