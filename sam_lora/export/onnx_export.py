"""SAM as ONNX: the mask decoder in Meta's own export wrapper, the image encoder alone, and either as int8.

Decoder: names, order and dynamic axes are those of Meta's scripts/export_onnx_model.py, so web pages and labelling
tools that take its files take these. All float32:
    image_embeddings (1, C, h, w)   point_coords (1, N, 2) xy in the model frame   point_labels (1, N): 1 foreground,
    0 background, 2 and 3 a box's top left and bottom right corner, -1 a padding point at (0, 0), which has to be there
    unless a box is   mask_input (1, 1, 4h, 4w)   has_mask_input (1,) 0 or 1   orig_im_size (2,) as (H, W)
    -> masks (1, M, H, W) logits   iou_predictions (1, M)   low_res_masks (1, M, 4h, 4w);  M is 4, or 1 as a single mask
Encoder: x (1, 3, S, S) float32, RGB less pixel_mean over pixel_std, the picture at the top left, zero elsewhere
    -> image_embeddings (1, C, h, w)
labelme feeds `x` by that name, AnyLabeling takes an encoder's first input whatever its name.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sam_lora.errors import UserError
from sam_lora.export import parity
from sam_lora.export.parity import Probe
from sam_lora.model.meta import ResizeLongestSide, Sam
from sam_lora.model.prompts import MASK_THRESHOLD, Prompts, decode, decode_all, postprocess_masks
from sam_lora.results import metrics

from segment_anything.utils.onnx import SamOnnxModel  # isort: skip  # after sam_lora.sam, which mends torchvision

if TYPE_CHECKING:
    import onnxruntime

    from sam_lora.data.samples import Sample

OPSET = 17                       # Meta's own default
LARGEST_FILE = 2 ** 31 - 2 ** 24  # protobuf's limit, less room for the graph
TABLE_ROWS = 200                 # rows of a table that int8 is measured on
AGREEMENT_PROBES = 4

Encode = Callable[[Tensor], Tensor]                                 # frame (1, 3, S, S) -> embeddings (1, C, h, w)
Decode = Callable[[Tensor, Prompts, Tensor | None, tuple[int, int]], np.ndarray]    # … -> (H, W) bool


def require_onnx() -> None:
    """Raise UserError unless the packages are there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs the packages onnx and onnxruntime ({error}); "
                        "run: pip install onnx onnxruntime") from error


# ---- writing ------------------------------------------------------------------------------------------------

class DecoderForOnnx(SamOnnxModel):
    """Meta's wrapper, with the cut of the padding as it stands in Meta's repository.

    The release on PyPI (1.0) takes int() of the size to cut to, which tracing turns into a constant: such a file fits
    images of one aspect ratio only (segment-anything issue 56).
    """

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        masks = F.interpolate(masks, (self.img_size, self.img_size), mode="bilinear", align_corners=False)
        input_size = self.resize_longest_image_size(orig_im_size, self.img_size)
        masks = masks[..., :input_size[0], :input_size[1]]
        height, width = orig_im_size.to(torch.int64)
        return F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)


def export_decoder(sam: Sam, path: Path, return_single_mask: bool = False) -> None:
    """Write prompt encoder, mask decoder and mask resizing of a merged `sam`; of the masks only the best if asked."""
    side, (rows, columns) = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size
    inputs = {"image_embeddings": torch.zeros(1, sam.prompt_encoder.embed_dim, rows, columns),
              "point_coords": torch.full((1, 5, 2), side / 2), "point_labels": torch.ones(1, 5),
              "mask_input": torch.zeros(1, 1, 4 * rows, 4 * columns), "has_mask_input": torch.ones(1),
              "orig_im_size": torch.tensor([side * 2.0, side * 3.0])}
    _export(DecoderForOnnx(sam, return_single_mask), inputs, ["masks", "iou_predictions", "low_res_masks"], path,
            {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}})


def export_encoder(sam: Sam, path: Path) -> None:
    """Write the image encoder of a merged `sam`. Raises UserError where it does not fit into one ONNX file."""
    size = sum(parameter.numel() * 4 for parameter in sam.image_encoder.parameters())
    if size > LARGEST_FILE:
        raise UserError(f"--onnx_encoder: this encoder takes {size / 1e9:.1f} GB, an ONNX file holds at most 2 GiB; "
                        "use the .pth or the --hf folder for it, the decoder's --onnx works")
    side = sam.image_encoder.img_size
    _export(sam.image_encoder, {"x": torch.zeros(1, 3, side, side)}, ["image_embeddings"], path, {})


def _export(model: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path,
            dynamic_axes: Mapping[str, Mapping[int, str]]) -> None:
    # dynamo=False: the newer exporter's file computes the same, but it needs one more package and a newer opset, and
    # prints pages about orig_im_size, whose values are sizes of tensors
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are constant here
        torch.onnx.export(model.eval(), tuple(inputs.values()), str(path), input_names=list(inputs),
                          output_names=list(outputs), opset_version=OPSET, dynamic_axes=dynamic_axes, dynamo=False)


def quantise(path: Path, int8_path: Path) -> None:
    """Write an ONNX file with its linear layers' weights as int8, scaled per output; convolutions stay float.

    Activations are quantised while it runs (onnxruntime's dynamic quantisation), so no calibration data is needed. The
    matrix that points are multiplied with stays float: rounded, it would move every click.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    graph = onnx.load(path, load_external_data=False).graph
    of_coordinates = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.dims[0] == 2}
    kept = [node.name for node in graph.node if of_coordinates & set(node.input)]
    logging.disable(logging.WARNING)  # onnxruntime advises a preparation that dynamic quantisation gains nothing from
    try:
        # unsigned weights: signed ones overflow 16 bits on processors without VNNI
        quantize_dynamic(path, int8_path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
                         weight_type=QuantType.QUInt8, nodes_to_exclude=kept)
    finally:
        logging.disable(logging.NOTSET)


# ---- running ------------------------------------------------------------------------------------------------

def open_session(path: str | Path) -> "onnxruntime.InferenceSession":
    """The file in onnxruntime, on the CPU, with as many threads as torch has."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def decoder_inputs(image_embeddings: Tensor, prompts: Prompts, mask_input: Tensor | None,
                   original_size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What an exported decoder is fed for one row of prompts (in pixels of the model frame)."""
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
    """All four masks of a probe's prompts (K, 4, 4h, 4w), by an encoder and a decoder that gives all of them."""
    embeddings = run_encoder(encoder, probe.frame)
    return torch.cat([
        torch.from_numpy(decoder.run(["low_res_masks"], decoder_inputs(embeddings, prompts, mask_input,
                                                                       probe.original_size))[0])
        for prompts, mask_input in zip(probe.prompts, probe.mask_inputs)])


# ---- checking -----------------------------------------------------------------------------------------------

def check_encoder(path: Path, sam: Sam, probes: Sequence[Probe], expected: Sequence[Tensor], name: object,
                  source: object) -> float:
    """The largest difference of logits that an encoder makes, decoded by PyTorch; a UserError where it is too large."""
    session = open_session(path)
    difference = parity.largest(
        parity.largest_difference(parity.our_logits(sam, probe, run_encoder(session, probe.frame)), logits)
        for probe, logits in zip(probes, expected))
    parity.check_difference(difference, name, source, parity.allowed_difference(expected))
    return difference


@torch.inference_mode()
def check_decoder(path: Path, sam: Sam, probes: Sequence[Probe], embeddings: Sequence[Tensor], name: object,
                  source: object, return_single_mask: bool = False) -> float:
    """The largest difference between a decoder's three outputs and PyTorch's; a UserError where it is too large.

    Every prompt of the `probes`, whose `embeddings` (1, C, h, w) are given, is run: one point and five, boxes, an
    earlier mask, lying and standing images.
    """
    session, side = open_session(path), sam.image_encoder.img_size
    difference, all_logits = 0.0, []
    for probe, embedding in zip(probes, embeddings):
        for prompts, mask_input in zip(probe.prompts, probe.mask_inputs):
            inputs = decoder_inputs(embedding, prompts, mask_input, probe.original_size)
            low_res, iou = decode_all(sam, embedding, prompts, mask_input)
            all_logits.append(low_res)
            if return_single_mask:  # Meta's rule: the single mask from three points on, padding included
                best = 0 if inputs["point_labels"].shape[1] >= 3 else 1 + int(iou[0, 1:].argmax())
                low_res, iou = low_res[:, best:best + 1], iou[:, best:best + 1]
            input_size = ResizeLongestSide.get_preprocess_shape(*probe.original_size, side)
            wanted = (postprocess_masks(low_res, side, input_size, probe.original_size), iou, low_res)
            parts = [parity.largest_difference(torch.from_numpy(found), right)
                     for found, right in zip(session.run(None, inputs), wanted)]
            difference = parity.largest([difference, *parts])
    parity.check_difference(difference, name, source, parity.allowed_difference(all_logits))
    return difference


# ---- what int8 costs ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Int8Cost:
    """How the masks of an int8 file compare with the float model's, over `masks` masks.

    `agreement` is their mean IoU with one another, `float_iou` and `int8_iou` theirs with the ground truth if known.
    """

    masks: int
    agreement: float
    float_iou: float | None = None
    int8_iou: float | None = None

    def __str__(self) -> str:
        words = f"agrees with float at IoU {self.agreement:.4f} over {self.masks} masks"
        if self.float_iou is None or self.int8_iou is None:
            return words
        return (f"IoU {self.int8_iou:.4f} against {self.float_iou:.4f} in float "
                f"({self.int8_iou - self.float_iou:+.4f}), {words}")


def torch_encode(sam: Sam) -> Encode:
    return torch.inference_mode()(sam.image_encoder)


def torch_decode(sam: Sam) -> Decode:
    """A decoder whose mask is the single one."""
    side = sam.image_encoder.img_size

    @torch.inference_mode()
    def run(embeddings: Tensor, prompts: Prompts, mask_input: Tensor | None, size: tuple[int, int]) -> np.ndarray:
        low_res, _ = decode(sam, embeddings, prompts, mask_input)
        input_size = ResizeLongestSide.get_preprocess_shape(*size, side)
        return (postprocess_masks(low_res, side, input_size, size)[0, 0] > MASK_THRESHOLD).numpy()
    return run


def onnx_encode(path: Path) -> Encode:
    session = open_session(path)
    return lambda frame: run_encoder(session, frame)


def onnx_decode(path: Path) -> Decode:
    """A decoder file; its mask is the first that it gives."""
    session = open_session(path)
    return lambda embeddings, prompts, mask_input, size: session.run(
        ["masks"], decoder_inputs(embeddings, prompts, mask_input, size))[0][0, 0] > MASK_THRESHOLD


def parts(files: Iterable[str]) -> list[str]:
    """Which of "decoder" and "encoder" are among the names of files."""
    return [part for part in ("decoder", "encoder") if part in files]


def int8_costs(sam: Sam, files: Mapping[str, Path], samples: Sequence["Sample"] | None = None) -> dict[str, Int8Cost]:
    """What each part's int8 file costs beside a float other part; "both" if there are two.

    `files` are decoder, encoder, decoder_int8 and encoder_int8, as far as exported; `sam` stands in for the rest.
    Measured on `samples` of a training table, or without any on drawn pictures.
    """
    encode, run = torch_encode(sam), torch_decode(sam)
    if "decoder" in files:  # the float file, so that a decoder of the best mask is compared with its like
        run = onnx_decode(files["decoder"])
    int8 = {part: (onnx_encode if part == "encoder" else onnx_decode)(files[f"{part}_int8"]) for part in parts(files)}
    models = {part: (int8.get("encoder") if part == "encoder" else encode, int8[part] if part == "decoder" else run)
              for part in int8}
    if len(int8) == 2:
        models["both"] = (int8["encoder"], int8["decoder"])
    probes = parity.make_probes(sam, AGREEMENT_PROBES) if samples is None else table_probes(samples, sam)
    return compare_models(probes, (encode, run), models)


def compare_models(probes: Iterable[Probe], float_model: tuple[Encode, Decode],
                   int8_models: Mapping[str, tuple[Encode, Decode]]) -> dict[str, Int8Cost]:
    """Each model, an encoder and a decoder of which either may be float, against the float model."""
    models = {"float": float_model, **int8_models}
    agreement, iou = {name: [] for name in models}, {name: [] for name in models}
    for probe in tqdm(probes, desc="measuring int8", unit="image", disable=None):
        embeddings = {id(encode): encode(probe.frame) for encode in {encode for encode, _ in models.values()}}
        for i, (prompts, mask_input) in enumerate(zip(probe.prompts, probe.mask_inputs)):
            masks = {name: run(embeddings[id(encode)], prompts, mask_input, probe.original_size)
                     for name, (encode, run) in models.items()}
            truth = probe.truths[i] if probe.truths else None
            for name, mask in masks.items():
                agreement[name].append(metrics.iou(mask, masks["float"]))
                if truth is not None:
                    iou[name].append(metrics.iou(mask, truth))
    means = {name: float(np.mean(values)) if values else None for name, values in iou.items()}
    return {name: Int8Cost(len(agreement[name]), float(np.mean(agreement[name])), means["float"], means[name])
            for name in int8_models}


def table_probes(samples: Sequence["Sample"], sam: Sam) -> Iterator[Probe]:
    """The samples of a training table as probes, their masks as truths; an image with all its rows at once."""
    from sam_lora.model.batches import PromptedImages, batches, make_loader
    side = sam.image_encoder.img_size
    dataset = PromptedImages(samples, side, len(samples), with_targets=False, with_masks=True)
    for batch in batches(make_loader(dataset, side, 1, 0, pin_memory=False)):
        height, width = batch.input_sizes[0].tolist()
        picture = batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()
        prompts = [batch.prompts[i:i + 1].rows(torch.tensor([0])) for i in range(len(batch.rows))]
        yield Probe(picture, parity.to_frame(picture, sam), batch.original_sizes[0], prompts, [None] * len(prompts),
                    batch.masks)


def read_int8_samples(test_csv: str | Path) -> list["Sample"]:
    """Up to TABLE_ROWS rows of a training table, spread over it, each checked. Raises UserError."""
    from sam_lora.data.samples import check_samples, read_samples
    samples = read_samples(test_csv)
    places = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), TABLE_ROWS)).astype(int))
    chosen = [samples[place] for place in places]
    check_samples(chosen, test_csv, need_labels=True)
    return chosen
