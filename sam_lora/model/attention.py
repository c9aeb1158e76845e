"""Faster attention: the image encoder's blocks, and the decoder layers in which many pixels attend to few tokens.

They equal segment_anything's up to rounding. segment_anything stores the logits of all pairs of query and key several
times over. Here a GPU runs PyTorch's own kernels, which store no pairs, on positions folded into the inner product
(`folded_attention`); a CPU holds no more logits at a time than fit its cache (attention_cpu.py). Which way is taken
where is a table, `FASTEST`; benchmarks/bench_attention.py measures the ways on a GPU.

Shapes, as in relative_positions.py: N is batch x windows x heads, h and w are the grid's sides, d is a head's width;
`qkv` is (3, N, h*w, d).
"""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam_lora.model.attention_cpu import chunked_attention, has_bf16_products, narrow_attention
from sam_lora.model.meta import Attention, Block, DecoderAttention, Sam
from sam_lora.model.relative_positions import fold, position_table, relative_logits

WIDTH_MULTIPLE = 8  # the GPU's kernels want a head's width to be a multiple of it
AttentionFunction = Callable[[Tensor, Tensor, Tensor, float], Tensor]


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
    tables = [position_table(table, side).to(qkv.dtype)
              for side, table in ((rows, attn.rel_pos_h), (columns, attn.rel_pos_w))]
    compute = fastest(qkv, bool(window_size))
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


# ---- ways to compute the attention of all heads ---------------------------------------------------------------

def folded_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float, *, pad_v: bool = True) -> Tensor:
    """Attention (N, h*w, d) in one call of PyTorch's kernels, which store no pairs.

    `pad_v`: FlashAttention wants one width for queries, keys and values; the kernels of cuDNN and xFormers do not.
    """
    q, k, v = qkv
    depth = q.shape[-1]
    q, one_hot = fold(q, table_h / scale, table_w / scale, multiple=WIDTH_MULTIPLE)  # scaling q would be a pass over it
    k = torch.cat([k, one_hot.expand(len(k), -1, -1)], dim=-1)
    if pad_v:
        v = F.pad(v, (0, q.shape[-1] - depth))
    out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=scale)
    return out[:, 0, :, :depth]


def folded_cudnn_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float, *,
                           pad_v: bool = False) -> Tensor:
    """`folded_attention` by cuDNN's kernels where they take the shapes, else by another one."""
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        return folded_attention(qkv, table_h, table_w, scale, pad_v=pad_v)


def biased_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Attention (N, h*w, d) with what positions add to the logits as a tensor of all pairs: for windows only."""
    q, k, v = qkv
    rel_h, rel_w = relative_logits(q, table_h, table_w)
    bias = (rel_h[..., None] + rel_w[..., None, :]).flatten(2)                                  # (N, h*w, h*w)
    unused = -bias.shape[-1] % WIDTH_MULTIPLE
    if unused:  # the kernel reads aligned rows: of a wider tensor
        bias = F.pad(bias, (0, unused))[..., :bias.shape[-1]]
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], bias[:, None], scale=scale)[:, 0]


def flexible_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Attention (N, h*w, d) by a kernel that is compiled for it and adds positions as it goes (FlexAttention)."""
    q, k, v = qkv
    rel_h, rel_w = relative_logits(q, table_h, table_w)
    columns = len(table_w)

    def add_positions(logit, n, head, query, key):
        return logit + rel_h[n, query, key // columns] + rel_w[n, query, key % columns]

    return _compiled_flex_attention()(q[:, None], k[:, None], v[:, None], score_mod=add_positions, scale=scale)[:, 0]


@cache
def _compiled_flex_attention() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention
    return torch.compile(flex_attention, dynamic=False)


def cpu_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Attention (N, h*w, d), in bfloat16 only if this CPU multiplies it."""
    narrow = qkv.dtype == torch.bfloat16 and has_bf16_products()
    return (narrow_attention if narrow else chunked_attention)(qkv, table_h, table_w, scale)


WAYS: dict[str, AttentionFunction] = {
    "folded": folded_attention, "folded_cudnn": folded_cudnn_attention,
    "folded_unpadded": partial(folded_attention, pad_v=False), "biased": biased_attention,
    "flexible": flexible_attention, "cpu": cpu_attention}

# by device, windows or global, and whether in 16 bits
FASTEST: dict[tuple[str, str, bool], str] = {
    ("hopper", "windows", True): "folded_unpadded",  # an H200: PyTorch takes cuDNN (benchmarks/RESULTS.md)
    ("hopper", "global", True): "folded_unpadded",
    ("cuda", "windows", True): "folded",             # not measured: FlashAttention wants one width
    ("cuda", "global", True): "folded",
    ("hopper", "windows", False): "folded_unpadded", ("cuda", "windows", False): "folded_unpadded",
    ("hopper", "global", False): "folded_unpadded", ("cuda", "global", False): "folded_unpadded",
    ("cpu", "windows", True): "cpu", ("cpu", "windows", False): "cpu",
    ("cpu", "global", True): "cpu", ("cpu", "global", False): "cpu"}


def kind_of_device(device: torch.device) -> str:
    """The first part of `FASTEST`'s keys: hopper for NVIDIA cards of compute capability 9 and newer."""
    newer = device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 9
    return "hopper" if newer else device.type


def fastest(qkv: Tensor, in_windows: bool) -> AttentionFunction:
    """The way to compute attention on these, by `FASTEST`; on any other device what every device has."""
    in_16_bits = qkv.dtype in (torch.bfloat16, torch.float16)
    key = kind_of_device(qkv.device), "windows" if in_windows else "global", in_16_bits
    return WAYS[FASTEST.get(key, "folded")]
