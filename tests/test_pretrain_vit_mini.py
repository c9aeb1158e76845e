"""The recipe of the small SAM: its pieces on small inputs, and the script end to end for a few steps."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_lora.errors import UserError
from sam_lora.model.prompts import Prompts
from sam_lora.model.sam import build_sam
from sam_lora.model.weights import read_state_dict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pretrain"))
import muon
import pretrain_vit_mini as recipe


@pytest.fixture(scope="module")
def batch():
    return next(iter(recipe.Batches(3, 64, 3, 4, 0.2)))


def run(folder, *more):
    recipe.main(recipe.get_args_parser().parse_args([
        "--sides", "64", "96", "--minutes", "0.01", "0.01", "--images", "2", "2", "--masks", "2", "2", "--num_workers",
        "0", "--num_judged", "3", "--learning_rates", "1e-3", "1e-3", "--device", "cpu",
        "--output_dir", str(folder), "--output", str(folder / "sam.pth"), *more]))


def test_a_few_steps_write_weights_state_and_curves_and_can_go_on(tmp_path):
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "curve.csv", "sam.pth"}
    state = read_state_dict(tmp_path / "sam.pth")
    sam = build_sam("vit_mini")
    assert state.keys() == sam.state_dict().keys()
    sam.load_state_dict(state)
    before = torch.load(tmp_path / "state.pt", weights_only=True)["state"]
    assert before["step"] >= 2
    run(tmp_path, "--resume", "--minutes", "0.01", "0.03")
    after = torch.load(tmp_path / "state.pt", weights_only=True)["state"]
    assert after["step"] > before["step"]
    assert after["stage"] == 1
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["side"] for row in rows] == ["64", "96", "96"]


def test_going_on_from_nothing_says_so(tmp_path):
    with pytest.raises(UserError, match=r"state\.pt: no such file"):
        run(tmp_path, "--resume")


def test_stages_of_different_counts_are_refused(tmp_path):
    with pytest.raises(UserError, match="one value per stage"):
        run(tmp_path, "--minutes", "1")


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    for wide in (matrices, matrices.transpose(1, 2)):
        values = torch.linalg.svdvals(muon.orthogonalise(wide))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_muon_lowers_a_least_squares_loss():
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(8, 5, requires_grad=True)
    inputs, wanted = torch.randn(64, 8, generator=generator), torch.randn(64, 5, generator=generator)
    optimiser = muon.Muon([weight], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (inputs @ weight - wanted).square().mean()
        loss.backward()
        optimiser.step()
        weight.grad = None
        losses.append(loss.item())
    best = (inputs @ torch.linalg.lstsq(inputs, wanted).solution - wanted).square().mean().item()
    assert losses[0] > best + 0.05
    assert losses[-1] < best + 0.02


def test_every_weight_belongs_to_one_optimiser():
    sam = build_sam("vit_mini", 64)
    owned = [id(parameter) for optimiser in recipe.make_optimisers(sam, 0.05)
             for group in optimiser.param_groups for parameter in group["params"]]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(parameter) for parameter in sam.parameters()}


def test_the_patch_embedding_starts_with_channels_of_one_size(batch):
    sam = build_sam("vit_mini", 64)
    big = next(iter(recipe.Batches(4, 64, 24, 1, 0.0)))
    recipe.initialise(sam, big)
    from sam_lora.model.encode import preprocess
    features = sam.image_encoder.patch_embed(preprocess(big["images"], big["input_sizes"], sam)).flatten(0, 2)
    spread = features[features.abs().sum(dim=1) > 0].std(dim=0)
    assert spread.max() < 0.8
    patch = sam.image_encoder.patch_embed.proj.weight
    raw = spread / patch.flatten(1).norm(dim=1) * recipe.cosine_filters(*patch.shape[::2][:2]).flatten(1).norm(dim=1)
    assert spread.max() / spread.min() < 0.1 * raw.max() / raw.min()


def test_cosine_filters_are_orthogonal():
    filters = recipe.cosine_filters(160, 16).flatten(1)
    gram = filters @ filters.T
    assert torch.allclose(gram, torch.eye(160) * gram[0, 0], atol=1e-4)


def test_prompts_keep_the_pairing_of_points_and_masks(batch):
    rng = np.random.default_rng(0)
    for _ in range(30):
        prompts, alone = recipe.draw_prompts(rng, batch)
        counts = (prompts.point_labels >= 0).sum(dim=1)
        boxed = ~prompts.boxes.isnan().any(dim=1)
        assert (counts + boxed > 0).all()
        assert (alone == ((counts == 1) & ~boxed)).all()
        for row in range(len(counts)):
            for x, y, label in zip(*prompts.point_coords[row].T.int().tolist(), prompts.point_labels[row].tolist()):
                if label >= 0:
                    assert batch["masks"][row, y // 2, x // 2] == label


def test_a_correction_clicks_where_the_prediction_is_wrong(batch):
    masks = batch["masks"]
    count = len(masks)
    prompts = Prompts(batch["positive"][:, :2], torch.ones(count, 2), batch["boxes"])
    logits = torch.where(torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)) < 0.9, 1.0, -1.0)
    better = recipe.correction(logits, masks, prompts)
    assert better.point_labels.shape == (count, 3)
    x, y = (better.point_coords[:, 2] // 2).long().T
    rows = torch.arange(count)
    assert ((logits[rows, y, x] > 0) != (masks[rows, y, x] > 0)).all()
    assert (better.point_labels[:, 2] == masks[rows, y, x]).all()


@pytest.mark.parametrize("sharpness", [0.0, 1.0])
def test_the_loss_is_lowest_for_the_right_mask(sharpness):
    masks = torch.zeros(1, 12, 20, dtype=torch.uint8)
    masks[0, 3:8, 5:15] = 1
    signs = masks[:, None].float() * 2 - 1
    logits = torch.cat([signs * 8, -torch.ones_like(signs) * 8, signs.roll(4, 3) * 8], dim=1)
    losses, iou = recipe.mask_losses(logits, masks, sharpness)
    assert losses[0].argmin() == 0
    assert losses[0, 0] < 0.05
    assert iou[0].tolist() == pytest.approx([1, 0, 6 / 14])


def test_training_gradients_reach_every_part(batch):
    sam = build_sam("vit_mini", 64).train()
    recipe.initialise(sam, batch)
    rng = np.random.default_rng(2)
    for _ in range(8):  # kinds of prompts are drawn at random: enough draws to meet them all
        loss, _ = recipe.training_loss(sam, batch, rng)
        loss.backward()
    without = {name for name, parameter in sam.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    ambiguous = {name for name in without if any(f"hypernetworks_mlps.{i}." in name for i in (1, 2, 3))}
    assert len(ambiguous) <= 12  # of three times six: the best of three masks learns, the others not
    assert without - ambiguous == set()


def test_the_learning_rate_warms_up_and_falls():
    rates = [recipe.learning_rate(1e-3, 0.0, step, 10, progress)
             for step, progress in ((0, 0), (9, 0), (99, 0.5), (999, 1))]
    assert rates == pytest.approx([1e-4, 1e-3, 5e-4, 0])
