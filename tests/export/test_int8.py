"""ONNX files with 8-bit weights, and what they cost."""

import onnx
import pytest
import torch
from conftest import random_sam

from sam_lora.export import int8, onnx_export, table_iou
from sam_lora.results import evaluation
from sam_lora.results.requests import Candidate, Destination, Runtime, SampleTable

SIDE = 128


@pytest.fixture(scope="module")
def sam():
    return random_sam("vit_mini", SIDE)


@pytest.fixture(scope="module")
def files(sam, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    onnx_export.export_decoder(sam, folder / "decoder.onnx")
    onnx_export.export_encoder(sam, folder / "encoder.onnx")
    for part in ("decoder", "encoder"):
        int8.quantise(folder / f"{part}.onnx", folder / f"{part}_int8.onnx")
    return folder


def test_int8_weights_are_a_third_and_leave_the_clicks_alone(files):
    for part in ("decoder", "encoder"):
        small, large = ((files / f"{part}{end}.onnx").stat().st_size for end in ("_int8", ""))
        assert small < 0.5 * large
    kinds = {node.op_type for node in onnx.load(files / "encoder_int8.onnx").graph.node}
    assert {"MatMulInteger", "Conv"} <= kinds and "ConvInteger" not in kinds
    weights = {tensor.name: tensor for tensor in onnx.load(files / "decoder_int8.onnx").graph.initializer}
    assert any(list(tensor.dims) == [2, 64] and tensor.data_type == onnx.TensorProto.FLOAT
               for tensor in weights.values())


def all_files(files):
    return {name: files / f"{name}.onnx" for name in ("decoder", "encoder", "decoder_int8", "encoder_int8")}


def test_the_cost_of_int8_without_a_table(sam, files):
    costs = int8.int8_costs(sam, all_files(files))
    assert set(costs) == {"decoder", "encoder", "both"}
    for cost in costs.values():
        assert cost.masks == 5 * int8.AGREEMENT_PROBES and 0.5 < cost.agreement < 1
        assert cost.float_iou is None and "agrees with float at IoU" in str(cost) and "against" not in str(cost)
    alone = int8.int8_costs(sam, {name: path for name, path in all_files(files).items() if "enc" in name})
    assert set(alone) == {"encoder"}


def test_the_cost_of_int8_on_a_table(sam, files, crops):
    samples = table_iou.read_rows(crops.test_csv)
    costs = int8.int8_costs(sam, all_files(files), samples)
    assert {cost.masks for cost in costs.values()} == {len(samples)} == {6}
    assert len({cost.float_iou for cost in costs.values()}) == 1
    for cost in costs.values():
        assert 0 <= cost.int8_iou <= 1 and f"({cost.int8_iou - cost.float_iou:+.4f})" in str(cost)


def test_the_float_iou_is_that_of_the_inference_script(sam, files, crops, tmp_path):
    samples = table_iou.read_rows(crops.test_csv)
    cost = int8.int8_costs(sam, all_files(files), samples)["both"]
    results = evaluation.evaluate_table(
        Candidate(lambda _: sam, tuned=False), SampleTable(str(crops.test_csv)),
        Destination(tmp_path / "results", num_pictures=0), Runtime(torch.device("cpu"), batch_size=2))
    assert cost.float_iou == pytest.approx(results["iou"].astype(float).mean(), abs=2e-3)
    assert table_iou.mean_iou(sam, samples) == pytest.approx(cost.float_iou, abs=1e-5)
