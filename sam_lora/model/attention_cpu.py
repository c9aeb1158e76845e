"""The image encoder's attention on a CPU: forward and backward passes that store no more logits than a cache holds.

`chunked_attention` computes in float32 and adds the positions to the logits; `narrow_attention` computes in bfloat16
and folds them into the products. Shapes as in relative_positions.py; `qkv` is (3, N, h*w, d).
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sam_lora.model.relative_positions import fold, relative_logits

CHUNK = 2**20         # logits computed together: 4 MB of float32
NARROW_CHUNK = 2**21  # the same in bfloat16
KEPT = 2**22          # a block's probabilities are kept for the backward pass up to this many: faster than recomputing


def chunks(count: int, tokens: int, size: int | None = None) -> Iterator[tuple[slice, slice]]:
    """Slices (of N, of queries) of about `size` logits each (default CHUNK): several whole maps, or part of one."""
    size = size or CHUNK
    if tokens ** 2 <= size:
        step = size // tokens ** 2
        yield from ((slice(n, n + step), slice(0, tokens)) for n in range(0, count, step))
    else:
        step = max(1, size // tokens)
        yield from ((slice(n, n + 1), slice(row, row + step)) for n in range(count) for row in range(0, tokens, step))


# ---- in float32 ----------------------------------------------------------------------------------------------

@torch.compiler.disable  # loops that a compiler would unroll
def chunked_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Attention (N, h*w, d), a chunk of queries at a time; the backward pass recomputes the logits.

    It computes in float32 even for bfloat16 inputs: it is meant for CPUs that merely emulate bfloat16 products.
    """
    with torch.autocast("cpu", enabled=False):
        return ChunkedAttention.apply(qkv, table_h, table_w, scale)


class ChunkedAttention(torch.autograd.Function):
    """`chunked_attention` and its gradients."""

    @staticmethod
    def forward(ctx, qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        inputs = qkv, table_h, table_w
        (q, k, v), table_h, table_w = map(_widened, inputs)
        rel_h, rel_w = relative_logits(q, table_h, table_w)
        keep = any(ctx.needs_input_grad) and len(q) * q.shape[1] ** 2 <= KEPT
        out, buffer, kept = torch.empty_like(q), None, []
        for n, rows in chunks(*q.shape[:2]):
            buffer = _probabilities(q[n, rows], k[n], rel_h[n, rows], rel_w[n, rows], scale, None if keep else buffer)
            torch.bmm(buffer, v[n], out=out[n, rows])
            if keep:
                kept.append(buffer)
        ctx.save_for_backward(*inputs, *kept)
        return out.to(qkv.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, table_h, table_w, *kept = map(_widened, ctx.saved_tensors)
        with torch.autocast("cpu", enabled=False):
            d_qkv, d_rel_h, d_rel_w = _gradients(_widened(d_out).contiguous(), qkv, table_h, table_w, ctx.scale, kept)
            q, d_q = (tensor[0].unflatten(1, (len(table_h), len(table_w))) for tensor in (qkv, d_qkv))
            d_q += torch.einsum("nhwk,hkc->nhwc", d_rel_h, table_h)
            d_q += torch.einsum("nhwk,wkc->nhwc", d_rel_w, table_w)
            needs_h, needs_w = ctx.needs_input_grad[1:3]  # not in fine-tuning: its tables are frozen
            gradients = (d_qkv, torch.einsum("nhwk,nhwc->hkc", d_rel_h, q) if needs_h else None,
                         torch.einsum("nhwk,nhwc->wkc", d_rel_w, q) if needs_w else None)
        return *(None if each is None else each.to(d_out.dtype) for each in gradients), None


def _probabilities(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float, buffer: Tensor | None) -> Tensor:
    """Softmax of the logits of some queries (n, r, d): (n, r, h*w), written to `buffer` if it has that shape."""
    shape = (*q.shape[:2], k.shape[1])
    logits = buffer if buffer is not None and buffer.shape == shape else q.new_empty(shape)
    torch.add(rel_h[..., None], rel_w[..., None, :], out=logits.unflatten(2, (rel_h.shape[-1], rel_w.shape[-1])))
    logits.baddbmm_(q, k.transpose(1, 2), alpha=scale)
    return torch.softmax(logits, dim=-1, out=logits)


def _gradients(d_out: Tensor, qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float,
               kept: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `qkv`, except through rel_h and rel_w, and those of these two, (N, h, w, h) and (N, h, w, w)."""
    (q, k, v), d_qkv = qkv, torch.empty_like(qkv)
    d_q, d_k, d_v = d_qkv
    height, width = len(table_h), len(table_w)
    if not kept:
        rel_h, rel_w = relative_logits(q, table_h, table_w)
    d_rel_h, d_rel_w = (q.new_empty(*q.shape[:2], side) for side in (height, width))
    buffer, d_logits = None, None
    for number, (n, rows) in enumerate(chunks(*q.shape[:2])):
        if kept:
            buffer = kept[number]
        else:
            buffer = _probabilities(q[n, rows], k[n], rel_h[n, rows], rel_w[n, rows], scale, buffer)
        if d_logits is None or d_logits.shape != buffer.shape:
            d_logits = torch.empty_like(buffer)
        torch.bmm(d_out[n, rows], v[n].transpose(1, 2), out=d_logits)
        torch._softmax_backward_data(d_logits, buffer, -1, buffer.dtype, grad_input=d_logits)
        torch.bmm(d_logits, k[n], out=d_q[n, rows])
        add = int(rows.start > 0)  # later queries of one map add to the gradients of its keys
        d_k[n].baddbmm_(d_logits.transpose(1, 2), q[n, rows], beta=add, alpha=scale)
        d_v[n].baddbmm_(buffer.transpose(1, 2), d_out[n, rows], beta=add)
        grid = d_logits.unflatten(2, (height, width))
        torch.sum(grid, dim=-1, out=d_rel_h[n, rows])
        torch.sum(grid, dim=-2, out=d_rel_w[n, rows])
    d_q *= scale
    return d_qkv, *(tensor.unflatten(1, (height, width)) for tensor in (d_rel_h, d_rel_w))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


# ---- in bfloat16 ---------------------------------------------------------------------------------------------

@cache
def has_bf16_products() -> bool:
    """Does this CPU have instructions for bfloat16 matrix products?"""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@torch.compiler.disable
def narrow_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """`chunked_attention` in bfloat16, with positions folded in: here products cost less than passes that add.

    It rounds where segment_anything does under autocast: logits, probabilities and their gradients.
    """
    q, k, v = qkv
    q, one_hot = fold(q, table_h, table_w, scale)
    with torch.autocast("cpu", enabled=False):
        return NarrowAttention.apply(q, k, v, one_hot)


class NarrowAttention(torch.autograd.Function):
    """softmax(q @ [k, one_hot]) @ v and its gradients: q (N, T, D), k and v (N, T, d), one_hot (T, D - d)."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, one_hot: Tensor) -> Tensor:
        keys = torch.cat([k, one_hot.expand(len(k), -1, -1)], dim=-1)
        keep = any(ctx.needs_input_grad) and len(q) * q.shape[1] ** 2 <= KEPT
        out, buffer, kept = torch.empty_like(v), None, []
        for n, rows in chunks(*q.shape[:2], NARROW_CHUNK):
            buffer = _folded_probabilities(q[n, rows], keys[n], None if keep else buffer)
            torch.bmm(buffer, v[n], out=out[n, rows])
            if keep:
                kept.append(buffer)
        ctx.save_for_backward(q, keys, v, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, v, *kept = ctx.saved_tensors
        depth, d_out, d_q = v.shape[-1], d_out.contiguous(), torch.empty_like(q)
        d_k, d_v = (torch.zeros(v.shape, dtype=torch.float32) for _ in range(2))  # sums over queries
        buffer, d_logits = None, None
        for number, (n, rows) in enumerate(chunks(*q.shape[:2], NARROW_CHUNK)):
            buffer = kept[number] if kept else _folded_probabilities(q[n, rows], keys[n], buffer)
            if d_logits is None or d_logits.shape != buffer.shape:
                d_logits = torch.empty_like(buffer)
            torch.bmm(d_out[n, rows], v[n].transpose(1, 2), out=d_logits)
            torch._softmax_backward_data(d_logits, buffer, -1, buffer.dtype, grad_input=d_logits)
            torch.bmm(d_logits, keys[n], out=d_q[n, rows])
            d_k[n] += torch.bmm(d_logits.transpose(1, 2), q[n, rows, :depth])
            d_v[n] += torch.bmm(buffer.transpose(1, 2), d_out[n, rows])
        return d_q, d_k.to(q.dtype), d_v.to(q.dtype), None


def _folded_probabilities(q: Tensor, keys: Tensor, buffer: Tensor | None) -> Tensor:
    """Softmax of q (n, r, D) @ keys (n, T, D): (n, r, T), written to `buffer` if it has that shape."""
    shape = (*q.shape[:2], keys.shape[1])
    logits = buffer if buffer is not None and buffer.shape == shape else q.new_empty(shape)
    torch.bmm(q, keys.transpose(1, 2), out=logits)
    return torch.softmax(logits, dim=-1, out=logits)
