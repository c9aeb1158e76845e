"""All objects of a photo, without a prompt: the finder says where, the mask decoder cuts them out.

A photo larger than those that the finder was trained on is looked at in overlapping tiles, and what two tiles show of
one object is put together.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sam_lora.data import geometry
from sam_lora.data.geometry import Box
from sam_lora.model.batches import pad_images
from sam_lora.model.encode import preprocess
from sam_lora.model.finder import Finder, Map, cell_centres, cell_side
from sam_lora.model.meta import ResizeLongestSide, Sam
from sam_lora.model.prompts import Prompts, decode, full_size_mask
from sam_lora.results.found import FoundObject, encode_mask

CANDIDATES = 300        # cells of one image that are looked at, likeliest first
BOX_OVERLAP = 0.7       # IoU with a likelier box above which a cell has found the same object
DECODED = 100           # of one image
PROMPTS_PER_DECODE = 32
MASK_OVERLAP = 0.6      # IoU with a better mask above which a mask is the same object
LOWEST_SCORE = 0.02     # of what is looked at to score a finder: average precision wants all there is
LARGER = 1.5            # times the longest side of the training photos: from here on a photo goes in tiles
SAME_IN_BOTH = 0.5      # fraction of the smaller of two pieces, where both tiles look, that they share if they are one


@dataclass(frozen=True)
class FindSettings:
    """`threshold`: the lowest score; `classes`: those that are wanted, None for all; `photo_side`: the longest side of
    the photos or tiles that the finder was trained on, in pixels, None if every photo goes in whole."""

    threshold: float
    classes: Sequence[str] | None = None
    photo_side: int | None = None

    @classmethod
    def of(cls, finder: Finder) -> "FindSettings":
        """A trained finder's own: all classes, from its threshold on."""
        return cls(finder.threshold, None, finder.photo_side)


@dataclass(frozen=True)
class _Piece:
    """A found object as one tile shows it; `mask` fills `box`, in pixels of the photo."""

    class_name: str
    score: float
    mask: np.ndarray
    box: Box
    tile: Box


@torch.inference_mode()
def find_objects(sam: Sam, pixels: np.ndarray, settings: FindSettings,
                 autocast: AbstractContextManager | None = None) -> list[FoundObject]:
    """The objects in `pixels`, (H, W, 3) uint8 RGB, best score first. `sam` has a finder.

    An object's score is its class' probability times the geometric mean of the finder's and the decoder's own
    estimates of how well it is cut out.
    """
    height, width = pixels.shape[:2]
    pieces = [piece for tile in tiles_of((width, height), settings.photo_side)
              for piece in _find_in_tile(sam, pixels, tile, settings, autocast or nullcontext())]
    found = []
    for piece in sorted(_joined(pieces), key=lambda piece: -piece.score):
        whole = geometry.paste(piece.mask, piece.box, (0, 0, width, height))
        found.append(FoundObject(piece.class_name, piece.score, encode_mask(whole), piece.box))
    return found


def tiles_of(size_wh: tuple[int, int], photo_side: int | None) -> list[Box]:
    """The photo as a whole, or tiles of `photo_side` that cover it, where it is much larger."""
    if photo_side is None or max(size_wh) <= LARGER * photo_side:
        return [(0, 0, *size_wh)]
    return [tile for tile, _ in geometry.tile_grid(size_wh, photo_side)]


# ---- in one tile ------------------------------------------------------------------------------------------

def _find_in_tile(sam: Sam, pixels: np.ndarray, tile: Box, settings: FindSettings,
                  autocast: AbstractContextManager) -> Iterator[_Piece]:
    image = geometry.crop(pixels, tile)
    side = sam.image_encoder.img_size
    size = ResizeLongestSide.get_preprocess_shape(*image.shape[:2], side)
    resized = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    frame = pad_images([torch.from_numpy(resized).permute(2, 0, 1)], side).to(sam.device)
    with autocast:
        embedding = sam.image_encoder(preprocess(frame, torch.tensor([size], device=sam.device), sam))
        found = sam.finder(embedding, cell_side(sam))
    prompts, cells = _prompts(found, size, settings.threshold, cell_side(sam))
    if not len(cells):
        return
    masks, predicted_iou = _decoded(sam, embedding, prompts, autocast)
    names = sam.finder.class_names
    classes = found.classes[0].softmax(dim=0)
    classes = _class_probabilities(classes, masks)
    if settings.classes is not None:
        wanted = [name in settings.classes for name in names]
        classes = classes * torch.tensor(wanted, device=classes.device)
    probability, number = classes.max(dim=1)
    objectness = found.objectness[0].flatten()[cells].sigmoid()
    scores = probability * (objectness * predicted_iou.clamp(0, 1)).sqrt()
    for place in _without_doubles(masks > 0, scores, settings.threshold):
        whole = full_size_mask(masks[place], side, size, image.shape[:2]).cpu().numpy()
        box = geometry.mask_to_xyxy(whole)
        if box is not None:
            in_photo = (box[0] + tile[0], box[1] + tile[1], box[2] + tile[0], box[3] + tile[1])
            yield _Piece(names[number[place]], float(scores[place]), geometry.crop(whole, box), in_photo, tile)


def _prompts(found: Map, size: tuple[int, int], threshold: float, cell: int) -> tuple[Prompts, Tensor]:
    """The likeliest boxes, each with the middle of its cell as a click, and the cells; `size` (h, w) of the image."""
    from torchvision.ops import nms
    x, y = cell_centres(*found.objectness.shape[-2:], cell, found.objectness.device)
    likely = (found.objectness[0].sigmoid() * ((x < size[1]) & (y < size[0]))).flatten()
    likely, cells = likely.topk(min(CANDIDATES, len(likely)))
    cells = cells[likely > threshold ** 2]      # of a score, objectness is one factor under a root
    limits = torch.tensor([size[1], size[0]] * 2, device=cells.device)
    boxes = found.boxes[0].flatten(1).T[cells].clamp(min=0).minimum(limits)
    kept = nms(boxes, likely[:len(cells)], BOX_OVERLAP)[:DECODED]
    boxes, cells = boxes[kept], cells[kept]
    clicks = torch.stack([x.flatten()[cells], y.flatten()[cells]], dim=1)[:, None]
    return Prompts(clicks, torch.ones(len(cells), 1, dtype=torch.long, device=cells.device), boxes,
                   [(1, True)] * len(cells)), cells


def _decoded(sam: Sam, embedding: Tensor, prompts: Prompts, autocast: AbstractContextManager) -> tuple[Tensor, Tensor]:
    """Logits (N, 4h, 4w) and predicted IoU (N,), float32."""
    parts = []
    for start in range(0, len(prompts.kinds), PROMPTS_PER_DECODE):
        some = prompts[slice(start, start + PROMPTS_PER_DECODE)]
        with autocast:
            parts.append(decode(sam, embedding.expand(len(some.kinds), -1, -1, -1), some))
    masks, predicted_iou = (torch.cat(values)[:, 0].float() for values in zip(*parts))
    return masks, predicted_iou


def _class_probabilities(classes: Tensor, masks: Tensor) -> Tensor:
    """(N, K): the mean over each mask of what its cells say. `classes` (K, g, g) probabilities, `masks` logits."""
    covered = F.adaptive_avg_pool2d((masks > 0).float(), classes.shape[-2:]).flatten(1)
    return covered @ classes.flatten(1).T / covered.sum(dim=1, keepdim=True).clamp(min=1e-6)


def _without_doubles(masks: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """The masks to keep, best first: those with a score above the threshold that no better one is nearly equal to."""
    flat = masks.flatten(1).float()
    areas, shared = flat.sum(dim=1), flat @ flat.T
    doubles = (shared > MASK_OVERLAP * (areas[:, None] + areas - shared)).cpu()
    kept: list[int] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        if scores[place] > threshold and areas[place] and not doubles[place, kept].any():
            kept.append(place)
    return kept


# ---- over tiles -------------------------------------------------------------------------------------------

def _joined(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Pieces of the same object from neighbouring tiles as one, with the best of their scores."""
    joined: list[_Piece] = []
    for piece in pieces:
        same = [other for other in joined if other.class_name == piece.class_name and _is_same(piece, other)]
        for other in same:
            joined.remove(other)
            piece = _union(piece, other)
        joined.append(piece)
    return joined


def _is_same(one: _Piece, other: _Piece) -> bool:
    """Where both tiles look, do they see the same? Within a tile no two pieces are."""
    if one.tile == other.tile:
        return False
    both = _intersection(one.tile, other.tile)
    if both is None or _intersection(one.box, other.box) is None:
        return False
    parts = [_part(piece, both) for piece in (one, other)]
    smaller = min(np.count_nonzero(part) for part in parts)
    return smaller > 0 and np.count_nonzero(parts[0] & parts[1]) > SAME_IN_BOTH * smaller


def _part(piece: _Piece, window: Box) -> np.ndarray:
    """What of a piece lies in a window, (h, w) bool."""
    part = np.zeros((window[3] - window[1], window[2] - window[0]), dtype=bool)
    shared = _intersection(piece.box, window)
    if shared is not None:
        x0, y0, x1, y1 = shared
        left, top = piece.box[:2]
        part[y0 - window[1]:y1 - window[1], x0 - window[0]:x1 - window[0]] = piece.mask[y0 - top:y1 - top,
                                                                                      x0 - left:x1 - left]
    return part


def _union(one: _Piece, other: _Piece) -> _Piece:
    frame, tile = (tuple(f(a, b) for f, a, b in zip((min, min, max, max), *boxes))
                   for boxes in ((one.box, other.box), (one.tile, other.tile)))
    mask = geometry.paste(one.mask, one.box, frame) | geometry.paste(other.mask, other.box, frame)
    return replace(one, score=max(one.score, other.score), mask=mask, box=frame, tile=tile)


def _intersection(one: Box, other: Box) -> Box | None:
    x0, y0, x1, y1 = (f(a, b) for f, a, b in zip((max, max, min, min), one, other))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
