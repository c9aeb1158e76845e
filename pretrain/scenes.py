"""Scenes of occluding textured shapes ("dead leaves") with the exact mask of every visible region, and crops of them.

Everything is drawn by code from a seeded generator: no picture of the real world is used. A scene has three maps of
labels: groups (a twig with its leaves), objects (a leaf) and parts (a spot on it), so that one click has several right
answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from textures import TextureBank, palette

GROUP, OBJECT, PART = range(3)
MIN_AREA = 12  # visible pixels of a region that counts, in the scene


@dataclass
class Scene:
    """`image` (H, W, 3) uint8 RGB; `labels` (3, H, W) int32: group, object and part of each pixel, 0 for none."""

    image: np.ndarray
    labels: np.ndarray


# ---- shapes: (h, w) uint8 coverage, 0..255 ------------------------------------------------------------------

def fill(contours: Sequence[np.ndarray]) -> np.ndarray:
    """Coverage of the area between contours ((N, 2) xy floats), even-odd, in its own tight frame."""
    low = np.min([contour.min(axis=0) for contour in contours], axis=0) - 2
    high = np.max([contour.max(axis=0) for contour in contours], axis=0) + 2
    width, height = np.maximum(np.ceil(high - low), 3).astype(int)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round((contour - low) * 16).astype(np.int32) for contour in contours], 255, cv2.LINE_AA, 4)
    return mask


def polar(rng: np.random.Generator, size: float, radius: np.ndarray, flat: float) -> np.ndarray:
    """A closed contour from its radius over the angle, squeezed by `flat` and turned."""
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    points = np.stack([np.cos(angle) * radius, np.sin(angle) * radius * flat], axis=1)
    points *= size / max(2 * np.abs(points).max(), 1e-6)
    return points @ _turn(rng.uniform(0, 2 * np.pi))


def blob(rng: np.random.Generator, size: float, roughness: float = 0.25) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = np.arange(2, 9)[:, None]
    heights = rng.normal(0, roughness, (7, 1)) / (waves - 1)
    radius = 1 + (heights * np.cos(waves * angle + rng.uniform(0, 2 * np.pi, (7, 1)))).sum(axis=0)
    return polar(rng, size, np.maximum(radius, 0.15), rng.uniform(0.45, 1))


def ragged(rng: np.random.Generator, size: float) -> np.ndarray:
    """A blob with a torn edge."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = np.arange(1, 30)[:, None]
    heights = rng.normal(0, 0.35, (29, 1)) / waves ** rng.uniform(0.6, 1.2)
    radius = 1 + (heights * np.cos(waves * angle + rng.uniform(0, 2 * np.pi, (29, 1)))).sum(axis=0)
    return polar(rng, size, np.maximum(radius, 0.1), rng.uniform(0.3, 1))


def ellipse(rng: np.random.Generator, size: float) -> np.ndarray:
    return polar(rng, size, np.ones(48), rng.uniform(0.35, 1))


def polygon(rng: np.random.Generator, size: float) -> np.ndarray:
    corners = int(rng.integers(3, 9))
    angle = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * np.pi / corners)
    radius = rng.uniform(0.45 if rng.random() < 0.5 else 0.85, 1, corners)
    points = np.stack([np.cos(angle) * radius, np.sin(angle) * radius * rng.uniform(0.4, 1)], axis=1)
    return (points * size / 2) @ _turn(rng.uniform(0, 2 * np.pi))


def rectangle(rng: np.random.Generator, size: float) -> np.ndarray:
    flat = np.exp(rng.uniform(np.log(0.12), 0))
    points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (1, flat)
    return (points * size / 2) @ _turn(rng.uniform(0, 2 * np.pi) if rng.random() < 0.6 else 0)


def leaf(rng: np.random.Generator, size: float) -> np.ndarray:
    along = np.linspace(0, 1, 24)
    half = np.sin(np.pi * along) ** rng.uniform(0.6, 1.6) * rng.uniform(0.12, 0.35)
    bend = np.sin(np.pi * along) * rng.uniform(-0.3, 0.3)
    points = np.concatenate([np.stack([along, bend + half], 1), np.stack([along, bend - half], 1)[::-1]]) - (0.5, 0)
    return (points * size) @ _turn(rng.uniform(0, 2 * np.pi))


OUTLINES = (blob, blob, blob, ragged, ellipse, ellipse, polygon, rectangle, leaf)


def strip(rng: np.random.Generator, size: float, width: float, wander: float, branches: int,
          jagged: float = 0.0) -> np.ndarray:
    """Coverage of a thin curved band, its width changing along it, with side branches."""
    lines: list[tuple[np.ndarray, np.ndarray]] = []

    def grow(start: np.ndarray, heading: float, length: float, thickness: float, children: int) -> None:
        steps = max(6, int(length / 4))
        turns = np.cumsum(rng.normal(0, wander / np.sqrt(steps), steps)) + rng.normal(0, jagged, steps)
        moves = np.stack([np.cos(heading + turns), np.sin(heading + turns)], 1) * (length / steps)
        points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
        taper = np.interp(np.linspace(0, 1, steps), (0, rng.uniform(0.2, 0.8), 1), rng.uniform(0.4, 1.2, 3))
        lines.append((points, np.maximum(thickness * taper * rng.uniform(0.75, 1.25, steps), 1)))
        for _ in range(children):
            at = int(rng.integers(1, steps))
            side = rng.choice((-1, 1)) * rng.uniform(0.4, 1.3)
            grow(points[at], heading + turns[at] + side, length * rng.uniform(0.2, 0.6), thickness * 0.7,
                 int(children > 1 and rng.random() < 0.4))

    grow(np.zeros(2), rng.uniform(0, 2 * np.pi), size, width, branches)
    everything = np.concatenate([points for points, _ in lines])
    low, high = everything.min(axis=0) - width - 2, everything.max(axis=0) + width + 2
    columns, rows = np.ceil(high - low).astype(int)
    mask = np.zeros((rows, columns), np.uint8)
    for points, thickness in lines:
        at = np.round((points - low) * 16).astype(np.int32)
        for first, second, wide in zip(at[:-1], at[1:], thickness):
            cv2.line(mask, first.tolist(), second.tolist(), 255, max(1, round(float(wide))), cv2.LINE_AA, 4)
    return mask


def shape(rng: np.random.Generator, size: float) -> np.ndarray:
    """Coverage of a random shape about `size` pixels long."""
    kind = rng.random()
    if kind < 0.68:
        return fill([OUTLINES[rng.integers(len(OUTLINES))](rng, size)])
    if kind < 0.78:
        outer = OUTLINES[rng.integers(5)](rng, size)
        return fill([outer, outer * rng.uniform(0.4, 0.85)])
    if kind < 0.9:
        return strip(rng, size, size * np.exp(rng.uniform(np.log(0.03), np.log(0.2))), rng.uniform(0.3, 2.5),
                     int(rng.integers(0, 4)), 0.0 if rng.random() < 0.5 else 0.3)
    outer, bite = blob(rng, size), blob(rng, size * rng.uniform(0.5, 1))
    mask = fill([outer])
    shift = np.array(mask.shape[::-1]) / 2 + rng.uniform(-0.4, 0.4, 2) * size
    cv2.fillPoly(mask, [np.round((bite + shift) * 16).astype(np.int32)], 0, cv2.LINE_AA, 4)
    return mask


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


# ---- painting -----------------------------------------------------------------------------------------------

class Painter:
    """A canvas and its label maps. Later shapes cover earlier ones."""

    def __init__(self, rng: np.random.Generator, bank: TextureBank, height: int, width: int, grey: bool) -> None:
        self.rng, self.bank, self.grey = rng, bank, grey
        self.labels = np.zeros((3, height, width), np.int32)
        self.last = 0
        self.contrast = np.exp(rng.uniform(np.log(0.55), np.log(1.8)))  # of this scene: some are pale all over
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

    def window(self, mask: np.ndarray, x: float, y: float) -> tuple[np.ndarray, slice, slice] | None:
        """`mask` centred on (x, y), cut to the canvas: (mask, rows, columns), or None if it falls outside."""
        height, width = self.canvas.shape[:2]
        top, left = round(y - mask.shape[0] / 2), round(x - mask.shape[1] / 2)
        rows = slice(max(top, 0), min(top + mask.shape[0], height))
        columns = slice(max(left, 0), min(left + mask.shape[1], width))
        if rows.stop - rows.start < 2 or columns.stop - columns.start < 2:
            return None
        return mask[rows.start - top:rows.stop - top, columns.start - left:columns.stop - left], rows, columns

    def blend(self, mask: np.ndarray, rows: slice, columns: slice, surface: np.ndarray, opacity: float = 1.0) -> None:
        alpha = mask.astype(np.float32)[..., None] * (opacity / 255)
        under = self.canvas[rows, columns]
        self.canvas[rows, columns] = under + (surface.astype(np.float32) - under) * alpha

    def paint(self, mask: np.ndarray, x: float, y: float, group: int = 0, step: tuple[float, float] | None = None,
              soft: float = 0.0, rough: float | None = None, base: np.ndarray | None = None,
              shaded: float | None = None) -> "Painted | None":
        """Paint a new object; None when it lies outside or is too small to see."""
        rng = self.rng
        placed = self.window(mask, x, y)
        if placed is None:
            return None
        mask, rows, columns = placed
        inside = mask > 127
        if inside.sum() < MIN_AREA:
            return None
        under = self.canvas[rows, columns][inside].mean(axis=0)
        if base is None:
            low, high = step or (16, 150)
            base = self.near(under, max(low * self.contrast, 9), max(high * self.contrast, 20))
        if rough is None:
            rough = np.exp(rng.uniform(np.log(2), np.log(45))) * self.roughness
            rough = min(rough, 8 + 1.2 * np.abs(base - under).max())
        surface = self.skin(base, rough, *mask.shape).astype(np.float32)
        if shaded is None:
            shaded = rng.uniform(0.1, 0.6) if rng.random() < 0.35 else 0.0
        if shaded:
            surface *= self.dome(mask, shaded)[..., None]
        if rng.random() < 0.2 and soft == 0:
            rim = inside & (cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=int(rng.integers(1, 3)),
                                      borderType=cv2.BORDER_REPLICATE) < 128)
            surface[rim] *= rng.uniform(0.5, 0.85) if rng.random() < 0.6 else rng.uniform(1.15, 1.5)
        if rng.random() < 0.2 and soft == 0:
            self.shadow(mask, rows, columns)
        cover = cv2.GaussianBlur(mask, (0, 0), soft) if soft > 0.3 else mask
        self.blend(cover, rows, columns, np.clip(surface, 0, 255))
        number = self.new_id()
        for level, value in ((GROUP, group), (OBJECT, number), (PART, 0)):
            self.labels[level, rows, columns][inside] = value
        return Painted(number, mask, rows, columns, base)

    def dome(self, mask: np.ndarray, depth: float) -> np.ndarray:
        """Brightness of a rounded body lit from one side, (h, w) around 1."""
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

    def part(self, owner: "Painted", mask: np.ndarray, dx: float, dy: float, step: tuple[float, float] = (18, 120),
             soft: float = 0.0, number: int | None = None, base: np.ndarray | None = None) -> None:
        """Paint a part onto an object, at an offset from its centre, cut off at the object's edge."""
        x = (owner.columns.start + owner.columns.stop) / 2 + dx
        y = (owner.rows.start + owner.rows.stop) / 2 + dy
        placed = self.window(mask, x, y)
        if placed is None:
            return
        mask, rows, columns = placed
        own = self.labels[OBJECT, rows, columns] == owner.number
        inside = (mask > 127) & own
        if inside.sum() < MIN_AREA:
            return
        if base is None:
            base = self.near(owner.base, max(step[0] * self.contrast, 9), max(step[1] * self.contrast, 20))
        surface = self.skin(base, self.rng.uniform(2, 25) * self.roughness, *mask.shape)
        cover = cv2.GaussianBlur(mask, (0, 0), soft) if soft > 0.3 else mask
        self.blend(np.where(own, cover, 0), rows, columns, surface)
        self.labels[PART, rows, columns][inside] = self.new_id() if number is None else number

    def finish(self) -> Scene:
        """Light, lens and camera over everything."""
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


@dataclass
class Painted:
    """An object on the canvas: its number, coverage, window and mean colour."""

    number: int
    mask: np.ndarray
    rows: slice
    columns: slice
    base: np.ndarray

    @property
    def size(self) -> int:
        return max(self.mask.shape)


# ---- what scenes show ---------------------------------------------------------------------------------------

def _decorate(painter: Painter, owner: Painted) -> None:
    """Parts on an object: a nucleus, a few spots, bands, or an inlay."""
    rng, size = painter.rng, owner.size
    kind = rng.integers(4)
    if kind == 0:
        nucleus = fill([blob(rng, size * rng.uniform(0.25, 0.55), 0.12)])
        painter.part(owner, nucleus, *rng.uniform(-0.12, 0.12, 2) * size, soft=rng.choice((0, 0, 1.5)))
    elif kind == 1:
        colour = painter.near(owner.base, 20 * painter.contrast + 5, 110)
        for _ in range(rng.integers(2, 8)):
            spot = fill([blob(rng, size * rng.uniform(0.08, 0.28), 0.1)])
            painter.part(owner, spot, *rng.uniform(-0.4, 0.4, 2) * size, base=colour)
    elif kind == 2:
        colour = painter.near(owner.base, 20 * painter.contrast + 5, 110)
        turn, gap = _turn(rng.uniform(0, np.pi)), size * rng.uniform(0.12, 0.3)
        for i in range(-4, 5):
            band = np.array([[-size, -gap / 4], [size, -gap / 4], [size, gap / 4], [-size, gap / 4]]) @ turn
            painter.part(owner, fill([band]), *(np.array([0, i * gap]) @ turn), base=colour)
    else:
        painter.part(owner, shape(rng, size * rng.uniform(0.3, 0.7)), *rng.uniform(-0.3, 0.3, 2) * size)


def dead_leaves(painter: Painter) -> None:
    """Shapes of all kinds over each other."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    side = max(height, width)
    for _ in range(int(rng.integers(4, 22))):
        size = side * np.exp(rng.uniform(np.log(0.06), np.log(0.65)))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        group = painter.new_id() if rng.random() < 0.15 else 0
        owner = painter.paint(shape(rng, size), x, y, group, soft=rng.choice((0, 0, 0, 1.0, 2.5)))
        if owner is None:
            continue
        if rng.random() < 0.4:
            _decorate(painter, owner)
        if group:
            for _ in range(rng.integers(1, 4)):
                angle = rng.uniform(0, 2 * np.pi)
                limb = shape(rng, size * rng.uniform(0.3, 0.8))
                painter.paint(limb, x + np.cos(angle) * size * 0.4, y + np.sin(angle) * size * 0.4, group)


def cracked_ground(painter: Painter) -> None:
    """Thin dark branching cracks on a textured ground, among stains and seams."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    side = max(height, width)
    for _ in range(rng.integers(0, 4)):
        painter.paint(shape(rng, side * rng.uniform(0.1, 0.6)), rng.uniform(0, width), rng.uniform(0, height),
                      step=(8, 60), soft=rng.uniform(0, 3))
    for _ in range(rng.integers(1, 5)):
        size = side * rng.uniform(0.25, 1.2)
        mask = strip(rng, size, np.exp(rng.uniform(np.log(1), np.log(9))), rng.uniform(0.2, 2),
                     int(rng.integers(0, 4)), rng.uniform(0, 0.7))
        x, y = rng.uniform(0.15, 0.85) * width, rng.uniform(0.15, 0.85) * height
        placed = painter.window(mask, x, y)
        if placed is None:
            continue
        ground = painter.canvas[placed[1], placed[2]].mean(axis=(0, 1))
        depth = rng.uniform(0.25, 0.85) if rng.random() < 0.85 else rng.uniform(1.2, 1.7)
        painter.paint(mask, x, y, base=np.clip(ground * depth, 3, 252), rough=rng.uniform(2, 15), shaded=0,
                      soft=rng.choice((0, 0.6, 1.0)))


def bodies(painter: Painter) -> None:
    """A row or heap of smooth rounded bodies, some with ragged patches near their edge."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    count = int(rng.integers(3, 9))
    size = max(height, width) * rng.uniform(0.22, 0.55)
    colour = painter.near(painter.canvas.mean(axis=(0, 1)), 30, 160)
    in_row, y0 = rng.random() < 0.6, rng.uniform(0.3, 0.7) * height
    for i in range(count):
        x = (i + 0.5) / count * width if in_row else rng.uniform(0, width)
        y = y0 + rng.normal(0, 0.05) * height if in_row else rng.uniform(0, height)
        outline = fill([blob(rng, size * rng.uniform(0.8, 1.2), 0.08) if rng.random() < 0.6
                        else polar(rng, size, 1 - 0.15 * np.cos(4 * np.linspace(0, 2 * np.pi, 48)), 0.8)])
        own = np.clip(colour + rng.normal(0, 10, 1 if painter.grey else 3), 5, 250)
        owner = painter.paint(outline, x, y, base=own, rough=rng.uniform(2, 10), shaded=rng.uniform(0.2, 0.7))
        if owner is None:
            continue
        for _ in range(int(rng.integers(0, 4))):
            angle = rng.uniform(0, 2 * np.pi)
            reach = rng.uniform(0.1, 0.45) * owner.size
            patch = fill([ragged(rng, size * rng.uniform(0.12, 0.6))])
            brighter = np.clip(own * rng.uniform(1.08, 1.4) + rng.normal(0, 12, 1 if painter.grey else 3), 5, 252)
            base = brighter if rng.random() < 0.6 else painter.near(own, 14, 80)
            painter.part(owner, patch, np.cos(angle) * reach, np.sin(angle) * reach, base=base,
                         soft=rng.choice((0, 0.7, 1.5)))


def slices(painter: Painter) -> None:
    """A grey anatomical slice: shell, folded tissue, dark cavities, bright soft lumps."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    painter.canvas[:] = palette(rng, np.full(3, rng.uniform(5, 25)), 4, True)[painter.bank.cut(rng, height, width)]
    size = min(height, width) * rng.uniform(0.75, 1.15)
    x, y = np.array([width, height]) / 2 + rng.normal(0, 0.03, 2) * size
    outline = polar(rng, size, 1 + 0.06 * np.cos(2 * np.linspace(0, 2 * np.pi, 64)), rng.uniform(0.7, 0.95))
    tissue = rng.uniform(55, 140)
    painter.paint(fill([outline]), x, y, base=np.full(3, rng.uniform(90, 230)), rough=15, shaded=0, soft=1)
    if rng.random() < 0.7:
        painter.paint(fill([outline * 0.93]), x, y, base=np.full(3, rng.uniform(10, 50)), rough=8, shaded=0, soft=1)
    brain = painter.paint(fill([outline * rng.uniform(0.84, 0.9)]), x, y, base=np.full(3, tissue), shaded=0,
                          rough=rng.uniform(8, 35), soft=1)
    if brain is None:
        return
    for _ in range(rng.integers(0, 6)):  # folds
        fold = strip(rng, size * rng.uniform(0.2, 0.6), rng.uniform(1.5, 6), 2.5, int(rng.integers(0, 3)))
        painter.part(brain, fold, *rng.uniform(-0.35, 0.35, 2) * size, base=np.full(3, tissue * rng.uniform(0.4, 1.5)),
                     soft=1.2)
    for _ in range(rng.integers(0, 4)):  # cavities
        hollow = fill([blob(rng, size * rng.uniform(0.1, 0.3), 0.3)])
        painter.part(brain, hollow, *rng.uniform(-0.2, 0.2, 2) * size, base=np.full(3, tissue * rng.uniform(0.15, 0.6)),
                     soft=rng.uniform(0.5, 2))
    for _ in range(rng.integers(1, 4)):  # lumps
        lump = fill([blob(rng, size * np.exp(rng.uniform(np.log(0.07), np.log(0.42))), rng.uniform(0.05, 0.3))])
        dx, dy = rng.uniform(-0.32, 0.32, 2) * size
        bright = np.full(3, np.clip(tissue * rng.uniform(1.15, 2.3), 0, 250) if rng.random() < 0.8
                         else tissue * rng.uniform(0.3, 0.8))
        owner = painter.paint(lump, x + dx, y + dy, base=bright, rough=rng.uniform(4, 30), shaded=0,
                              soft=rng.uniform(0.5, 4))
        if owner is not None and rng.random() < 0.3:
            core = fill([blob(rng, owner.size * rng.uniform(0.3, 0.7), 0.25)])
            painter.part(owner, core, 0, 0, base=bright * rng.uniform(0.3, 0.85), soft=rng.uniform(0.5, 2))


def cells(painter: Painter) -> None:
    """Many alike: cells with a nucleus and a halo, or beads, grains and fruits."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    size = max(height, width) * rng.uniform(0.1, 0.35)
    colour = painter.near(painter.canvas.mean(axis=(0, 1)), 16 * painter.contrast + 6, 130)
    inner = painter.near(colour, 22, 110)
    outline = OUTLINES[rng.integers(len(OUTLINES))]
    with_nucleus, soft = rng.random() < 0.6, rng.choice((0, 0, 1.0, 2.0))
    for _ in range(int(rng.integers(5, 20))):
        own = np.clip(colour + rng.normal(0, 8, 1 if painter.grey else 3), 5, 250)
        owner = painter.paint(fill([outline(rng, size * rng.uniform(0.6, 1.3))]), rng.uniform(0, width),
                              rng.uniform(0, height), base=own, rough=rng.uniform(3, 22) * painter.roughness, soft=soft)
        if owner is not None and with_nucleus and rng.random() < 0.9:
            nucleus = fill([blob(rng, owner.size * rng.uniform(0.25, 0.6), 0.12)])
            painter.part(owner, nucleus, *rng.uniform(-0.1, 0.1, 2) * owner.size, base=inner, soft=soft)


THEMES = (dead_leaves, cracked_ground, bodies, slices, cells)
THEME_SHARES = (0.48, 0.16, 0.13, 0.1, 0.13)


def make_scene(rng: np.random.Generator, bank: TextureBank, simple_share: float = 0.0) -> Scene:
    """One scene, 160 to 416 pixels a side; with the chance `simple_share` a simple one."""
    if simple_share and rng.random() < simple_share:
        return simple_scene(rng, bank)
    theme = THEMES[rng.choice(len(THEMES), p=THEME_SHARES)]
    height, width = np.round(rng.uniform(190, 340) * np.exp(rng.uniform(-0.2, 0.2, 2))).astype(int)
    painter = Painter(rng, bank, height, width, grey=theme is slices or rng.random() < 0.25)
    theme(painter)
    return painter.finish()


def simple_scene(rng: np.random.Generator, bank: TextureBank) -> Scene:
    """Six to nine well-contrasted shapes apart from each other on a calm ground, 240 by 320 pixels."""
    painter = Painter(rng, bank, 240, 320, grey=rng.random() < 0.25)
    ground = rng.uniform(60, 190, 3)
    painter.canvas[:] = palette(rng, ground, 6, painter.grey)[bank.cut(rng, 240, 320)]
    places = [(40 + 80 * column, 40 + 80 * row) for row in range(3) for column in range(4)]
    for place in rng.permutation(len(places))[:rng.integers(6, 10)]:
        x, y = np.array(places[place]) + rng.uniform(-6, 6, 2)
        outline = (blob, ellipse, polygon, rectangle, leaf)[rng.integers(5)](rng, rng.uniform(40, 68))
        painter.paint(fill([outline]), x, y, base=painter.near(ground, 55, 120), rough=rng.uniform(2, 10))
    return painter.finish()


# ---- samples ------------------------------------------------------------------------------------------------

@dataclass
class Sample:
    """One picture in the model frame with M regions and prompts for them.

    `image` (S, S, 3) uint8 RGB, padded with 0 right and below; `input_size` (h, w) of the picture in it; `masks`
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


def region_sizes(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(level, id, pixels) of every visible region of a (3, h, w) label map."""
    found = []
    for level in (GROUP, OBJECT, PART):
        areas = np.bincount(labels[level].ravel())
        found += [(level, int(number), int(areas[number])) for number in np.flatnonzero(areas) if number]
    return found


def crop_window(rng: np.random.Generator, region: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a crop around a (h, w) bool region, with 5 to 30 % padding a side, now and then up to 150 %."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    most = 0.3 if rng.random() < 0.65 else 1.5
    left, top, right, bottom = rng.uniform(0.05, most, 4) if rng.random() < 0.5 else np.full(4, rng.uniform(0.05, most))
    x0, x1 = columns[0] - left * width - 1, columns[-1] + 2 + right * width
    y0, y1 = rows[0] - top * height - 1, rows[-1] + 2 + bottom * height
    return (max(0, int(x0)), max(0, int(y0)), min(region.shape[1], int(np.ceil(x1))),
            min(region.shape[0], int(np.ceil(y1))))


def make_sample(rng: np.random.Generator, scene: Scene, side: int, count: int, whole: bool = False,
                target: tuple[int, int] | None = None) -> Sample | None:
    """A crop around one region (or the whole scene) with `count` regions in it; None if nothing is big enough."""
    regions = [region for region in region_sizes(scene.labels) if region[2] >= MIN_AREA]
    if not regions:
        return None
    if target is None:
        level, number, _ = _pick(rng, regions)
        target = (level, number)
    x0, y0, x1, y1 = 0, 0, scene.image.shape[1], scene.image.shape[0]
    if not whole:
        x0, y0, x1, y1 = crop_window(rng, scene.labels[target[0]] == target[1])
    scale = side / max(y1 - y0, x1 - x0)
    height, width = max(1, int((y1 - y0) * scale + 0.5)), max(1, int((x1 - x0) * scale + 0.5))
    resize = cv2.INTER_AREA if scale < 1 else (cv2.INTER_CUBIC if rng.random() < 0.3 else cv2.INTER_LINEAR)
    image = np.zeros((side, side, 3), np.uint8)
    image[:height, :width] = cv2.resize(scene.image[y0:y1, x0:x1], (width, height), interpolation=resize)
    labels = np.ascontiguousarray(scene.labels[:, y0:y1, x0:x1])
    half_height, half_width = max(1, (height + 1) // 2), max(1, (width + 1) // 2)

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
    chosen = (chosen * count)[:count]

    masks = np.zeros((count, side // 2, side // 2), np.uint8)
    positive, negative = np.zeros((count, 5, 2), np.float32), np.zeros((count, 3, 2), np.float32)
    boxes = np.zeros((count, 4), np.float32)
    valid = np.array([height, width])
    for i, (level, number) in enumerate(chosen):
        region = (labels[level] == number).astype(np.uint8) * 255
        small = cv2.resize(region, (half_width, half_height),
                           interpolation=cv2.INTER_AREA if scale < 2 else cv2.INTER_LINEAR) > 127
        if not small.any():
            small = cv2.resize(region, (half_width, half_height), interpolation=cv2.INTER_NEAREST) > 127
        if not small.any():
            y, x = np.argwhere(region)[0]
            small[min(int(y * scale / 2), half_height - 1), min(int(x * scale / 2), half_width - 1)] = True
        masks[i, :half_height, :half_width] = small
        positive[i] = clicks(rng, small, 5) * 2 + 1
        outside = np.argwhere(~small)
        if len(outside):
            negative[i] = outside[rng.integers(len(outside), size=3), ::-1] * 2 + 1
        else:
            negative[i] = -1
        rows, columns = np.flatnonzero(small.any(axis=1)) * 2, np.flatnonzero(small.any(axis=0)) * 2
        box = np.array([columns[0], rows[0], columns[-1] + 2, rows[-1] + 2], np.float32)
        spread = np.minimum(np.tile(box[2:] - box[:2], 2) * 0.08, 20)
        box = box + np.clip(rng.normal(0, 1, 4), -2, 2) * spread
        boxes[i] = np.clip(box, 0, np.tile(valid[::-1], 2))
    return Sample(image, (height, width), masks, positive, negative, boxes,
                  np.array([region == target for region in chosen]))


def clicks(rng: np.random.Generator, mask: np.ndarray, count: int) -> np.ndarray:
    """`count` (x, y) pixels inside a bool mask: at random, or as the pipeline's: near the centre and two far apart."""
    where = np.argwhere(mask)
    picks = where[rng.integers(len(where), size=count)]
    if rng.random() < 0.4 and len(where) > 3:
        centred = where - where.mean(axis=0)
        axis = np.linalg.svd(np.cov(centred.T) + 1e-6 * np.eye(2))[0][:, 0] if rng.random() < 0.7 else _turn(
            rng.uniform(0, np.pi))[0]
        along = centred @ axis
        order = np.argsort(along)
        inset = int(len(order) * rng.uniform(0.01, 0.15))
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        picks[0] = np.unravel_index(depth.argmax(), depth.shape)
        picks[1:3] = where[order[inset]], where[order[-1 - inset]]
    return picks[:, ::-1].astype(np.float32)


def _pick(rng: np.random.Generator, regions: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """One region, objects before groups before parts, and not always the smallest ones."""
    weights = np.array([(0.8, 1.0, 0.35)[level] * min(area, 2000) ** 0.4 for level, _, area in regions])
    return regions[rng.choice(len(regions), p=weights / weights.sum())]


def samples(seed: int, side: int, count: int, whole_share: float, crops_a_scene: int = 6,
            bank_size: int = 96, simple_share: float = 0.0) -> Iterator[Sample]:
    """Endless samples: a scene, its crops, the next scene. The texture bank is renewed as it goes."""
    rng = np.random.default_rng(seed)
    bank = TextureBank(rng, bank_size)
    while True:
        scene = make_scene(rng, bank, simple_share)
        bank.refresh(rng)
        for _ in range(crops_a_scene):
            sample = make_sample(rng, scene, side, count, whole=rng.random() < whole_share)
            if sample is not None:
                yield sample
