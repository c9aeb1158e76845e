"""Textures and palettes."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
import textures


@pytest.fixture(scope="module")
def bank():
    return textures.TextureBank(np.random.default_rng(0), count=12)


@pytest.mark.parametrize("kind", textures.KINDS[2:], ids=lambda kind: kind.__name__)
def test_a_field_has_the_size_asked_for_and_is_not_flat(kind):
    field = kind(np.random.default_rng(5), 60, 90)
    assert field.shape == (60, 90)
    assert field.dtype == np.uint8
    assert field.std() > 20


def test_the_bank_cuts_any_size(bank):
    rng = np.random.default_rng(1)
    assert bank.cut(rng, 3, 700).shape == (3, 700)
    assert bank.cut(rng, 431, 20).shape == (431, 20)


def test_a_palette_runs_from_dark_to_light_around_its_colour():
    table = textures.palette(np.random.default_rng(0), np.array([100, 120, 140]), 20, grey=True)
    assert table.shape == (256, 3)
    assert table[0].tolist() == [80, 100, 120]
    assert table[255].tolist() == [120, 140, 160]
