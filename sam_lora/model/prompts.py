"""Prompts in, masks out: the points and boxes of a batch, the mask decoder, logits at an image's own resolution.

`Sam.forward` runs under no_grad, and `MaskDecoder.predict_masks` repeats every image embedding for each prompt, so a
batch of images with prompts of their own cannot pass through them. Here the sub-modules are called directly, and the
decoder takes one embedding per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_lora.model.meta import Sam

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

    def to(self, device: torch.device, non_blocking: bool = False) -> "Prompts":
        boxes = None if self.boxes is None else self.boxes.to(device, non_blocking=non_blocking)
        return Prompts(self.point_coords.to(device, non_blocking=non_blocking),
                       self.point_labels.to(device, non_blocking=non_blocking), boxes)

    def __getitem__(self, rows: slice) -> "Prompts":
        return Prompts(self.point_coords[rows], self.point_labels[rows],
                       None if self.boxes is None else self.boxes[rows])

    def groups(self) -> list[Tensor]:
        """Indices of the rows that can share a call: those with as many points, and alike in having a box or not.

        SAM attends to padding points too, so only rows of one kind can be decoded together and come out as they would
        alone.
        """
        counts = (self.point_labels >= 0).sum(dim=1)
        kinds = counts * 2
        if self.boxes is not None:
            kinds = kinds + (~self.boxes.isnan().any(dim=1)).long()
        return [torch.nonzero(kinds == kind).flatten() for kind in kinds.unique()]

    def rows(self, index: Tensor) -> "Prompts":
        """The prompts of one of `groups`, without padding points."""
        labels = self.point_labels[index]
        count = int((labels[0] >= 0).sum()) if len(labels) else 0
        boxes = None if self.boxes is None or self.boxes[index].isnan().any() else self.boxes[index]
        return Prompts(self.point_coords[index, :count], labels[:, :count], boxes)


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
    parts = [_decode_alike(sam, image_embeddings[rows], prompts.rows(rows),
                           None if mask_input is None else mask_input[rows]) for rows in groups]
    order = torch.cat(groups).argsort()  # back to the order of the rows
    return torch.cat([masks for masks, _ in parts])[order], torch.cat([iou for _, iou in parts])[order]


def _decode_alike(sam: Sam, image_embeddings: Tensor, prompts: Prompts,
                  mask_input: Tensor | None) -> tuple[Tensor, Tensor]:
    points = (prompts.point_coords, prompts.point_labels) if prompts.point_labels.shape[1] else None
    sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes, masks=mask_input)
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
