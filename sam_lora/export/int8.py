"""ONNX files with 8-bit weights, and what they cost in IoU or agreement."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sam_lora.data.samples import Sample
from sam_lora.export import parity
from sam_lora.export.onnx_export import decoder_inputs, open_session, run_encoder
from sam_lora.export.parity import Probe
from sam_lora.export.table_iou import Decode, Encode, table_probes, torch_decode, torch_encode
from sam_lora.model.meta import Sam
from sam_lora.model.prompts import MASK_THRESHOLD
from sam_lora.results import metrics

AGREEMENT_PROBES = 4  # images drawn without a table


def quantise(path: Path, int8_path: Path) -> None:
    """Write an ONNX file with the weights of its linear layers as int8, scaled per output; convolutions stay float.

    Activations are quantised at run time (onnxruntime's dynamic quantisation), so no calibration data is needed. The
    matrix that multiplies point coordinates stays float: rounding it would move every click.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    graph = onnx.load(path, load_external_data=False).graph
    of_coordinates = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.dims[0] == 2}
    excluded = [node.name for node in graph.node if of_coordinates & set(node.input)]
    logging.disable(logging.WARNING)  # onnxruntime advises preprocessing, which does nothing for dynamic quantisation
    try:
        # unsigned weights: signed ones overflow 16 bits on processors without VNNI
        quantize_dynamic(path, int8_path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
                         weight_type=QuantType.QUInt8, nodes_to_exclude=excluded)
    finally:
        logging.disable(logging.NOTSET)


# ---- the cost -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Int8Cost:
    """How an int8 model compares with the float model, over `masks` masks.

    `agreement` is the mean IoU between their masks; `float_iou` and `int8_iou` compare them with the ground truth,
    if known.
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


def onnx_encode(path: Path) -> Encode:
    session = open_session(path)
    return lambda frame: run_encoder(session, frame)


def onnx_decode(path: Path) -> Decode:
    """A decoder file, of which the first mask is taken."""
    session = open_session(path)
    return lambda embeddings, prompts, mask_input, size: session.run(
        ["masks"], decoder_inputs(embeddings, prompts, mask_input, size))[0][0, 0] > MASK_THRESHOLD


def parts(files: Iterable[str]) -> list[str]:
    """Those of "decoder" and "encoder" that are among the given names."""
    return [part for part in ("decoder", "encoder") if part in files]


def int8_costs(sam: Sam, files: Mapping[str, Path], samples: Sequence[Sample] | None = None) -> dict[str, Int8Cost]:
    """What each part's int8 file costs while the other part stays float; also "both" if there are two.

    `files` may hold decoder, encoder, decoder_int8 and encoder_int8; `sam` computes the parts that were not exported.
    Measured on the `samples` of a training table or, without any, on drawn images.
    """
    encode, run = torch_encode(sam), torch_decode(sam)
    if "decoder" in files:  # the float file, so that decoders of the best mask alone are compared with each other
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
    """Each int8 model, a pair of encoder and decoder of which one may be float, against the float model."""
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
