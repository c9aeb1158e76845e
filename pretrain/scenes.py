"""Scenes of occluding textured shapes ("dead leaves") with the exact mask of every visible region.

Everything is drawn by code from a seeded generator; no photo is used. A theme paints one kind of scene: to add one,
write a function of a Painter and give it a share in TRAINING_THEMES.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np
from painter import Look, Painted, Painter, Scene
from shapes import (
    OUTLINES,
    blob,
    crescent,
    ellipse,
    fill,
    leaf,
    pieces,
    polar,
    polygon,
    ragged,
    rectangle,
    rotation,
    shape,
    strip,
)
from textures import TextureBank, palette


def decorate(painter: Painter, owner: Painted) -> None:
    """Parts on an object: a nucleus, a few spots, bands, or an inlay."""
    rng, size = painter.rng, owner.size
    kind = rng.integers(4)
    if kind == 0:
        nucleus = fill([blob(rng, size * rng.uniform(0.25, 0.55), 0.12)])
        painter.part(owner, nucleus, *rng.uniform(-0.12, 0.12, 2) * size, Look(soft=rng.choice((0, 0, 1.5))))
    elif kind == 1:
        colour = painter.near(owner.base, 20 * painter.contrast + 5, 110)
        for _ in range(rng.integers(2, 8)):
            spot = fill([blob(rng, size * rng.uniform(0.08, 0.28), 0.1)])
            painter.part(owner, spot, *rng.uniform(-0.4, 0.4, 2) * size, Look(base=colour))
    elif kind == 2:
        colour = painter.near(owner.base, 20 * painter.contrast + 5, 110)
        turn, gap = rotation(rng.uniform(0, np.pi)), size * rng.uniform(0.12, 0.3)
        for i in range(-4, 5):
            band = np.array([[-size, -gap / 4], [size, -gap / 4], [size, gap / 4], [-size, gap / 4]]) @ turn
            painter.part(owner, fill([band]), *(np.array([0, i * gap]) @ turn), Look(base=colour))
    else:
        painter.part(owner, shape(rng, size * rng.uniform(0.3, 0.7)), *rng.uniform(-0.3, 0.3, 2) * size)


def dead_leaves(painter: Painter) -> None:
    """Shapes of all kinds on top of each other."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    side = max(height, width)
    for _ in range(int(rng.integers(4, 22))):
        size = side * np.exp(rng.uniform(np.log(0.06), np.log(0.65)))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        group = painter.new_id() if rng.random() < 0.15 else 0
        owner = painter.paint(shape(rng, size), x, y, Look(soft=rng.choice((0, 0, 0, 1.0, 2.5))), group)
        if owner is None:
            continue
        if rng.random() < 0.4:
            decorate(painter, owner)
        if group:
            for _ in range(rng.integers(1, 4)):
                angle = rng.uniform(0, 2 * np.pi)
                limb = shape(rng, size * rng.uniform(0.3, 0.8))
                reach = 0.4 * size
                painter.paint(limb, x + np.cos(angle) * reach, y + np.sin(angle) * reach, group=group)


def cracked_ground(painter: Painter) -> None:
    """Thin dark branching cracks on a textured ground, among stains and seams."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    side = max(height, width)
    for _ in range(rng.integers(0, 4)):
        painter.paint(shape(rng, side * rng.uniform(0.1, 0.6)), rng.uniform(0, width), rng.uniform(0, height),
                      Look(step=(8, 60), soft=rng.uniform(0, 3)))
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
        painter.paint(mask, x, y, Look(np.clip(ground * depth, 3, 252), rough=rng.uniform(2, 15), shaded=0,
                                       soft=rng.choice((0, 0.6, 1.0))))


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
        skin = np.clip(colour + rng.normal(0, 10, 1 if painter.grey else 3), 5, 250)
        owner = painter.paint(outline, x, y, Look(skin, rough=rng.uniform(2, 10), shaded=rng.uniform(0.2, 0.7)))
        if owner is None:
            continue
        for _ in range(int(rng.integers(0, 4))):
            angle = rng.uniform(0, 2 * np.pi)
            reach = rng.uniform(0.1, 0.45) * owner.size
            patch = fill([ragged(rng, size * rng.uniform(0.12, 0.6))])
            brighter = np.clip(skin * rng.uniform(1.08, 1.4) + rng.normal(0, 12, 1 if painter.grey else 3), 5, 252)
            base = brighter if rng.random() < 0.6 else painter.near(skin, 14, 80)
            painter.part(owner, patch, np.cos(angle) * reach, np.sin(angle) * reach,
                         Look(base, soft=rng.choice((0, 0.7, 1.5))))


def slices(painter: Painter) -> None:
    """A grey anatomical slice: shell, folded tissue, dark cavities, bright soft lumps."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    painter.canvas[:] = palette(rng, np.full(3, rng.uniform(5, 25)), 4, True)[painter.bank.cut(rng, height, width)]
    size = min(height, width) * rng.uniform(0.75, 1.15)
    x, y = np.array([width, height]) / 2 + rng.normal(0, 0.03, 2) * size
    outline = polar(rng, size, 1 + 0.06 * np.cos(2 * np.linspace(0, 2 * np.pi, 64)), rng.uniform(0.7, 0.95))
    tissue = rng.uniform(55, 140)
    painter.paint(fill([outline]), x, y, Look(np.full(3, rng.uniform(90, 230)), rough=15, shaded=0, soft=1))
    if rng.random() < 0.7:
        painter.paint(fill([outline * 0.93]), x, y, Look(np.full(3, rng.uniform(10, 50)), rough=8, shaded=0, soft=1))
    brain = painter.paint(fill([outline * rng.uniform(0.84, 0.9)]), x, y,
                          Look(np.full(3, tissue), shaded=0, rough=rng.uniform(8, 35), soft=1))
    if brain is None:
        return
    for _ in range(rng.integers(0, 6)):  # folds
        fold = strip(rng, size * rng.uniform(0.2, 0.6), rng.uniform(1.5, 6), 2.5, int(rng.integers(0, 3)))
        painter.part(brain, fold, *rng.uniform(-0.35, 0.35, 2) * size,
                     Look(np.full(3, tissue * rng.uniform(0.4, 1.5)), soft=1.2))
    for _ in range(rng.integers(0, 4)):  # cavities
        hollow = fill([blob(rng, size * rng.uniform(0.1, 0.3), 0.3)])
        painter.part(brain, hollow, *rng.uniform(-0.2, 0.2, 2) * size,
                     Look(np.full(3, tissue * rng.uniform(0.15, 0.6)), soft=rng.uniform(0.5, 2)))
    for _ in range(rng.integers(1, 4)):  # lumps
        lump = fill([blob(rng, size * np.exp(rng.uniform(np.log(0.07), np.log(0.42))), rng.uniform(0.05, 0.3))])
        dx, dy = rng.uniform(-0.32, 0.32, 2) * size
        bright = np.full(3, np.clip(tissue * rng.uniform(1.15, 2.3), 0, 250) if rng.random() < 0.8
                         else tissue * rng.uniform(0.3, 0.8))
        owner = painter.paint(lump, x + dx, y + dy,
                              Look(bright, rough=rng.uniform(4, 30), shaded=0, soft=rng.uniform(0.5, 4)))
        if owner is not None and rng.random() < 0.3:
            core = fill([blob(rng, owner.size * rng.uniform(0.3, 0.7), 0.25)])
            painter.part(owner, core, 0, 0, Look(bright * rng.uniform(0.3, 0.85), soft=rng.uniform(0.5, 2)))


def cells(painter: Painter) -> None:
    """Many of a kind: cells with a nucleus, or beads, grains and fruits."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    size = max(height, width) * rng.uniform(0.1, 0.35)
    colour = painter.near(painter.canvas.mean(axis=(0, 1)), 16 * painter.contrast + 6, 130)
    inner = painter.near(colour, 22, 110)
    outline = OUTLINES[rng.integers(len(OUTLINES))]
    with_nucleus, soft = rng.random() < 0.6, rng.choice((0, 0, 1.0, 2.0))
    for _ in range(int(rng.integers(5, 20))):
        skin = np.clip(colour + rng.normal(0, 8, 1 if painter.grey else 3), 5, 250)
        owner = painter.paint(fill([outline(rng, size * rng.uniform(0.6, 1.3))]), rng.uniform(0, width),
                              rng.uniform(0, height),
                              Look(skin, rough=rng.uniform(3, 22) * painter.roughness, soft=soft))
        if owner is not None and with_nucleus and rng.random() < 0.9:
            nucleus = fill([blob(rng, owner.size * rng.uniform(0.25, 0.6), 0.12)])
            painter.part(owner, nucleus, *rng.uniform(-0.1, 0.1, 2) * owner.size, Look(inner, soft=soft))


def ringed_lumps(painter: Painter) -> None:
    """A slice with lumps whose core looks unlike their rim, and mostly counts as one with it."""
    rng = painter.rng
    slices(painter)
    height, width = painter.canvas.shape[:2]
    for _ in range(rng.integers(1, 4)):
        size = min(height, width) * np.exp(rng.uniform(np.log(0.1), np.log(0.55)))
        rim = np.full(3, rng.uniform(110, 250))
        owner = painter.paint(fill([blob(rng, size, rng.uniform(0.05, 0.3))]), rng.uniform(0.2, 0.8) * width,
                              rng.uniform(0.2, 0.8) * height,
                              Look(rim, rough=rng.uniform(4, 30), shaded=0, soft=rng.uniform(0.5, 3)))
        if owner is None:
            continue
        is_region = rng.random() < 0.2
        for _ in range(rng.integers(1, 4)):
            core = fill([blob(rng, owner.size * rng.uniform(0.25, 0.85), rng.uniform(0.1, 0.4))])
            dark = rim * rng.uniform(0.1, 0.8) if rng.random() < 0.85 else np.clip(rim * rng.uniform(1.2, 2), 0, 252)
            painter.part(owner, core, *rng.uniform(-0.2, 0.2, 2) * owner.size,
                         Look(dark, soft=rng.uniform(0.5, 2.5)), is_region)


def edge_patches(painter: Painter) -> None:
    """A few smooth bodies with patches of little contrast along their edge."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    colour = painter.near(painter.canvas.mean(axis=(0, 1)), 20, 140)
    for _ in range(rng.integers(2, 6)):
        size = max(height, width) * rng.uniform(0.35, 0.8)
        skin = np.clip(colour + rng.normal(0, 10, 1 if painter.grey else 3), 5, 250)
        owner = painter.paint(fill([blob(rng, size, rng.uniform(0.03, 0.12))]), rng.uniform(0.1, 0.9) * width,
                              rng.uniform(0.1, 0.9) * height,
                              Look(skin, rough=rng.uniform(2, 10), shaded=rng.uniform(0.1, 0.6)))
        for _ in range(rng.integers(1, 4) if owner is not None else 0):
            painter.part(owner, crescent(rng, owner.mask), 0, 0,
                         Look(painter.near(skin, 12, 60), soft=rng.choice((0, 0.8, 1.6))))


def fine_cracks(painter: Painter) -> None:
    """Long thin cracks on rough ground, many almost straight, some hard to see."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    for _ in range(rng.integers(1, 4)):
        mask = strip(rng, max(height, width) * rng.uniform(0.4, 1.3), np.exp(rng.uniform(np.log(1), np.log(6))),
                     np.exp(rng.uniform(np.log(0.05), np.log(0.8))), int(rng.integers(0, 3)), rng.uniform(0, 0.5))
        x, y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
        placed = painter.window(mask, x, y)
        if placed is None:
            continue
        ground = painter.canvas[placed[1], placed[2]].mean(axis=(0, 1))
        dark = np.clip(ground * rng.uniform(0.35, 0.88), 3, 252)
        soft = rng.choice((0, 0.6, 1.2))
        if rng.random() < 0.85:
            painter.paint(mask, x, y, Look(dark, rough=rng.uniform(2, 15), shaded=0, soft=soft))
            continue
        broad = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=int(rng.integers(1, 3)))  # as people mark cracks
        owner = painter.paint(broad, x, y, Look(np.clip(ground * rng.uniform(0.9, 1.0), 3, 252), shaded=0, soft=1.5))
        if owner is not None:
            painter.part(owner, placed[0], 0, 0, Look(dark, soft=soft), is_region=False)


def scattered(painter: Painter) -> None:
    """Regions in several pieces: one thing under bands of something else, or a few patches that count as one."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    for _ in range(rng.integers(0, 3)):
        painter.paint(shape(rng, max(height, width) * rng.uniform(0.2, 0.7)), rng.uniform(0, width),
                      rng.uniform(0, height))
    for _ in range(rng.integers(2, 6)):
        size = max(height, width) * np.exp(rng.uniform(np.log(0.12), np.log(0.7)))
        painter.paint(pieces(rng, size), rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height,
                      Look(soft=rng.choice((0, 0, 1.0, 2.0))))


def faint(painter: Painter) -> None:
    """Shapes hardly brighter or darker than what they lie on; many differ from it in texture as well."""
    rng = painter.rng
    height, width = painter.canvas.shape[:2]
    side = max(height, width)
    for _ in range(rng.integers(0, 4)):
        painter.paint(shape(rng, side * rng.uniform(0.3, 0.9)), rng.uniform(0, width), rng.uniform(0, height))
    for _ in range(rng.integers(3, 9)):
        mask = shape(rng, side * np.exp(rng.uniform(np.log(0.1), np.log(0.6))))
        x, y = rng.uniform(0.05, 0.95) * width, rng.uniform(0.05, 0.95) * height
        placed = painter.window(mask, x, y)
        if placed is None or not (placed[0] > 127).any():
            continue
        below = painter.canvas[placed[1], placed[2]][placed[0] > 127].mean(axis=0)
        painter.paint(mask, x, y, Look(painter.near(below, 7, 24), soft=rng.choice((0, 0.7, 1.5, 3.0)), shaded=0,
                                       rough=np.exp(rng.uniform(np.log(1.5), np.log(14)))))


# shares of the scenes; held-out scenes are made of THEMES, so that figures stay comparable
THEMES = {dead_leaves: 0.48, cracked_ground: 0.16, bodies: 0.13, slices: 0.1, cells: 0.13}
TRAINING_THEMES = {dead_leaves: 0.31, cracked_ground: 0.09, bodies: 0.08, slices: 0.07, cells: 0.08,
                   ringed_lumps: 0.1, edge_patches: 0.09, fine_cracks: 0.08, scattered: 0.04, faint: 0.06}
GREY = (slices, ringed_lumps)  # themes that are always grey


def make_scene(rng: np.random.Generator, bank: TextureBank, simple_share: float = 0.0,
               themes: Mapping[Callable[[Painter], None], float] = MappingProxyType(THEMES)) -> Scene:
    """One scene of 160 to 416 pixels a side; a simple one with probability `simple_share`."""
    if simple_share and rng.random() < simple_share:
        return simple_scene(rng, bank)
    theme = list(themes)[rng.choice(len(themes), p=list(themes.values()))]
    height, width = np.round(rng.uniform(190, 340) * np.exp(rng.uniform(-0.2, 0.2, 2))).astype(int)
    painter = Painter(rng, bank, height, width, grey=theme in GREY or rng.random() < 0.25)
    theme(painter)
    return painter.finish()


def simple_scene(rng: np.random.Generator, bank: TextureBank) -> Scene:
    """Six to nine shapes of strong contrast, apart from each other on a calm ground, 240 x 320 pixels."""
    painter = Painter(rng, bank, 240, 320, grey=rng.random() < 0.25)
    ground = rng.uniform(60, 190, 3)
    painter.canvas[:] = palette(rng, ground, 6, painter.grey)[bank.cut(rng, 240, 320)]
    centres = [(40 + 80 * column, 40 + 80 * row) for row in range(3) for column in range(4)]
    for number in rng.permutation(len(centres))[:rng.integers(6, 10)]:
        x, y = np.array(centres[number]) + rng.uniform(-6, 6, 2)
        outline = (blob, ellipse, polygon, rectangle, leaf)[rng.integers(5)](rng, rng.uniform(40, 68))
        painter.paint(fill([outline]), x, y, Look(painter.near(ground, 55, 120), rough=rng.uniform(2, 10)))
    return painter.finish()
