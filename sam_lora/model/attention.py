"""The image encoder's blocks in less time and memory, equal to segment_anything's to rounding; so the decoder's layers
in which many pixels look at a few tokens.

The logit of a query and a key, each a place of a grid, is
    scale * q @ k + rel_h[q, row of k] + rel_w[q, column of k]
with decomposed relative positions (Li et al. 2022, MViTv2): rel_h[q] = q @ table_h[row of q], and rel_w alike.
segment_anything stores this for all pairs several times over. Here, on the CPU, no more of it than the cache holds is
there at a time (`chunked_attention`, `narrow_attention`); on a GPU PyTorch's own kernels, which store no pairs, compute
it, for the positions are folded into the inner product (`folded_attention`).

Shapes: N is batch x windows x heads, h and w are the grid's sides, d is a head's width. `qkv` (3, N, h*w, d);
`table_h` (h, h, d) and `table_w` (w, w, d) by row, or column, of the query and of the key.
"""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sam_lora.model.meta import Attention, Block, DecoderAttention, Sam, get_rel_pos

CHUNK = 2**20        # logits computed together on the CPU: 4 MB of float32
NARROW_CHUNK = 2**21  # the same of bfloat16
KEPT = 2**22         # up to so many, a block's probabilities are kept for the backward pass: faster than doing it again
WIDTH_MULTIPLE = 8   # of a head, for the GPU's kernels


def speed_up(sam: Sam) -> None:
    """Let the blocks and layers of `sam` compute as this module does. Parameters and their names stay.

    Before or after LoRA is added, but before `sam_lora.sam.checkpoint_blocks`. segment_anything's classes stay as they
    are: only this model's parts change.
    """
    for block in sam.image_encoder.blocks:
        if type(block) is Block:
            block.__class__ = FastBlock
    for layer in sam.mask_decoder.transformer.layers:
        if type(layer.cross_attn_image_to_token) is DecoderAttention:
            layer.cross_attn_image_to_token.__class__ = FewKeysAttention


class FastBlock(Block):
    """A block of an image encoder that computes its attention by `attend`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape."""
        if torch.jit.is_tracing() or not self.attn.use_rel_pos:  # ONNX knows the plain operations
            return super().forward(x)
        x = x + attend(self.attn, self.norm1(x), self.window_size)
        return x + self.mlp(self.norm2(x))


def attend(attn: Attention, x: Tensor, window_size: int) -> Tensor:
    """An `Attention` layer's output for normalised tokens (B, H, W, C): global where `window_size` is 0.

    Windows over the edge are filled up with zeros, as in segment_anything; keys and values there are the bias of `qkv`,
    so nothing is computed for them, and nothing from them.
    """
    batch, height, width, channels = x.shape
    rows, columns = (window_size, window_size) if window_size else (height, width)
    down, across = -(-height // rows), -(-width // columns)
    qkv = attn.qkv(x)
    reaches_over = (down * rows, across * columns) != (height, width)
    if reaches_over:
        with torch.set_grad_enabled(torch.is_grad_enabled() and _has_trainable_bias(attn.qkv)):
            outside = attn.qkv(x.new_zeros(1, channels)).to(qkv.dtype)
        padded = outside.expand(batch, down * rows, across * columns, -1).clone()
        padded[:, :height, :width] = qkv
        qkv = padded
    qkv = qkv.view(batch, down, rows, across, columns, 3, attn.num_heads, -1)
    qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, rows * columns, channels // attn.num_heads)
    tables = [get_rel_pos(side, side, table).to(qkv.dtype)
              for side, table in ((rows, attn.rel_pos_h), (columns, attn.rel_pos_w))]
    compute = folded_attention
    if x.device.type == "cpu":
        compute = narrow_attention if qkv.dtype == torch.bfloat16 and has_bf16_products() else chunked_attention
    out = compute(qkv, *tables, attn.scale)                                 # (N, rows * columns, d)
    out = out.view(batch, down, across, attn.num_heads, rows, columns, -1).permute(0, 1, 4, 2, 5, 3, 6)
    out = out.reshape(batch, down * rows, across * columns, channels)
    return attn.proj(out[:, :height, :width] if reaches_over else out)  # even a whole slice costs its backward a copy


def _has_trainable_bias(layer: torch.nn.Module) -> bool:
    """What a linear layer gives for zeros, LoRA or not, is its bias."""
    return any(parameter.requires_grad for name, parameter in layer.named_parameters() if name.endswith("bias"))


def relative_logits(q: Tensor, table_h: Tensor, table_w: Tensor) -> tuple[Tensor, Tensor]:
    """The positions' share of the logits: rel_h (N, h*w, h) and rel_w (N, h*w, w) of queries (N, h*w, d)."""
    grid = q.unflatten(1, (len(table_h), len(table_w)))
    return (torch.einsum("nhwc,hkc->nhwk", grid, table_h).flatten(1, 2),
            torch.einsum("nhwc,wkc->nhwk", grid, table_w).flatten(1, 2))


class FewKeysAttention(DecoderAttention):
    """The decoder's attention for few keys: PyTorch's softmax of short rows takes ten times that of short columns."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, n, C), keys and values (B, m, C) -> (B, n, C)."""
        if torch.jit.is_tracing() or q.device.type != "cpu":
            return super().forward(q, k, v)
        q, k, v = (self._separate_heads(project(tokens), self.num_heads)
                   for project, tokens in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
        logits = (k * q.shape[-1] ** -0.5) @ q.transpose(2, 3)                  # (B, heads, m, n)
        return self.out_proj(self._recombine_heads(logits.softmax(dim=2).transpose(2, 3) @ v))


# ---- on a GPU -------------------------------------------------------------------------------------------------

def fold(q: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries (N, h*w, d + h + w) and what stands beside each key, (h*w, h + w), whose inner product is the logit.

    [scale * q, rel_h, rel_w] times [k, row of k as one-hot, column of k as one-hot].
    """
    height, width = len(table_h), len(table_w)
    places = torch.cat([torch.eye(height, dtype=q.dtype, device=q.device).repeat_interleave(width, dim=0),
                        torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1)], dim=1)
    return torch.cat([q * scale, *relative_logits(q, table_h, table_w)], dim=-1), places


def folded_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Attention (N, h*w, d) as one call of PyTorch's, whose kernels store no pairs."""
    q, k, v = qkv
    depth = q.shape[-1]
    q, places = fold(q, table_h, table_w, scale)
    spare = -q.shape[-1] % WIDTH_MULTIPLE
    q = F.pad(q, (0, spare))
    k = F.pad(torch.cat([k, places.expand(len(k), -1, -1)], dim=-1), (0, spare))
    v = F.pad(v, (0, q.shape[-1] - depth))  # the fastest kernels want one width
    out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0)
    return out[:, 0, :, :depth]


# ---- on the CPU -----------------------------------------------------------------------------------------------

@torch.compiler.disable  # loops that a compiler would unroll
def chunked_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Attention (N, h*w, d), some queries after the other; the backward pass computes the logits anew.

    In float32 for bfloat16 too, which is for CPUs that emulate its products.
    """
    with torch.autocast("cpu", enabled=False):
        return ChunkedAttention.apply(qkv, table_h, table_w, scale)


class ChunkedAttention(torch.autograd.Function):
    """`chunked_attention` and its gradients."""

    @staticmethod
    def forward(ctx, qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        given = qkv, table_h, table_w
        (q, k, v), table_h, table_w = map(_widened, given)
        rel_h, rel_w = relative_logits(q, table_h, table_w)
        keep = any(ctx.needs_input_grad) and len(q) * q.shape[1] ** 2 <= KEPT
        out, buffer, kept = torch.empty_like(q), None, []
        for n, rows in chunks(*q.shape[:2]):
            buffer = _probabilities(q[n, rows], k[n], rel_h[n, rows], rel_w[n, rows], scale, None if keep else buffer)
            torch.bmm(buffer, v[n], out=out[n, rows])
            if keep:
                kept.append(buffer)
        ctx.save_for_backward(*given, *kept)
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
            needs_h, needs_w = ctx.needs_input_grad[1:3]  # no longer in fine-tuning: the tables are frozen then
            gradients = (d_qkv, torch.einsum("nhwk,nhwc->hkc", d_rel_h, q) if needs_h else None,
                         torch.einsum("nhwk,nhwc->wkc", d_rel_w, q) if needs_w else None)
        return *(None if each is None else each.to(d_out.dtype) for each in gradients), None


@cache
def has_bf16_products() -> bool:
    """Has this CPU instructions for products of bfloat16 matrices?"""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@torch.compiler.disable
def narrow_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """`chunked_attention` in bfloat16, with the positions folded in: their products cost less than passes to add them.

    Rounds where segment_anything does under autocast: logits, probabilities and their gradients.
    """
    q, k, v = qkv
    q, places = fold(q, table_h, table_w, scale)
    with torch.autocast("cpu", enabled=False):
        return NarrowAttention.apply(q, k, v, places)


class NarrowAttention(torch.autograd.Function):
    """softmax(q @ [k, places]) @ v and its gradients: q (N, T, D), k and v (N, T, d), places (T, D - d)."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
        keys = torch.cat([k, places.expand(len(k), -1, -1)], dim=-1)
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
    """Softmax of q (n, r, D) @ keys (n, T, D): (n, r, T), in `buffer` if it fits."""
    shape = (*q.shape[:2], keys.shape[1])
    logits = buffer if buffer is not None and buffer.shape == shape else q.new_empty(shape)
    torch.bmm(q, keys.transpose(1, 2), out=logits)
    return torch.softmax(logits, dim=-1, out=logits)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def chunks(count: int, tokens: int, size: int | None = None) -> Iterator[tuple[slice, slice]]:
    """(which of N, which queries) of about `size` logits each (default CHUNK): several whole maps, or a part of one."""
    size = size or CHUNK
    if tokens ** 2 <= size:
        step = size // tokens ** 2
        yield from ((slice(n, n + step), slice(0, tokens)) for n in range(0, count, step))
    else:
        step = max(1, size // tokens)
        yield from ((slice(n, n + 1), slice(row, row + step)) for n in range(count) for row in range(0, tokens, step))


def _probabilities(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float, buffer: Tensor | None) -> Tensor:
    """Softmax of the logits of some queries (n, r, d): (n, r, h*w), in `buffer` if it fits."""
    shape = (*q.shape[:2], k.shape[1])
    logits = buffer if buffer is not None and buffer.shape == shape else q.new_empty(shape)
    torch.add(rel_h[..., None], rel_w[..., None, :], out=logits.unflatten(2, (rel_h.shape[-1], rel_w.shape[-1])))
    logits.baddbmm_(q, k.transpose(1, 2), alpha=scale)
    return torch.softmax(logits, dim=-1, out=logits)


def _gradients(d_out: Tensor, qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float,
               kept: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `qkv`, without what comes through rel_h and rel_w, and of these as (N, h, w, h) and (N, h, w, w)."""
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
        more = int(rows.start > 0)  # later queries of one map add to its keys
        d_k[n].baddbmm_(d_logits.transpose(1, 2), q[n, rows], beta=more, alpha=scale)
        d_v[n].baddbmm_(buffer.transpose(1, 2), d_out[n, rows], beta=more)
        grid = d_logits.unflatten(2, (height, width))
        torch.sum(grid, dim=-1, out=d_rel_h[n, rows])
        torch.sum(grid, dim=-2, out=d_rel_w[n, rows])
    d_q *= scale
    return d_qkv, *(tensor.unflatten(1, (height, width)) for tensor in (d_rel_h, d_rel_w))
