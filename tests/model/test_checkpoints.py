"""The checkpoint file: describes itself, refuses what it does not fit, and never runs code."""

import pickle

import pytest
import torch
from conftest import make_checkpoint, random_sam

from sam_lora.errors import UserError
from sam_lora.model.checkpoints import load_checkpoint, load_tuned_sam, save_checkpoint
from sam_lora.model.sam import load_sam


def test_a_tuned_sam_has_its_base_keys_and_other_numbers(mini_weights, mini_checkpoint):
    tuned, header = load_tuned_sam(mini_checkpoint, mini_weights)
    base, sha256 = load_sam("vit_mini", mini_weights)
    assert header["base_sha256"] == sha256 and not tuned.training
    assert tuned.state_dict().keys() == base.state_dict().keys()
    before = base.state_dict()
    different = [name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name.split(".")[0] for name in different} == {"image_encoder", "mask_decoder"}
    assert not [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]


def test_another_base_is_refused(mini_checkpoint, tmp_path):
    other = tmp_path / "other.pth"
    torch.save(random_sam("vit_mini", seed=1).state_dict(), other)
    with pytest.raises(UserError, match=r"was trained on vit_mini weights with SHA-256 .* name the right base"):
        load_tuned_sam(mini_checkpoint, other)


@pytest.mark.parametrize(("change", "message"), [
    pytest.param(lambda content: content["state"].popitem(), "tensors missing: 1, unknown: 0", id="tensor missing"),
    pytest.param(lambda content: content["state"].update(extra=torch.zeros(1)), "tensors missing: 0, unknown: 1",
                 id="unknown tensor"),
    pytest.param(lambda content: content["header"]["lora"].update(rank=5), "of another shape: 12; e.g.",
                 id="rank of another run"),
    pytest.param(lambda content: content["header"].update(model_type="vit_x"), "unknown model type 'vit_x'",
                 id="unknown model"),
    pytest.param(lambda content: content["header"].pop("lora"), "incomplete \\(lora missing", id="header without LoRA"),
    pytest.param(lambda content: content.update(format_version=99), "format version 99, expected 1", id="newer format"),
    pytest.param(lambda content: content.update(format="x"), "is not a LoRA checkpoint", id="another file of torch"),
])
def test_errors_name_what_does_not_fit(mini_weights, tmp_path, change, message):
    path = make_checkpoint(tmp_path / "x.ckpt", mini_weights)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        load_tuned_sam(path, mini_weights)
    assert "\n" not in str(error.value)


class Trap:
    def __reduce__(self):
        import pathlib
        return pathlib.Path.touch, (pathlib.Path("trap-was-sprung"),)


@pytest.mark.parametrize("content", [
    pytest.param(b"", id="empty"), pytest.param(b"not a checkpoint", id="text"),
    pytest.param(pickle.dumps(Trap()), id="a pickle that runs code"),
])
def test_a_foreign_file_gives_one_line_and_runs_no_code(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and not (tmp_path / "trap-was-sprung").exists()


def test_base_weights_are_no_checkpoint_and_the_other_way_round(mini_weights, mini_checkpoint):
    with pytest.raises(UserError, match="is not a LoRA checkpoint"):
        load_checkpoint(mini_weights)
    with pytest.raises(UserError, match="is a LoRA checkpoint of train.py; expected base SAM weights"):
        load_sam("vit_mini", mini_checkpoint)


def test_a_failed_save_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"epoch": 1}, {"x": torch.ones(1)})
    before = path.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"epoch": lambda: None}, {"x": torch.ones(1)})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
