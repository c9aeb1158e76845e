"""Starting weights from which a small SAM learns at once: see README.md, "What was tried"."""

import torch
from torch import Tensor, nn

from sam_lora.model.encode import preprocess
from sam_lora.model.meta import Sam


def initialise(sam: Sam, batch: dict[str, Tensor]) -> None:
    """Overwrite a fresh SAM's linear layers, position table and patch embedding.

    The patch embedding is a cosine transform whose channels are scaled to about one size on `batch`: unscaled, mean
    brightness would be ten times everything else, and drown detail and position alike.
    """
    for module in sam.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    encoder = sam.image_encoder
    with torch.no_grad():
        table = encoder.pos_embed
        table.copy_(sine_cosine_table(table.shape[1], table.shape[3])[None])
        patch = encoder.patch_embed.proj
        patch.weight.copy_(cosine_filters(patch.weight.shape[0], patch.weight.shape[2]))
        patch.bias.zero_()
        features = encoder.patch_embed(preprocess(batch["images"], batch["input_sizes"], sam)).flatten(0, 2)
        features = features[features.abs().sum(dim=1) > 0]
        patch.weight.mul_((0.7 / (features.std(dim=0) + 0.1))[:, None, None, None])


def sine_cosine_table(grid: int, width: int) -> Tensor:
    """(grid, grid, width): sines and cosines of the position as a fraction of the frame, so that any grid agrees."""
    position = (torch.arange(grid) + 0.5) / grid
    frequencies = 2 ** torch.linspace(-1, 3, width // 4) * torch.pi
    angles = position[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)                    # (grid, width / 2)
    rows = waves[:, None].expand(-1, grid, -1)
    columns = waves[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2)[..., :width]


def cosine_filters(count: int, side: int) -> Tensor:
    """(count, 3, side, side): the lowest two-dimensional cosine waves, first of brightness, then of colour."""
    step = (torch.arange(side) + 0.5) * torch.pi / side
    waves = torch.cos(torch.arange(side)[:, None] * step)
    waves[0] *= 0.5 ** 0.5
    order = sorted(((i, j) for i in range(side) for j in range(side)), key=lambda ij: (ij[0] ** 2 + ij[1] ** 2, ij))
    mixes = torch.tensor([[1.0, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]])
    mixes = mixes / mixes.norm(dim=1, keepdim=True)
    colour = count // 5
    plan = [(0, ij) for ij in order[:count - 2 * colour]] + [(k, ij) for k in (1, 2) for ij in order[:colour]]
    planes = [mixes[k][:, None, None] * torch.outer(waves[i], waves[j]) * (2 / side) for k, (i, j) in plan]
    return torch.stack(planes) * (1 / 3 ** 0.5)
