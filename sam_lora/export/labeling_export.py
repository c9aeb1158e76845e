"""SAM as ONNX for AnyLabeling and X-AnyLabeling, whose code fixes what it feeds (sam_onnx.py in both repositories).

Both warp every photo into the top left of 684 x 1024 pixels, and work in a frame of 1024 px:
Encoder: input_image (H, W, 3) float32 RGB from 0 to 255, H and W at most 1024 -> image_embeddings (1, C, h, w)
Decoder: as in onnx_export, but point_coords in that frame, and mask_input (1, 1, 256, 256)
A SAM of another side than 1024 px shrinks the frame, and the clicks, inside the files.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_lora.export import parity
from sam_lora.export.onnx_export import (
    DecoderForOnnx,
    check_decoder,
    decoder_inputs,
    example_prompts,
    export_module,
    open_session,
    refuse_large_encoder,
)
from sam_lora.export.parity import Probe, Reference
from sam_lora.model.meta import Sam
from sam_lora.model.prompts import Prompts

FRAME = 1024        # pixels
MASK_INPUT = 256
PHOTO_SIZE = (684, FRAME)   # (H, W) of what the tools feed


class EncoderForLabeling(nn.Module):
    """Normalises, pads and, for a SAM of another side, resizes; then the image encoder."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.encoder = sam.image_encoder
        self.register_buffer("mean", sam.pixel_mean.reshape(1, 3, 1, 1).clone())
        self.register_buffer("std", sam.pixel_std.reshape(1, 3, 1, 1).clone())

    def forward(self, input_image: Tensor) -> Tensor:
        image = (input_image.permute(2, 0, 1)[None] - self.mean) / self.std
        image = F.pad(image, (0, FRAME - image.shape[3], 0, FRAME - image.shape[2]))
        side = self.encoder.img_size
        if side < FRAME and FRAME % side == 0:
            image = F.avg_pool2d(image, FRAME // side)
        elif side != FRAME:
            image = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
        return self.encoder(image)


class DecoderForLabeling(DecoderForOnnx):
    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor,
                has_mask_input: Tensor, orig_im_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = self.model.prompt_encoder.mask_input_size
        mask_input = F.interpolate(mask_input, (rows, columns), mode="bilinear", align_corners=False)
        return super().forward(image_embeddings, point_coords * (self.img_size / FRAME), point_labels, mask_input,
                               has_mask_input, orig_im_size)


def export_encoder(sam: Sam, path: Path) -> None:
    """Write the image encoder of a merged `sam`. Raises UserError if it does not fit into one ONNX file."""
    refuse_large_encoder(sam)
    export_module(EncoderForLabeling(sam), {"input_image": torch.zeros(*PHOTO_SIZE, 3)}, ["image_embeddings"], path,
                  {"input_image": {0: "image_height", 1: "image_width"}})


def export_decoder(sam: Sam, path: Path, return_single_mask: bool = False) -> None:
    """Write the prompt encoder, mask decoder and mask resizing of a merged `sam`; optionally for the best mask only."""
    inputs = {**example_prompts(sam), "mask_input": torch.zeros(1, 1, MASK_INPUT, MASK_INPUT)}
    export_module(DecoderForLabeling(sam, return_single_mask), inputs,
                  ["masks", "iou_predictions", "low_res_masks"], path,
                  {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}})


# ---- checking -----------------------------------------------------------------------------------------------

def photo_of(probe: Probe, side: int) -> np.ndarray:
    """(H, W, 3) float32: a probe's picture at the tools' scale, each of its pixels repeated; `side` divides FRAME."""
    return probe.image.repeat(FRAME // side, 0).repeat(FRAME // side, 1).astype(np.float32)


def check_encoder(path: Path, sam: Sam, reference: Reference, name: object) -> float:
    """The largest difference of logits that an encoder file makes when PyTorch decodes its embeddings.

    Where the model's side does not divide the tools' frame it is the difference from this module's own resizing.
    Raises UserError where it is too large.
    """
    session, side = open_session(path), sam.image_encoder.img_size
    if FRAME % side:
        reference = resized_reference(sam, reference)

    def logits_of(probe: Probe) -> Tensor:
        photo = probe.image.astype(np.float32) if FRAME % side else photo_of(probe, side)
        return parity.our_logits(sam, probe, torch.from_numpy(session.run(None, {"input_image": photo})[0]))
    return reference.compare(logits_of, name, parity.allowed_difference(reference.logits))


@torch.inference_mode()
def resized_reference(sam: Sam, reference: Reference) -> Reference:
    """What the encoder here, in PyTorch, makes of the probes' pictures as they are."""
    encoder = EncoderForLabeling(sam).eval()
    embeddings = [encoder(torch.from_numpy(probe.image).float()) for probe in reference.probes]
    logits = [parity.our_logits(sam, probe, embedding) for probe, embedding in zip(reference.probes, embeddings)]
    return Reference(reference.source, reference.probes, embeddings, logits)


def check_labeling_decoder(path: Path, sam: Sam, reference: Reference, name: object,
                           return_single_mask: bool = False) -> float:
    """As onnx_export.check_decoder, for every prompt without an earlier mask, which the tools never feed."""
    def inputs_of(embeddings: Tensor, prompts: Prompts, _: None, size: tuple[int, int]) -> dict[str, np.ndarray]:
        inputs = decoder_inputs(embeddings, prompts, None, size)
        return {**inputs, "point_coords": inputs["point_coords"] * np.float32(FRAME / sam.image_encoder.img_size),
                "mask_input": np.zeros((1, 1, MASK_INPUT, MASK_INPUT), np.float32)}
    return check_decoder(path, sam, reference, name, return_single_mask, inputs_of, earlier_masks=False)
