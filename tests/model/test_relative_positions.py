"""Decomposed relative positions: added to the logits, and folded into the inner product."""

import pytest
import torch

from sam_lora.model.meta import get_rel_pos
from sam_lora.model.relative_positions import by_pair, fold, relative_logits


def test_relative_logits_are_products_with_the_tables_rows():
    torch.manual_seed(0)
    q, table_h, table_w = torch.randn(2, 2 * 3, 4), torch.randn(2, 2, 4), torch.randn(3, 3, 4)
    rel_h, rel_w = relative_logits(q, table_h, table_w)
    assert rel_h.shape == (2, 6, 2) and rel_w.shape == (2, 6, 3)
    row, column = 1, 2
    query = q[1, row * 3 + column]
    torch.testing.assert_close(rel_h[1, row * 3 + column], table_h[row] @ query)
    torch.testing.assert_close(rel_w[1, row * 3 + column], table_w[column] @ query)


def test_folded_queries_and_keys_multiply_to_the_logits():
    torch.manual_seed(0)
    height, width, depth, scale = 2, 3, 4, 0.5
    q, k = torch.randn(2, 5, height * width, depth)
    table_h, table_w = torch.randn(height, height, depth), torch.randn(width, width, depth)
    folded, one_hot = fold(q, table_h, table_w, scale)
    keys = torch.cat([k, one_hot.expand(len(k), -1, -1)], dim=-1)
    rel_h, rel_w = relative_logits(q, table_h, table_w)
    positions = (rel_h[..., None] + rel_w[..., None, :]).flatten(2)
    torch.testing.assert_close(folded @ keys.transpose(1, 2), scale * q @ k.transpose(1, 2) + positions)


@pytest.mark.parametrize("side", [1, 3, 16])
def test_a_table_by_pair_is_segment_anything_s(side):
    table = torch.randn(2 * side - 1, 5)
    assert torch.equal(by_pair(table, side), get_rel_pos(side, side, table))
