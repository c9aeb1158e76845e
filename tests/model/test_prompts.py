"""Prompts in, masks out: batched decoding against segment_anything one prompt at a time."""

import numpy as np
import pytest
import torch
from conftest import random_sam

from sam_lora.model.encode import preprocess
from sam_lora.model.meta import ResizeLongestSide, SamPredictor
from sam_lora.model.prompts import Prompts, _embed_prompts, decode, decode_all, postprocess_masks

SIDE = 256


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def in_frame(images: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images resized as SamPredictor does and padded: (B, 3, S, S) uint8 and their (h, w)."""
    resized = [ResizeLongestSide(SIDE).apply_image(image) for image in images]
    frames = torch.zeros(len(images), 3, SIDE, SIDE, dtype=torch.uint8)
    for frame, image in zip(frames, resized):
        frame[:, :image.shape[0], :image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    return frames, torch.tensor([image.shape[:2] for image in resized])


def test_logits_and_masks_equal_sam_predictor_s(mini):
    image = picture(90, 143)
    points = np.array([[70.0, 40], [30, 20], [100, 80]])
    predictor = SamPredictor(mini)
    predictor.set_image(image)
    coords = torch.from_numpy(predictor.transform.apply_coords(points, image.shape[:2])).float()[None]
    prompts = Prompts(coords, torch.ones(1, 3, dtype=torch.long))
    frames, input_sizes = in_frame([image])
    with torch.inference_mode():
        embeddings = mini.image_encoder(preprocess(frames, input_sizes, mini))
        for several in (False, True):
            full, iou, low = predictor.predict_torch(coords, prompts.point_labels, multimask_output=several,
                                                     return_logits=True)
            our_low, our_iou = decode(mini, embeddings, prompts, multimask_output=several)
            torch.testing.assert_close(our_low, low, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(our_iou, iou, atol=1e-5, rtol=1e-5)
            our_full = postprocess_masks(our_low, SIDE, input_sizes[0].tolist(), image.shape[:2])
            torch.testing.assert_close(our_full, full, atol=1e-5, rtol=1e-5)
            assert 0.05 < (full > 0).float().mean() < 0.95  # else equality would say little


def mixed_prompts() -> tuple[Prompts, list[Prompts]]:
    """Six rows of every kind, as one batch and one by one: points, background points, boxes, and both."""
    kinds = [([[40.0, 50], [60, 70], [80, 90]], [1, 1, 1], None), ([[100.0, 100]], [1], None),
             ([], [], [20.0, 30, 120, 90]), ([[50.0, 60], [10, 10]], [1, 0], [30.0, 30, 90, 150]),
             ([[60.0, 20], [70, 30], [80, 40]], [1, 0, 1], None), ([], [], [5.0, 5, 50, 80])]
    coords, labels, boxes = torch.zeros(6, 3, 2), torch.full((6, 3), -1), torch.full((6, 4), torch.nan)
    singles = []
    for i, (points, point_labels, box) in enumerate(kinds):
        coords[i, :len(points)] = torch.tensor(points).reshape(-1, 2)
        labels[i, :len(points)] = torch.tensor(point_labels)
        if box:
            boxes[i] = torch.tensor(box)
        singles.append(Prompts(coords[i:i + 1, :len(points)], labels[i:i + 1, :len(points)],
                               torch.tensor([box]) if box else None))
    return Prompts(coords, labels, boxes), singles


@pytest.mark.parametrize("with_masks", [pytest.param(False, id="prompts"), pytest.param(True, id="and mask input")])
def test_a_batch_decodes_as_each_of_its_rows_alone_and_as_predict_torch(mini, with_masks):
    prompts, singles = mixed_prompts()
    generator = torch.Generator().manual_seed(0)
    images = [picture(90, 143), picture(301, 170, seed=1)]
    mask_input = torch.randn(6, 1, 64, 64, generator=generator) if with_masks else None
    image_index = torch.tensor([0, 1, 1, 0, 0, 1])
    frames, input_sizes = in_frame(images)
    predictor = SamPredictor(mini)
    with torch.inference_mode():
        embeddings = mini.image_encoder(preprocess(frames, input_sizes, mini))
        masks, iou = decode_all(mini, embeddings[image_index], prompts, mask_input)
        assert masks.shape == (6, 4, 64, 64) and iou.shape == (6, 4)
        for i, single in enumerate(singles):
            own_mask = None if mask_input is None else mask_input[i:i + 1]
            alone, own_iou = decode_all(mini, embeddings[image_index[i:i + 1]], single, own_mask)
            torch.testing.assert_close(masks[i:i + 1], alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(iou[i:i + 1], own_iou, atol=1e-5, rtol=1e-5)
            predictor.set_image(images[image_index[i]])
            has_points = single.point_labels.shape[1] > 0
            theirs = predictor.predict_torch(single.point_coords if has_points else None,
                                             single.point_labels if has_points else None, single.boxes, own_mask,
                                             multimask_output=True, return_logits=True)
            torch.testing.assert_close(masks[i:i + 1, 1:], theirs[2], atol=2e-5, rtol=1e-4)


def test_prompts_are_cut_to_rows_that_are_alike():
    prompts, _ = mixed_prompts()
    assert not prompts.alike()
    part = prompts[1:4]
    assert part.point_labels.tolist() == prompts.point_labels[1:4].tolist() and part.boxes.shape == (3, 4)
    box_only = prompts.rows(torch.tensor([2, 5]))
    assert box_only.alike() and box_only.point_coords.shape == (2, 0, 2)
    assert box_only.boxes.tolist() == prompts.boxes[[2, 5]].tolist()
    assert prompts.rows(torch.tensor([0, 4])).boxes is None


def test_one_more_click_comes_right_after_a_row_s_own():
    prompts, singles = mixed_prompts()
    coords, labels = torch.arange(12.0).reshape(6, 2), torch.tensor([1, 0, 1, 0, 1, 1])
    more = prompts.with_click(coords, labels)
    assert more.kinds == [(count + 1, boxed) for count, boxed in prompts.kinds]
    for i, single in enumerate(singles):
        count = single.point_labels.shape[1]
        expected = [*single.point_labels[0].tolist(), labels[i].item(), *[-1] * (3 - count)]
        assert more.point_labels[i].tolist() == expected
        assert torch.equal(more.point_coords[i, :count], single.point_coords[0])
        assert torch.equal(more.point_coords[i, count], coords[i])
    again = more.with_click(coords, labels)
    assert again.point_labels.shape == (6, 5) and again.kinds[2] == (2, True)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("labels", "boxed", "masked"), [
    pytest.param([[1, 0, 1], [0, 0, 1]], False, False, id="points"),
    pytest.param([[1], [0]], True, True, id="points, boxes and masks"),
    pytest.param([[], []], True, False, id="boxes"),
    pytest.param([[1.0], [0.0]], False, True, id="labels as floats")])
def test_prompts_are_embedded_as_by_segment_anything(mini, labels, boxed, masked, autocast):
    encoder = mini.prompt_encoder
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(labels)
    coords = torch.rand(2, labels.shape[1], 2, generator=generator) * 255
    boxes = torch.rand(2, 4, generator=generator) * 255 if boxed else None
    masks = torch.randn(2, 1, 64, 64, generator=generator) if masked else None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = _embed_prompts(encoder, Prompts(coords, labels, boxes), masks)
        theirs = encoder(points=(coords, labels) if labels.shape[1] else None, boxes=boxes, masks=masks)
    assert ours[2] is None
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)  # assert_close compares dtypes too
