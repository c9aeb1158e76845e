"""Every flag that shapes training does something: runs with it are compared with one without."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_crops
from training_runs import command_line, log_of, run

from sam_lora.model.checkpoints import load_checkpoint, load_tuned_sam

LOSSES = ["train_loss", "val_loss"]


@pytest.fixture(scope="module")
def module_crops(tmp_path_factory):
    return make_crops(tmp_path_factory.mktemp("crops") / "data")


@pytest.fixture(scope="module")
def plain(module_crops, mini_weights, tmp_path_factory) -> Path:
    """The folder of an epoch of three steps without further flags."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run(*command_line(module_crops, mini_weights, out, "--num_epochs", "1"))
    return out


@pytest.fixture
def with_flags(module_crops, mini_weights, tmp_path):
    """Run the same epoch with more flags: its folder, whose final checkpoint loads."""
    def run_with(*flags: str) -> Path:
        run(*command_line(module_crops, mini_weights, tmp_path / "out", "--num_epochs", "1", *flags))
        tuned, header = load_tuned_sam(tmp_path / "out" / "sam_lora_final.ckpt", mini_weights)
        assert tuned.image_encoder.img_size == header["image_size"]
        assert all(torch.isfinite(tensor).all() for tensor in tuned.state_dict().values())
        return tmp_path / "out"
    return run_with


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.ckpt")["state"]


def untuned(folder: Path) -> float:
    return log_of(folder)["val_loss"][0]


@pytest.mark.parametrize("flags", [
    pytest.param(("--multimask_weight", "0"), id="single mask only"),
    pytest.param(("--weight_decay", "5"), id="weight decay"),
    pytest.param(("--lora_alpha", "256"), id="LoRA's scale"),
    pytest.param(("--lora_dropout", "0.9"), id="LoRA's dropout"),
    pytest.param(("--rslora",), id="rsLoRA"),
    pytest.param(("--warmup", "1"), id="warm-up"),
    pytest.param(("--learning_rate", "0.0003"), id="learning rate"),
    pytest.param(("--grad_accum", "2"), id="two batches a step"),
    pytest.param(("--batch_size", "3"), id="batch size"),
    pytest.param(("--seed", "7"), id="seed"),
    pytest.param(("--no-flip",), id="not mirrored"),
    pytest.param(("--color_jitter", "0.5"), id="colours"),
    pytest.param(("--prompt_sampling", "table"), id="the table's points"),
    pytest.param(("--prompt_sampling", "random"), id="other points in every row"),
    pytest.param(("--prompt_sampling", "mixed", "--correction_rounds", "1"), id="points and a corrective click"),
    pytest.param(("--prompt_mix", "box=1"), id="boxes"),
    pytest.param(("--correction_rounds", "0"), id="no corrective clicks"),
])
def test_training_changes_and_the_untuned_model_does_not(plain, with_flags, flags):
    out = with_flags(*flags)
    assert untuned(out) == pytest.approx(untuned(plain), abs=1e-6)
    before, after = state_of(plain), state_of(out)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert log_of(out)["val_loss"][1] != log_of(plain)["val_loss"][1]


@pytest.mark.parametrize("loss", ["focal_dice", "bce_dice"])
def test_another_loss_is_minimised_and_measured(plain, with_flags, loss):
    out = with_flags("--loss", loss)
    assert (log_of(out)[LOSSES].iloc[1] != log_of(plain)[LOSSES].iloc[1]).all() and untuned(out) != untuned(plain)
    assert log_of(out)["val_iou"][0] == log_of(plain)["val_iou"][0]


def test_ambiguity_masks_do_not_train_with_weight_0(plain, with_flags):
    """Their mask tokens get no gradient; weight decay is off, which would move them too."""
    out = with_flags("--multimask_weight", "0", "--weight_decay", "0", "--warmup", "0")
    tokens = {folder: state_of(folder)["mask_decoder.mask_tokens.weight"] for folder in (plain, out)}
    mlp = "mask_decoder.output_hypernetworks_mlps.2.layers.0.weight"
    assert torch.equal(state_of(out)[mlp], load_base(out)[mlp]) and not torch.equal(state_of(plain)[mlp],
                                                                                    load_base(out)[mlp])
    assert not torch.equal(tokens[plain], tokens[out])


def load_base(folder: Path) -> dict[str, torch.Tensor]:
    from sam_lora.model.sam import load_sam
    args = load_checkpoint(folder / "last.ckpt")["header"]["args"]
    return load_sam("vit_mini", args["checkpoint"], args["image_size"])[0].state_dict()


@pytest.mark.parametrize(("flags", "trained"), [
    pytest.param((), {"decoder": True, "blocks": {*range(6)}, "layers": {"qkv"}, "rank": 16}, id="default"),
    pytest.param(("--lora_blocks", "2", "--lora_targets", "qkv", "proj", "lin1", "lin2"),
                 {"decoder": True, "blocks": {4, 5}, "layers": {"qkv", "proj", "lin1", "lin2"}, "rank": 16},
                 id="last two blocks, all layers"),
    pytest.param(("--lora_blocks", "0"), {"decoder": True, "blocks": set(), "layers": set(), "rank": None},
                 id="decoder only"),
    pytest.param(("--no-train_decoder", "--lora_rank", "3"),
                 {"decoder": False, "blocks": {*range(6)}, "layers": {"qkv"}, "rank": 3}, id="LoRA only, rank 3"),
])
def test_what_trains_is_what_the_flags_say(with_flags, flags, trained):
    state = state_of(with_flags(*flags))
    lora = [name.split(".") for name in state if "lora_A" in name]
    assert any(name.startswith("mask_decoder.") for name in state) == trained["decoder"]
    assert {int(parts[2]) for parts in lora} == trained["blocks"]
    assert {parts[4] for parts in lora} == trained["layers"]
    ranks = {len(tensor) for name, tensor in state.items() if "lora_A" in name}
    assert ranks == ({trained["rank"]} if trained["rank"] else set())
    moved = [name for name, tensor in state.items() if "lora_B" in name and tensor.abs().max() > 0]
    assert len(moved) == len(lora)


def test_dora_trains_the_length_of_weights_too(plain, with_flags):
    out = with_flags("--dora")
    more = state_of(out).keys() - state_of(plain).keys()
    assert len(more) == 6 and all("magnitude" in name for name in more)


def test_the_model_s_own_frame(plain, with_flags):
    out = with_flags("--image_size", "256")
    assert load_checkpoint(out / "last.ckpt")["header"]["image_size"] == 256 and untuned(out) != untuned(plain)


def test_averaged_weights_lag_behind(plain, with_flags):
    out = with_flags("--ema", "0.9")
    assert log_of(out)["train_loss"][1] == log_of(plain)["train_loss"][1]
    assert log_of(out)["val_loss"][1] != log_of(plain)["val_loss"][1]


def test_bf16_changes_numbers_a_little(plain, with_flags, capsys):
    out = with_flags("--precision", "bf16")
    assert "on cpu in bf16" in capsys.readouterr().out
    assert not log_of(out)[LOSSES].equals(log_of(plain)[LOSSES])
    pd.testing.assert_frame_equal(log_of(out)[LOSSES], log_of(plain)[LOSSES], rtol=0.1)


def test_workers_change_no_number(plain, with_flags):
    pd.testing.assert_frame_equal(log_of(with_flags("--num_workers", "2")), log_of(plain), check_exact=True)


def test_recomputed_blocks_change_no_number_and_run_twice(plain, with_flags):
    from torch import nn
    from torch.nn.modules.module import register_module_forward_pre_hook
    entered = []
    hook = register_module_forward_pre_hook(
        lambda module, inputs: entered.append(module) if isinstance(module, nn.LayerNorm) and module.training
        and module.normalized_shape == (160,) else None)  # two in each encoder block
    try:
        out = with_flags("--grad_checkpoint")
    finally:
        hook.remove()
    assert len(entered) == 2 * (3 * 6 * 2)  # three steps, six blocks: forward, and again in the backward pass
    pd.testing.assert_frame_equal(log_of(out), log_of(plain), rtol=1e-5)


def test_compile_changes_no_number_and_compiles_the_encoder(plain, with_flags, monkeypatch):
    """Dynamo traces the encoder as it does for users; what it traced then runs as it is, without a C++ compiler."""
    from torch import nn
    compiled = []
    compile_module = nn.Module.compile

    def compile_by_dynamo_only(module: nn.Module) -> None:
        compiled.append(type(module).__name__)
        compile_module(module, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", compile_by_dynamo_only)
    torch._dynamo.utils.counters.clear()
    out = with_flags("--compile")
    assert compiled == 6 * ["FastBlock"] and torch._dynamo.utils.counters["frames"]["ok"] > 0
    pd.testing.assert_frame_equal(log_of(out), log_of(plain), rtol=1e-5)
    torch._dynamo.reset()
