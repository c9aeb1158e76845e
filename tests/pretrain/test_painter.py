"""The canvas: what covers what."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import painter
import textures


def test_a_later_shape_hides_what_it_covers():
    bank = textures.TextureBank(np.random.default_rng(0), count=12)
    canvas = painter.Painter(np.random.default_rng(0), bank, 80, 120, grey=False)
    square = np.full((40, 40), 255, np.uint8)
    below = canvas.paint(square, 50, 40)
    above = canvas.paint(square, 70, 40)
    objects = canvas.labels[painter.OBJECT]
    assert (objects == above.number).sum() == 40 * 40
    assert (objects == below.number).sum() == 20 * 40
