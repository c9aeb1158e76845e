"""Images -> image embeddings: preprocessing, the encoder's frozen part, the rest."""

import torch
from torch import Tensor

from sam_lora.model.batches import Batch
from sam_lora.model.meta import Sam


def preprocess(images: Tensor, input_sizes: Tensor, sam: Sam) -> Tensor:
    """uint8 images padded to the model frame -> the encoder's input, equal to `Sam.preprocess`.

    `images` (B, 3, S, S) uint8 RGB, the picture at the top left; `input_sizes` (B, 2) its (h, w) in the model frame.
    Returns (B, 3, S, S) float32, zero in the padding.
    """
    side = images.shape[-1]
    normalised = (images.float() - sam.pixel_mean) / sam.pixel_std
    return normalised * frame_mask(input_sizes, side)


def frame_mask(input_sizes: Tensor, side: int) -> Tensor:
    """(B, 1, side, side) bool: True on the picture, False on the padding. `input_sizes` (B, 2) are (h, w)."""
    steps = torch.arange(side, device=input_sizes.device)
    rows = steps[None, :, None] < input_sizes[:, 0, None, None]
    columns = steps[None, None, :] < input_sizes[:, 1, None, None]
    return (rows & columns)[:, None]


def encode_frozen(sam: Sam, pixels: Tensor, blocks: int) -> Tensor:
    """The part of the image encoder that stays as released when only its last `blocks` blocks train.

    `pixels` (B, 3, S, S) from `preprocess`. Returns what enters the first block that trains, (B, h, w, width); for
    `blocks` 0 the image embeddings themselves, (B, C, h, w).
    """
    encoder = sam.image_encoder
    if blocks == 0:
        return encoder(pixels)
    features = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        features = features + encoder.pos_embed
    for block in encoder.blocks[:len(encoder.blocks) - blocks]:
        features = block(features)
    return features


def encode_rest(sam: Sam, features: Tensor, blocks: int) -> Tensor:
    """From what `encode_frozen` returned to the image embeddings (B, C, h, w): together they are the image encoder."""
    if blocks == 0:
        return features
    for block in sam.image_encoder.blocks[len(sam.image_encoder.blocks) - blocks:]:
        features = block(features)
    return sam.image_encoder.neck(features.permute(0, 3, 1, 2))


def image_embeddings(sam: Sam, batch: Batch) -> Tensor:
    """(B, C, h, w) of a batch on the model's device, from its features where it has them, else from its images."""
    if batch.features is None:
        return sam.image_encoder(preprocess(batch.images, batch.input_sizes, sam))
    return encode_rest(sam, batch.features.float(), batch.blocks)
