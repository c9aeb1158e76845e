"""The weights that a small SAM starts from."""

import sys
from pathlib import Path

import torch

from sam_lora.model.encode import preprocess
from sam_lora.model.sam import build_sam

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pretrain"))
from scene_batches import Batches
from starting_weights import cosine_filters, initialise


def test_the_patch_embedding_starts_with_channels_of_one_size():
    sam = build_sam("vit_mini", 64)
    batch = next(iter(Batches(4, 64, 24, 1, 0.0)))
    initialise(sam, batch)
    features = sam.image_encoder.patch_embed(preprocess(batch["images"], batch["input_sizes"], sam)).flatten(0, 2)
    spread = features[features.abs().sum(dim=1) > 0].std(dim=0)
    assert spread.max() < 0.8
    patch = sam.image_encoder.patch_embed.proj.weight
    raw = spread / patch.flatten(1).norm(dim=1) * cosine_filters(*patch.shape[::2][:2]).flatten(1).norm(dim=1)
    assert spread.max() / spread.min() < 0.1 * raw.max() / raw.min()


def test_cosine_filters_are_orthogonal():
    filters = cosine_filters(160, 16).flatten(1)
    gram = filters @ filters.T
    assert torch.allclose(gram, torch.eye(160) * gram[0, 0], atol=1e-4)
