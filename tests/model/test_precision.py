"""Where and in what precision a run computes."""

import pytest
import torch

from sam_lora.errors import UserError
from sam_lora.model.precision import bf16_is_faster, select_device
from sam_lora.model.sam import build_sam


def test_unknown_device_is_told():
    with pytest.raises(UserError, match="--device gpu7: not available here"):
        select_device("gpu7")
    assert select_device("cpu") == torch.device("cpu")


def test_a_small_model_stays_in_float32_on_any_cpu_and_a_large_one_where_bfloat16_is_emulated(monkeypatch):
    assert not bf16_is_faster(build_sam("vit_mini"))
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with torch.device("meta"):
        sam = build_sam("vit_b")
    assert not bf16_is_faster(sam)
