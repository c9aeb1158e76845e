"""ONNX: what the decoder and the encoder take and give, run by onnxruntime against PyTorch; int8 and what it costs."""

import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import make_crops, random_sam

from sam_lora.errors import UserError
from sam_lora.export import onnx_export, parity
from sam_lora.model.meta import ResizeLongestSide
from sam_lora.model.prompts import Prompts, decode, decode_all, postprocess_masks

SIDE, GRID = 128, 8


@pytest.fixture(scope="module")
def sam():
    return random_sam("vit_mini", SIDE)


@pytest.fixture(scope="module")
def files(sam, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    onnx_export.export_decoder(sam, folder / "decoder.onnx")
    onnx_export.export_decoder(sam, folder / "best.onnx", return_single_mask=True)
    onnx_export.export_encoder(sam, folder / "encoder.onnx")
    for part in ("decoder", "encoder"):
        onnx_export.quantise(folder / f"{part}.onnx", folder / f"{part}_int8.onnx")
    return folder


def prompt(points, labels, box=None) -> Prompts:
    return Prompts(torch.tensor(points, dtype=torch.float32).reshape(1, -1, 2), torch.tensor([labels]).long(),
                   None if box is None else torch.tensor([box], dtype=torch.float32))


ONE = prompt([[60, 40]], [1])
FIVE = prompt([[60, 40], [20, 30], [90, 70], [10, 80], [64, 12]], [1, 0, 1, 1, 0])
BOX = prompt([], [], [20, 15, 100, 70])
BOX_AND_POINT = prompt([[60, 40]], [0], [20, 15, 100, 70])


def test_names_and_axes_are_those_of_meta_s_script(files):
    graph = onnx.load(files / "decoder.onnx").graph

    def shapes(values):
        return {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
                for value in values}
    assert shapes(graph.input) == {
        "image_embeddings": [1, 128, GRID, GRID], "point_coords": [1, "num_points", 2],
        "point_labels": [1, "num_points"], "mask_input": [1, 1, 4 * GRID, 4 * GRID], "has_mask_input": [1],
        "orig_im_size": [2]}
    assert [value.name for value in graph.output] == ["masks", "iou_predictions", "low_res_masks"]
    assert {value.type.tensor_type.elem_type for value in graph.input} == {onnx.TensorProto.FLOAT}
    encoder = onnx.load(files / "encoder.onnx").graph
    assert shapes(encoder.input) == {"x": [1, 3, SIDE, SIDE]}
    assert shapes(encoder.output) == {"image_embeddings": [1, 128, GRID, GRID]}


@pytest.mark.parametrize("mask_input", [pytest.param(False, id="no mask"), pytest.param(True, id="an earlier mask")])
@pytest.mark.parametrize("original_size", [pytest.param((90, 213), id="lying"), pytest.param((301, 77), id="standing"),
                                           pytest.param((50, 51), id="small")])
@pytest.mark.parametrize("prompts", [pytest.param(ONE, id="1 point"), pytest.param(FIVE, id="5 points"),
                                     pytest.param(BOX, id="box"), pytest.param(BOX_AND_POINT, id="box and point")])
def test_the_decoder_is_pytorch_s(sam, files, prompts, original_size, mask_input):
    torch.manual_seed(0)
    embeddings = torch.randn(1, 128, GRID, GRID)
    earlier = torch.randn(1, 1, 4 * GRID, 4 * GRID) * 4 if mask_input else None
    inputs = onnx_export.decoder_inputs(embeddings, prompts, earlier, original_size)
    masks, iou, low_res = onnx_export.open_session(files / "decoder.onnx").run(None, inputs)
    with torch.inference_mode():
        expected_low_res, expected_iou = decode_all(sam, embeddings, prompts, earlier)
        expected = postprocess_masks(expected_low_res, SIDE,
                                     ResizeLongestSide.get_preprocess_shape(*original_size, SIDE), original_size)
    assert masks.shape == (1, 4, *original_size)
    np.testing.assert_allclose(low_res, expected_low_res, atol=1e-4)
    np.testing.assert_allclose(iou, expected_iou, atol=1e-4)
    np.testing.assert_allclose(masks, expected, atol=1e-4)


@pytest.mark.parametrize(("prompts", "single"), [
    pytest.param(ONE, False, id="1 point: the best of three"),
    pytest.param(FIVE, True, id="5 points: the single mask"),
])
def test_the_best_mask_alone(sam, files, prompts, single):
    torch.manual_seed(0)
    embeddings = torch.randn(1, 128, GRID, GRID)
    inputs = onnx_export.decoder_inputs(embeddings, prompts, None, (90, 213))
    masks, iou, low_res = onnx_export.open_session(files / "best.onnx").run(None, inputs)
    with torch.inference_mode():
        wanted, scores = decode(sam, embeddings, prompts, multimask_output=not single)
    best = int(scores[0].argmax())
    assert masks.shape == (1, 1, 90, 213) and iou.shape == (1, 1)
    np.testing.assert_allclose(low_res[0, 0], wanted[0, best], atol=1e-4)


def test_both_checks_pass_a_sound_file(sam, files):
    probes = list(parity.make_probes(sam))
    expected = [parity.our_logits(sam, probe) for probe in probes]
    embeddings = [parity.embed(sam, probe) for probe in probes]
    differences = [
        onnx_export.check_encoder(files / "encoder.onnx", sam, probes, expected, "e", "c"),
        onnx_export.check_decoder(files / "decoder.onnx", sam, probes, embeddings, "d", "c"),
        onnx_export.check_decoder(files / "best.onnx", sam, probes, embeddings, "b", "c", return_single_mask=True)]
    assert all(0 <= difference < 1e-4 for difference in differences)
    sessions = [onnx_export.open_session(files / f"{part}.onnx") for part in ("encoder", "decoder")]
    assert parity.largest_difference(onnx_export.onnx_logits(*sessions, probes[0]), expected[0]) < 1e-4


def test_the_checks_see_other_weights(files):
    other = random_sam("vit_mini", SIDE, seed=5)
    probes = list(parity.make_probes(other, 1))
    expected = [parity.our_logits(other, probe) for probe in probes]
    with pytest.raises(UserError, match=r"encoder.onnx: not kept, its logits differ by .* from those of x\.ckpt"):
        onnx_export.check_encoder(files / "encoder.onnx", other, probes, expected, "encoder.onnx", "x.ckpt")
    with pytest.raises(UserError, match=r"decoder.onnx: not kept"):
        onnx_export.check_decoder(files / "decoder.onnx", other, probes, [torch.zeros(1, 128, GRID, GRID)],
                                  "decoder.onnx", "x.ckpt")


def test_the_check_sees_the_wrapper_that_knows_one_aspect_ratio(sam, tmp_path, monkeypatch):
    """segment-anything 1.0 as it is on PyPI: masks of standing images would be cut wrongly."""
    monkeypatch.setattr(onnx_export, "DecoderForOnnx", onnx_export.SamOnnxModel)
    onnx_export.export_decoder(sam, tmp_path / "decoder.onnx")
    probes = list(parity.make_probes(sam))
    with pytest.raises(UserError, match="not kept"):
        onnx_export.check_decoder(tmp_path / "decoder.onnx", sam, probes,
                                  [parity.embed(sam, probe) for probe in probes], "decoder.onnx", "x.ckpt")


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
    costs = onnx_export.int8_costs(sam, all_files(files))
    assert set(costs) == {"decoder", "encoder", "both"}
    for cost in costs.values():
        assert cost.masks == 5 * onnx_export.AGREEMENT_PROBES and 0.5 < cost.agreement < 1
        assert cost.float_iou is None and "agrees with float at IoU" in str(cost) and "against" not in str(cost)
    alone = onnx_export.int8_costs(sam, {name: path for name, path in all_files(files).items() if "enc" in name})
    assert set(alone) == {"encoder"}


def test_the_cost_of_int8_on_a_table(sam, files, crops):
    samples = onnx_export.read_int8_samples(crops.test_csv)
    costs = onnx_export.int8_costs(sam, all_files(files), samples)
    assert {cost.masks for cost in costs.values()} == {len(samples)} == {6}
    assert len({cost.float_iou for cost in costs.values()}) == 1
    for cost in costs.values():
        assert 0 <= cost.int8_iou <= 1 and f"({cost.int8_iou - cost.float_iou:+.4f})" in str(cost)


def test_the_float_iou_is_that_of_the_inference_script(sam, files, crops, tmp_path):
    from sam_lora.results import evaluation
    samples = onnx_export.read_int8_samples(crops.test_csv)
    cost = onnx_export.int8_costs(sam, all_files(files), samples)["both"]
    results = evaluation.evaluate_table(
        lambda: sam, crops.test_csv, tmp_path / "results", "x", batch_size=2, num_pictures=0, num_workers=0,
        device=torch.device("cpu"), seed=0, overwrite=False)
    assert cost.float_iou == pytest.approx(results["iou"].astype(float).mean(), abs=2e-3)


def test_a_long_table_is_thinned(tmp_path, monkeypatch):
    crops = make_crops(tmp_path)
    monkeypatch.setattr(onnx_export, "TABLE_ROWS", 3)
    rows = onnx_export.read_int8_samples(crops.train_csv)
    assert [row.image.name for row in rows] == [f"photo{number}_0001.png" for number in (0, 2, 5)]


def test_a_table_whose_rows_have_no_label_is_refused(crops):
    lines = crops.test_csv.read_text().splitlines()
    cells = lines[1].split(",", 2)
    crops.test_csv.write_text("\n".join([lines[0], ",".join([cells[0], "", cells[2]]), *lines[2:]]))
    with pytest.raises(UserError, match="1 of 6 rows cannot be used: row 2: no label"):
        onnx_export.read_int8_samples(crops.test_csv)


def test_an_encoder_too_large_for_one_file_is_refused(sam, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 1000)
    with pytest.raises(UserError, match="--onnx_encoder: this encoder takes .* an ONNX file holds at most 2 GiB"):
        onnx_export.export_encoder(sam, tmp_path / "encoder.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_one_line_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="needs the packages onnx and onnxruntime .*run: pip install onnx onnxruntime"):
        onnx_export.require_onnx()
