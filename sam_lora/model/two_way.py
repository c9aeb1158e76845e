"""The mask decoder's two-way transformer for prompts of different kinds in one call.

segment_anything's has no way to say that a token is only padding, so prompts with other numbers of points, or with and
without a box, would have to be decoded one kind after another. Here such tokens are never attended to, and every
prompt comes out as it would alone (up to rounding).
"""

import torch
from torch import Tensor

from sam_lora.model.meta import DecoderAttention, TwoWayAttentionBlock, TwoWayTransformer


def transform(transformer: TwoWayTransformer, source: Tensor, image_pe: Tensor, tokens: Tensor,
              present: Tensor) -> tuple[Tensor, Tensor]:
    """What `transformer(source, image_pe, tokens)` computes, with the tokens that are not `present` left out.

    `source` and `image_pe` (N, C, h, w), `tokens` (N, T, C), `present` (N, T) bool. Returns the tokens (N, T, C), of
    which those not present mean nothing, and the image (N, h*w, C).
    """
    keys, key_pe = (x.flatten(2).transpose(1, 2) for x in (source, image_pe))
    queries = tokens
    for layer in transformer.layers:
        queries, keys = _layer(layer, queries, keys, tokens, key_pe, present)
    attended = transformer.final_attn_token_to_image(q=queries + tokens, k=keys + key_pe, v=keys)
    return transformer.norm_final_attn(queries + attended), keys


def _layer(layer: TwoWayAttentionBlock, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor,
           present: Tensor) -> tuple[Tensor, Tensor]:
    if layer.skip_first_layer_pe:
        queries = attend_to_tokens(layer.self_attn, queries, queries, queries, present)
    else:
        placed = queries + query_pe
        queries = queries + attend_to_tokens(layer.self_attn, placed, placed, queries, present)
    queries = layer.norm1(queries)
    placed_keys = keys + key_pe
    queries = layer.norm2(queries + layer.cross_attn_token_to_image(q=queries + query_pe, k=placed_keys, v=keys))
    queries = layer.norm3(queries + layer.mlp(queries))
    attended = attend_to_tokens(layer.cross_attn_image_to_token, placed_keys, queries + query_pe, queries, present)
    return queries, layer.norm4(keys + attended)


def attend_to_tokens(layer: DecoderAttention, q: Tensor, k: Tensor, v: Tensor, present: Tensor) -> Tensor:
    """An attention layer whose keys k and values v (N, T, C) are tokens; q (N, n, C); `present` (N, T) bool.

    Pairs are laid out by key, (N, heads, T, n): PyTorch's softmax is ten times slower on short rows than on short
    columns on a CPU.
    """
    q, k, v = (layer._separate_heads(project(tokens), layer.num_heads)
               for project, tokens in ((layer.q_proj, q), (layer.k_proj, k), (layer.v_proj, v)))
    logits = (k * q.shape[-1] ** -0.5) @ q.transpose(2, 3)
    logits = logits.masked_fill(~present[:, None, :, None], -torch.inf)
    return layer.out_proj(layer._recombine_heads(logits.softmax(dim=2).transpose(2, 3) @ v))
