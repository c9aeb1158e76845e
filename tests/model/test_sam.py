"""Building a SAM, loading its weights, fitting them to another image size."""

import hashlib

import pytest
import torch
from conftest import random_sam

from sam_lora.errors import UserError
from sam_lora.model.meta import get_rel_pos, sam_model_registry
from sam_lora.model.sam import build_sam, load_sam, resize_position_embeddings


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


def shapes(state: dict) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("model_type", ["vit_b", "vit_l", "vit_h"])
def test_built_types_have_the_registry_s_keys_and_shapes(model_type):
    with torch.device("meta"):
        assert shapes(build_sam(model_type).state_dict()) == shapes(sam_model_registry[model_type]().state_dict())


def test_load_sam_gives_back_the_weights_and_their_digest(mini_weights):
    sam, sha256 = load_sam("vit_mini", mini_weights)
    saved = torch.load(mini_weights, weights_only=True)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in sam.state_dict().items())
    assert sha256 == hashlib.sha256(mini_weights.read_bytes()).hexdigest()
    assert not sam.training


@pytest.mark.parametrize(("content", "message"), [
    pytest.param(None, "no such file", id="missing"),
    pytest.param(b"", "cannot be read", id="empty file"),
    pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot be read", id="a picture"),
    pytest.param([1, 2, 3], "no plain state dict", id="a pickled list"),
    pytest.param({"model": {"weight": torch.zeros(2)}}, "no plain state dict", id="a training state"),
    pytest.param({"weight": torch.zeros(2)}, "does not fit vit_mini", id="another network"),
    pytest.param({"format": "sam-lora", "format_version": 1}, "run_inference.py", id="a LoRA checkpoint"),
    pytest.param({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, "give --model_type vit_b",
                 id="a larger SAM"),
    pytest.param({"image_encoder.pos_embed": torch.zeros(())}, "does not fit vit_mini", id="a table of 0 axes"),
])
def test_files_that_are_no_vit_mini_weights(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        load_sam("vit_mini", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("image_size", [pytest.param(48, id="too small"), pytest.param(250, id="no multiple of 16")])
def test_image_sizes_that_do_not_work(mini_weights, image_size):
    with pytest.raises(UserError, match=f"--image_size {image_size}: expected a multiple of 16, at least 64"):
        load_sam("vit_mini", mini_weights, image_size)


@pytest.mark.parametrize("image_size", [128, 320])
def test_position_tables_are_interpolated_to_another_image_size(mini, image_size):
    target = build_sam("vit_mini", image_size)
    grid = image_size // 16
    state = mini.state_dict()
    resized = resize_position_embeddings(state, target)
    target.load_state_dict(resized)
    table = "image_encoder.blocks.0.attn.rel_pos_h"
    spread = torch.arange(grid)[:, None] - torch.arange(grid)[None] + grid - 1
    torch.testing.assert_close(resized[table][spread], get_rel_pos(grid, grid, state[table]))
    state["image_encoder.pos_embed"] = torch.full((1, 16, 16, 160), 0.25)
    constant = resize_position_embeddings(state, target)
    torch.testing.assert_close(constant["image_encoder.pos_embed"], torch.full((1, grid, grid, 160), 0.25))
    with torch.inference_mode():
        assert target.image_encoder(torch.zeros(1, 3, image_size, image_size)).shape == (1, 128, grid, grid)


def test_position_tables_that_fit_pass_untouched(mini):
    state = mini.state_dict()
    resized = resize_position_embeddings(state, build_sam("vit_mini"))
    assert resized.keys() == state.keys() and all(resized[name] is state[name] for name in state)
