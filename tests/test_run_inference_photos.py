"""run_inference.py on photos without ground truth: one photo by flags, a folder by a table of prompts."""

import json
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import files_below
from inference_runs import STEMS, run_tuned

from sam_lora.data import imaging
from sam_lora.errors import UserError


@pytest.fixture
def run(crops, mini_weights, mini_checkpoint, tmp_path, monkeypatch):
    """Calls run_inference.py with further flags, below tmp_path; results go to tmp_path/out."""
    monkeypatch.chdir(tmp_path)
    return partial(run_tuned, crops, mini_weights, mini_checkpoint)


# ---- one image ----------------------------------------------------------------------------------------------------

def test_one_image_by_points_and_box(run, crops, tmp_path, capsys):
    image = crops.folder / pd.read_csv(crops.test_csv)["image"][1]
    out = run("--image", image, "--points", "37,23 4.5,3", "--labels", "1 0", "--box", "10,10,60,35")
    assert files_below(out) == {"photo11_0001_mask.png", "photo11_0001_overlay.jpg"}
    mask = cv2.imread(str(out / "photo11_0001_mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == imaging.load_image(image).shape[:2] and set(np.unique(mask)) == {0, 255}
    assert f"mask of {(mask > 0).sum()} px" in capsys.readouterr().out


def test_one_image_predicts_what_a_table_row_predicts(run, crops):
    row = pd.read_csv(crops.test_csv).iloc[1]
    points = " ".join(f"{x},{y}" for x, y in json.loads(row["points"]))
    out = run("--image", crops.folder / row["image"], "--points", points)
    (out / "photo11_0001_mask.png").rename(out.parent / "single.png")
    table_mask = imaging.load_mask(run("--num_pictures", 0, "--overwrite") / "masks" / f"{STEMS[1]}.png")
    assert (imaging.load_mask(out.parent / "single.png") != table_mask).mean() < 1e-3


def test_several_objects_of_one_image(run, crops):
    image = crops.folder / pd.read_csv(crops.test_csv)["image"][1]
    out = run("--image", image, "--points", "37,23 4.5,3", "--points", "none", "--labels", "1 0", "--labels", "none",
              "--box", "none", "--box", "10,10,60,35")
    assert files_below(out) == {"photo11_0001_mask_1.png", "photo11_0001_mask_2.png", "photo11_0001_overlay.jpg"}
    masks = [imaging.load_mask(out / f"photo11_0001_mask_{number}.png") for number in (1, 2)]
    for name, prompt in (("by_points", ("--points", "37,23 4.5,3", "--labels", "1 0")),
                         ("by_box", ("--box", "10,10,60,35"))):
        alone = run("--image", image, *prompt, "--output_dir", name).parent / name / "photo11_0001_mask.png"
        assert (imaging.load_mask(alone) != masks.pop(0)).mean() < 1e-3


# ---- a folder of images -------------------------------------------------------------------------------------------

def test_a_folder_of_images_with_a_table_of_prompts(run, crops, capsys):
    images = crops.folder / "processed_dataset"
    table = pd.read_csv(crops.test_csv)[["image", "points"]]
    table["image"] = table["image"].str.removeprefix("processed_dataset/")
    table["class_name"] = ["red disc", "green bar"] * 3
    table.to_csv(crops.folder / "prompts.csv", index=False)
    out = run("--images_dir", images, "--prompts_csv", crops.folder / "prompts.csv", "--save_yolo", "--num_pictures", 2)
    stems = [name.replace("/images/", "/").removesuffix(".png") for name in table["image"]]
    names = files_below(out)
    overlays = {name for name in names if name.startswith("overlays/")}
    assert len(overlays) == 2 and overlays < {f"overlays/{stem}.jpg" for stem in stems}
    assert names - overlays == {"predictions.json", "yolo/data.yaml", *(f"masks/{stem}_1.png" for stem in stems),
                                *(f"yolo/images/{stem}.png" for stem in stems),
                                *(f"yolo/labels/{stem}.txt" for stem in stems)}
    assert "vit_mini at 256 px, epoch 2" in capsys.readouterr().out
    by_table = run("--num_pictures", 0, "--output_dir", "table").parent / "table" / "masks"
    for stem, scored in zip(stems, STEMS):
        difference = imaging.load_mask(out / "masks" / f"{stem}_1.png") != imaging.load_mask(by_table / f"{scored}.png")
        assert difference.mean() < 1e-3


def test_images_gather_in_one_folder_and_none_is_overwritten_unasked(run, crops):
    first, second = (crops.folder / image for image in pd.read_csv(crops.test_csv)["image"][:2])
    run("--image", first, "--box", "1,1,20,20")
    out = run("--image", second, "--box", "1,1,20,20")
    assert len(files_below(out)) == 4
    before = (out / "photo10_0001_mask.png").read_bytes()
    with pytest.raises(UserError, match="photo10_0001_mask.png.*already there; give --overwrite"):
        run("--image", first, "--points", "40,30")
    assert (out / "photo10_0001_mask.png").read_bytes() == before
    run("--image", first, "--points", "40,30", "--overwrite")
    assert (out / "photo10_0001_mask.png").read_bytes() != before


@pytest.mark.parametrize(("flags", "message"), [
    pytest.param(["--image", "gone.png", "--box", "1,1,5,5"], "gone.png: no such file", id="no image"),
    pytest.param(["--image", "text.png", "--box", "1,1,5,5"], "text.png: not an image that can be read", id="text"),
    pytest.param(["--image", "a.png", "--points", "5,5 40,5"], r"point \(40, 5\) lies outside a.png \(40x24 px\)",
                 id="a point outside"),
    pytest.param(["--image", "a.png", "--box", "50,5,60,9"], "box 50,5,60,9 lies outside", id="a box outside"),
])
def test_images_that_cannot_be_predicted(run, tmp_path, flags, message):
    (tmp_path / "text.png").write_text("text")
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((24, 40, 3), np.uint8))
    with pytest.raises(UserError, match=message) as error:
        run(*flags)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
