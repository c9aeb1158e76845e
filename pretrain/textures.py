"""Procedural grey textures and the palettes that colour them; scenes and demo data are painted with both.

A field is (H, W) uint8 and uses most of 0 to 255; a palette is a (256, 3) uint8 table from a field's values to RGB.
"""

from collections.abc import Callable

import cv2
import numpy as np


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Multi-octave value noise, cloudy to grainy, sometimes stretched along one axis like wood or fibres."""
    field = np.zeros((height, width), np.float32)
    stretch = np.exp(rng.uniform(-1.6, 1.6)) if rng.random() < 0.35 else 1.0
    cell = rng.uniform(0.1, 0.6) * max(height, width)
    falloff = rng.uniform(0.45, 0.95)
    weight = 1.0
    while cell > 1.5:
        rows = min(height, max(2, round(height / (cell * stretch)) + 1))
        columns = min(width, max(2, round(width / (cell / stretch)) + 1))
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        field += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        weight *= falloff
        cell /= 2.1
    return _to_uint8(field)


def stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Parallel or wavy bands, soft or hard."""
    angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(5), np.log(50)))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    phase = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    if rng.random() < 0.7:
        phase += _clouds(rng, height, width, 4) * rng.uniform(0.5, 4)
    return _to_uint8(np.tanh(np.sin(phase) * rng.uniform(0.7, 5)))


def cells(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Voronoi cells: flat greys, domes, or only their walls."""
    count = int(np.exp(rng.uniform(np.log(20), np.log(500))))
    seeds = np.full((height, width), 255, np.uint8)
    seeds[rng.integers(0, height, count), rng.integers(0, width, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    greys = rng.random(labels.max() + 1, dtype=np.float32)[labels]
    kind = rng.integers(3)
    if kind == 0:
        return _to_uint8(greys)
    if kind == 1:
        return _to_uint8(distance + greys * rng.uniform(0, 2))
    walls = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    return _to_uint8(cv2.GaussianBlur(walls.astype(np.float32), (0, 0), rng.uniform(0.6, 1.5)) + 0.3 * greys)


def speckle(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Grains or dots of one size on a flat ground."""
    field = rng.standard_normal((height, width), dtype=np.float32)
    field = cv2.GaussianBlur(field, (0, 0), np.exp(rng.uniform(np.log(0.6), np.log(4))))
    if rng.random() < 0.5:
        field = np.maximum(field, field.std() * rng.uniform(0.3, 1.5))
    return _to_uint8(field)


def gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth ramp, straight or bent, with a little grain."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ramp = (x * np.cos(angle) + y * np.sin(angle)) / max(height, width)
    grain = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(0, 0.06)
    return _to_uint8(ramp + _clouds(rng, height, width, 3) * rng.uniform(0, 0.3) + grain)


KINDS: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (
    noise, noise, noise, stripes, cells, speckle, gradient)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A field (height, width) of a random kind, sometimes of two kinds blended."""
    field = KINDS[rng.integers(len(KINDS))](rng, height, width)
    if rng.random() < 0.2:
        field = cv2.addWeighted(field, 0.6, KINDS[rng.integers(len(KINDS))](rng, height, width), 0.4, 0)
    return field


def palette(rng: np.random.Generator, base: np.ndarray, contrast: float, grey: bool) -> np.ndarray:
    """A (256, 3) uint8 table around the RGB colour `base`: dark to light by `contrast`, with drifting hue."""
    steps = np.linspace(-1, 1, 256, dtype=np.float32)[:, None]
    colours = np.asarray(base, np.float32) + steps * contrast
    if not grey:
        colours = colours + steps * rng.normal(0, contrast * 0.4, 3).astype(np.float32)
        colours = colours + (steps ** 2 - 0.3) * rng.normal(0, contrast * 0.3, 3).astype(np.float32)
    return np.clip(colours, 0, 255).astype(np.uint8)


class TextureBank:
    """A stock of square fields to cut from, because making a field costs more than painting a whole object."""

    def __init__(self, rng: np.random.Generator, count: int = 96, side: int = 256) -> None:
        self.side = side
        self.fields = [texture(rng, side, side) for _ in range(count)]

    def refresh(self, rng: np.random.Generator) -> None:
        """Replace one field with a new one."""
        self.fields[rng.integers(len(self.fields))] = texture(rng, self.side, self.side)

    def cut(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """A field (height, width) cut at random: position, zoom, rotation by 90 degrees, mirroring."""
        zoom = np.exp(rng.uniform(-0.7, 0.9))
        need_y, need_x = max(2, int(height / zoom)), max(2, int(width / zoom))
        turn = rng.random() < 0.5
        rows, columns = (need_x, need_y) if turn else (need_y, need_x)
        rows, columns = min(rows, self.side), min(columns, self.side)
        y, x = rng.integers(self.side - rows + 1), rng.integers(self.side - columns + 1)
        piece = self.fields[rng.integers(len(self.fields))][y:y + rows, x:x + columns]
        if turn:
            piece = piece.T
        piece = piece[::1 - 2 * int(rng.integers(2)), ::1 - 2 * int(rng.integers(2))]
        return cv2.resize(np.ascontiguousarray(piece), (width, height), interpolation=cv2.INTER_LINEAR)


def _clouds(rng: np.random.Generator, height: int, width: int, knots: int) -> np.ndarray:
    grid = rng.standard_normal((knots, knots), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _to_uint8(field: np.ndarray) -> np.ndarray:
    low, high = np.percentile(field[::4, ::4], (1, 99))
    return np.clip((field - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
