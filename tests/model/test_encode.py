"""Images into the encoder: the same tensor as SamPredictor's."""

import numpy as np
import torch
from conftest import random_sam

from sam_lora.model.encode import frame_mask, preprocess
from sam_lora.model.meta import ResizeLongestSide, SamPredictor

SIDE = 256


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def in_frame(images: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images resized as SamPredictor does and padded: (B, 3, S, S) uint8 and their (h, w)."""
    resized = [ResizeLongestSide(SIDE).apply_image(image) for image in images]
    frames = torch.zeros(len(images), 3, SIDE, SIDE, dtype=torch.uint8)
    for frame, image in zip(frames, resized):
        frame[:, :image.shape[0], :image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    return frames, torch.tensor([image.shape[:2] for image in resized])


def test_preprocess_equals_the_tensor_that_set_image_gives_the_encoder():
    mini = random_sam("vit_mini")
    images = [picture(90, 143), picture(301, 170, seed=1)]
    ours = preprocess(*in_frame(images), mini)
    seen = []
    hook = mini.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for image in images:
            SamPredictor(mini).set_image(image)
    finally:
        hook.remove()
    assert torch.equal(ours, torch.cat(seen))


def test_frame_mask_is_true_on_the_picture():
    mask = frame_mask(torch.tensor([[2, 5], [4, 3]]), 5)
    assert mask.shape == (2, 1, 5, 5) and mask.sum(dim=(1, 2, 3)).tolist() == [10, 12]
    assert mask[0, 0, 1, 4] and not mask[0, 0, 2, 0] and mask[1, 0, 3, 2] and not mask[1, 0, 0, 3]
