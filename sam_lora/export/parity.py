"""Does an exported model compute what the checkpoint computes? Probes to run on both, and their logits' difference.

Logits here are the low-resolution masks (K, 4, 4h, 4w) of a probe's K prompts: index 0 of the second axis is the single
mask, 1 to 3 are the ambiguity masks. They precede any resizing, so a difference comes from the model itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sam_lora.errors import UserError
from sam_lora.model.encode import preprocess
from sam_lora.model.meta import ResizeLongestSide, Sam, SamPredictor
from sam_lora.model.prompts import Prompts, decode_all

TOLERANCE = 1e-4  # of a logit
PROBES = 2  # one landscape, one portrait


@dataclass(frozen=True)
class Probe:
    """One image and K prompts.

    `image` (h, w, 3) uint8 RGB, its longest side that of the model frame; `frame` (1, 3, S, S) float32, the encoder's
    input; `original_size` (H, W) before the image was resized. `prompts` have one row each, in pixels of the model
    frame; `mask_inputs` has for each prompt the logits (1, 1, 4h, 4w) of an earlier prediction, or None; `truths`
    (H, W) bool, where known.
    """

    image: np.ndarray
    frame: Tensor
    original_size: tuple[int, int]
    prompts: Sequence[Prompts]
    mask_inputs: Sequence[Tensor | None]
    truths: Sequence[np.ndarray | None] = field(default=())


def make_probes(sam: Sam, count: int = PROBES, seed: int = 0) -> Iterator[Probe]:
    """Random images of ellipses on noise, alternately landscape and portrait, each with every kind of prompt.

    The prompts: one point, five points of both labels, a box, a box with two points, three points with an earlier mask.
    """
    rng = np.random.default_rng(seed)
    side, grid = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size
    for number in range(count):
        size = tuple(int(value) for value in (rng.integers(side // 2, side), rng.integers(side, 2 * side)))
        original_size = size if number % 2 == 0 else size[::-1]
        height, width = ResizeLongestSide.get_preprocess_shape(*original_size, side)
        image, box = _ellipses(rng, height, width)
        low, high = np.array(box[:2]), np.array(box[2:])
        inside = (low + high) / 2 + rng.uniform(-0.25, 0.25, (5, 2)) * (high - low)
        anywhere = rng.uniform((0, 0), (width, height), (5, 2))
        mixed = np.where(np.array([1, 1, 0, 1, 0])[:, None] == 1, inside, anywhere)
        earlier = torch.from_numpy(rng.normal(0, 4, (1, 1, 4 * grid[0], 4 * grid[1])).astype(np.float32))
        prompts = [_prompts(inside[:1], [1]), _prompts(mixed, [1, 1, 0, 1, 0]), _prompts(inside[:0], [], box),
                   _prompts(mixed[1:3], [1, 0], box), _prompts(inside[:3], [1, 1, 1])]
        yield Probe(image, to_frame(image, sam), original_size, prompts, [None, None, None, None, earlier])


def _prompts(points: np.ndarray, labels: Sequence[int], box: Sequence[float] | None = None) -> Prompts:
    boxes = None if box is None else torch.tensor([box], dtype=torch.float32)
    return Prompts(torch.from_numpy(points.astype(np.float32))[None],
                   torch.tensor(labels, dtype=torch.long)[None], boxes)


def _ellipses(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[float]]:
    """A (height, width, 3) uint8 image and the xyxy box of its topmost ellipse."""
    image = np.full((height, width, 3), rng.uniform(60, 190, 3))
    ys, xs = np.mgrid[:height, :width]
    for _ in range(4):
        cx, cy = rng.uniform(0.3, 0.7, 2) * (width, height)
        rx, ry = rng.uniform(0.1, 0.25, 2) * (width, height)
        image[((xs - cx) / rx) ** 2 + ((ys - cy) / ry) ** 2 < 1] = rng.uniform(0, 255, 3)
    image += rng.normal(0, 12, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), [cx - rx, cy - ry, cx + rx, cy + ry]


def to_frame(image: np.ndarray, sam: Sam) -> Tensor:
    """(h, w, 3) uint8 RGB, no larger than the model frame -> the encoder's input (1, 3, S, S) float32."""
    side = sam.image_encoder.img_size
    padded = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    padded[0, :, :image.shape[0], :image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    return preprocess(padded, torch.tensor([image.shape[:2]]), sam)


@torch.inference_mode()
def embed(sam: Sam, probe: Probe) -> Tensor:
    """The embedding of a probe's image (1, C, h, w)."""
    return sam.image_encoder(probe.frame)


@torch.inference_mode()
def our_logits(sam: Sam, probe: Probe, image_embeddings: Tensor | None = None) -> Tensor:
    """Computed by this project's code, from given `image_embeddings` (1, C, h, w) or from its own encoder's."""
    if image_embeddings is None:
        image_embeddings = embed(sam, probe)
    return torch.cat([decode_all(sam, image_embeddings, prompts, mask_input)[0]
                      for prompts, mask_input in zip(probe.prompts, probe.mask_inputs)])


@torch.inference_mode()
def predictor_logits(sam: Sam, probe: Probe) -> Tensor:
    """Computed by segment_anything's SamPredictor."""
    predictor = SamPredictor(sam)
    predictor.set_image(probe.image)
    logits = []
    for prompts, mask_input in zip(probe.prompts, probe.mask_inputs):
        points = (prompts.point_coords, prompts.point_labels) if prompts.point_labels.shape[1] else (None, None)
        logits.append(torch.cat([predictor.predict_torch(*points, prompts.boxes, mask_input, several, True)[2]
                                 for several in (False, True)], dim=1))
    return torch.cat(logits)


@dataclass(frozen=True)
class Reference:
    """What exported files have to reproduce: probes with the checkpoint's embeddings (1, C, h, w) and logits.

    `source` is what errors call the checkpoint.
    """

    source: object
    probes: Sequence[Probe]
    embeddings: Sequence[Tensor]
    logits: Sequence[Tensor]

    @classmethod
    def of(cls, sam: Sam, source: object, probes: Iterable[Probe] | None = None) -> "Reference":
        """Computed by `sam`; without `probes` on those of `make_probes`."""
        probes = list(make_probes(sam, PROBES) if probes is None else probes)
        embeddings = [embed(sam, probe) for probe in probes]
        return cls(source, probes, embeddings, [our_logits(sam, *pair) for pair in zip(probes, embeddings)])

    def compare(self, logits_of: Callable[[Probe], Tensor], name: object, allowed: float = TOLERANCE) -> float:
        """The largest difference of another model's logits from these. Raises UserError where it is too large."""
        difference = largest(largest_difference(logits_of(probe), expected)
                             for probe, expected in zip(self.probes, self.logits))
        check_difference(difference, name, self.source, allowed)
        return difference


# ---- differences --------------------------------------------------------------------------------------------

def largest_difference(logits: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinite if the shapes differ, NaN if either holds a NaN."""
    return float((logits - expected).abs().max()) if logits.shape == expected.shape else float("inf")


def largest(differences: Iterable[float]) -> float:
    """The largest of several differences; NaN if any of them is, which max() would lose."""
    return float(np.max(list(differences)))


def allowed_difference(expected: Sequence[Tensor]) -> float:
    """The difference allowed to kernels that sum in another order: it grows with the logits, as float32 rounds them."""
    return TOLERANCE * max(1.0, *(float(logits.abs().max()) for logits in expected))


def check_difference(difference: float, name: object, source: object, allowed: float = TOLERANCE) -> None:
    """Raise UserError unless a difference is allowed; NaN never is."""
    if not difference <= allowed:
        raise UserError(f"{name}: not kept, because its logits differ by {difference:.2g} from those of {source}, "
                        f"expected at most {allowed:.2g}; please report this")
