"""labeling_export.py: files that take what AnyLabeling and X-AnyLabeling feed, at any size of the model frame."""

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import random_sam

from sam_lora.export import labeling_export, parity
from sam_lora.model.meta import ResizeLongestSide
from sam_lora.model.prompts import Prompts, decode_all
from sam_lora.model.sam import build_sam, resize_position_embeddings


def sam_of(side: int):
    """vit_mini with random weights, at `side` pixels."""
    sam = build_sam("vit_mini", side)
    sam.load_state_dict(resize_position_embeddings(random_sam("vit_mini").state_dict(), sam))
    return sam


def feed(photo: np.ndarray) -> tuple[np.ndarray, float]:
    """((684, 1024, 3) float32, scale) as both tools make it of a photo (H, W, 3)."""
    scale = min(1024 / photo.shape[1], 684 / photo.shape[0])
    matrix = np.array([[scale, 0, 0], [0, scale, 0]])
    return cv2.warpAffine(photo, matrix, (1024, 684), flags=cv2.INTER_LINEAR).astype(np.float32), scale


@pytest.fixture
def photo() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (171, 256, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)


def test_the_tools_photo_gives_our_embedding(tmp_path, photo):
    sam, path = sam_of(1024), tmp_path / "encoder.onnx"
    labeling_export.export_encoder(sam, path)
    image, _ = feed(photo)
    session = onnxruntime.InferenceSession(path)
    [put] = session.get_inputs()
    assert (put.name, put.shape) == ("input_image", ["image_height", "image_width", 3])
    [embedding] = session.run(None, {put.name: image})
    with torch.inference_mode():
        expected = sam.image_encoder(parity.to_frame(image.astype(np.uint8), sam))
    np.testing.assert_allclose(embedding, expected, atol=1e-4)


@pytest.mark.parametrize("side", [256, 192])
def test_a_smaller_frame_is_shrunk_inside_the_files(tmp_path, photo, side):
    """Encoder and decoder together, fed as the tools feed them, against this project's own masks of the photo."""
    sam = sam_of(side)
    encoder, decoder = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    labeling_export.export_encoder(sam, encoder)
    labeling_export.export_decoder(sam, decoder)
    image, scale = feed(photo)
    [embedding] = onnxruntime.InferenceSession(encoder).run(None, {"input_image": image})
    clicks = np.array([[60.0, 40.0], [200.0, 90.0]])
    inputs = {"image_embeddings": embedding, "orig_im_size": np.array([684, 1024], np.float32),
              "point_coords": np.concatenate([clicks * scale, [[0, 0]]])[None].astype(np.float32),
              "point_labels": np.array([[1, 0, -1]], np.float32), "has_mask_input": np.zeros(1, np.float32),
              "mask_input": np.zeros((1, 1, 256, 256), np.float32)}
    masks, iou, low_res = onnxruntime.InferenceSession(decoder).run(None, inputs)
    assert masks.shape == (1, 4, 684, 1024)
    wrapper = labeling_export.EncoderForLabeling(sam).eval()
    prompts = Prompts(torch.from_numpy(clicks * scale * side / 1024).float()[None], torch.tensor([[1, 0]]))
    with torch.inference_mode():
        embedded = wrapper(torch.from_numpy(image))
        expected, expected_iou = decode_all(sam, embedded, prompts)
        resized = ResizeLongestSide(side).apply_image(image.astype(np.uint8))
        ours = sam.image_encoder(parity.to_frame(resized, sam))
    np.testing.assert_allclose(low_res, expected, atol=1e-4)
    np.testing.assert_allclose(iou, expected_iou, atol=1e-4)
    assert torch.cosine_similarity(embedded, ours, dim=1).min() > 0.9       # another filter, the same picture


@pytest.mark.parametrize("side", [256, 192])
@pytest.mark.parametrize("best_alone", [False, True])
def test_both_files_pass_their_checks_and_fail_with_another_model(tmp_path, side, best_alone):
    sam, path = sam_of(side), tmp_path / "x.onnx"
    reference = parity.Reference.of(sam, "x.ckpt")
    labeling_export.export_decoder(sam, path, best_alone)
    assert labeling_export.check_labeling_decoder(path, sam, reference, path, best_alone) <= 1e-4
    labeling_export.export_encoder(sam, path)
    assert labeling_export.check_encoder(path, sam, reference, path) <= 1e-4
    torch.nn.init.normal_(sam.image_encoder.neck[0].weight)
    labeling_export.export_encoder(sam, path)
    sam = sam_of(side)
    with pytest.raises(parity.UserError, match="not kept"):
        labeling_export.check_encoder(path, sam, reference, path)
