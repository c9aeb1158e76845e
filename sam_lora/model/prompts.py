"""Prompts in, masks out: the points and boxes of a batch, the mask decoder, logits at an image's own resolution.

`Sam.forward` runs under no_grad, and `MaskDecoder.predict_masks` repeats every image embedding for each prompt, so a
batch of images with prompts of their own cannot pass through them. Here the sub-modules are called directly, and the
decoder takes one embedding per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_lora.model.meta import PromptEncoder, Sam

MASK_THRESHOLD = 0.0  # logits above it are foreground, as in segment_anything


@dataclass
class Prompts:
    """The prompts of N masks, in pixels of the model frame.

    `point_coords` (N, P, 2) xy and `point_labels` (N, P): 1 foreground, 0 background, -1 no point (rows with fewer than
    P points end in -1). `boxes` (N, 4) xyxy, NaN in a row without a box; None if no row has a box.
    """

    point_coords: Tensor
    point_labels: Tensor
    boxes: Tensor | None = None
    kinds: list[tuple[int, bool]] | None = None  # of each row, on the host: how many points, is there a box

    def __post_init__(self) -> None:
        """Look at the kinds once, where the prompts are made: on a GPU the host would have to wait for them."""
        if self.kinds is None:
            counts = (self.point_labels >= 0).sum(dim=1).tolist()
            boxed = [False] * len(counts) if self.boxes is None else (~self.boxes.isnan().any(dim=1)).tolist()
            self.kinds = list(zip(counts, boxed))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Prompts":
        boxes = None if self.boxes is None else self.boxes.to(device, non_blocking=non_blocking)
        return Prompts(self.point_coords.to(device, non_blocking=non_blocking),
                       self.point_labels.to(device, non_blocking=non_blocking), boxes, self.kinds)

    def __getitem__(self, rows: slice) -> "Prompts":
        return Prompts(self.point_coords[rows], self.point_labels[rows],
                       None if self.boxes is None else self.boxes[rows], self.kinds[rows])

    def groups(self) -> list[Tensor]:
        """Indices (on the CPU) of the rows that can share a call: as many points, and alike in having a box or not.

        SAM attends to padding points too, so only rows of one kind can be decoded together and come out as they would
        alone.
        """
        rows_of: dict[tuple[int, bool], list[int]] = {}
        for row, kind in enumerate(self.kinds):
            rows_of.setdefault(kind, []).append(row)
        return [torch.tensor(rows_of[kind]) for kind in sorted(rows_of)]

    def rows(self, index: Tensor) -> "Prompts":
        """The prompts of one of `groups`, without padding points."""
        kinds = [self.kinds[row] for row in index.tolist()]
        count = kinds[0][0] if kinds else 0
        index = index.to(self.point_labels.device, non_blocking=True)
        boxes = None if self.boxes is None or not all(boxed for _, boxed in kinds) else self.boxes[index]
        return Prompts(self.point_coords[index, :count], self.point_labels[index, :count], boxes, kinds)


def decode(sam: Sam, image_embeddings: Tensor, prompts: Prompts, mask_input: Tensor | None = None,
           multimask_output: bool = False) -> tuple[Tensor, Tensor]:
    """Masks of N prompts, one image embedding each.

    `image_embeddings` (N, C, h, w): rows that share an image repeat its embedding (index it; do not encode again).
    `mask_input` (N, 1, 4h, 4w): low-resolution logits of an earlier prediction.
    Returns low-resolution logits (N, M, 4h, 4w) and predicted IoU (N, M); M is 3 with `multimask_output`, else 1.
    """
    masks, iou_predictions = decode_all(sam, image_embeddings, prompts, mask_input)
    chosen = slice(1, None) if multimask_output else slice(0, 1)
    return masks[:, chosen], iou_predictions[:, chosen]


def decode_all(sam: Sam, image_embeddings: Tensor, prompts: Prompts,
               mask_input: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Like `decode`, but all four masks: index 0 is the single mask, 1 to 3 are the ambiguity masks."""
    groups = prompts.groups()
    if len(groups) == 1:
        return _decode_alike(sam, image_embeddings, prompts.rows(groups[0]), mask_input)
    parts = []
    for rows in groups:
        index = rows.to(image_embeddings.device, non_blocking=True)
        parts.append(_decode_alike(sam, image_embeddings[index], prompts.rows(rows),
                                   None if mask_input is None else mask_input[index]))
    order = torch.cat(groups).argsort().to(image_embeddings.device, non_blocking=True)  # back to the order of the rows
    return torch.cat([masks for masks, _ in parts])[order], torch.cat([iou for _, iou in parts])[order]


def _decode_alike(sam: Sam, image_embeddings: Tensor, prompts: Prompts,
                  mask_input: Tensor | None) -> tuple[Tensor, Tensor]:
    sparse, dense = _embed_prompts(sam.prompt_encoder, prompts, mask_input)
    decoder = sam.mask_decoder
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
    image_pe = sam.prompt_encoder.get_dense_pe().expand(len(sparse), -1, -1, -1)
    hidden, source = decoder.transformer(image_embeddings + dense, image_pe, tokens)
    mask_tokens = hidden[:, 1:1 + decoder.num_mask_tokens]
    source = source.transpose(1, 2).reshape(image_embeddings.shape)         # (N, h*w, C) -> (N, C, h, w)
    upscaled = decoder.output_upscaling(source)                               # (N, C/8, 4h, 4w)
    weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])  # (N, 4, 4h, 4w)
    return masks, decoder.iou_prediction_head(hidden[:, 0])


def _embed_prompts(encoder: PromptEncoder, prompts: Prompts, mask_input: Tensor | None) -> tuple[Tensor, Tensor]:
    """What `PromptEncoder.forward` returns, up to the last bit, for points that are all foreground or background.

    Its own code picks the points of each label by boolean indexing, for which the host waits for the GPU every time.
    """
    labels, boxes = prompts.point_labels, prompts.boxes
    count = len(labels)
    sparse = [labels.new_zeros((count, 0, encoder.embed_dim), dtype=torch.float32)]
    if labels.shape[1]:
        points = encoder.pe_layer.forward_with_coords(prompts.point_coords + 0.5, encoder.input_image_size)
        learned = torch.cat([encoder.point_embeddings[0].weight, encoder.point_embeddings[1].weight])
        sparse.append((points + learned[labels.long()]).to(points.dtype))
        if boxes is None:  # then SAM adds a point that is none
            sparse.append(encoder.not_a_point_embed.weight.to(points.dtype).expand(count, 1, -1))
    if boxes is not None:
        sparse.append(encoder._embed_boxes(boxes))
    if mask_input is not None:
        dense = encoder._embed_masks(mask_input)
    else:
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(count, -1, *encoder.image_embedding_size)
    return torch.cat(sparse, dim=1), dense


def upscale_to_frame(low_res_masks: Tensor, side: int) -> Tensor:
    """Low-resolution logits (N, M, 4h, 4w) -> logits of the model frame (N, M, side, side), resized as SAM does."""
    return F.interpolate(low_res_masks, (side, side), mode="bilinear", align_corners=False)


def postprocess_masks(low_res_masks: Tensor, side: int, input_size: Sequence[int],
                      original_size: Sequence[int]) -> Tensor:
    """Logits of one image at its own resolution, exactly as `Sam.postprocess_masks` computes them.

    `low_res_masks` (N, M, 4h, 4w); `input_size` (h, w) of the image within the model frame; `original_size` (H, W) of
    the image itself. Returns (N, M, H, W) logits: threshold them at MASK_THRESHOLD after resizing, never before.
    """
    masks = upscale_to_frame(low_res_masks, side)[..., :input_size[0], :input_size[1]]
    return F.interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)


def full_size_mask(low_res_mask: Tensor, side: int, input_size: Sequence[int],
                   original_size: Sequence[int]) -> np.ndarray:
    """Logits (4h, 4w) of one prompt -> its mask at the image's own resolution, (H, W) bool; sizes are (h, w)."""
    logits = postprocess_masks(low_res_mask[None, None], side, input_size, original_size)
    return (logits[0, 0] > MASK_THRESHOLD).cpu().numpy()
