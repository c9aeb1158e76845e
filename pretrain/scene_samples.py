"""Training samples: crops of scenes in the model frame, with masks of some regions, and clicks and boxes for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from painter import GROUP, MIN_AREA, OBJECT, PART, Painter, Scene
from scenes import THEMES, TRAINING_THEMES, make_scene
from shapes import rotation
from textures import TextureBank

from sam_lora.data.clicks import centre_and_farthest_points, centre_and_opposite_points

POSITIVE, NEGATIVE = 5, 3  # points of each region inside it and outside it
Region = tuple[int, int]   # level of the label map, id in it


@dataclass(frozen=True)
class Mix:
    """What samples are made of. The defaults make the held-out ones, which have to stay the same."""

    themes: Mapping[Callable[[Painter], None], float] = field(default_factory=lambda: THEMES)
    simple_share: float = 0.0   # of the scenes
    computed_share: float = 0.0  # of the regions: their first three clicks are placed as the project's scripts do
    target_rows: int = 1        # rows of a crop for the region it was made around: more prompts for what matters most


HELD_OUT = Mix()
TRAINING = Mix(TRAINING_THEMES, simple_share=0.1, computed_share=0.5, target_rows=2)


@dataclass(frozen=True)
class Sample:
    """One crop in the model frame with M regions and prompts for them.

    `image` (S, S, 3) uint8 RGB, padded with 0 at the right and bottom; `input_size` (h, w) of the crop in it; `masks`
    (M, S/2, S/2) uint8 0/1; `positive` (M, 5, 2) and `negative` (M, 3, 2) xy points and `boxes` (M, 4) xyxy,
    jittered, all in pixels of the frame; `main` (M,) whether the crop was made around this region.
    """

    image: np.ndarray
    input_size: tuple[int, int]
    masks: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    boxes: np.ndarray
    main: np.ndarray


@dataclass(frozen=True)
class Crop:
    """A window of a scene resized into the model frame.

    `image` (S, S, 3) uint8 RGB, padded; `size` (h, w) of the window there; `labels` (3, H, W) of the window, at the
    scene's size; `scale` from scene pixels to frame pixels.
    """

    image: np.ndarray
    size: tuple[int, int]
    labels: np.ndarray
    scale: float

    @property
    def half_size(self) -> tuple[int, int]:
        """(h, w) on the half-size grid of the masks."""
        return max(1, (self.size[0] + 1) // 2), max(1, (self.size[1] + 1) // 2)


def samples(seed: int, side: int, count: int, whole_share: float, crops_a_scene: int = 6,
            bank_size: int = 96, mix: Mix = HELD_OUT) -> Iterator[Sample]:
    """Samples without end: crops of one scene, then of the next. The texture bank is renewed along the way."""
    rng = np.random.default_rng(seed)
    bank = TextureBank(rng, bank_size)
    while True:
        scene = make_scene(rng, bank, mix.simple_share, mix.themes)
        bank.refresh(rng)
        for _ in range(crops_a_scene):
            sample = make_sample(rng, scene, side, count, whole=rng.random() < whole_share, mix=mix)
            if sample is not None:
                yield sample


def make_sample(rng: np.random.Generator, scene: Scene, side: int, count: int, whole: bool = False,
                target: Region | None = None, mix: Mix = HELD_OUT) -> Sample | None:
    """A crop around one region (or the whole scene) with `count` regions in it; None if no region is large enough."""
    regions = [region for region in region_sizes(scene.labels) if region[2] >= MIN_AREA]
    if not regions:
        return None
    if target is None:
        target = pick_target(rng, regions)
    crop = cut_crop(rng, scene, None if whole else target, side)
    chosen = choose_regions(rng, crop.labels, target, count, whole)
    if not whole:
        chosen = ([target] * (mix.target_rows - 1) + chosen)[:count]
    masks = np.zeros((count, side // 2, side // 2), np.uint8)
    positive = np.zeros((count, POSITIVE, 2), np.float32)
    negative = np.zeros((count, NEGATIVE, 2), np.float32)
    boxes = np.zeros((count, 4), np.float32)
    rows, columns = crop.half_size
    for i, region in enumerate(chosen):
        mask = half_size_mask(crop, region)
        masks[i, :rows, :columns] = mask
        positive[i] = clicks(rng, mask, POSITIVE) * 2 + 1
        if mix.computed_share and rng.random() < mix.computed_share:
            place = centre_and_opposite_points if rng.random() < 0.5 else centre_and_farthest_points
            positive[i, :3] = place(mask) * 2 + 1
        negative[i] = clicks_outside(rng, mask, NEGATIVE)
        boxes[i] = jittered_box(rng, mask, crop.size)
    return Sample(crop.image, crop.size, masks, positive, negative, boxes,
                  np.array([region == target for region in chosen]))


# ---- regions and crops --------------------------------------------------------------------------------------

def region_sizes(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(level, id, pixels) of every visible region of a (3, h, w) label map."""
    sizes = []
    for level in (GROUP, OBJECT, PART):
        areas = np.bincount(labels[level].ravel())
        sizes += [(level, int(number), int(areas[number])) for number in np.flatnonzero(areas) if number]
    return sizes


def pick_target(rng: np.random.Generator, regions: Sequence[tuple[int, int, int]]) -> Region:
    """One of the (level, id, pixels): groups and objects more often than parts, large regions more often than small."""
    weights = np.array([(0.8, 1.0, 0.35)[level] * min(area, 2000) ** 0.4 for level, _, area in regions])
    level, number, _ = regions[rng.choice(len(regions), p=weights / weights.sum())]
    return level, number


def crop_window(rng: np.random.Generator, region: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a crop around a (h, w) bool region: 5 to 30 % padding on each side, sometimes up to 150 %."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    most = 0.3 if rng.random() < 0.65 else 1.5
    left, top, right, bottom = rng.uniform(0.05, most, 4) if rng.random() < 0.5 else np.full(4, rng.uniform(0.05, most))
    x0, x1 = columns[0] - left * width - 1, columns[-1] + 2 + right * width
    y0, y1 = rows[0] - top * height - 1, rows[-1] + 2 + bottom * height
    return (max(0, int(x0)), max(0, int(y0)), min(region.shape[1], int(np.ceil(x1))),
            min(region.shape[0], int(np.ceil(y1))))


def cut_crop(rng: np.random.Generator, scene: Scene, region: Region | None, side: int) -> Crop:
    """The surroundings of a region, or the whole scene for None, in a model frame of `side` pixels."""
    x0, y0, x1, y1 = 0, 0, scene.image.shape[1], scene.image.shape[0]
    if region is not None:
        x0, y0, x1, y1 = crop_window(rng, scene.labels[region[0]] == region[1])
    scale = side / max(y1 - y0, x1 - x0)
    height, width = max(1, int((y1 - y0) * scale + 0.5)), max(1, int((x1 - x0) * scale + 0.5))
    resize = cv2.INTER_AREA if scale < 1 else (cv2.INTER_CUBIC if rng.random() < 0.3 else cv2.INTER_LINEAR)
    image = np.zeros((side, side, 3), np.uint8)
    image[:height, :width] = cv2.resize(scene.image[y0:y1, x0:x1], (width, height), interpolation=resize)
    return Crop(image, (height, width), np.ascontiguousarray(scene.labels[:, y0:y1, x0:x1]), scale)


def choose_regions(rng: np.random.Generator, labels: np.ndarray, target: Region, count: int,
                   whole: bool) -> list[Region]:
    """`count` regions of a crop's labels: the target, then others; repeated where there are too few.

    On a whole scene the target is dropped if it is too small, unless there is nothing else.
    """
    least = max(6, labels[0].size * 0.005)
    areas = {(level, number): area for level, number, area in region_sizes(labels) if area >= least}
    others = [region for region in areas if region != target]
    chosen = [target]
    if len(others) and count > 1:
        weights = np.array([(0.7, 1.0, 0.5)[region[0]] * areas[region] ** 0.3 for region in others])
        picks = rng.choice(len(others), min(count - 1, len(others)), replace=False, p=weights / weights.sum())
        chosen += [others[i] for i in picks]
    if whole and target not in areas:
        chosen = chosen[1:] or chosen
    return (chosen * count)[:count]


def half_size_mask(crop: Crop, region: Region) -> np.ndarray:
    """The (h, w) bool mask of a region on the half-size grid; at least one pixel is set, however thin the region."""
    level, number = region
    rows, columns = crop.half_size
    full = (crop.labels[level] == number).astype(np.uint8) * 255
    smooth = cv2.INTER_AREA if crop.scale < 2 else cv2.INTER_LINEAR
    mask = cv2.resize(full, (columns, rows), interpolation=smooth) > 127
    if not mask.any():
        mask = cv2.resize(full, (columns, rows), interpolation=cv2.INTER_NEAREST) > 127
    if not mask.any():
        y, x = np.argwhere(full)[0]
        mask[min(int(y * crop.scale / 2), rows - 1), min(int(x * crop.scale / 2), columns - 1)] = True
    return mask


# ---- prompts ------------------------------------------------------------------------------------------------

def clicks(rng: np.random.Generator, mask: np.ndarray, count: int) -> np.ndarray:
    """`count` (x, y) pixels inside a bool mask: random or, as in the pipeline, one central and two far apart."""
    pixels = np.argwhere(mask)
    picks = pixels[rng.integers(len(pixels), size=count)]
    if rng.random() < 0.4 and len(pixels) > 3:
        centred = pixels - pixels.mean(axis=0)
        axis = np.linalg.svd(np.cov(centred.T) + 1e-6 * np.eye(2))[0][:, 0] if rng.random() < 0.7 else rotation(
            rng.uniform(0, np.pi))[0]
        along = centred @ axis
        order = np.argsort(along)
        inset = int(len(order) * rng.uniform(0.01, 0.15))
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        picks[0] = np.unravel_index(depth.argmax(), depth.shape)
        picks[1:3] = pixels[order[inset]], pixels[order[-1 - inset]]
    return picks[:, ::-1].astype(np.float32)


def clicks_outside(rng: np.random.Generator, mask: np.ndarray, count: int) -> np.ndarray:
    """`count` (x, y) points of the model frame outside a half-size mask; -1 where the mask fills the crop."""
    outside = np.argwhere(~mask)
    if not len(outside):
        return np.full((count, 2), -1, np.float32)
    return outside[rng.integers(len(outside), size=count), ::-1] * 2 + 1


def jittered_box(rng: np.random.Generator, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The box of a half-size mask, each side moved a little: (4,) xyxy in the model frame, within a crop of (h, w)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)) * 2, np.flatnonzero(mask.any(axis=0)) * 2
    box = np.array([columns[0], rows[0], columns[-1] + 2, rows[-1] + 2], np.float32)
    spread = np.minimum(np.tile(box[2:] - box[:2], 2) * 0.08, 20)
    box = box + np.clip(rng.normal(0, 1, 4), -2, 2) * spread
    return np.clip(box, 0, np.tile(np.array(size)[::-1], 2))
