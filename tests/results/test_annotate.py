"""annotate.py: masks of images without ground truth, and that annotation tools (and our converters) read them back."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import files_below, make_crop, random_sam
from converted_annotations import convert, iou
from PIL import Image
from pycocotools.coco import COCO

import process_coco_dataset
import process_yolo_to_classwise
from sam_lora.data import imaging
from sam_lora.errors import UserError
from sam_lora.results import annotate
from sam_lora.results.requests import Candidate, Destination, PhotoFolder, Runtime, SinglePhoto

CPU = torch.device("cpu")
HEADER = "image,points,point_labels,box,class_name\n"
PROMPTS = HEADER + """\
a.jpg,"[[30,20]]",,,red disc
sub/b.png,,,"[5,6,40,30]",green bar
a.jpg,"[[12,9],[50,25]]","[1,0]","[3,4,60,35]",green bar
./sub/../a.jpg,"[[40.5,25]]",,,
"""
NAMES = ["red disc", "green bar", "green bar", "object"]
MASKS = ["masks/a_1.png", "masks/sub/b_1.png", "masks/a_2.png", "masks/a_3.png"]  # of the rows, in order
FILES = {*MASKS, "overlays/a.jpg", "overlays/sub/b.jpg", "predictions.json"}
YOLO_FILES = {"yolo/data.yaml", "yolo/images/a.jpg", "yolo/images/sub/b.png", "yolo/labels/a.txt",
              "yolo/labels/sub/b.txt"}


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


@pytest.fixture(scope="module")
def blind():
    """A SAM that never sees anything: all its logits are 0."""
    sam = random_sam("vit_mini")
    with torch.no_grad():
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.zero_()
            mlp.layers[-1].bias.zero_()
    return sam


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/a.jpg (64 x 40), photos/sub/b.png, non-square both."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    imaging.write_jpeg(folder / "a.jpg", make_crop(rng, True)[0][:40, :64])
    imaging.write_png(folder / "sub" / "b.png", make_crop(rng, False)[0])
    return folder


@pytest.fixture
def predict(photos, tmp_path, mini):
    """Calls predict_folder on photos/ with a table's text; results go to tmp_path/out."""
    def call(text=PROMPTS, sam=mini, output_dir=tmp_path / "out", images_dir=photos, **changed) -> Path:
        table = tmp_path / "prompts.csv"
        if text is not None:
            table.write_text(text, encoding="utf-8")
        settings = {"batch_size": None, "num_pictures": 30, "overwrite": False, "save_yolo": False} | changed
        annotate.predict_folder(
            Candidate(lambda _: sam, tuned=True), PhotoFolder(str(images_dir), str(table), settings["save_yolo"]),
            Destination(Path(output_dir), settings["overwrite"], settings["num_pictures"], seed=0),
            Runtime(CPU, settings["batch_size"]))
        return Path(output_dir)
    return call


def predict_image(photos: Path, sam, prompts: list[tuple], out: Path) -> list:
    """Objects of photos/a.jpg."""
    return annotate.predict_image(Candidate(lambda _: sam, tuned=True), SinglePhoto(str(photos / "a.jpg"), prompts),
                                  Destination(out), Runtime(CPU))


# ---- files and COCO -------------------------------------------------------------------------------------------

def test_masks_overlays_and_coco_in_the_order_of_the_table(predict, photos, capsys):
    out = predict()
    assert files_below(out) == FILES
    content = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    height, width = imaging.load_image(photos / "sub" / "b.png").shape[:2]
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 40},
                                 {"id": 2, "file_name": "sub/b.png", "width": width, "height": height}]
    assert content["categories"] == [{"id": number, "name": name, "supercategory": ""}
                                     for number, name in enumerate(["red disc", "green bar", "object"], start=1)]
    annotations = content["annotations"]
    assert [annotation["id"] for annotation in annotations] == [1, 2, 3, 4]
    assert [annotation["image_id"] for annotation in annotations] == [1, 2, 1, 1]
    assert [annotation["category_id"] for annotation in annotations] == [1, 2, 2, 3]
    assert [annotation["mask"] for annotation in annotations] == MASKS
    assert {*annotations[0]} == {"id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd", "score",
                                 "mask"}
    assert "4 masks of 2 images, 2 of them drawn" in capsys.readouterr().out


def test_pycocotools_loads_the_predictions_and_decodes_the_very_masks(predict, capsys):
    from pycocotools import mask as coco_mask
    out = predict()
    coco = COCO(str(out / "predictions.json"))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        stored = cv2.imread(str(out / annotation["mask"]), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(stored)) == {0, 255} and isinstance(annotation["segmentation"]["counts"], str)
        np.testing.assert_array_equal(coco.annToMask(annotation) * 255, stored)
        assert annotation["iscrowd"] == 0 and annotation["area"] == np.count_nonzero(stored)
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        image = coco.loadImgs(annotation["image_id"])[0]
        assert stored.shape == (image["height"], image["width"])
    assert coco.loadRes(coco.dataset["annotations"]).getAnnIds() == [1, 2, 3, 4]  # as a result file, for COCOeval


def test_a_row_predicts_what_its_prompt_predicts_alone(predict, photos, mini, tmp_path):
    out = predict()
    prompts = [([(30, 20)], None, None), ([(12, 9), (50, 25)], [1, 0], (3, 4, 60, 35)), ([(40.5, 25)], None, None)]
    alone = predict_image(photos, mini, prompts, tmp_path / "alone")
    scores = [annotation["score"] for annotation in json.loads((out / "predictions.json").read_text())["annotations"]]
    for name, prediction, score in zip(("a_1", "a_2", "a_3"), alone, (scores[0], *scores[2:])):
        stored = imaging.load_mask(out / "masks" / f"{name}.png")
        assert (stored != prediction.mask).mean() < 1e-3
        assert score == pytest.approx(prediction.predicted_iou, abs=1e-5)


def test_each_image_is_encoded_once_however_many_objects_it_has(predict, mini):
    seen = []
    hook = mini.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        out = predict("image,points\n" + '"sub/b.png","[[5,5]]"\n' + 'a.jpg,"[[30,20]]"\n' * 70, num_pictures=0)
    finally:
        hook.remove()
    assert seen == [2]
    assert files_below(out) == {"predictions.json", "masks/sub/b_1.png", *(f"masks/a_{i}.png" for i in range(1, 71))}


def test_the_same_run_writes_the_same_bytes(predict, tmp_path):
    first, second = predict(save_yolo=True), predict(save_yolo=True, output_dir=tmp_path / "again", batch_size=1)
    assert files_below(first) == files_below(second) == FILES | YOLO_FILES
    for name in files_below(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_fewer_pictures_than_images(predict):
    assert len([name for name in files_below(predict(num_pictures=1)) if name.startswith("overlays/")]) == 1


def test_columns_that_may_be_missing_or_empty(predict):
    out = predict('image,label,box\na.jpg,,"[3,4,60,35]"\nsub\\b.png,,"[5,6,40,30]"\n')
    assert files_below(out) == {"masks/a_1.png", "masks/sub/b_1.png", "overlays/a.jpg", "overlays/sub/b.jpg",
                             "predictions.json"}
    assert json.loads((out / "predictions.json").read_text())["categories"][0]["name"] == "object"


def test_an_empty_mask_is_a_png_and_no_annotation(predict, blind, capsys):
    out = predict(sam=blind, save_yolo=True)
    assert files_below(out) == FILES | YOLO_FILES
    assert not any(imaging.load_mask(out / name).any() for name in MASKS)
    content = json.loads((out / "predictions.json").read_text())
    assert content["annotations"] == [] and len(content["images"]) == 2
    assert (out / "yolo" / "labels" / "a.txt").read_text() == ""
    assert "4 of these masks are empty and left out of the annotations: row 2, 3, 4, … of" in capsys.readouterr().out


# ---- back into our own converters ---------------------------------------------------------------------------------

EXPECTED = {("a.jpg", "red disc"): [0], ("sub/b.png", "green bar"): [1], ("a.jpg", "green bar"): [2],
            ("a.jpg", "object"): [3]}


def test_our_coco_converter_reads_the_very_masks(predict, photos, tmp_path, capsys):
    out = predict()
    found = convert(process_coco_dataset, "--coco_json", out / "predictions.json", "--images_dir", photos,
                    tmp_path / "crops")
    assert found.keys() == EXPECTED.keys()
    for key, (row,) in EXPECTED.items():
        np.testing.assert_array_equal(found[key][0], imaging.load_mask(out / MASKS[row]))


def test_our_yolo_converter_reads_nearly_the_masks(predict, photos, tmp_path, capsys):
    out = predict(save_yolo=True)
    assert (out / "yolo" / "images" / "a.jpg").read_bytes() == (photos / "a.jpg").read_bytes()
    assert yaml.safe_load((out / "yolo" / "data.yaml").read_text(encoding="utf-8")) == {
        "train": "images", "val": "images", "nc": 3, "names": {0: "red disc", 1: "green bar", 2: "object"}}
    found = convert(process_yolo_to_classwise, "--dataset_dir", out / "yolo", tmp_path / "crops")
    assert found.keys() == EXPECTED.keys()
    for key, (row,) in EXPECTED.items():  # random weights make ragged masks: the converter fills notches of one pixel
        assert iou(found[key][0], imaging.load_mask(out / MASKS[row])) > 0.9


def test_a_yolo_set_of_images_that_yolo_tools_would_pass_over_or_mix_up(predict, photos, tmp_path, capsys):
    """A GIF is no picture to them, two images of one stem share a label file, images/ inside images/ moves labels/."""
    (photos / "train" / "images").mkdir(parents=True)
    names = ["c.gif", "a.png", "train/images/a.jpg"]
    for name in names:
        Image.fromarray(imaging.load_image(photos / "a.jpg")).save(photos / name)
    out = predict("image,box\n" + "".join(f'{name},"[3,4,60,35]"\n' for name in ["a.jpg", *names]), save_yolo=True)
    assert {name for name in files_below(out) if name.startswith("yolo/")} == {
        "yolo/data.yaml", *(f"yolo/images/{name}" for name in ("a.jpg", "a_png.png", "c.png", "train/a.jpg")),
        *(f"yolo/labels/{name}.txt" for name in ("a", "a_png", "c", "train/a"))}
    found = convert(process_yolo_to_classwise, "--dataset_dir", out / "yolo", tmp_path / "crops")
    assert {name: len(masks) for (name, _), masks in found.items()} == {
        "a.jpg": 1, "a_png.png": 1, "c.png": 1, "train/a.jpg": 1}


def test_a_turned_photo_keeps_its_upright_frame_on_the_way(predict, photos, tmp_path, capsys):
    exif = Image.Exif()
    exif[imaging.EXIF_ORIENTATION] = 6
    Image.fromarray(imaging.load_image(photos / "a.jpg")).save(photos / "turned.jpg", exif=exif, quality=95)
    out = predict('image,points\nturned.jpg,"[[20,50]]"\n', save_yolo=True)
    content = json.loads((out / "predictions.json").read_text())
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (40, 64)
    mask = imaging.load_mask(out / "masks" / "turned_1.png")
    coco = convert(process_coco_dataset, "--coco_json", out / "predictions.json", "--images_dir", photos,
                   tmp_path / "coco")
    yolo = convert(process_yolo_to_classwise, "--dataset_dir", out / "yolo", tmp_path / "yolo")
    np.testing.assert_array_equal(coco["turned.jpg", "object"][0], mask)
    assert iou(yolo["turned.jpg", "object"][0], mask) > 0.9


# ---- bad input ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "message"), [
    pytest.param(None, "prompts.csv: no such file; make it with any editor: columns image, points and/or box",
                 id="no table"),
    pytest.param("image,mask\na.jpg,b\n", "prompts.csv: neither a column points nor box; found image, mask",
                 id="no column of prompts"),
    pytest.param("file,points\na.jpg,b\n", r"missing column\(s\) image; found file, points", id="no column of images"),
    pytest.param(HEADER, "prompts.csv: has a header but no rows", id="no rows"),
    pytest.param(HEADER + "a.jpg,,,,x\n", "prompts.csv row 2: neither points nor a box", id="no prompt"),
    pytest.param(HEADER + 'a.jpg,"[[30,20]]",,,x\n,"[[3,2]]",,,x\n', "row 3, column image: empty; expected the path",
                 id="no image named"),
    pytest.param(HEADER + 'a.jpg,"[[30,20]",,,x\n', r"row 2, column points: found '\[\[30,20\]', expected \[\[x1,y1\]",
                 id="broken JSON"),
    pytest.param(HEADER + 'a.jpg,"30,20",,,x\n', "row 2, column points: found '30,20', expected", id="not JSON"),
    pytest.param(HEADER + 'a.jpg,"[[30,20]]","[1,0]",,x\n', "column point_labels: found .* expected 1 labels",
                 id="more labels than points"),
    pytest.param(HEADER + 'a.jpg,,"[1]","[3,4,60,35]",x\n', "column point_labels: found .* expected 0 labels",
                 id="labels for a box"),
    pytest.param(HEADER + 'a.jpg,,,"[30,4,6,35]",x\n', "column box: found .* x0 < x1", id="a box inside out"),
    pytest.param(HEADER + 'a.jpg,"[[64,20]]",,,x\n',
                 r"1 of 1 rows cannot be used: row 2: point \(64, 20\) lies outside a.jpg \(64x40 px\)",
                 id="a point outside"),
    pytest.param(HEADER + 'a.jpg,,,"[70,4,90,35]",x\n', "row 2: box 70,4,90,35 lies outside a.jpg", id="a box outside"),
    pytest.param(HEADER + 'a.jpg,,,"[3,4,30000,35]",x\n', "row 2: box 3,4,30000,35 lies outside a.jpg",
                 id="a box that reaches far out"),
    pytest.param(HEADER + 'gone.jpg,"[[30,20]]",,,x\n', "row 2: .*gone.jpg: no such file", id="no such image"),
    pytest.param(HEADER + 'sub,"[[30,20]]",,,x\n', "row 2: .*sub: is a folder", id="a folder"),
    pytest.param(HEADER + 'text.jpg,"[[30,20]]",,,x\n', "row 2: .*text.jpg: not an image", id="no image"),
    pytest.param(HEADER + 'short.png,"[[30,20]]",,,x\n', "short.png: broken image", id="cut short, met on loading"),
    pytest.param(HEADER + '../outside.jpg,"[[30,20]]",,,x\n', "row 2, column image: ../outside.jpg lies outside",
                 id="up and out"),
    pytest.param(HEADER + '..\\outside.jpg,"[[30,20]]",,,x\n', "lies outside", id="up and out on Windows"),
    pytest.param(HEADER + '/etc/hostname,"[[30,20]]",,,x\n', "column image: /etc/hostname lies outside", id="absolute"),
    pytest.param(HEADER + 'link.jpg,"[[30,20]]",,,x\n', "column image: link.jpg lies outside", id="a link out"),
    pytest.param("image,points,label\n" + 'a.jpg,"[[30,20]]",m.png\n',
                 "row 2: has a label; expected none. A table with ground truth goes to --test_csv", id="a label"),
])
def test_tables_that_cannot_be_predicted(predict, photos, tmp_path, text, message):
    (photos / "text.jpg").write_text("text")
    (photos / "short.png").write_bytes((photos / "sub" / "b.png").read_bytes()[:300])
    (tmp_path / "outside.jpg").write_bytes((photos / "a.jpg").read_bytes())
    (photos / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(UserError, match=message) as error:
        predict(text)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["gone", "prompts.csv"])
def test_no_folder_of_images(predict, tmp_path, path):
    with pytest.raises(UserError, match="(no such folder|is a file); expected the folder of the images"):
        predict(images_dir=tmp_path / path)


def test_a_full_folder_is_left_alone_without_overwrite_and_only_replaced_where_it_is_ours(predict, tmp_path):
    out = predict(save_yolo=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out: not empty .*give --overwrite"):
        predict()
    assert files_below(out) == FILES | YOLO_FILES | {"notes.txt"}
    predict('image,box\nsub/b.png,"[5,6,40,30]"\n', overwrite=True)
    assert files_below(out) == {"predictions.json", "masks/sub/b_1.png", "overlays/sub/b.jpg", "notes.txt"}


def test_a_failed_run_keeps_the_earlier_results(predict, photos):
    out = predict()
    before = {name: (out / name).read_bytes() for name in files_below(out)}
    (photos / "sub" / "b.png").write_bytes((photos / "sub" / "b.png").read_bytes()[:300])
    with pytest.raises(UserError, match="broken image"):
        predict(overwrite=True, batch_size=1)
    assert {name: (out / name).read_bytes() for name in files_below(out)} == before


@pytest.mark.parametrize(("output", "images"), [
    pytest.param("photos", "photos", id="the images' own folder"),
    pytest.param("work", "work/masks", id="images where masks would go"),
    pytest.param("work", "work/yolo/images", id="the images of an earlier YOLO set"),
])
def test_overwrite_never_takes_the_users_images(predict, photos, tmp_path, output, images):
    if images != "photos":
        (tmp_path / images).parent.mkdir(parents=True)
        photos.rename(tmp_path / images)
    before = files_below(tmp_path)
    with pytest.raises(UserError, match="(holds the images|this run reads it).*; give another --output_dir"):
        predict(images_dir=tmp_path / images, output_dir=tmp_path / output, overwrite=True)
    assert files_below(tmp_path) == before | {"prompts.csv"}


# ---- one image ------------------------------------------------------------------------------------------------------

def test_several_objects_of_one_image(photos, mini, tmp_path, capsys):
    seen = []
    hook = mini.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    out = tmp_path / "one"
    prompts = [([(30, 20)], [1], None), (None, None, (3, 4, 60, 35)), ([(12, 9), (50, 25)], None, (3, 4, 60, 35))]
    try:
        found = predict_image(photos, mini, prompts, out)
    finally:
        hook.remove()
    assert seen == [1]
    assert files_below(out) == {"a_mask_1.png", "a_mask_2.png", "a_mask_3.png", "a_overlay.jpg"}
    for number, prediction in enumerate(found, start=1):
        stored = cv2.imread(str(out / f"a_mask_{number}.png"), cv2.IMREAD_UNCHANGED)
        assert stored.shape == (40, 64)
        np.testing.assert_array_equal(stored, prediction.mask * 255)
    assert len({prediction.mask.tobytes() for prediction in found}) == 3
    printed = capsys.readouterr().out
    assert f"a_mask_2.png: mask of {found[1].mask.sum()} px" in printed and "a_overlay.jpg: all 3, numbered" in printed


def test_one_object_of_several_that_is_outside_is_named(photos, mini, tmp_path):
    with pytest.raises(UserError, match=r"^object 2: point \(64, 3\) lies outside"):
        predict_image(photos, mini, [([(3, 3)], None, None), ([(64, 3)], None, None)], tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_one_mask_of_several_that_is_there_stops_all(photos, mini, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a_mask_2.png").write_text("mine")
    prompts = [([(3, 3)], None, None), ([(30, 20)], None, None)]
    with pytest.raises(UserError, match=r"a_mask_2.png: already there; give --overwrite"):
        predict_image(photos, mini, prompts, tmp_path / "one")
    assert files_below(tmp_path / "one") == {"a_mask_2.png"}
