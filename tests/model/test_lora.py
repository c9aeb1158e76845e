"""LoRA on SAM: where it goes, what trains, and that merging changes no output."""

import pytest
import torch
from conftest import random_sam

from sam_lora.errors import UserError
from sam_lora.model.lora import LoraSettings, add_lora, check_gradients, merge_lora, trainable_parameters


@pytest.fixture
def sam():
    return random_sam("vit_mini", 128)


def embed(sam, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        return sam.image_encoder(torch.randn(2, 3, 128, 128))


@pytest.mark.parametrize(("targets", "blocks", "layers", "parameters"), [
    pytest.param(("qkv",), None, 6, 6 * 4 * (160 + 480), id="every qkv"),
    pytest.param(("qkv", "proj"), 2, 4, 2 * 4 * (160 + 480 + 160 + 160), id="attention of the last two blocks"),
    pytest.param(("lin1", "lin2"), 1, 2, 4 * 2 * (160 + 640), id="MLP of the last block"),
    pytest.param(("qkv",), 0, 0, 0, id="none"),
])
def test_layers_and_parameters_are_those_asked_for(sam, targets, blocks, layers, parameters):
    adapted = add_lora(sam, LoraSettings(4, 8, targets=targets, blocks=blocks))
    assert len(adapted) == layers
    assert sum(parameter.numel() for parameter in trainable_parameters(sam).values()) == parameters
    assert all("lora_" in name and name.startswith("image_encoder.blocks.") for name in trainable_parameters(sam))


def test_vit_b_gets_the_count_that_its_shape_says():
    from sam_lora.model.sam import build_sam
    with torch.device("meta"):
        sam = build_sam("vit_b")
    assert len(add_lora(sam, LoraSettings(8, 16))) == 12
    assert sum(parameter.numel() for parameter in trainable_parameters(sam).values()) == 294_912


def check_merging(sam, base, names) -> None:
    """Once B is off zero the output differs from `base`; merging keeps it, and brings the first `names` back."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainable_parameters(sam).items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    apart = embed(sam)
    assert (apart - base).abs().max() > 0.01
    merge_lora(sam)
    assert (embed(sam) - apart).abs().max() < 1e-4
    assert sam.state_dict().keys() == names


def test_fresh_lora_changes_nothing_and_merged_lora_equals_unmerged(sam):
    base = embed(sam)
    names = sam.state_dict().keys()
    add_lora(sam, LoraSettings(4, 8, targets=("qkv", "lin2")))
    assert torch.equal(embed(sam), base)
    check_merging(sam, base, names)


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_other_kinds_start_at_the_base_and_merge(sam, kind):
    base = embed(sam)
    names = sam.state_dict().keys()
    add_lora(sam, LoraSettings(4, 8, targets=("qkv", "lin1"), **{kind: True}))
    assert (embed(sam) - base).abs().max() < 1e-4
    assert any("magnitude" in name for name in trainable_parameters(sam)) == (kind == "dora")
    check_merging(sam, base, names)


def test_rslora_is_scaled_by_the_root_of_the_rank(sam):
    from peft.tuners.lora import LoraLayer
    add_lora(sam, LoraSettings(16, 32, rslora=True))
    scales = {layer.scaling["default"] for layer in sam.modules() if isinstance(layer, LoraLayer)}
    assert scales == {32 / 16 ** 0.5}


def test_settings_go_to_a_header_of_plain_types_and_back():
    settings = LoraSettings(8, 16.0, 0.1, ("proj", "qkv"), 3, rslora=True)
    header = settings.to_header()
    assert header == {"rank": 8, "alpha": 16.0, "dropout": 0.1, "targets": ["proj", "qkv"], "blocks": 3,
                      "rslora": True, "dora": False}
    assert LoraSettings.from_header(header) == settings


def test_headers_from_before_rslora_and_dora_are_read():
    header = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["qkv"], "blocks": None}
    assert LoraSettings.from_header(header) == LoraSettings(4, 8, 0.0, ("qkv",), None, False, False)


def test_too_many_blocks_is_an_error(sam):
    with pytest.raises(UserError, match="this SAM has 6 blocks"):
        add_lora(sam, LoraSettings(4, 8, blocks=7))


def test_check_gradients_names_a_tensor_that_gets_none(sam):
    add_lora(sam, LoraSettings(4, 8))
    sam.image_encoder(torch.randn(1, 3, 128, 128)).sum().backward()
    check_gradients(sam)
    first = next(iter(trainable_parameters(sam)))
    sam.get_parameter(first).grad = None
    with pytest.raises(UserError, match=f"1 trainable tensors have no finite gradient, e.g. {first}"):
        check_gradients(sam)
