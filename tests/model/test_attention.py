"""The encoder's fast blocks against segment_anything's: outputs and gradients, with and without LoRA, on any device."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import random_sam
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from sam_lora.model import attention, attention_cpu
from sam_lora.model.attention import FASTEST, WAYS, FastBlock, FewKeysAttention, speed_up
from sam_lora.model.lora import LoraSettings, add_lora, merge_lora
from sam_lora.model.meta import Block
from sam_lora.model.sam import checkpoint_blocks
from sam_lora.sam_types import SAM_TYPES

KINDS = ("windows", "global")
GLOBAL, WINDOWED = 0, 5   # sides of windows; the grid below is 8 x 8: windows reach over its edge
GRID = 8


def block(window_size: int, table_grid: int = GRID, qkv_bias: bool = True, seed: int = 0) -> Block:
    """A block of 3 heads whose every parameter is random; `table_grid` other than GRID: tables get interpolated."""
    torch.manual_seed(seed)
    made = Block(24, 3, qkv_bias=qkv_bias, use_rel_pos=True, window_size=window_size,
                 input_size=(table_grid, table_grid))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


def fast(stock: nn.Module) -> nn.Module:
    made = copy.deepcopy(stock)
    made.__class__ = FastBlock
    return made


def outputs_and_gradients(model: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output for x, and the gradients of x and of every parameter that has one."""
    x = x.clone().requires_grad_()
    out = model(x)
    (out.float() * weight).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {"output": out.detach(), "x": x.grad, **found}


def differences(found: dict, expected: dict) -> dict[str, float]:
    """Each tensor's largest difference, relative to its largest value."""
    assert found.keys() == expected.keys()
    return {name: float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-6))
            for name in expected}


@pytest.fixture(params=[pytest.param((2**20, 2**22), id="whole maps, kept"), pytest.param((2**20, 0), id="whole maps"),
                        pytest.param((1500, 0), id="some maps"), pytest.param((448, 2**22), id="parts of a map")])
def sizes(request, monkeypatch):
    """Chunks that hold everything, a few maps, or seven queries of one map; probabilities kept or recomputed."""
    monkeypatch.setattr(attention_cpu, "CHUNK", request.param[0])
    monkeypatch.setattr(attention_cpu, "KEPT", request.param[1])


def take(way: str, monkeypatch) -> None:
    for key in FASTEST:
        monkeypatch.setitem(FASTEST, key, way)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "flexible"])  # not with gradients on a CPU
@pytest.mark.parametrize(("window_size", "table_grid"), [
    pytest.param(GLOBAL, GRID, id="global"), pytest.param(GLOBAL, 13, id="global, tables interpolated"),
    pytest.param(WINDOWED, GRID, id="windows over the edge"), pytest.param(4, GRID, id="windows that fit")])
def test_a_block_equals_segment_anything_s(way, window_size, table_grid, sizes, monkeypatch):
    take(way, monkeypatch)
    stock = block(window_size, table_grid)
    x, weight = torch.randn(2, GRID, GRID, 24), torch.randn(2, GRID, GRID, 24)
    expected = outputs_and_gradients(stock, x, weight)
    assert expected["attn.rel_pos_h"].abs().max() > 1e-3 and expected["attn.qkv.bias"].abs().max() > 1e-3
    found = outputs_and_gradients(fast(stock), x, weight)
    assert max(differences(found, expected).values()) < 1e-5


@pytest.mark.filterwarnings("ignore")  # FlexAttention's own, uncompiled
@pytest.mark.parametrize("window_size", [GLOBAL, WINDOWED])
def test_flex_attention_adds_the_same_positions(window_size, monkeypatch):
    """Forward only, and uncompiled: on a CPU it has no gradients."""
    take("flexible", monkeypatch)
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_attention)
    stock = block(window_size)
    x = torch.randn(2, GRID, GRID, 24)
    with torch.no_grad():
        torch.testing.assert_close(fast(stock)(x), stock(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("device", "dtype", "in_windows"), [
    (device, dtype, in_windows) for device in ("hopper", "cuda", "cpu", "meta") for in_windows in (True, False)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)])
def test_the_table_says_which_way_is_taken(device, dtype, in_windows, monkeypatch):
    key = device, KINDS[not in_windows], dtype != torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=8 + (device == "hopper")))
    if device != "meta":    # any device that the table does not know
        assert key in FASTEST
        monkeypatch.setitem(FASTEST, key, "biased")
    with FakeTensorMode(allow_non_fake_inputs=True):
        qkv = torch.empty(3, 2, 4, 8, device="cuda" if device == "hopper" else device, dtype=dtype)
        assert attention.fastest(qkv, in_windows) is WAYS["folded" if device == "meta" else "biased"]


def test_a_grid_that_is_not_square(sizes):
    stock = block(GLOBAL)
    x, weight = torch.randn(2, 6, 11, 24), torch.randn(2, 6, 11, 24)
    assert max(differences(outputs_and_gradients(fast(stock), x, weight),
                           outputs_and_gradients(stock, x, weight)).values()) < 1e-5


@pytest.mark.parametrize("window_size", [GLOBAL, WINDOWED])
def test_a_block_without_a_bias(window_size):
    stock = block(window_size, qkv_bias=False)
    x, weight = torch.randn(1, GRID, GRID, 24), torch.randn(1, GRID, GRID, 24)
    assert max(differences(outputs_and_gradients(fast(stock), x, weight),
                           outputs_and_gradients(stock, x, weight)).values()) < 1e-5


def prepared(model_type: str, image_size: int, targets: list[str], dropout: float = 0.0):
    """A stock SAM with LoRA whose both halves are random, and a fast copy of it."""
    sam = random_sam(model_type, image_size)
    add_lora(sam, LoraSettings(4, 8, dropout, tuple(targets)))
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    other = copy.deepcopy(sam)
    speed_up(other)
    return sam, other


def narrow_vit_b(monkeypatch) -> None:
    """vit_b's windows and global blocks, at a width and depth that take no time."""
    kind = SAM_TYPES["vit_b"]
    narrow = {**vars(kind), "embed_dim": 48, "depth": 3, "num_heads": 3, "global_attn_indexes": (1,),
              "prompt_embed_dim": 32, "decoder_mlp_dim": 32, "iou_head_hidden_dim": 32}
    monkeypatch.setitem(SAM_TYPES, "vit_b", type(kind)(**narrow))


@pytest.mark.parametrize(("model_type", "image_size"), [
    pytest.param("vit_mini", 160, id="global"), pytest.param("vit_b", 320, id="windows over the edge")])
def test_an_encoder_with_lora_trains_as_the_stock_one(model_type, image_size, monkeypatch):
    narrow_vit_b(monkeypatch)
    stock, quick = prepared(model_type, image_size, ["qkv", "proj", "lin1", "lin2"])
    x = torch.randn(2, 3, image_size, image_size)
    weight = torch.randn(2, stock.prompt_encoder.embed_dim, image_size // 16, image_size // 16)
    expected = outputs_and_gradients(stock.image_encoder, x, weight)
    assert len(expected) > 20 and all(gradient.abs().max() > 0 for gradient in expected.values())
    assert max(differences(outputs_and_gradients(quick.image_encoder, x, weight), expected).values()) < 1e-5


@pytest.mark.parametrize("model_type", ["vit_mini", "vit_b"])
def test_bfloat16_is_no_further_from_float32_than_the_stock_encoder(model_type, monkeypatch):
    """Relative error, averaged over all tensors, with some room for the linear layers."""
    narrow_vit_b(monkeypatch)
    stock, quick = prepared(model_type, 320, ["qkv"])
    x, weight = torch.randn(2, 3, 320, 320), torch.randn(2, stock.prompt_encoder.embed_dim, 20, 20)
    exact = outputs_and_gradients(stock.image_encoder, x, weight)
    halves = []
    for sam in (stock, quick):
        sam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            halves.append(outputs_and_gradients(sam.image_encoder, x, weight))
    assert halves[1]["output"].dtype == halves[0]["output"].dtype
    theirs, ours = (torch.stack([(half[name].float() - exact[name]).norm() / exact[name].norm() for name in exact])
                    for half in halves)
    assert theirs.mean() > 1e-4 and ours.mean() < 1.25 * theirs.mean()


def test_speed_up_twice_changes_classes_once_and_no_names():
    sam = random_sam("vit_mini", 128)
    names = list(sam.state_dict())
    speed_up(sam)
    speed_up(sam)
    assert {type(part) for part in sam.image_encoder.blocks} == {FastBlock} and list(sam.state_dict()) == names
    assert {type(part) for part in random_sam("vit_mini", 128).image_encoder.blocks} == {Block}


@pytest.mark.parametrize("tokens", [7, 200])
def test_the_decoder_s_attention_for_few_keys(tokens):
    torch.manual_seed(0)
    stock = random_sam("vit_mini", 128).mask_decoder.transformer.layers[0].cross_attn_image_to_token
    quick = copy.deepcopy(stock)
    quick.__class__ = FewKeysAttention
    q, k, v, weight = (torch.randn(2, count, 128) for count in (64, tokens, tokens, 64))
    inputs = torch.cat([q, k, v], dim=1)

    def run(layer):
        class Split(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                return self.layer(*x.split([64, tokens, tokens], dim=1))
        return outputs_and_gradients(Split(), inputs, weight)

    expected, found = run(stock), run(quick)
    noise = [name for name in expected if name.endswith("k_proj.bias")]  # moves all logits alike: its gradient is 0
    assert max(value for name, value in differences(found, expected).items() if name not in noise) < 1e-5


def test_merging_lora_in_a_fast_encoder_changes_no_output():
    _, quick = prepared("vit_mini", 128, ["qkv", "lin1"])
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        apart = quick.image_encoder(x)
        merge_lora(quick)
        assert (quick.image_encoder(x) - apart).abs().max() < 1e-4
    assert quick.state_dict().keys() == random_sam("vit_mini", 128).state_dict().keys()


def test_dropout_and_checkpointed_blocks_train():
    _, quick = prepared("vit_mini", 128, ["qkv"], dropout=0.5)
    recomputed = copy.deepcopy(quick)
    checkpoint_blocks(recomputed)
    x, weight = torch.randn(1, 3, 128, 128), torch.randn(1, 128, 8, 8)
    found = []
    for sam in (quick, recomputed):
        torch.manual_seed(0)
        found.append(outputs_and_gradients(sam.train().image_encoder, x, weight))
    assert max(differences(found[1], found[0]).values()) < 1e-6


def test_nothing_is_kept_without_gradients(monkeypatch):
    """Neither pass stores pairs: no tensor that autograd holds of a global block has as many elements as one map."""
    monkeypatch.setattr(attention_cpu, "KEPT", 0)
    held = []

    def pack(tensor):
        held.append(tensor.numel())
        return tensor

    x = torch.randn(1, 32, 32, 24)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.no_grad():
            fast(block(GLOBAL))(x)
        assert not held
        fast(block(GLOBAL))(x)
        assert 0 < max(held) < 1024 ** 2
        block(GLOBAL)(x)
        assert max(held) >= 3 * 1024 ** 2


@pytest.mark.filterwarnings("ignore")  # of the tracer
def test_a_traced_encoder_has_the_stock_operations_and_output():
    sam, quick = prepared("vit_mini", 128, ["qkv"])
    x = torch.randn(1, 3, 128, 128)
    traced = torch.jit.trace(quick.image_encoder, torch.zeros_like(x), check_trace=False)
    with torch.no_grad():
        assert torch.equal(traced(x), sam.image_encoder(x))
