"""The folder for transformers: every key, every size, the same logits, the same pictures."""

import re
import sys

import numpy as np
import pytest
import torch
from conftest import random_sam

from sam_lora.errors import UserError
from sam_lora.export import hf_export, parity
from sam_lora.model.meta import ResizeLongestSide
from sam_lora.model.prompts import postprocess_masks
from sam_lora.model.sam import build_sam, load_sam
from sam_lora.sam_types import SAM_TYPES


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mini_weights):
    folder = tmp_path_factory.mktemp("hf")
    sam, _ = load_sam("vit_mini", mini_weights)
    hf_export.save_hf(sam, "vit_mini", folder)
    return folder, sam


@pytest.mark.parametrize("model_type", list(SAM_TYPES))
def test_every_key_and_shape_of_every_type_is_hf_s(model_type):
    from transformers import SamModel
    with torch.device("meta"):
        ours = hf_export.hf_state(build_sam(model_type).state_dict())
        theirs = SamModel(hf_export.hf_config(model_type, SAM_TYPES[model_type].image_size)).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()}


def test_the_folder_loads_strictly_and_computes_the_same(saved):
    from transformers import SamModel
    folder, sam = saved
    names = {path.name for path in folder.iterdir()}
    optional = {"processor_config.json"}  # transformers before 5 writes none
    assert names - optional == {"config.json", "model.safetensors", "preprocessor_config.json"}
    model, info = SamModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    for probe in parity.make_probes(sam, 2):
        difference = parity.largest_difference(hf_export.hf_logits(model.eval(), probe), parity.our_logits(sam, probe))
        assert difference < 1e-4


def test_the_processor_prepares_and_returns_what_sam_does(saved):
    """A photo through SamProcessor and SamModel against our own path: nearly the same mask at the photo's size."""
    from transformers import SamModel, SamProcessor

    folder, sam = saved
    processor, model = SamProcessor.from_pretrained(folder), SamModel.from_pretrained(folder).eval()
    probe = next(parity.make_probes(sam, 1))
    height, width = 150, 270
    ys, xs = np.mgrid[:height, :width]
    photo = np.stack([xs % 256, ys, (xs + ys) // 2], axis=2).astype(np.uint8)
    inputs = processor(images=photo, input_points=[[[100, 60], [140, 80]]], return_tensors="pt")
    assert inputs["pixel_values"].shape == probe.frame.shape
    resize = ResizeLongestSide(256)
    frame = parity.to_frame(resize.apply_image(photo), sam)
    assert float((inputs["pixel_values"].float() - frame).abs().mean()) < 0.02
    coords = resize.apply_coords(np.array([[100.0, 60.0], [140.0, 80.0]]), (height, width))
    np.testing.assert_allclose(inputs["input_points"][0, 0].numpy(), coords)
    with torch.inference_mode():
        outputs = model(**{name: inputs[name].float() if inputs[name].is_floating_point() else inputs[name]
                           for name in ("pixel_values", "input_points")}, multimask_output=False)
    masks = processor.image_processor.post_process_masks(
        outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    ours = postprocess_masks(outputs.pred_masks[:, 0], 256, inputs["reshaped_input_sizes"][0].tolist(),
                             (height, width)) > 0
    assert masks[0].shape == (1, 1, height, width) and torch.equal(masks[0][0], ours[0])


@pytest.mark.parametrize(("model_type", "image_size"), [
    pytest.param("vit_mini", 128, id="another image size"),
    pytest.param("vit_b", 256, id="windowed blocks, here larger than the grid"),
])
def test_other_shapes(tmp_path, model_type, image_size):
    sam = random_sam(model_type, image_size)
    hf_export.save_hf(sam, model_type, tmp_path)
    model = hf_export.load_hf(tmp_path)
    probe = next(parity.make_probes(sam, 1))
    assert parity.largest_difference(hf_export.hf_logits(model, probe), parity.our_logits(sam, probe)) < 1e-4


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path, saved):
    from safetensors.torch import load_file, save_file
    folder, _ = saved
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["mask_decoder.left_over"] = tensors.pop("mask_decoder.iou_token.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: not kept, because transformers cannot load all of it")):
        hf_export.load_hf(tmp_path)


def test_other_weights_are_not_kept(saved):
    folder, _ = saved
    other = random_sam("vit_mini", seed=5)
    reference = parity.Reference.of(other, "x.ckpt", parity.make_probes(other, 1))
    with pytest.raises(UserError, match="sam_hf: not kept, because its logits differ"):
        hf_export.check_hf(folder, reference, "sam_hf")


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="--hf needs the package transformers .*pip install transformers"):
        hf_export.require_transformers()
