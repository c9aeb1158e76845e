"""Faster attention: the image encoder's blocks, and the decoder layers in which many pixels attend to few tokens.

They equal segment_anything's up to rounding. segment_anything stores the logits of all pairs of query and key several
times over. Here a GPU runs PyTorch's own kernels, which store no pairs, on positions folded into the inner product
(`folded_attention`); a CPU holds no more logits at a time than fit its cache (attention_cpu.py).

Shapes, as in relative_positions.py: N is batch x windows x heads, h and w are the grid's sides, d is a head's width;
`qkv` is (3, N, h*w, d).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_lora.model.attention_cpu import chunked_attention, has_bf16_products, narrow_attention
from sam_lora.model.meta import Attention, Block, DecoderAttention, Sam, get_rel_pos
from sam_lora.model.relative_positions import fold

WIDTH_MULTIPLE = 8  # the GPU's kernels want a head's width to be a multiple of it


def speed_up(sam: Sam) -> None:
    """Make the blocks and layers of `sam` compute as this module does. Parameters and their names stay the same.

    Call it before or after adding LoRA, but before `sam.checkpoint_blocks`. Only this model's modules change class;
    segment_anything's classes are left alone.
    """
    for block in sam.image_encoder.blocks:
        if type(block) is Block:
            block.__class__ = FastBlock
    for layer in sam.mask_decoder.transformer.layers:
        if type(layer.cross_attn_image_to_token) is DecoderAttention:
            layer.cross_attn_image_to_token.__class__ = FewKeysAttention


class FastBlock(Block):
    """A block of the image encoder whose attention is `attend`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape."""
        if torch.jit.is_tracing() or not self.attn.use_rel_pos:  # ONNX has the plain operations only
            return super().forward(x)
        x = x + attend(self.attn, self.norm1(x), self.window_size)
        return x + self.mlp(self.norm2(x))


def attend(attn: Attention, x: Tensor, window_size: int) -> Tensor:
    """The output of an `Attention` layer for normalised tokens (B, H, W, C); `window_size` 0 is global attention.

    As in segment_anything, windows that reach over the edge are padded with zeros. The keys and values of padding are
    simply the bias of `qkv`, so padding is never multiplied, and its outputs are not computed further.
    """
    batch, height, width, channels = x.shape
    rows, columns = (window_size, window_size) if window_size else (height, width)
    down, across = -(-height // rows), -(-width // columns)
    qkv = attn.qkv(x)
    reaches_over = (down * rows, across * columns) != (height, width)
    if reaches_over:
        with torch.set_grad_enabled(torch.is_grad_enabled() and _has_trainable_bias(attn.qkv)):
            padding = attn.qkv(x.new_zeros(1, channels)).to(qkv.dtype)
        padded = padding.expand(batch, down * rows, across * columns, -1).clone()
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
    return attn.proj(out[:, :height, :width] if reaches_over else out)  # even a full slice copies going back


def _has_trainable_bias(layer: torch.nn.Module) -> bool:
    """Does a gradient reach a linear layer's output for zeros? With or without LoRA that output is the bias."""
    return any(parameter.requires_grad for name, parameter in layer.named_parameters() if name.endswith("bias"))


class FewKeysAttention(DecoderAttention):
    """The decoder's attention to few keys: PyTorch's softmax is ten times slower on short rows than short columns."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, n, C), keys and values (B, m, C) -> (B, n, C)."""
        if torch.jit.is_tracing() or q.device.type != "cpu":
            return super().forward(q, k, v)
        q, k, v = (self._separate_heads(project(tokens), self.num_heads)
                   for project, tokens in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
        logits = (k * q.shape[-1] ** -0.5) @ q.transpose(2, 3)                  # (B, heads, m, n)
        return self.out_proj(self._recombine_heads(logits.softmax(dim=2).transpose(2, 3) @ v))


def folded_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Attention (N, h*w, d) in one call of PyTorch's kernels, which store no pairs."""
    q, k, v = qkv
    depth = q.shape[-1]
    q, one_hot = fold(q, table_h, table_w, scale)
    unused = -q.shape[-1] % WIDTH_MULTIPLE
    q = F.pad(q, (0, unused))
    k = F.pad(torch.cat([k, one_hot.expand(len(k), -1, -1)], dim=-1), (0, unused))
    v = F.pad(v, (0, q.shape[-1] - depth))  # the fastest kernels want the same width for all three
    out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0)
    return out[:, 0, :, :depth]
