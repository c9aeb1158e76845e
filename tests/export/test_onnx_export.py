"""ONNX: the inputs and outputs of decoder and encoder, run by onnxruntime against PyTorch."""

import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import random_sam

from sam_lora.errors import UserError
from sam_lora.export import onnx_export, parity
from sam_lora.model.meta import ResizeLongestSide, SamOnnxModel
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
@pytest.mark.parametrize("original_size", [pytest.param((90, 213), id="landscape"),
                                           pytest.param((301, 77), id="portrait"),
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
    reference = parity.Reference.of(sam, "c")
    differences = [onnx_export.check_encoder(files / "encoder.onnx", sam, reference, "e"),
                   onnx_export.check_decoder(files / "decoder.onnx", sam, reference, "d"),
                   onnx_export.check_decoder(files / "best.onnx", sam, reference, "b", return_single_mask=True)]
    assert all(0 <= difference < 1e-4 for difference in differences)
    sessions = [onnx_export.open_session(files / f"{part}.onnx") for part in ("encoder", "decoder")]
    logits = onnx_export.onnx_logits(*sessions, reference.probes[0])
    assert parity.largest_difference(logits, reference.logits[0]) < 1e-4


def test_the_checks_see_other_weights(files):
    other = random_sam("vit_mini", SIDE, seed=5)
    reference = parity.Reference.of(other, "x.ckpt", parity.make_probes(other, 1))
    with pytest.raises(UserError, match=r"encoder.onnx: not kept, .* logits differ by .* from those of x\.ckpt"):
        onnx_export.check_encoder(files / "encoder.onnx", other, reference, "encoder.onnx")
    with pytest.raises(UserError, match=r"decoder.onnx: not kept"):
        onnx_export.check_decoder(files / "decoder.onnx", other, reference, "decoder.onnx")


def test_the_check_sees_the_wrapper_that_knows_one_aspect_ratio(sam, tmp_path, monkeypatch):
    """segment-anything 1.0 as it is on PyPI would cut the masks of portrait images wrongly."""
    monkeypatch.setattr(onnx_export, "DecoderForOnnx", SamOnnxModel)
    onnx_export.export_decoder(sam, tmp_path / "decoder.onnx")
    with pytest.raises(UserError, match="not kept"):
        onnx_export.check_decoder(tmp_path / "decoder.onnx", sam, parity.Reference.of(sam, "x.ckpt"), "decoder.onnx")


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
