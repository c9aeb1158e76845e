"""train.py with kept features: no number changes, frozen work is done once, and what is lost is computed anew."""

import re

import pandas as pd
import pytest
from training_runs import command_line, log_of, run

import train


@pytest.fixture
def frozen_work(monkeypatch):
    """Names of what ran: "patch_embed" for each batch that entered a frozen encoder, "decoded" for each image file."""
    from segment_anything.modeling.image_encoder import PatchEmbed
    from torch.nn.modules.module import register_module_forward_hook

    from sam_lora.data.imaging import load_image
    seen = []
    hook = register_module_forward_hook(
        lambda module, inputs, output: seen.append("patch_embed") if isinstance(module, PatchEmbed) else None)
    monkeypatch.setattr("sam_lora.model.batches.load_image", lambda path: seen.append("decoded") or load_image(path))
    yield seen
    hook.remove()


@pytest.mark.parametrize("flags", [
    pytest.param(("--lora_blocks", "2"), id="last two blocks"),
    pytest.param(("--lora_blocks", "0"), id="encoder frozen"),
    pytest.param(("--lora_blocks", "2", "--grad_checkpoint", "--num_workers", "1"), id="recomputed blocks, a worker"),
    pytest.param(("--feature_cache", "--prompt_sampling", "table"), id="all blocks train"),
])
def test_kept_features_change_no_number(crops, mini_weights, tmp_path, flags):
    run(*command_line(crops, mini_weights, tmp_path / "anew", *flags, "--no-flip", "--no-feature_cache"))
    run(*command_line(crops, mini_weights, tmp_path / "kept", *flags, "--no-flip"))
    assert not (tmp_path / "anew" / ".feature_cache").exists()
    assert len(list((tmp_path / "kept" / ".feature_cache").iterdir())) == 10
    anew, kept = (log_of(tmp_path / name) for name in ("anew", "kept"))
    pd.testing.assert_frame_equal(anew, kept, rtol=0, atol=1e-5)
    assert anew["train_loss"][1] != anew["train_loss"][2]


def test_the_frozen_part_runs_once_for_each_image_and_never_in_a_later_run(crops, mini_weights, tmp_path, frozen_work,
                                                                           capsys):
    flags = ("--lora_blocks", "2", "--cache_dir", str(tmp_path / "kept"), "--num_epochs", "3")
    for table in (crops.train_csv, crops.val_csv):  # an image in both tables, and one with two rows
        rows = pd.read_csv(table)
        pd.concat([rows, pd.read_csv(crops.train_csv)[:1]]).to_csv(table, index=False)
    run(*command_line(crops, mini_weights, tmp_path / "first", *flags))
    assert frozen_work.count("decoded") == 10 and frozen_work.count("patch_embed") == 5
    assert "features of 10 images: 10 computed" in capsys.readouterr().out
    frozen_work.clear()
    run(*command_line(crops, mini_weights, tmp_path / "second", *flags))
    assert frozen_work == [] and "features of 10 images: 0 computed" in capsys.readouterr().out
    pd.testing.assert_frame_equal(*(log_of(tmp_path / name) for name in ("first", "second")), check_exact=True)
    run(*command_line(crops, mini_weights, tmp_path / "other", *flags, "--image_size", "64", "--num_epochs", "1"))
    assert frozen_work.count("decoded") == 10


def test_resuming_finds_kept_features_even_where_some_are_gone(crops, mini_weights, tmp_path, frozen_work):
    flags = ("--lora_blocks", "2", "--num_epochs", "4")
    run(*command_line(crops, mini_weights, tmp_path / "four", *flags))
    halves = command_line(crops, mini_weights, tmp_path / "halves", *flags)
    run(*halves, "--stop_after_epoch", "2")
    for entry in sorted((tmp_path / "halves" / ".feature_cache").iterdir())[:3]:
        entry.unlink()
    frozen_work.clear()
    run(*halves, "--resume")
    assert frozen_work.count("decoded") == 3
    pd.testing.assert_frame_equal(*(log_of(tmp_path / name) for name in ("four", "halves")), rtol=0, atol=1e-5)


def test_damaged_features_are_reported_and_change_no_number(crops, mini_weights, tmp_path, capsys):
    flags = ("--lora_blocks", "0", "--cache_dir", str(tmp_path / "kept"))
    run(*command_line(crops, mini_weights, tmp_path / "whole", *flags))
    for entry in sorted((tmp_path / "kept").iterdir())[:2]:
        entry.write_bytes(entry.read_bytes()[:-1] + b"\x7f")
    capsys.readouterr()
    run(*command_line(crops, mini_weights, tmp_path / "damaged", *flags))
    printed = capsys.readouterr().out
    assert len(re.findall("damaged entries", printed)) == 1 and "kept: 2 damaged entries" in printed
    pd.testing.assert_frame_equal(*(log_of(tmp_path / name) for name in ("whole", "damaged")), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("flags", "kept", "flip"), [
    pytest.param((), False, True, id="all blocks train"),
    pytest.param(("--lora_blocks", "6"), False, True, id="all six blocks"),
    pytest.param(("--lora_blocks", "5"), True, False, id="one block frozen"),
    pytest.param(("--lora_blocks", "2", "--flip"), False, True, id="mirroring asked for"),
    pytest.param(("--lora_blocks", "2", "--no-flip"), True, False, id="mirroring unwanted"),
    pytest.param(("--lora_blocks", "2", "--no-feature_cache"), False, True, id="features unwanted"),
    pytest.param(("--no-flip",), False, False, id="no mirroring, all blocks"),
    pytest.param(("--feature_cache",), True, False, id="features asked for, all blocks"),
])
def test_features_are_kept_where_pixels_do_not_change(flags, kept, flip):
    args = train.get_args_parser().parse_args(["--model_type", "vit_mini", *flags])
    train.settle(args)
    assert (args.feature_cache, args.flip) == (kept, flip)


def test_the_memory_flag_of_earlier_versions_is_accepted_and_changes_nothing(crops, mini_weights, tmp_path):
    flags = ("--lora_blocks", "2", "--num_epochs", "1")
    run(*command_line(crops, mini_weights, tmp_path / "plain", *flags))
    run(*command_line(crops, mini_weights, tmp_path / "flag", *flags, "--cache_ram_gb", "0"))
    pd.testing.assert_frame_equal(log_of(tmp_path / "plain"), log_of(tmp_path / "flag"), check_exact=True)


@pytest.mark.parametrize("stored_as", ["bf16", "fp16"])
def test_half_precision_features_change_numbers_a_little(crops, mini_weights, tmp_path, stored_as):
    flags = ("--lora_blocks", "2", "--num_epochs", "1")
    run(*command_line(crops, mini_weights, tmp_path / "fp32", *flags))
    run(*command_line(crops, mini_weights, tmp_path / "half", *flags, "--cache_precision", stored_as))
    exact, rounded = (log_of(tmp_path / name)[["train_loss", "val_loss"]] for name in ("fp32", "half"))
    assert not exact.equals(rounded)
    pd.testing.assert_frame_equal(exact, rounded, rtol=0.05)
    sizes = [sum(path.stat().st_size for path in (tmp_path / name / ".feature_cache").iterdir())
             for name in ("fp32", "half")]
    assert sizes[1] < 0.6 * sizes[0]
