"""Build a SAM from segment_anything's own classes, and load its weights."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam_lora.errors import UserError
from sam_lora.model.attention import speed_up
from sam_lora.model.meta import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from sam_lora.model.weights import find_weights, misfit, read_state_dict, sha256_of
from sam_lora.sam_types import SAM_TYPES

PIXEL_MEAN = (123.675, 116.28, 103.53)  # SAM's, of RGB values from 0 to 255
PIXEL_STD = (58.395, 57.12, 57.375)
RECOMPILE_LIMIT = 32


def build_sam(model_type: str, image_size: int | None = None) -> Sam:
    """A randomly initialised SAM in eval mode.

    `image_size` is the side of the square model frame in pixels; None takes the type's own.
    """
    kind = SAM_TYPES[model_type]
    image_size = image_size or kind.image_size
    grid = image_size // kind.patch_size
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size, patch_size=kind.patch_size, embed_dim=kind.embed_dim, depth=kind.depth,
            num_heads=kind.num_heads, mlp_ratio=4, out_chans=kind.prompt_embed_dim, qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=kind.window_size,
            global_attn_indexes=kind.global_attn_indexes),
        prompt_encoder=PromptEncoder(
            embed_dim=kind.prompt_embed_dim, image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3, transformer_dim=kind.prompt_embed_dim, iou_head_depth=3,
            iou_head_hidden_dim=kind.iou_head_hidden_dim,
            transformer=TwoWayTransformer(depth=2, embedding_dim=kind.prompt_embed_dim,
                                          mlp_dim=kind.decoder_mlp_dim, num_heads=8)),
        pixel_mean=list(PIXEL_MEAN), pixel_std=list(PIXEL_STD))
    return sam.eval()


def load_sam(model_type: str, checkpoint: str | Path | None = None, image_size: int | None = None) -> tuple[Sam, str]:
    """Build a SAM and load its weights: (model in eval mode, SHA-256 of the weights file). Its attention is our own.

    `checkpoint` names a plain state dict in Meta's format; None finds the type's own file, downloading it if needed.
    Raises UserError when the file does not exist, holds no SAM, or holds a SAM of another type.
    """
    path = Path(checkpoint) if checkpoint is not None else find_weights(model_type)
    state = read_state_dict(path)
    kind = SAM_TYPES[model_type]
    if image_size is not None and (image_size % kind.patch_size or image_size < kind.patch_size * 4):
        raise UserError(f"--image_size {image_size}: expected a multiple of {kind.patch_size}, at least "
                        f"{kind.patch_size * 4}")
    sam = build_sam(model_type, image_size)
    load_state(sam, resize_position_embeddings(state, sam), path, model_type)
    speed_up(sam)
    return sam, sha256_of(path)


def resize_position_embeddings(state: Mapping[str, Tensor], sam: Sam) -> dict[str, Tensor]:
    """A state dict whose position tables fit the image size of `sam`.

    The absolute table (1, H, W, C) is interpolated bicubically; each relative table (2 * side - 1, C) linearly, as
    segment_anything's own `get_rel_pos` does. Tables that already fit are passed through untouched.
    """
    expected = sam.state_dict()
    resized = dict(state)
    for name, table in state.items():
        if name not in expected or table.shape == expected[name].shape:
            continue
        if name == "image_encoder.pos_embed" and table.ndim == 4 and table.shape[3] == expected[name].shape[3]:
            resized[name] = F.interpolate(table.permute(0, 3, 1, 2).float(), expected[name].shape[1:3], mode="bicubic",
                                          align_corners=False).permute(0, 2, 3, 1)
        elif ".attn.rel_pos_" in name and table.ndim == 2 and table.shape[1] == expected[name].shape[1]:
            resized[name] = F.interpolate(table.T[None].float(), expected[name].shape[0], mode="linear")[0].T
    return resized


def load_state(sam: Sam, state: Mapping[str, Tensor], path: Path, model_type: str) -> None:
    """Load a state dict strictly; the UserError says what does not fit, and which type the file seems to hold."""
    if problem := misfit(sam.state_dict(), state):
        guess = _guess_type(state)
        hint = f"; it looks like {guess}: give --model_type {guess}" if guess and guess != model_type else ""
        raise UserError(f"{path}: does not fit {model_type} ({problem}){hint}")
    sam.load_state_dict(state)


def _guess_type(state: Mapping[str, Tensor]) -> str | None:
    table = state.get("image_encoder.pos_embed")
    width = table.shape[-1] if table is not None and table.ndim else None
    return next((kind.name for kind in SAM_TYPES.values() if kind.embed_dim == width), None)


def checkpoint_blocks(sam: Sam) -> None:
    """Make the encoder's blocks recompute their activations in the backward pass instead of keeping them."""
    for block in sam.image_encoder.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(sam: Sam, count: int) -> None:
    """Have the encoder's last `count` blocks compiled when they first run.

    Block by block, not the encoder as a whole: all blocks of a kind share what is compiled, in a fraction of the time.
    But windows and global blocks, the block that needs no gradient of its input, training and validation, a full batch
    and the last one are different, and beyond PyTorch's limit of 8 blocks would run as they are.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, RECOMPILE_LIMIT)
    blocks = sam.image_encoder.blocks
    for block in blocks[len(blocks) - count:]:
        block.compile()
