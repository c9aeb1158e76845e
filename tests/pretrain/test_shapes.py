"""Shapes as coverage."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import shapes


def test_a_thin_strip_keeps_its_width():
    mask = shapes.strip(np.random.default_rng(2), 200, 2.0, 0.5, branches=0)
    assert 200 < (mask > 127).sum() < 1400


@pytest.mark.parametrize("seed", range(12))
def test_pieces_stay_together_and_are_mostly_several(seed):
    rng = np.random.default_rng(seed)
    masks = [shapes.pieces(rng, 100) for _ in range(10)]
    assert all(max(mask.shape) < 260 and (mask > 127).any() for mask in masks)
    counts = [cv2.connectedComponents((mask > 127).astype(np.uint8))[0] - 1 for mask in masks]
    assert sum(count > 1 for count in counts) > 5
