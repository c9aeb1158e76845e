"""A canvas with a label map: textured objects, their parts, shading and shadows, and at last the camera.

A scene has three label maps, so that one click has several right answers: groups (a twig with its leaves), objects (a
leaf) and parts (a spot on the leaf).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from textures import TextureBank, palette

GROUP, OBJECT, PART = range(3)
MIN_AREA = 12  # visible pixels a region needs to count, in the scene


@dataclass
class Scene:
    """`image` (H, W, 3) uint8 RGB; `labels` (3, H, W) int32: the group, object and part of each pixel, 0 for none."""

    image: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Look:
    """How an object or part is painted; what is None is left to chance.

    `base` is its RGB colour; without it, `step` bounds how many grey levels the colour differs from what is below.
    `soft` blurs the edge (sigma in pixels), `rough` is the contrast of the texture in grey levels, `shaded` the depth
    of a rounded body, 0 for a flat one. Parts use neither `rough` nor `shaded`.
    """

    base: np.ndarray | None = None
    step: tuple[float, float] | None = None
    soft: float = 0.0
    rough: float | None = None
    shaded: float | None = None


@dataclass
class Painted:
    """An object on the canvas: its number in the label map, coverage, window and mean colour."""

    number: int
    mask: np.ndarray
    rows: slice
    columns: slice
    base: np.ndarray

    @property
    def size(self) -> int:
        return max(self.mask.shape)


class Painter:
    """A canvas and its label maps. Later shapes cover earlier ones."""

    def __init__(self, rng: np.random.Generator, bank: TextureBank, height: int, width: int, grey: bool) -> None:
        self.rng, self.bank, self.grey = rng, bank, grey
        self.labels = np.zeros((3, height, width), np.int32)
        self.last = 0
        self.contrast = np.exp(rng.uniform(np.log(0.55), np.log(1.8)))  # some scenes are pale all over
        self.roughness = np.exp(rng.uniform(np.log(0.2), np.log(1.3)))
        base = rng.uniform(20, 235) + rng.normal(0, 0 if grey else np.exp(rng.uniform(np.log(5), np.log(70))), 3)
        self.hue = np.exp(rng.uniform(np.log(0.15), np.log(1.0)))  # how far colours stray from grey
        base = np.clip(base, 5, 250)
        self.canvas = self.skin(base, rng.uniform(4, 50) * self.roughness, height, width)

    def new_id(self) -> int:
        self.last += 1
        return self.last

    def skin(self, base: np.ndarray, contrast: float, height: int, width: int) -> np.ndarray:
        """A textured (height, width, 3) uint8 surface around a colour."""
        return palette(self.rng, base, contrast, self.grey)[self.bank.cut(self.rng, height, width)]

    def near(self, colour: np.ndarray, low: float, high: float) -> np.ndarray:
        """A colour that differs from `colour` by `low` to `high` grey levels."""
        step = np.exp(self.rng.uniform(np.log(low), np.log(high)))
        direction = np.ones(3) if self.grey else self.rng.normal(0, self.hue, 3) + self.rng.normal(0, 1.2)
        direction = direction * (step / max(np.abs(direction).max(), 1e-6))
        if self.grey and self.rng.random() < 0.5:
            direction = -direction
        if np.clip(colour + direction, 5, 250).sum() - colour.sum() < 0.5 * direction.sum():
            direction = -direction
        return np.clip(colour + direction, 5, 250)

    def contrasting(self, colour: np.ndarray, step: tuple[float, float]) -> np.ndarray:
        """`near` with steps scaled to the contrast of this scene, and never too small to see."""
        return self.near(colour, max(step[0] * self.contrast, 9), max(step[1] * self.contrast, 20))

    def window(self, mask: np.ndarray, x: float, y: float) -> tuple[np.ndarray, slice, slice] | None:
        """`mask` centred on (x, y) and cut to the canvas: (mask, rows, columns); None if it lies outside."""
        height, width = self.canvas.shape[:2]
        top, left = round(y - mask.shape[0] / 2), round(x - mask.shape[1] / 2)
        rows = slice(max(top, 0), min(top + mask.shape[0], height))
        columns = slice(max(left, 0), min(left + mask.shape[1], width))
        if rows.stop - rows.start < 2 or columns.stop - columns.start < 2:
            return None
        return mask[rows.start - top:rows.stop - top, columns.start - left:columns.stop - left], rows, columns

    def blend(self, mask: np.ndarray, rows: slice, columns: slice, surface: np.ndarray, opacity: float = 1.0) -> None:
        alpha = mask.astype(np.float32)[..., None] * (opacity / 255)
        below = self.canvas[rows, columns]
        self.canvas[rows, columns] = below + (surface.astype(np.float32) - below) * alpha

    def paint(self, mask: np.ndarray, x: float, y: float, look: Look | None = None,
              group: int = 0) -> Painted | None:
        """Paint a new object centred on (x, y); None if it lies outside the canvas or is too small to see."""
        look = look or Look()
        placed = self.window(mask, x, y)
        if placed is None:
            return None
        mask, rows, columns = placed
        inside = mask > 127
        if inside.sum() < MIN_AREA:
            return None
        below = self.canvas[rows, columns][inside].mean(axis=0)
        base = look.base
        if base is None:
            base = self.contrasting(below, look.step or (16, 150))
        surface = self.body(mask, base, below, look)
        if self.rng.random() < 0.2 and look.soft == 0:
            self.shadow(mask, rows, columns)
        self.blend(softened(mask, look.soft), rows, columns, np.clip(surface, 0, 255))
        number = self.new_id()
        for level, value in ((GROUP, group), (OBJECT, number), (PART, 0)):
            self.labels[level, rows, columns][inside] = value
        return Painted(number, mask, rows, columns, base)

    def body(self, mask: np.ndarray, base: np.ndarray, below: np.ndarray, look: Look) -> np.ndarray:
        """An object's surface (h, w, 3) float32: texture, shading, sometimes a rim. `below` is the colour it covers."""
        rng, rough, shaded = self.rng, look.rough, look.shaded
        if rough is None:
            rough = np.exp(rng.uniform(np.log(2), np.log(45))) * self.roughness
            rough = min(rough, 8 + 1.2 * np.abs(base - below).max())
        surface = self.skin(base, rough, *mask.shape).astype(np.float32)
        if shaded is None:
            shaded = rng.uniform(0.1, 0.6) if rng.random() < 0.35 else 0.0
        if shaded:
            surface *= self.dome(mask, shaded)[..., None]
        if rng.random() < 0.2 and look.soft == 0:
            rim = (mask > 127) & (cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=int(rng.integers(1, 3)),
                                            borderType=cv2.BORDER_REPLICATE) < 128)
            surface[rim] *= rng.uniform(0.5, 0.85) if rng.random() < 0.6 else rng.uniform(1.15, 1.5)
        return surface

    def dome(self, mask: np.ndarray, depth: float) -> np.ndarray:
        """Brightness of a rounded body lit from one side: (h, w), around 1."""
        height = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 3)
        height = np.sqrt(height / max(height.max(), 1))
        tilt = self.rng.normal(0, 0.5, 2)
        y, x = np.mgrid[:mask.shape[0], :mask.shape[1]].astype(np.float32) / max(mask.shape) - 0.5
        return (1 + depth * (height - 0.6 + tilt[0] * x + tilt[1] * y)).astype(np.float32)

    def shadow(self, mask: np.ndarray, rows: slice, columns: slice) -> None:
        reach = max(1, round(0.05 * max(mask.shape)))
        dark = cv2.GaussianBlur(np.pad(mask, 3 * reach), (0, 0), reach)
        placed = self.window(dark, (columns.start + columns.stop) / 2 + reach, (rows.start + rows.stop) / 2 + reach)
        if placed is not None:
            self.blend(*placed, np.zeros((1, 1, 3)), self.rng.uniform(0.2, 0.6))

    def part(self, owner: Painted, mask: np.ndarray, dx: float, dy: float, look: Look | None = None,
             is_region: bool = True) -> None:
        """Paint a part onto an object, offset from its centre by (dx, dy) and cut off at the object's edge.

        Without `is_region` it is only painted: nobody would take it for anything but its owner.
        """
        look = look or Look()
        x = (owner.columns.start + owner.columns.stop) / 2 + dx
        y = (owner.rows.start + owner.rows.stop) / 2 + dy
        placed = self.window(mask, x, y)
        if placed is None:
            return
        mask, rows, columns = placed
        on_owner = self.labels[OBJECT, rows, columns] == owner.number
        inside = (mask > 127) & on_owner
        if inside.sum() < MIN_AREA:
            return
        base = look.base
        if base is None:
            base = self.contrasting(owner.base, look.step or (18, 120))
        surface = self.skin(base, self.rng.uniform(2, 25) * self.roughness, *mask.shape)
        self.blend(np.where(on_owner, softened(mask, look.soft), 0), rows, columns, surface)
        if is_region:
            self.labels[PART, rows, columns][inside] = self.new_id()

    def finish(self) -> Scene:
        """The scene after uneven light, lens blur, grain, tone curve and JPEG."""
        rng = self.rng
        height, width = self.canvas.shape[:2]
        image = self.canvas
        if rng.random() < 0.6:
            light = cv2.resize(rng.normal(1, rng.uniform(0.05, 0.3), (3, 3)).astype(np.float32), (width, height),
                               interpolation=cv2.INTER_CUBIC)
            image = np.clip(image * np.clip(light, 0.35, 1.6)[..., None], 0, 255).astype(np.uint8)
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3))
        if rng.random() < 0.6:
            grain = rng.standard_normal((height, width, 1 if self.grey else 3), np.float32) * rng.uniform(1, 11)
            image = np.clip(image + grain, 0, 255).astype(np.uint8)
        if rng.random() < 0.3:
            curve = 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(-0.6, 0.6))
            image = curve.astype(np.uint8)[image]
        if rng.random() < 0.4:
            _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])
            image = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        return Scene(np.ascontiguousarray(image), self.labels)


def softened(mask: np.ndarray, soft: float) -> np.ndarray:
    """Coverage with its edge blurred by `soft` pixels."""
    return cv2.GaussianBlur(mask, (0, 0), soft) if soft > 0.3 else mask
