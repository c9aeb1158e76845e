"""Attention in chunks on a CPU: its gradients, and how bfloat16 compares with the stock formulas."""

import pytest
import torch

from sam_lora.model import attention_cpu
from sam_lora.model.attention import folded_attention
from sam_lora.model.attention_cpu import ChunkedAttention, chunked_attention, narrow_attention
from sam_lora.model.relative_positions import relative_logits


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(attention_cpu, "CHUNK", 20)
    monkeypatch.setattr(attention_cpu, "KEPT", 0)
    torch.manual_seed(0)
    qkv, table_h, table_w = (torch.randn(shape, dtype=torch.float64, requires_grad=True)
                             for shape in ((3, 2, 6, 4), (2, 2, 4), (3, 3, 4)))
    assert torch.autograd.gradcheck(lambda *tensors: ChunkedAttention.apply(*tensors, 0.5), (qkv, table_h, table_w))


@pytest.mark.parametrize(("way", "share"), [pytest.param(chunked_attention, 0.5, id="chunked, in float32"),
                                            pytest.param(folded_attention, 1.1, id="folded"),
                                            pytest.param(narrow_attention, 1.1, id="narrow, in bfloat16")])
@pytest.mark.parametrize(("chunk", "kept"), [(2**21, 2**22), (2**21, 0), (700, 0), (30_000, 0)])
def test_attention_alone_in_bfloat16(way, share, chunk, kept, monkeypatch):
    """The norm of the error, relative to that of the stock formulas in bfloat16; in one chunk and in several."""
    monkeypatch.setattr(attention_cpu, "NARROW_CHUNK", chunk)
    monkeypatch.setattr(attention_cpu, "KEPT", kept)
    torch.manual_seed(0)
    tensors = [(torch.randn(shape) * size).bfloat16() for shape, size in
               (((3, 5, 100, 16), 1), ((10, 10, 16), 0.2), ((10, 10, 16), 0.2), ((5, 100, 16), 1))]

    def stock(qkv, table_h, table_w, scale):
        q, k, v = qkv
        rel_h, rel_w = relative_logits(q, table_h, table_w)
        logits = ((q * scale) @ k.transpose(1, 2)).unflatten(2, (10, 10)) + rel_h[..., None] + rel_w[..., None, :]
        return logits.flatten(2).softmax(dim=-1) @ v

    def run(compute, dtype):
        *inputs, weight = (tensor.to(dtype) for tensor in tensors)
        inputs = [tensor.clone().requires_grad_() for tensor in inputs]
        out = compute(*inputs, 16 ** -0.5)
        out.backward(weight)
        assert out.dtype == dtype
        return [out.detach().double(), *(tensor.grad.double() for tensor in inputs)]

    exact = run(stock, torch.float64)
    theirs, ours = ([float((a - b).norm() / b.norm()) for a, b in zip(run(compute, torch.bfloat16), exact)]
                    for compute in (stock, way))
    assert all(our < share * their for our, their in zip(ours, theirs)), (ours, theirs)
