"""The finder: where in an image are objects of the user's classes? A small head on SAM's image embedding.

For each cell of a grid twice as fine as the embedding it says how likely each class has an object there and which box
that object fills, as one-stage detectors do (Tian et al. 2019, FCOS). Boxes and cells become the prompts of the mask
decoder, so that a photo needs no click. It is part of the SAM as `sam.finder`; Meta's own keys stay as they are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_lora.errors import UserError
from sam_lora.model.meta import Sam
from sam_lora.model.weights import load_plain

FORMAT = "sam-lora finder 1"
EXPECTED = "expected the .finder.pth that export_sam.py writes beside its .pth"
WIDTH = 64
CELLS_PER_EMBEDDING = 2     # cells along each side of one cell of the embedding
PRIOR = 0.01                # what an untrained head says everywhere, so that the many empty cells do not swamp it
FIRST_SIDE = 3.0            # cells from centre to side of the box of an untrained head
LONGEST_SIDE = 8.0          # natural logarithm of cells; keeps float16 finite


@dataclass
class Map:
    """What the finder says of B images, float32, on a grid of (g, g) cells.

    `objectness` (B, g, g) logits: is an object's middle here, and how good is its box; `classes` (B, K, g, g) logits,
    a softmax over which says whose class it is; `boxes` (B, 4, g, g) xyxy in pixels of the model frame.
    """

    objectness: Tensor
    classes: Tensor
    boxes: Tensor


class Finder(nn.Module):
    """Image embeddings (B, C, h, w) -> Map, with g = 2h. Objectness and class are apart: with few annotations a class
    takes far longer to learn than that there is something."""

    def __init__(self, channels: int, class_names: Sequence[str], photo_side: int | None = None,
                 threshold: float | None = None) -> None:
        """`photo_side`: the longest side, in pixels, of the photos or tiles it is trained on; `threshold`: the score
        from which on objects count, None before it is known."""
        super().__init__()
        self.class_names, self.photo_side, self.threshold = tuple(class_names), photo_side, threshold
        self.body = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 3, padding=1), nn.GroupNorm(8, WIDTH), nn.GELU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, CELLS_PER_EMBEDDING, CELLS_PER_EMBEDDING), nn.GroupNorm(8, WIDTH),
            nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GELU())
        self.objectness = nn.Conv2d(WIDTH, 1, 1)
        self.classes = nn.Sequential(nn.Dropout2d(0.0), nn.Conv2d(WIDTH, len(self.class_names), 1))
        self.sides = nn.Conv2d(WIDTH, 4, 1)
        for layer, bias in ((self.objectness, -math.log(1 / PRIOR - 1)), (self.sides, math.log(FIRST_SIDE))):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)

    def set_class_dropout(self, fraction: float) -> None:
        """Of whole channels, while it trains; 0 to begin with."""
        self.classes[0].p = fraction

    def forward(self, embeddings: Tensor, cell: int) -> Map:
        """`cell`: side of a cell in pixels of the model frame."""
        features = self.body(embeddings)
        sides = self.sides(features).float().clamp(max=LONGEST_SIDE).exp() * cell
        x, y = cell_centres(*sides.shape[-2:], cell, sides.device)
        boxes = torch.stack([x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]], dim=1)
        return Map(self.objectness(features)[:, 0].float(), self.classes(features).float(), boxes)


def cell_centres(rows: int, columns: int, cell: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """x and y, (rows, columns) each, of the cells' centres in pixels of the model frame."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return (x + 0.5) * cell, (y + 0.5) * cell


def add_finder(sam: Sam, find: Mapping[str, Any]) -> None:
    """Give `sam` a finder, drawn from torch's global generator. It trains.

    `find`, an entry of a checkpoint's header: classes, photo_side, threshold.
    """
    sam.finder = Finder(sam.prompt_encoder.embed_dim, find["classes"], find.get("photo_side"),
                        find.get("threshold")).to(sam.device)


def finder_of(sam: Sam) -> Finder | None:
    return getattr(sam, "finder", None)


def take_finder(sam: Sam) -> Finder | None:
    """The finder, which `sam` then no longer has: all keys are Meta's again."""
    finder = finder_of(sam)
    if finder is not None:
        del sam.finder
    return finder


def save_finder(finder: Finder, path: Path) -> None:
    """Write a finder as a file of its own, tensors and plain types."""
    about = {"format": FORMAT, "channels": finder.body[0].in_channels, "classes": list(finder.class_names),
             "photo_side": finder.photo_side, "threshold": finder.threshold}
    torch.save(about | {"state": {name: value.detach().cpu() for name, value in finder.state_dict().items()}}, path)


def load_finder(path: str | Path) -> Finder:
    """A finder from its file, in eval mode; `sam.finder = load_finder(...)` lets its SAM find. Raises UserError."""
    content = load_plain(Path(path), EXPECTED)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: is not a finder; {EXPECTED}")
    try:
        finder = Finder(content["channels"], content["classes"], content["photo_side"], content["threshold"])
        finder.load_state_dict(content["state"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: is a damaged finder; {EXPECTED}") from error
    return finder.requires_grad_(False).eval()


def cell_side(sam: Sam) -> int:
    """Side of the finder's cells in pixels of the model frame."""
    return sam.image_encoder.img_size // (sam.prompt_encoder.image_embedding_size[0] * CELLS_PER_EMBEDDING)
