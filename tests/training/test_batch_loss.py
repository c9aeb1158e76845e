"""The loss of a batch: its rounds of corrective clicks against the same rounds by hand, through segment_anything."""

from dataclasses import replace

import pytest
import torch
from conftest import random_sam

from sam_lora.data.samples import read_samples
from sam_lora.model.augment import Augmentation
from sam_lora.model.batches import Batch, PromptedImages
from sam_lora.model.encode import frame_mask, image_embeddings
from sam_lora.model.prompt_mix import PromptMix
from sam_lora.training.corrections import corrective_clicks
from sam_lora.training.distributed import Ranks
from sam_lora.training.loading import Loader
from sam_lora.training.losses import batch_loss, bce_iou, frame_iou

SIDE, ROUNDS = 128, 3


@pytest.fixture
def sam():
    return random_sam("vit_mini", SIDE)


@pytest.fixture
def batch(crops) -> Batch:
    augment = Augmentation(1, prompts=PromptMix(points=1, box=1, box_and_points=1), correction_rounds=ROUNDS)
    images = PromptedImages(read_samples(crops.train_csv), SIDE, 8, True, False, augment=augment)
    loader = Loader(images, batch_size=4, num_workers=0, pin_memory=False, ranks=Ranks(), seed=1)
    batch, _ = next(iter(loader.epoch(1, 1)))
    assert len(set(batch.prompts.kinds)) > 1
    return batch


def by_hand(sam, batch: Batch, row: int, multimask_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one row and the IoU of its first mask, with segment_anything's own prompt encoder and decoder."""
    from torch.nn.functional import interpolate
    embedding = image_embeddings(sam, batch)[batch.image_index[row]][None]
    target = batch.targets[row][None].float() / 255
    valid = frame_mask(batch.input_sizes, SIDE)[batch.image_index[row], 0][None].float()
    prompts = batch.prompts.rows(torch.tensor([row]))
    coords, labels, earlier, single, losses, ious = prompts.point_coords, prompts.point_labels, None, None, [], []
    for number in range(1 + ROUNDS):
        if number:
            click, label = corrective_clicks(single, target, valid, batch.correction_draws[row, number - 1:number])
            coords, labels = torch.cat([coords, click[None]], dim=1), torch.cat([labels, label[None]], dim=1)
        sparse, dense = sam.prompt_encoder(points=(coords, labels) if labels.shape[1] else None, boxes=prompts.boxes,
                                           masks=earlier)
        low_res, predicted = sam.mask_decoder.predict_masks(
            image_embeddings=embedding, image_pe=sam.prompt_encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense)
        earlier = low_res[:, :1].detach()
        single = interpolate(low_res[:, :1], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
        ious.append(frame_iou(single, target, valid))
        losses.append(bce_iou(single, target, valid) + (predicted[:, 0] - ious[-1]) ** 2)
        if not number:
            small = [interpolate(x[None], low_res.shape[-2:], mode="area")[0].expand(3, -1, -1)
                     for x in (target, valid)]
            three_ious = frame_iou(low_res[0, 1:], *small)
            three = bce_iou(low_res[0, 1:], *small).min() + ((predicted[0, 1:] - three_ious) ** 2).mean()
    return losses[0][0] + torch.stack(losses[1:]).mean() + multimask_weight * three, ious[0][0]


def test_every_round_counts_with_earlier_clicks_and_the_mask_so_far(sam, batch):
    rows = [by_hand(sam, batch, row, 0.25) for row in range(len(batch.rows))]
    loss, iou = batch_loss(sam, batch, bce_iou, 0.25)
    torch.testing.assert_close(loss, torch.stack([row[0] for row in rows]).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(iou, torch.stack([row[1] for row in rows]).mean())
    first, _ = batch_loss(sam, replace(batch, correction_draws=None), bce_iou, 0.25)
    assert abs(first.item() - loss.item()) > 1e-3    # else the rounds would say nothing


def test_the_encoder_runs_once_and_learns_from_every_round(sam, batch):
    calls = []
    sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    weight = sam.image_encoder.blocks[0].attn.qkv.weight
    gradients = []
    for draws in (None, batch.correction_draws):
        batch_loss(sam, replace(batch, correction_draws=draws), bce_iou, 0.0)[0].backward()
        gradients.append(weight.grad.clone())
        weight.grad = None
    assert len(calls) == 2
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm() > 0
