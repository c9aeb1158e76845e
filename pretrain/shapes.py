"""Random shapes as contours ((N, 2) xy floats) and as coverage ((h, w) uint8, 0 to 255)."""

from collections.abc import Sequence

import cv2
import numpy as np


def fill(contours: Sequence[np.ndarray]) -> np.ndarray:
    """Coverage of the area inside contours ((N, 2) xy floats) by the even-odd rule, in a frame that just holds it."""
    low = np.min([contour.min(axis=0) for contour in contours], axis=0) - 2
    high = np.max([contour.max(axis=0) for contour in contours], axis=0) + 2
    width, height = np.maximum(np.ceil(high - low), 3).astype(int)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round((contour - low) * 16).astype(np.int32) for contour in contours], 255, cv2.LINE_AA, 4)
    return mask


def polar(rng: np.random.Generator, size: float, radius: np.ndarray, flat: float) -> np.ndarray:
    """A closed contour given its radius at each angle, squeezed by `flat` and rotated at random."""
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    points = np.stack([np.cos(angle) * radius, np.sin(angle) * radius * flat], axis=1)
    points *= size / max(2 * np.abs(points).max(), 1e-6)
    return points @ rotation(rng.uniform(0, 2 * np.pi))


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
    return (points * size / 2) @ rotation(rng.uniform(0, 2 * np.pi))


def rectangle(rng: np.random.Generator, size: float) -> np.ndarray:
    flat = np.exp(rng.uniform(np.log(0.12), 0))
    points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (1, flat)
    return (points * size / 2) @ rotation(rng.uniform(0, 2 * np.pi) if rng.random() < 0.6 else 0)


def leaf(rng: np.random.Generator, size: float) -> np.ndarray:
    along = np.linspace(0, 1, 24)
    half = np.sin(np.pi * along) ** rng.uniform(0.6, 1.6) * rng.uniform(0.12, 0.35)
    bend = np.sin(np.pi * along) * rng.uniform(-0.3, 0.3)
    points = np.concatenate([np.stack([along, bend + half], 1), np.stack([along, bend - half], 1)[::-1]]) - (0.5, 0)
    return (points * size) @ rotation(rng.uniform(0, 2 * np.pi))


OUTLINES = (blob, blob, blob, ragged, ellipse, ellipse, polygon, rectangle, leaf)


def strip(rng: np.random.Generator, size: float, width: float, wander: float, branches: int,
          jagged: float = 0.0) -> np.ndarray:
    """Coverage of a thin curved band of varying width, with side branches."""
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
    all_points = np.concatenate([points for points, _ in lines])
    low, high = all_points.min(axis=0) - width - 2, all_points.max(axis=0) + width + 2
    columns, rows = np.ceil(high - low).astype(int)
    mask = np.zeros((rows, columns), np.uint8)
    for points, thicknesses in lines:
        fixed = np.round((points - low) * 16).astype(np.int32)  # OpenCV's fixed point, 4 bits after it
        for first, second, thickness in zip(fixed[:-1], fixed[1:], thicknesses):
            cv2.line(mask, first.tolist(), second.tolist(), 255, max(1, round(float(thickness))), cv2.LINE_AA, 4)
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


def pieces(rng: np.random.Generator, size: float) -> np.ndarray:
    """Coverage of several pieces within about `size` pixels: a shape cut by bands, or small shapes in a row or heap."""
    if rng.random() < 0.5:
        mask = shape(rng, size)
        height, width = mask.shape
        turn, step = rotation(rng.uniform(0, np.pi)), size / rng.integers(2, 6)
        gap, shift = step * rng.uniform(0.12, 0.45), rng.uniform(0, 1)
        for number in range(-6, 7):
            low = (number + shift) * step
            band = np.array([[-size, low], [size, low], [size, low + gap], [-size, low + gap]]) @ turn
            band = band + np.array([width, height]) / 2
            cv2.fillPoly(mask, [np.round(band * 16).astype(np.int32)], 0, cv2.LINE_AA, 4)
        return mask
    count = int(rng.integers(2, 7))
    outline = OUTLINES[rng.integers(len(OUTLINES))]
    if rng.random() < 0.5:
        turn = rotation(rng.uniform(0, np.pi))
        centres = np.stack([np.linspace(-0.5, 0.5, count), rng.normal(0, 0.05, count)], axis=1) @ turn * size
        each = size / count * rng.uniform(0.5, 0.95)
    else:
        centres, each = rng.uniform(-0.5, 0.5, (count, 2)) * size, size * rng.uniform(0.15, 0.4)
    return fill([outline(rng, each * rng.uniform(0.6, 1.2)) + centre for centre in centres])


def crescent(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Coverage like `mask` (h, w) of what lies along its edge on one side: without a smaller copy, moved away."""
    height, width = mask.shape
    centre, size = np.array([width, height]) / 2, max(height, width)
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.82, 1.0)
    moved = centre * (1 - scale) + np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.07, 0.25) * size
    bite = cv2.warpAffine(mask, np.array([[scale, 0, moved[0]], [0, scale, moved[1]]]), (width, height))
    kept = np.zeros_like(mask)
    middle = centre - np.array([np.cos(angle), np.sin(angle)]) * 0.45 * size
    outline = ragged(rng, size * rng.uniform(0.6, 1.6)) + middle
    cv2.fillPoly(kept, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return np.minimum(np.minimum(mask, 255 - bite), kept)


def rotation(angle: float) -> np.ndarray:
    """(2, 2): multiply (N, 2) points by it from the right."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
