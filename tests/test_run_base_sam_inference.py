"""run_base_sam_inference.py: the same outputs as run_inference.py under its own names, through the same code."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import files_below, random_sam

import run_base_sam_inference
import run_inference
from sam_lora import contracts
from sam_lora.errors import UserError
from sam_lora.model.checkpoints import library_versions, prepare_for_training, save_checkpoint, trained_state
from sam_lora.model.sam import load_sam

STEMS = [f"{number:05d}_photo{number + 9}_0001" for number in range(1, 7)]


@pytest.fixture
def run(crops, mini_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*flags) -> Path:
        arguments = ["--model_type", "vit_mini", "--checkpoint", mini_weights, "--output_dir", "base", *flags]
        if not {"--image", "--images_dir"} & {*flags}:
            arguments += ["--test_csv", crops.test_csv]
        run_base_sam_inference.main(run_base_sam_inference.get_args_parser().parse_args(list(map(str, arguments))))
        return tmp_path / "base"
    return call


def test_files_and_tables(run, crops, capsys):
    out = run("--num_pictures", 3)
    results = pd.read_csv(out / "base_sam_results.csv", keep_default_na=False)
    pictures = {*results["picture"]} - {""}
    assert len(pictures) == 3
    assert files_below(out) == {"predictions.jpg", "base_sam_results.csv", "base_sam_class_iou_summary.csv",
                             "base_sam_size_iou_summary.csv", "report.html", *pictures,
                             *(f"masks/{stem}.png" for stem in STEMS)}
    assert list(results.columns) == list(contracts.RESULT_COLUMNS)
    assert results["label"].tolist() == pd.read_csv(crops.test_csv)["label"].tolist()
    assert list(pd.read_csv(out / "base_sam_class_iou_summary.csv").columns) == list(contracts.SUMMARY_COLUMNS)
    assert "vit_mini as released, at 256 px" in capsys.readouterr().out


def test_an_untrained_checkpoint_scores_what_its_base_scores(run, crops, mini_weights, tmp_path):
    """Base and tuned differ in weights only: with the same weights nothing differs, the drawn samples included."""
    base = run("--num_pictures", 2)
    sam, sha256 = load_sam("vit_mini", mini_weights)
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["qkv"], "blocks": None}
    prepare_for_training(sam, lora, train_decoder=True)
    header = {"model_type": "vit_mini", "image_size": 256, "base_sha256": sha256, "lora": lora, "train_decoder": True,
              "prompt": "3 points", "epoch": 0, "metrics": {}, "versions": library_versions()}
    save_checkpoint(tmp_path / "untrained.ckpt", header, trained_state(sam))
    base_csv, tuned = base / "base_sam_results.csv", tmp_path / "tuned"
    run_inference.main(run_inference.get_args_parser().parse_args(
        ["--checkpoint", str(tmp_path / "untrained.ckpt"), "--base_checkpoint", str(mini_weights), "--num_pictures",
         "2", "--test_csv", str(crops.test_csv), "--output_dir", "tuned", "--compare_to", str(base_csv)]))
    pd.testing.assert_frame_equal(pd.read_csv(base_csv), pd.read_csv(tuned / "finetuned_sam_results.csv"))
    for folder in ("masks", "samples"):
        assert files_below(base / folder) == files_below(tuned / folder)
    assert (pd.read_csv(tuned / "comparison.csv")["mean_difference"] == 0).all()
    assert not {"improved.jpg", "regressed.jpg"} & files_below(tuned)


def test_compared_with_the_tuned_model_the_base_stays_the_base(run, tmp_path, mini_checkpoint, mini_weights, crops):
    run_inference.main(run_inference.get_args_parser().parse_args(
        ["--checkpoint", str(mini_checkpoint), "--base_checkpoint", str(mini_weights), "--num_pictures", "0",
         "--test_csv", str(crops.test_csv), "--output_dir", "tuned"]))
    tuned = tmp_path / "tuned" / "finetuned_sam_results.csv"
    comparison = pd.read_csv(run("--num_pictures", 0, "--compare_to", tuned) / "comparison.csv")
    assert comparison["tuned_iou"][2] == pytest.approx(pd.read_csv(tuned)["iou"].mean(), abs=1e-5)
    base = pd.read_csv(tmp_path / "base" / "base_sam_results.csv")
    assert comparison["base_iou"][2] == pytest.approx(base["iou"].mean(), abs=1e-5)
    assert {"comparison.png", "improved.jpg"} < files_below(tmp_path / "base")   # the tuned masks are found


def test_prompts_of_all_kinds_do_not_depend_on_how_rows_travel(run, tmp_path, crops):
    """With the same weights the scores are the same too, whatever the batches: base and tuned get the same prompts."""
    first = pd.read_csv(run("--num_pictures", 0, "--prompt_kinds") / "base_sam_prompt_kinds.csv")
    run("--num_pictures", 0, "--prompt_kinds", "--batch_size", 1, "--output_dir", "again")
    again = pd.read_csv(tmp_path / "again" / "base_sam_prompt_kinds.csv")
    single = [name for name in contracts.PROMPT_KINDS_COLUMNS if not name.startswith("clicks_")]
    pd.testing.assert_frame_equal(first[single], again[single], atol=0.01)
    assert first["label"].tolist() == pd.read_csv(crops.test_csv)["label"].tolist()


def test_one_image(run, crops):
    image = crops.folder / pd.read_csv(crops.test_csv)["image"][0]
    out = run("--image", image, "--box", "5,5,50,30")
    assert files_below(out) == {"photo10_0001_mask.png", "photo10_0001_overlay.jpg"}
    mask = cv2.imread(str(out / "photo10_0001_mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == cv2.imread(str(image)).shape[:2]


def test_a_folder_of_images_with_a_table_of_prompts(run, crops):
    image = Path(pd.read_csv(crops.test_csv)["image"][0])
    (crops.folder / "prompts.csv").write_text(f'image,box\n{image.name},"[5,5,50,30]"\n')
    out = run("--images_dir", crops.folder / image.parent, "--prompts_csv", crops.folder / "prompts.csv")
    assert files_below(out) == {"masks/photo10_0001_1.png", "overlays/photo10_0001.jpg", "predictions.json"}
    alone = run("--image", crops.folder / image, "--box", "5,5,50,30", "--output_dir", "one").parent / "one"
    assert (out / "masks" / "photo10_0001_1.png").read_bytes() == (alone / "photo10_0001_mask.png").read_bytes()


def test_another_image_size(run, capsys):
    out = run("--image_size", 128, "--num_pictures", 0)
    assert "at 128 px" in capsys.readouterr().out
    assert np.isfinite(pd.read_csv(out / "base_sam_results.csv")["iou"]).all()


def test_flags_that_contradict_are_refused_before_anything_is_read(run, tmp_path, capsys):
    """Which ones do: tests/results/test_arguments.py."""
    with pytest.raises(SystemExit) as stopped:
        run("--save_yolo", "--checkpoint", "not_even_there")
    assert stopped.value.code == 2 and "--save_yolo: only with --images_dir" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(("flags", "message"), [
    pytest.param(["--checkpoint", "gone.pth"], "gone.pth: no such file", id="missing"),
    pytest.param(["--checkpoint", "random.pth"], "random.pth: cannot be read", id="a random file"),
    pytest.param(["--model_type", "vit_b"], "does not fit vit_b .*give --model_type vit_mini", id="another type"),
    pytest.param(["--checkpoint", "small.pth"], "small.pth: does not fit vit_mini", id="keys missing"),
    pytest.param(["--image_size", "100"], "--image_size 100: expected a multiple of 16", id="an odd size"),
    pytest.param(["--device", "nowhere"], "--device nowhere: not available here", id="no such device"),
])
def test_models_that_do_not_load_leave_nothing(run, tmp_path, flags, message):
    (tmp_path / "random.pth").write_bytes(bytes(range(200)))
    state = random_sam("vit_mini").state_dict()
    del state["image_encoder.pos_embed"]
    torch.save(state, tmp_path / "small.pth")
    with pytest.raises(UserError, match=message) as error:
        run(*flags)
    assert "\n" not in str(error.value) and not (tmp_path / "base").exists()


def test_a_lora_checkpoint_is_sent_to_the_other_script(run, mini_checkpoint):
    with pytest.raises(UserError, match="is a LoRA checkpoint of train.py.*run_inference.py"):
        run("--checkpoint", mini_checkpoint)


def test_bf16_predicts_nearly_what_fp32_does(crops, tmp_path):
    """By the model that ships, whose masks mean something; the figure of a GPU: benchmarks/bench_inference.py."""
    def run(precision: str, *flags) -> Path:
        run_base_sam_inference.main(run_base_sam_inference.get_args_parser().parse_args(
            ["--model_type", "vit_mini", "--device", "cpu", "--precision", precision, "--output_dir",
             str(tmp_path / precision), *map(str, flags)]))
        return tmp_path / precision

    outputs = [run(precision, "--test_csv", crops.test_csv, "--num_pictures", 0) for precision in ("fp32", "bf16")]
    single, half = (pd.read_csv(out / "base_sam_results.csv") for out in outputs)
    assert single["iou"].mean() > 0.8 and half["iou"].mean() == pytest.approx(single["iou"].mean(), abs=0.01)
    assert (single["predicted_iou"] != half["predicted_iou"]).all()   # it is another precision
    assert all(f"precision: <bdi>{name} on cpu</bdi>" in (out / "report.html").read_text(encoding="utf-8")
               for name, out in zip(("fp32", "bf16"), outputs))
    image = crops.folder / pd.read_csv(crops.test_csv)["image"][0]
    flags = ("--image", image, "--points", "30,25", "--overwrite")
    masks = [cv2.imread(str(run(precision, *flags) / f"{image.stem}_mask.png"), cv2.IMREAD_UNCHANGED) > 0
             for precision in ("auto", "fp32", "bf16")]
    assert np.array_equal(masks[0], masks[1]) and (masks[1] & masks[2]).sum() > 0.95 * (masks[1] | masks[2]).sum()
