"""Decomposed relative positions: added to the logits, and folded into the inner product."""

import pytest
import torch

from sam_lora.model.meta import get_rel_pos
from sam_lora.model.relative_positions import fold, position_table, relative_logits


@pytest.mark.parametrize("length", [pytest.param(9, id="one vector for each distance"), pytest.param(27, id="shrunk"),
                                    pytest.param(5, id="stretched")])
def test_a_position_table_is_segment_anything_s(length):
    torch.manual_seed(0)
    learned = torch.randn(length, 4, requires_grad=True)
    weight = torch.randn(5, 5, 4)
    results = []
    for table in (position_table(learned, 5), get_rel_pos(5, 5, learned)):
        results.append([table, *torch.autograd.grad((table * weight).sum(), learned)])
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(*(gradient for _, gradient in results))


def test_relative_logits_are_products_with_the_tables_rows():
    torch.manual_seed(0)
    q, table_h, table_w = torch.randn(2, 2 * 3, 4), torch.randn(2, 2, 4), torch.randn(3, 3, 4)
    rel_h, rel_w = relative_logits(q, table_h, table_w)
    assert rel_h.shape == (2, 6, 2) and rel_w.shape == (2, 6, 3)
    row, column = 1, 2
    query = q[1, row * 3 + column]
    torch.testing.assert_close(rel_h[1, row * 3 + column], table_h[row] @ query)
    torch.testing.assert_close(rel_w[1, row * 3 + column], table_w[column] @ query)


@pytest.mark.parametrize(("multiple", "columns"), [(1, 9), (8, 16)])
def test_folded_queries_and_keys_multiply_to_the_logits(multiple, columns):
    torch.manual_seed(0)
    height, width, depth, scale = 2, 3, 4, 0.5
    q, k = torch.randn(2, 5, height * width, depth)
    table_h, table_w = torch.randn(height, height, depth), torch.randn(width, width, depth)
    folded, one_hot = fold(q, table_h, table_w, scale, multiple)
    assert folded.shape[-1] == columns
    keys = torch.cat([k, one_hot.expand(len(k), -1, -1)], dim=-1)
    rel_h, rel_w = relative_logits(q, table_h, table_w)
    positions = (rel_h[..., None] + rel_w[..., None, :]).flatten(2)
    torch.testing.assert_close(folded @ keys.transpose(1, 2), scale * q @ k.transpose(1, 2) + positions)
