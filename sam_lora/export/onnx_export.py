"""SAM as ONNX: the mask decoder in Meta's export wrapper, and the image encoder by itself.

Decoder: names, order and dynamic axes are those of Meta's scripts/export_onnx_model.py, so that web pages and labelling
tools made for its files take these too. All tensors are float32:
    image_embeddings (1, C, h, w)   point_coords (1, N, 2) xy in the model frame   point_labels (1, N): 1 foreground,
    0 background, 2 and 3 a box's top left and bottom right corner, -1 a padding point at (0, 0), needed unless there is
    a box   mask_input (1, 1, 4h, 4w)   has_mask_input (1,) 0 or 1   orig_im_size (2,) as (H, W)
    -> masks (1, M, H, W) logits   iou_predictions (1, M)   low_res_masks (1, M, 4h, 4w);  M is 4, or 1 as a single mask
Encoder: x (1, 3, S, S) float32, (RGB - pixel_mean) / pixel_std, the image at the top left, zero elsewhere
    -> image_embeddings (1, C, h, w)
labelme feeds an input called `x`. AnyLabeling and X-AnyLabeling feed pixels: labeling_export.py.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_lora.errors import UserError
from sam_lora.export import parity
from sam_lora.export.parity import Probe, Reference
from sam_lora.model.meta import ResizeLongestSide, Sam, SamOnnxModel
from sam_lora.model.prompts import Prompts, decode_all, postprocess_masks

if TYPE_CHECKING:
    import onnxruntime

OPSET = 17                        # Meta's default
LARGEST_FILE = 2 ** 31 - 2 ** 24  # protobuf's limit, less some room for the graph


def require_onnx() -> None:
    """Raise UserError unless the packages are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs the packages onnx and onnxruntime ({error}); "
                        "run: pip install onnx onnxruntime") from error


# ---- writing ------------------------------------------------------------------------------------------------

class DecoderForOnnx(SamOnnxModel):
    """Meta's wrapper, cutting off the padding as the code in Meta's repository does.

    The release on PyPI (1.0) takes int() of the size to cut to, which tracing turns into a constant, so that its files
    fit images of one aspect ratio only (segment-anything issue 56).
    """

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        masks = F.interpolate(masks, (self.img_size, self.img_size), mode="bilinear", align_corners=False)
        input_size = self.resize_longest_image_size(orig_im_size, self.img_size)
        masks = masks[..., :input_size[0], :input_size[1]]
        height, width = orig_im_size.to(torch.int64)
        return F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)


def export_decoder(sam: Sam, path: Path, return_single_mask: bool = False) -> None:
    """Write the prompt encoder, mask decoder and mask resizing of a merged `sam`; optionally for the best mask only."""
    export_module(DecoderForOnnx(sam, return_single_mask), example_prompts(sam),
                  ["masks", "iou_predictions", "low_res_masks"], path,
                  {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}})


def example_prompts(sam: Sam) -> dict[str, Tensor]:
    """A decoder's inputs, by name, as it is traced with them."""
    side, (rows, columns) = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size
    return {"image_embeddings": torch.zeros(1, sam.prompt_encoder.embed_dim, rows, columns),
            "point_coords": torch.full((1, 5, 2), side / 2), "point_labels": torch.ones(1, 5),
            "mask_input": torch.zeros(1, 1, 4 * rows, 4 * columns), "has_mask_input": torch.ones(1),
            "orig_im_size": torch.tensor([side * 2.0, side * 3.0])}


def export_encoder(sam: Sam, path: Path) -> None:
    """Write the image encoder of a merged `sam`. Raises UserError if it does not fit into one ONNX file."""
    refuse_large_encoder(sam)
    side = sam.image_encoder.img_size
    export_module(sam.image_encoder, {"x": torch.zeros(1, 3, side, side)}, ["image_embeddings"], path)


def refuse_large_encoder(sam: Sam) -> None:
    """Raise UserError if its weights do not fit into one ONNX file."""
    size = sum(parameter.numel() * 4 for parameter in sam.image_encoder.parameters())
    if size > LARGEST_FILE:
        raise UserError(f"--onnx_encoder: this encoder takes {size / 1e9:.1f} GB, an ONNX file holds at most 2 GiB; "
                        "use the .pth or the --hf folder for the encoder; --onnx works for its decoder")


def export_module(model: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path,
                  dynamic_axes: Mapping[str, Mapping[int, str]] | None = None) -> None:
    """Write any module by tracing; its tensors keep their sizes but along `dynamic_axes`, by input and axis."""
    # dynamo=False: the newer exporter's files compute the same, but it needs another package and a newer opset, and
    # prints pages of warnings about orig_im_size, whose values are sizes of tensors
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # from the tracer, about sizes that are constant here
        torch.onnx.export(model.eval(), tuple(inputs.values()), str(path), input_names=list(inputs),
                          output_names=list(outputs), opset_version=OPSET, dynamic_axes=dynamic_axes or {},
                          dynamo=False)


# ---- running ------------------------------------------------------------------------------------------------

def open_session(path: str | Path) -> "onnxruntime.InferenceSession":
    """The file in onnxruntime, on the CPU, with as many threads as torch uses."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def decoder_inputs(image_embeddings: Tensor, prompts: Prompts, mask_input: Tensor | None,
                   original_size: tuple[int, int]) -> dict[str, np.ndarray]:
    """An exported decoder's inputs for one row of prompts (in pixels of the model frame)."""
    coords, labels = prompts.point_coords[0], prompts.point_labels[0].float()
    has_box = prompts.boxes is not None
    coords = torch.cat([coords, prompts.boxes.reshape(2, 2) if has_box else torch.zeros(1, 2)])
    labels = torch.cat([labels, torch.tensor([2.0, 3.0] if has_box else [-1.0])])
    if mask_input is None:
        no_mask = torch.zeros(1, 1, *(4 * side for side in image_embeddings.shape[2:]))
    tensors = {"image_embeddings": image_embeddings, "point_coords": coords[None], "point_labels": labels[None],
               "mask_input": no_mask if mask_input is None else mask_input,
               "has_mask_input": torch.tensor([float(mask_input is not None)]),
               "orig_im_size": torch.tensor(original_size, dtype=torch.float32)}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def run_encoder(session: "onnxruntime.InferenceSession", frame: Tensor) -> Tensor:
    """(1, 3, S, S) -> (1, C, h, w)."""
    return torch.from_numpy(session.run(None, {"x": frame.numpy()})[0])


def onnx_logits(encoder: "onnxruntime.InferenceSession", decoder: "onnxruntime.InferenceSession",
                probe: Probe) -> Tensor:
    """All four masks of a probe's prompts: (K, 4, 4h, 4w), from an encoder and a decoder that gives all of them."""
    embeddings = run_encoder(encoder, probe.frame)
    return torch.cat([
        torch.from_numpy(decoder.run(["low_res_masks"], decoder_inputs(embeddings, prompts, mask_input,
                                                                       probe.original_size))[0])
        for prompts, mask_input in zip(probe.prompts, probe.mask_inputs)])


# ---- checking -----------------------------------------------------------------------------------------------

def check_encoder(path: Path, sam: Sam, reference: Reference, name: object) -> float:
    """The largest difference of logits that an encoder file makes when PyTorch decodes its embeddings.

    Raises UserError where it is too large.
    """
    session = open_session(path)
    return reference.compare(lambda probe: parity.our_logits(sam, probe, run_encoder(session, probe.frame)), name,
                             parity.allowed_difference(reference.logits))


@torch.inference_mode()
def check_decoder(path: Path, sam: Sam, reference: Reference, name: object, return_single_mask: bool = False,
                  inputs_of: Callable[..., dict[str, np.ndarray]] = decoder_inputs,
                  earlier_masks: bool = True) -> float:
    """The largest difference between the three outputs of a decoder file and PyTorch's, over every prompt.

    `inputs_of` makes the file's inputs; without `earlier_masks` prompts that go with one are left out. Raises UserError
    where the difference is too large.
    """
    session, differences, all_logits = open_session(path), [], []
    for probe, embedding in zip(reference.probes, reference.embeddings):
        for prompts, mask_input in zip(probe.prompts, probe.mask_inputs):
            if mask_input is not None and not earlier_masks:
                continue
            inputs = inputs_of(embedding, prompts, mask_input, probe.original_size)
            low_res, iou = decode_all(sam, embedding, prompts, mask_input)
            all_logits.append(low_res)
            if return_single_mask:  # Meta's rule: the single mask from three points on, counting the padding point
                best = 0 if inputs["point_labels"].shape[1] >= 3 else 1 + int(iou[0, 1:].argmax())
                low_res, iou = low_res[:, best:best + 1], iou[:, best:best + 1]
            masks = masks_of_original_size(sam, low_res, probe.original_size)
            differences += [parity.largest_difference(torch.from_numpy(output), expected)
                            for output, expected in zip(session.run(None, inputs), (masks, iou, low_res))]
    difference = parity.largest(differences)
    parity.check_difference(difference, name, reference.source, parity.allowed_difference(all_logits))
    return difference


def masks_of_original_size(sam: Sam, low_res: Tensor, original_size: tuple[int, int]) -> Tensor:
    """Low-resolution logits (N, M, 4h, 4w) of one image -> logits (N, M, H, W)."""
    side = sam.image_encoder.img_size
    input_size = ResizeLongestSide.get_preprocess_shape(*original_size, side)
    return postprocess_masks(low_res, side, input_size, original_size)
