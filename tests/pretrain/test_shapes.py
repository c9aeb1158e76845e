"""Shapes as coverage."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import shapes


def test_a_thin_strip_keeps_its_width():
    mask = shapes.strip(np.random.default_rng(2), 200, 2.0, 0.5, branches=0)
    assert 200 < (mask > 127).sum() < 1400
