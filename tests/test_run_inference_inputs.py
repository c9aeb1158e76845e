"""run_inference.py on photos of the user's own, and its refusals: contradicting flags, bad input, folders in use."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import files_below, make_checkpoint, random_sam

import run_base_sam_inference
import run_inference
from sam_lora.data import imaging
from sam_lora.errors import UserError

ROOT = Path(run_inference.__file__).parent
STEMS = [f"{number:05d}_photo{number + 9}_0001" for number in range(1, 7)]
FILES = {"predictions.jpg", "report.html", "finetuned_sam_results.csv", "finetuned_sam_class_iou_summary.csv",
         "finetuned_sam_size_iou_summary.csv",
         *(f"masks/{stem}.png" for stem in STEMS), *(f"samples/{stem}.jpg" for stem in STEMS)}


# ---- one image ----------------------------------------------------------------------------------------------------

def test_one_image_by_points_and_box(infer, crops, tmp_path, capsys):
    image = crops.folder / pd.read_csv(crops.test_csv)["image"][1]
    out = infer("--image", image, "--points", "37,23 4.5,3", "--labels", "1 0", "--box", "10,10,60,35")
    assert files_below(out) == {"photo11_0001_mask.png", "photo11_0001_overlay.jpg"}
    mask = cv2.imread(str(out / "photo11_0001_mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == imaging.load_image(image).shape[:2] and set(np.unique(mask)) == {0, 255}
    assert f"mask of {(mask > 0).sum()} px" in capsys.readouterr().out


def test_one_image_predicts_what_a_table_row_predicts(infer, crops):
    row = pd.read_csv(crops.test_csv).iloc[1]
    points = " ".join(f"{x},{y}" for x, y in json.loads(row["points"]))
    out = infer("--image", crops.folder / row["image"], "--points", points)
    (out / "photo11_0001_mask.png").rename(out.parent / "single.png")
    table_mask = imaging.load_mask(infer("--num_pictures", 0, "--overwrite") / "masks" / f"{STEMS[1]}.png")
    assert (imaging.load_mask(out.parent / "single.png") != table_mask).mean() < 1e-3


def test_several_objects_of_one_image(infer, crops):
    image = crops.folder / pd.read_csv(crops.test_csv)["image"][1]
    out = infer("--image", image, "--points", "37,23 4.5,3", "--points", "none", "--labels", "1 0", "--labels", "none",
              "--box", "none", "--box", "10,10,60,35")
    assert files_below(out) == {"photo11_0001_mask_1.png", "photo11_0001_mask_2.png", "photo11_0001_overlay.jpg"}
    masks = [imaging.load_mask(out / f"photo11_0001_mask_{number}.png") for number in (1, 2)]
    for name, prompt in (("by_points", ("--points", "37,23 4.5,3", "--labels", "1 0")),
                         ("by_box", ("--box", "10,10,60,35"))):
        alone = infer("--image", image, *prompt, "--output_dir", name).parent / name / "photo11_0001_mask.png"
        assert (imaging.load_mask(alone) != masks.pop(0)).mean() < 1e-3


# ---- a folder of images -------------------------------------------------------------------------------------------

def test_a_folder_of_images_with_a_table_of_prompts(infer, crops, capsys):
    images = crops.folder / "processed_dataset"
    table = pd.read_csv(crops.test_csv)[["image", "points"]]
    table["image"] = table["image"].str.removeprefix("processed_dataset/")
    table["class_name"] = ["red disc", "green bar"] * 3
    table.to_csv(crops.folder / "prompts.csv", index=False)
    out = infer("--images_dir", images, "--prompts_csv", crops.folder / "prompts.csv", "--save_yolo",
                "--num_pictures", 2)
    stems = [name.replace("/images/", "/").removesuffix(".png") for name in table["image"]]
    names = files_below(out)
    overlays = {name for name in names if name.startswith("overlays/")}
    assert len(overlays) == 2 and overlays < {f"overlays/{stem}.jpg" for stem in stems}
    assert names - overlays == {"predictions.json", "yolo/data.yaml", *(f"masks/{stem}_1.png" for stem in stems),
                                *(f"yolo/images/{stem}.png" for stem in stems),
                                *(f"yolo/labels/{stem}.txt" for stem in stems)}
    assert "vit_mini at 256 px, epoch 2" in capsys.readouterr().out
    by_table = infer("--num_pictures", 0, "--output_dir", "table").parent / "table" / "masks"
    for stem, scored in zip(stems, STEMS):
        difference = imaging.load_mask(out / "masks" / f"{stem}_1.png") != imaging.load_mask(by_table / f"{scored}.png")
        assert difference.mean() < 1e-3


def test_images_gather_in_one_folder_and_none_is_overwritten_unasked(infer, crops):
    first, second = (crops.folder / image for image in pd.read_csv(crops.test_csv)["image"][:2])
    infer("--image", first, "--box", "1,1,20,20")
    out = infer("--image", second, "--box", "1,1,20,20")
    assert len(files_below(out)) == 4
    before = (out / "photo10_0001_mask.png").read_bytes()
    with pytest.raises(UserError, match="photo10_0001_mask.png.*already there; give --overwrite"):
        infer("--image", first, "--points", "40,30")
    assert (out / "photo10_0001_mask.png").read_bytes() == before
    infer("--image", first, "--points", "40,30", "--overwrite")
    assert (out / "photo10_0001_mask.png").read_bytes() != before


@pytest.mark.parametrize(("flags", "message"), [
    pytest.param(["--image", "gone.png", "--box", "1,1,5,5"], "gone.png: no such file", id="no image"),
    pytest.param(["--image", "text.png", "--box", "1,1,5,5"], "text.png: not an image that can be read", id="text"),
    pytest.param(["--image", "a.png", "--points", "5,5 40,5"], r"point \(40, 5\) lies outside a.png \(40x24 px\)",
                 id="a point outside"),
    pytest.param(["--image", "a.png", "--box", "50,5,60,9"], "box 50,5,60,9 lies outside", id="a box outside"),
])
def test_images_that_cannot_be_predicted(infer, tmp_path, flags, message):
    (tmp_path / "text.png").write_text("text")
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((24, 40, 3), np.uint8))
    with pytest.raises(UserError, match=message) as error:
        infer(*flags)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


# ---- bad input ----------------------------------------------------------------------------------------------------

def test_flags_that_contradict_are_refused_before_anything_is_read(infer, tmp_path, capsys):
    """Which ones do: tests/results/test_arguments.py."""
    with pytest.raises(SystemExit) as stopped:
        infer("--save_yolo", "--checkpoint", "not_even_there")
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
def test_tables_that_cannot_be_predicted(infer, crops, tmp_path, spoil, message):
    spoil(crops.folder, crops.test_csv)
    with pytest.raises(UserError, match=message) as error:
        infer()
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_an_image_that_breaks_in_a_worker_leaves_nothing(infer, crops, tmp_path):
    path = next(crops.folder.rglob("images/photo12*"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="photo12_0001.png: broken image"):
        infer("--num_workers", 1, "--batch_size", 1)
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
def test_checkpoints_that_do_not_load(infer, mini_weights, tmp_path, make, message):
    path = tmp_path / "x.ckpt"
    if make:
        make(path, mini_weights)
    with pytest.raises(UserError, match=message) as error:
        infer("--checkpoint", path)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_full_folder_is_left_alone_without_overwrite(infer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out: not empty .*give --overwrite"):
        infer()
    assert files_below(tmp_path / "out") == {"notes.txt"}


def test_overwrite_replaces_its_own_files_only(infer, tmp_path):
    out = infer("--num_pictures", 6, "--prompt_kinds")
    for name in ("comparison.csv", "comparison.png", "improved.jpg", "regressed.jpg"):
        (out / name).write_text("of an earlier run")
    (out / "notes.txt").write_text("mine")
    (out / "photo_mask.png").write_text("of a single image")
    infer("--num_pictures", 0, "--overwrite")
    assert files_below(out) == {name for name in FILES if not name.endswith(".jpg")} | {"notes.txt", "photo_mask.png"}


def test_overwrite_by_the_other_kind_of_run_leaves_nothing_stale(infer, crops, mini_weights, tmp_path):
    """A table is scored, photos are annotated, a table is scored by the other script: in one folder, one by one."""
    table, photo = pd.read_csv(crops.test_csv), "class_7/a.png"
    (tmp_path / "photos" / "class_7").mkdir(parents=True)
    imaging.write_png(tmp_path / "photos" / photo, imaging.load_image(crops.folder / table["image"][0]))
    (tmp_path / "prompts.csv").write_text(f'image,points\n{photo},"[[20,20]]"\n')
    annotations = {"masks/class_7/a_1.png", "overlays/class_7/a.jpg", "predictions.json", "yolo/data.yaml",
                   "yolo/images/class_7/a.png", "yolo/labels/class_7/a.txt"}
    annotate = ("--images_dir", "photos", "--prompts_csv", "prompts.csv", "--save_yolo")

    out = infer("--prompt_kinds")
    (out / "notes.txt").write_text("mine")
    infer(*annotate, "--overwrite")
    assert files_below(out) == annotations | {"notes.txt"}
    infer("--overwrite")
    assert files_below(out) == FILES | {"notes.txt"}
    infer(*annotate, "--overwrite")
    base = run_base_sam_inference.get_args_parser().parse_args(
        ["--model_type", "vit_mini", "--checkpoint", str(mini_weights), "--test_csv", str(crops.test_csv),
         "--output_dir", "out", "--device", "cpu", "--overwrite"])
    run_base_sam_inference.main(base)
    as_base = {name.replace("finetuned_sam_", "base_sam_") for name in FILES}
    assert files_below(out) == as_base | {"notes.txt"}
    infer("--overwrite")
    assert files_below(out) == FILES | {"notes.txt"}


@pytest.mark.parametrize("kind", ["masks", "images", "base results"])
def test_overwrite_never_takes_what_the_run_reads(infer, crops, base_results, tmp_path, kind):
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
        infer(*flags)
    assert files_below(tmp_path) == before


def test_a_failed_run_keeps_the_earlier_results(infer, crops):
    out = infer("--num_pictures", 0)
    before = {name: (out / name).read_bytes() for name in files_below(out)}
    path = next(crops.folder.rglob("images/photo15*"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError):
        infer("--overwrite")
    assert {name: (out / name).read_bytes() for name in files_below(out)} == before


def test_a_file_where_the_folder_should_be(infer, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out: is a file"):
        infer()


def test_an_error_is_one_line_and_exit_code_1(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "run_inference.py", "--test_csv", "gone.csv", "--device", "cpu"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "run_inference.py: error: gone.csv: no such file; make it with reformated_csv.py\n"
    assert list(tmp_path.iterdir()) == []
