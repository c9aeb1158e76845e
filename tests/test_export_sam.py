"""export_sam.py: a plain SAM with Meta's keys that computes what the checkpoint computes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_checkpoint, random_sam

import export_sam
from sam_lora.checkpoints import load_tuned_sam
from sam_lora.errors import UserError
from sam_lora.sam import build_sam, load_sam


def export(tmp_path: Path, checkpoint: Path, base: Path, *flags) -> Path:
    output = tmp_path / "sam_finetuned.pth"
    arguments = ["--checkpoint", checkpoint, "--base_checkpoint", base, "--output", output, *flags]
    export_sam.main(export_sam.get_args_parser().parse_args(list(map(str, arguments))))
    return output


def test_the_file_loads_strictly_and_computes_the_same(tmp_path, mini_checkpoint, mini_weights, capsys):
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor
    output = export(tmp_path, mini_checkpoint, mini_weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sam_finetuned.json", "sam_finetuned.pth"]
    state = torch.load(output, weights_only=True)
    assert list(state) == list(build_sam("vit_mini").state_dict())
    exported, _ = load_sam("vit_mini", output)
    tuned, _ = load_tuned_sam(mini_checkpoint, mini_weights, merge=False)
    base, _ = load_sam("vit_mini", mini_weights)
    image = np.random.default_rng(0).integers(0, 256, (90, 143, 3)).astype(np.uint8)
    logits = {}
    for name, sam in (("exported", exported), ("tuned", tuned), ("base", base)):
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        points = np.array([[70, 40], [30, 20]])
        logits[name] = predictor.predict(points, np.array([1, 0]), multimask_output=True, return_logits=True)[0]
    np.testing.assert_allclose(logits["exported"], logits["tuned"], atol=1e-4)
    assert np.abs(logits["exported"] - logits["base"]).max() > 1e-2
    generator = SamAutomaticMaskGenerator(exported, points_per_side=2, pred_iou_thresh=-9, stability_score_thresh=0)
    assert generator.generate(image)
    assert 'sam_lora.sam.load_sam("vit_mini", "sam_finetuned.pth", image_size=256)' in capsys.readouterr().out


def test_the_json_beside_it_says_what_it_is(tmp_path, mini_checkpoint, mini_weights):
    output = export(tmp_path, mini_checkpoint, mini_weights)
    about = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    header = torch.load(mini_checkpoint, weights_only=True)["header"]
    assert {name: about[name] for name in header} == header
    assert about["file"] == "sam_finetuned.pth"
    assert about["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert 0 <= about["largest_logit_difference"] <= 1e-4


def test_logits_that_differ_keep_no_file(tmp_path, mini_checkpoint, mini_weights, monkeypatch):
    """The check has to see a merge that went wrong: here one that leaves the low-rank pairs out."""
    from sam_lora import lora

    def merge_nothing(sam):
        for name, module in list(sam.named_modules()):
            if hasattr(module, "get_base_layer"):
                parent, _, child = name.rpartition(".")
                setattr(sam.get_submodule(parent), child, module.get_base_layer())
    monkeypatch.setattr(lora, "merge_lora", merge_nothing)
    with pytest.raises(UserError, match="not kept, its logits differ by"):
        export(tmp_path, mini_checkpoint, mini_weights)
    assert list(tmp_path.iterdir()) == []


def test_a_model_trained_at_another_image_size(tmp_path, mini_weights):
    checkpoint = make_checkpoint(tmp_path / "x.ckpt", mini_weights, image_size=128)
    output = export(tmp_path, checkpoint, mini_weights)
    sam, _ = load_sam("vit_mini", output, 128)
    assert sam.image_encoder.img_size == 128
    assert "image_size=128" in json.loads(output.with_suffix(".json").read_text())["load"]


@pytest.mark.slow
def test_vit_b_loads_in_segment_anything_s_registry(tmp_path):
    from segment_anything import sam_model_registry
    base = tmp_path / "sam_vit_b.pth"
    torch.save(random_sam("vit_b").state_dict(), base)
    output = export(tmp_path, make_checkpoint(tmp_path / "x.ckpt", base, "vit_b"), base)
    sam = sam_model_registry["vit_b"](checkpoint=output)
    assert list(torch.load(output, weights_only=True)) == list(sam.state_dict())
    about = json.loads(output.with_suffix(".json").read_text())
    assert about["load"] == ('sam = segment_anything.sam_model_registry["vit_b"](checkpoint="sam_finetuned.pth")')
    assert about["largest_logit_difference"] <= 1e-4


def test_nothing_is_overwritten_unasked(tmp_path, mini_checkpoint, mini_weights):
    (tmp_path / "sam_finetuned.json").write_text("mine")
    with pytest.raises(UserError, match="sam_finetuned.json: already there; give --overwrite"):
        export(tmp_path, mini_checkpoint, mini_weights)
    assert (tmp_path / "sam_finetuned.json").read_text() == "mine"
    export(tmp_path, mini_checkpoint, mini_weights, "--overwrite")
    assert json.loads((tmp_path / "sam_finetuned.json").read_text())["model_type"] == "vit_mini"


@pytest.mark.parametrize(("content", "message"), [
    pytest.param(None, "no such file; expected a checkpoint of train.py", id="missing"),
    pytest.param(b"random", "cannot be read", id="a random file"),
])
def test_checkpoints_that_do_not_load(tmp_path, mini_weights, content, message):
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        export(tmp_path, path, mini_weights)
    assert not (tmp_path / "sam_finetuned.pth").exists()


def test_another_suffix_is_a_wrong_flag(tmp_path, mini_checkpoint, mini_weights, capsys):
    with pytest.raises(SystemExit) as stopped:
        export(tmp_path, mini_checkpoint, mini_weights, "--output", tmp_path / "sam.json")
    assert stopped.value.code == 2 and "expected a name that ends in .pth" in capsys.readouterr().err
