"""Where and in what precision a run computes."""

import pytest
import torch
from conftest import run_script
from nvidia_machine import nvidia_smi, posix

from sam_lora.errors import UserError
from sam_lora.model import nvidia, precision
from sam_lora.model.precision import (
    bf16_is_faster,
    choose_precision,
    device_of_process,
    multiply_faster,
    select_device,
)
from sam_lora.model.sam import build_sam
from sam_lora.ranks import ALONE, Ranks


def test_unknown_device_is_told():
    with pytest.raises(UserError, match="--device gpu7: not available here"):
        select_device("gpu7")
    assert select_device("cpu") == torch.device("cpu")


@pytest.fixture
def unused_card(tmp_path, monkeypatch):
    """This machine gets a T4 with a driver too old for any torch, by a program nvidia-smi; nothing else is on PATH."""
    if torch.cuda.is_available() or torch.backends.mps.is_available() or nvidia.find_card():
        pytest.skip("this machine has a GPU of its own")
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", 'echo "Tesla T4, 440.33.01"'))
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@posix
def test_a_card_that_torch_cannot_use_is_named_in_one_line(unused_card, capsys):
    assert select_device("auto") == torch.device("cpu")
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith(f"warning: going on on the CPU: Tesla T4 (driver 440.33.01) is there, but torch "
                               f"{torch.__version__} (")
    with pytest.raises(UserError) as raised:
        select_device("cuda")
    assert str(raised.value).startswith("--device cuda: not available here: Tesla T4 (driver 440.33.01) is there, but")
    select_device("cpu")
    assert capsys.readouterr().err == ""


@posix
@pytest.mark.parametrize(("variable", "value"), [
    pytest.param("CUDA_VISIBLE_DEVICES", "", id="hidden on purpose"),
    pytest.param("LOCAL_RANK", "1", id="not the first"), pytest.param("PATH", "", id="no card")])
def test_when_nothing_is_said_about_a_card(unused_card, capsys, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert select_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err == ""


@posix
def test_a_script_that_is_to_use_the_card_ends_with_an_error_of_one_line(unused_card, tmp_path):
    done = run_script("train.py", "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("train.py: error: --device cuda: not available here: Tesla T4")
    assert done.stderr.count("\n") == 1


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


@pytest.mark.parametrize(("name", "has_bf16", "expected"), [
    ("auto", True, "bf16"), ("auto", False, "fp16"), ("fp32", True, "fp32"), ("fp16", True, "fp16")])
def test_precision_on_a_gpu_whose_float32_products_are_tf32(monkeypatch, name, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    before = torch.get_float32_matmul_precision()
    try:
        assert choose_precision(name, torch.device("cuda"), build_sam("vit_mini"), ALONE) == expected
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_on_a_cpu(allowed_precision):
    multiply_faster()
    cpu, sam, faster = torch.device("cpu"), build_sam("vit_mini"), allowed_precision()
    torch.set_float32_matmul_precision("high")
    assert choose_precision("auto", cpu, sam, ALONE) == "fp32" and choose_precision("bf16", cpu, sam, ALONE) == "bf16"
    assert allowed_precision() == faster
    with pytest.raises(UserError, match="--precision fp16: needs a GPU"):
        choose_precision("fp16", cpu, sam, ALONE)


@pytest.mark.parametrize(("machines", "expected"), [(3, "bf16"), (2, "fp32")])
def test_several_cpus_compute_in_bf16_only_if_it_is_faster_on_all(allowed_precision, monkeypatch, machines, expected):
    monkeypatch.setattr(precision, "bf16_is_faster", lambda sam: True)
    monkeypatch.setattr(precision, "add_up", lambda values, ranks: torch.tensor([float(machines)]))
    assert choose_precision("auto", torch.device("cpu"), build_sam("vit_mini"), Ranks(0, 3)) == expected


def test_which_gpu_a_process_takes(monkeypatch):
    assert device_of_process("auto", ALONE) == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of_process(name, Ranks(3, 4, 1)) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1", "cuda:1", "cuda:0", "cpu"]
    with pytest.raises(UserError, match="process 2 of this machine has no GPU of its own: 2 found"):
        device_of_process("cuda", Ranks(2, 3, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_several_processes_without_gpus():
    ranks = Ranks(1, 2, 1)
    assert [device_of_process(name, ranks) for name in ("auto", "cuda:3")] == ["cpu", "cuda:3"]
    with pytest.raises(UserError, match="--device cuda: not available here"):
        device_of_process("cuda", ranks)
