"""Where and in what precision a run computes."""

import pytest
import torch

from sam_lora.errors import UserError
from sam_lora.model.precision import bf16_is_faster, multiply_faster, select_device
from sam_lora.model.sam import build_sam


def test_unknown_device_is_told():
    with pytest.raises(UserError, match="--device gpu7: not available here"):
        select_device("gpu7")
    assert select_device("cpu") == torch.device("cpu")


@pytest.fixture
def allowed_precision():
    """What PyTorch allows products of float32 matrices to lose, in words; put back afterwards."""
    before = torch.get_float32_matmul_precision()
    yield torch.get_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def test_faster_products_are_still_float32(allowed_precision):
    one, other = torch.randn(2, 300, 200, generator=torch.Generator().manual_seed(0))
    multiply_faster()
    exact = one.double() @ other.double().T
    assert (one @ other.T - exact).abs().max() < 1e-6 * exact.abs().max()


def test_where_faster_products_would_round_more_they_stay_as_they_were(allowed_precision, monkeypatch):
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *arguments: full(*arguments).bfloat16().float())  # as AMX would
    multiply_faster()
    assert allowed_precision() == "highest"


def test_a_small_model_stays_in_float32_on_any_cpu_and_a_large_one_where_bfloat16_is_emulated(monkeypatch):
    assert not bf16_is_faster(build_sam("vit_mini"))
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with torch.device("meta"):
        sam = build_sam("vit_b")
    assert not bf16_is_faster(sam)
