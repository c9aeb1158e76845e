"""run_inference.py: bad tables and checkpoints, and what --overwrite takes and never takes."""

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import files_below, make_checkpoint, random_sam, run_script
from inference_runs import FILES, run_base, run_tuned

from sam_lora.data import imaging
from sam_lora.errors import UserError


@pytest.fixture
def run(crops, mini_weights, mini_checkpoint, tmp_path, monkeypatch):
    """Calls run_inference.py with further flags, below tmp_path; results go to tmp_path/out."""
    monkeypatch.chdir(tmp_path)
    return partial(run_tuned, crops, mini_weights, mini_checkpoint)


@pytest.fixture
def base_results(run, crops, mini_weights) -> Path:
    return run_base(crops, mini_weights, "--num_pictures", 0) / "base_sam_results.csv"


# ---- bad input ----------------------------------------------------------------------------------------------------

def test_flags_that_contradict_are_refused_before_anything_is_read(run, tmp_path, capsys):
    """Which ones do: tests/results/test_arguments.py."""
    with pytest.raises(SystemExit) as stopped:
        run("--save_yolo", "--checkpoint", "not_even_there")
    assert stopped.value.code == 2 and "--save_yolo: only with --images_dir" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("spoil", "message"), [
    pytest.param(lambda folder, table: table.unlink(), "reformatted.csv: no such file; make it with reformated_csv.py",
                 id="no table"),
    pytest.param(lambda folder, table: table.write_text("image,mask\na,b\n"),
                 r"missing column\(s\) label, points; found image, mask; make it with reformated_csv.py", id="columns"),
    pytest.param(lambda folder, table: table.write_bytes(b"\x00\xff" * 50), "test_reformatted.csv: ", id="no CSV"),
    pytest.param(lambda folder, table: table.write_text(table.read_text().replace("[[31,17]", "[[310,17]")),
                 r"1 of 6 rows cannot be used: row 2: point \(310, 17\) lies outside", id="a point outside"),
    pytest.param(lambda folder, table: next(folder.rglob("masks/photo12*")).write_bytes(
        next(folder.rglob("masks/photo11*")).read_bytes()), "photo12_0001.png is 80x42 px, but its image",
        id="a mask of another size"),
    pytest.param(lambda folder, table: next(folder.rglob("images/photo12*")).write_text("text"),
                 "row 4: .*photo12_0001.png: not an image that can be read", id="no image"),
    pytest.param(lambda folder, table: [path.write_bytes(path.read_bytes()[:300])
                                        for path in folder.rglob("images/photo12*")],
                 "photo12_0001.png: broken image", id="an image cut short, met while loading"),
])
def test_tables_that_cannot_be_predicted(run, crops, tmp_path, spoil, message):
    spoil(crops.folder, crops.test_csv)
    with pytest.raises(UserError, match=message) as error:
        run()
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_an_image_that_breaks_in_a_worker_leaves_nothing(run, crops, tmp_path):
    path = next(crops.folder.rglob("images/photo12*"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="photo12_0001.png: broken image"):
        run("--num_workers", 1, "--batch_size", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("make", "message"), [
    pytest.param(None, "expected a checkpoint of train.py", id="missing"),
    pytest.param(lambda path, base: path.write_bytes(b"random"), "cannot be read", id="a random file"),
    pytest.param(lambda path, base: torch.save(random_sam("vit_mini").state_dict(), path), "is not a LoRA checkpoint",
                 id="base weights"),
    pytest.param(lambda path, base: (torch.save(random_sam("vit_mini", seed=3).state_dict(), path.parent / "o.pth"),
                                     make_checkpoint(path, path.parent / "o.pth")),
                 "was trained on vit_mini weights with SHA-256", id="of another base"),
])
def test_checkpoints_that_do_not_load(run, mini_weights, tmp_path, make, message):
    path = tmp_path / "x.ckpt"
    if make:
        make(path, mini_weights)
    with pytest.raises(UserError, match=message) as error:
        run("--checkpoint", path)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_full_folder_is_left_alone_without_overwrite(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out: not empty .*give --overwrite"):
        run()
    assert files_below(tmp_path / "out") == {"notes.txt"}


def test_overwrite_replaces_its_own_files_only(run, tmp_path):
    out = run("--num_pictures", 6, "--prompt_trials", 1)
    for name in ("comparison.csv", "comparison.png", "improved.jpg", "regressed.jpg"):
        (out / name).write_text("of an earlier run")
    (out / "notes.txt").write_text("mine")
    (out / "photo_mask.png").write_text("of a single image")
    run("--num_pictures", 0, "--overwrite")
    assert files_below(out) == {name for name in FILES if not name.endswith(".jpg")} | {"notes.txt", "photo_mask.png"}


def test_overwrite_by_the_other_kind_of_run_leaves_nothing_stale(run, crops, mini_weights, tmp_path):
    """A table is scored, photos are annotated, a table is scored by the other script: in one folder, one by one."""
    table, photo = pd.read_csv(crops.test_csv), "class_7/a.png"
    (tmp_path / "photos" / "class_7").mkdir(parents=True)
    imaging.write_png(tmp_path / "photos" / photo, imaging.load_image(crops.folder / table["image"][0]))
    (tmp_path / "prompts.csv").write_text(f'image,points\n{photo},"[[20,20]]"\n')
    annotations = {"masks/class_7/a_1.png", "overlays/class_7/a.jpg", "predictions.json", "yolo/data.yaml",
                   "yolo/images/class_7/a.png", "yolo/labels/class_7/a.txt"}
    annotate = ("--images_dir", "photos", "--prompts_csv", "prompts.csv", "--save_yolo")

    out = run("--prompt_trials", 1)
    (out / "notes.txt").write_text("mine")
    run(*annotate, "--overwrite")
    assert files_below(out) == annotations | {"notes.txt"}
    run("--overwrite")
    assert files_below(out) == FILES | {"notes.txt"}
    run(*annotate, "--overwrite")
    run_base(crops, mini_weights, "--output_dir", "out", "--overwrite")
    as_base = {name.replace("finetuned_sam_", "base_sam_") for name in FILES}
    assert files_below(out) == as_base | {"notes.txt"}
    run("--overwrite")
    assert files_below(out) == FILES | {"notes.txt"}


@pytest.mark.parametrize("kind", ["masks", "images", "base results"])
def test_overwrite_never_takes_what_the_run_reads(run, crops, base_results, tmp_path, kind):
    """Labels that were predicted and mended by hand, images of an earlier YOLO set, the table to compare with."""
    table, flags = pd.read_csv(crops.test_csv), ["--overwrite"]
    if kind == "base results":
        (tmp_path / "out").mkdir()
        base_results.rename(tmp_path / "out" / base_results.name)
        flags += ["--compare_to", f"out/{base_results.name}"]
    else:
        folder = {"masks": "out/masks", "images": "out/yolo/images"}[kind]
        (tmp_path / folder).mkdir(parents=True)
        for column, rows in (("label", table["label"]), ("image", table["image"])):
            paths = [(crops.folder / path) for path in rows]
            table[column] = [str(path) for path in paths]
            if column == ("label" if kind == "masks" else "image"):
                for path in paths:
                    path.rename(tmp_path / folder / path.name)
                table[column] = [f"{folder}/{path.name}" for path in paths]
        table.to_csv("mended.csv", index=False)
        flags += ["--test_csv", "mended.csv"]
    before = files_below(tmp_path)
    with pytest.raises(UserError, match="this run reads it and would replace it; give another --output_dir"):
        run(*flags)
    assert files_below(tmp_path) == before


def test_a_failed_run_keeps_the_earlier_results(run, crops):
    out = run("--num_pictures", 0)
    before = {name: (out / name).read_bytes() for name in files_below(out)}
    path = next(crops.folder.rglob("images/photo15*"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError):
        run("--overwrite")
    assert {name: (out / name).read_bytes() for name in files_below(out)} == before


def test_a_file_where_the_folder_should_be(run, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out: is a file"):
        run()


def test_an_error_is_one_line_and_exit_code_1(tmp_path):
    done = run_script("run_inference.py", "--test_csv", "gone.csv", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "run_inference.py: error: gone.csv: no such file; make it with reformated_csv.py\n"
    assert list(tmp_path.iterdir()) == []
