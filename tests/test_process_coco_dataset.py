"""process_coco_dataset.py: polygons and RLE, categories, pictures, several files, and what bad input gets."""

import json
import re
import tracemalloc
from array import array
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from process_coco_dataset import (
    KEPT_KEYS,
    AnnotationError,
    get_args_parser,
    id_text,
    main,
    object_classes,
    parse_segmentation,
    read_coco_json,
    slim,
    split_of,
)
from sam_lora import cli
from sam_lora.data.conversion_report import ConversionReport
from sam_lora.data.imaging import load_image, load_mask, write_jpeg
from sam_lora.errors import UserError

DATA = Path(__file__).parents[2] / "shared" / "data"
WIDTH, HEIGHT = 80, 50
SQUARE = [20, 10, 60, 10, 60, 30, 20, 30]   # 40 x 20 pixels from (20, 10)
OTHER = ["classes.json", "conversion_report.csv", "instances.csv", "preview.jpg"]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    write_jpeg(path, np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def annotation(image_id: object = 1, category_id: object = 1, segmentation: object = (SQUARE,), **more) -> dict:
    return {"id": 7, "image_id": image_id, "category_id": category_id, "iscrowd": 0, "bbox": [20, 10, 40, 20],
            "segmentation": list(segmentation) if isinstance(segmentation, tuple) else segmentation, **more}


def image(image_id: object = 1, file_name: object = "a.jpg", **more) -> dict:
    return {"id": image_id, "file_name": file_name, "width": WIDTH, "height": HEIGHT, **more}


def write_json(path: Path, annotations: list, images: list | None = None, categories: list | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": [image()] if images is None else images, "annotations": annotations,
                                "categories": [{"id": 1, "name": "disc"}] if categories is None else categories}))
    return path


def run(out: Path, *flags: object) -> pd.DataFrame:
    main(get_args_parser().parse_args(["--output_dir", str(out), "--num_workers", "0", *map(str, flags)]))
    return pd.read_csv(out / "instances.csv", keep_default_na=False)


def one_file(tmp_path: Path, annotations: list, *flags: object, images: list | None = None,
             categories: list | None = None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Convert one JSON file whose picture is a.jpg: (manifest, skips by reason)."""
    if not (tmp_path / "set" / "a.jpg").exists():
        picture(tmp_path / "set" / "a.jpg")
    path = write_json(tmp_path / "set" / "instances.json", annotations, images, categories)
    manifest = run(tmp_path / "out", "--coco_json", path, *flags)
    report = pd.read_csv(tmp_path / "out" / "conversion_report.csv", keep_default_na=False)
    assert len(annotations) == len(manifest) + len(report)
    return manifest, report.reason.value_counts().to_dict()


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


# ---- the whole conversion ---------------------------------------------------------------------------------

def test_three_files_become_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Roboflow's layout: ids start anew in each file, a parent category has no object, a name stands twice."""
    names = {0: "parts", 1: "disc", 5: "a/b", 6: "disc"}
    categories = [{"id": key, "name": name} for key, name in names.items()]
    ring = np.zeros((HEIGHT, WIDTH), bool)
    ring[5:35, 10:50] = True
    ring[15:25, 20:40] = False
    files = []
    for seed, (folder, segmentation, category) in enumerate([
            ("train", ([0, 0, 30, 0, 30, 20, 0, 20], [50, 20, 80, 20, 80, 50]), 6),
            ("valid", {"size": [HEIGHT, WIDTH], "counts": runs_of(ring)}, 1),
            ("test", coco_mask.encode(np.asfortranarray(ring.astype(np.uint8))), 5)]):
        if folder == "test":
            segmentation["counts"] = segmentation["counts"].decode()
        picture(tmp_path / folder / "a.jpg", seed)
        picture(tmp_path / folder / "background.jpg", seed)
        files.append(write_json(tmp_path / folder / "_annotations.coco.json", [annotation(0, category, segmentation)],
                                [image(0), image(1, "background.jpg")], categories))
    manifest = run(tmp_path / "out", "--coco_json", *files)
    columns = ["class_id", "class_name", "source_image", "source_split", "source_id", "crop_x0", "crop_y0", "crop_x1",
               "crop_y1", "rasteriser"]
    assert manifest[columns].to_numpy().tolist() == [
        [5, "a/b", "test/a.jpg", "test", "annotation 7", 6, 2, 54, 38, "pycocotools RLE"],
        [1, "disc", "train/a.jpg", "train", "annotation 7", 0, 0, 80, 50, "opencv fillPoly 4x"],
        [1, "disc", "valid/a.jpg", "val", "annotation 7", 6, 2, 54, 38, "pycocotools RLE"]]
    crops = [Path(path).name for path in manifest.mask_path]
    assert files_in(tmp_path / "out") == sorted([
        *(f"Class_5_a_b/{kind}/{crops[0]}" for kind in ("images", "masks")),
        *(f"Class_1_disc/{kind}/{name}" for kind in ("images", "masks") for name in crops[1:]), *OTHER])
    masks = [load_mask(tmp_path / "out" / path) for path in manifest.mask_path]
    assert np.array_equal(masks[0], ring[2:38, 6:54]) and np.array_equal(masks[2], ring[2:38, 6:54])
    assert masks[1].shape == (HEIGHT, WIDTH) and masks[1][:20, :30].all() and masks[1][22, 70] and not masks[1][40, 10]
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == {
        "Class_1_disc": {"class_id": 1, "class_name": "disc"}, "Class_5_a_b": {"class_id": 5, "class_name": "a/b"}}
    printed = capsys.readouterr().out
    assert printed.startswith("annotations: 3 = 3 crops + 0 skipped\nphotos: 3 with objects, "
                              "0 with skipped annotations only, 3 background, 0 missing")
    assert printed.count("categories 1, 6 are all named 'disc': one class") == 3


def test_images_dir_and_indices(tmp_path: Path):
    picture(tmp_path / "pictures" / "sub" / "a.jpg")
    path = write_json(tmp_path / "instances_val2017.json",
                      [annotation(segmentation=[]), annotation(), annotation(id=None), annotation(id="k")],
                      [image(file_name="sub\\a.jpg")])
    manifest = run(tmp_path / "out", "--coco_json", path, "--images_dir", tmp_path / "pictures")
    assert manifest[["image_path", "source_image", "source_split", "source_id"]].to_numpy().tolist() == [
        ["Class_1_disc/images/a_0002.png", "sub/a.jpg", "", "annotation 7"],
        ["Class_1_disc/images/a_0003.png", "sub/a.jpg", "", "annotation at place 2"],
        ["Class_1_disc/images/a_0004.png", "sub/a.jpg", "", "annotation k"]]


@pytest.mark.parametrize("file_name", [
    "a.jpg", "./a.jpg", "/home/me/a.jpg", "C:\\data\\a.jpg", "https://example.org/pictures/a.jpg",
    "../../elsewhere/a.jpg", "old/folder/A.JPG"])
def test_pictures_are_found_by_their_base_name(tmp_path: Path, file_name: str):
    manifest, _ = one_file(tmp_path, [annotation()], images=[image(file_name=file_name)])
    assert manifest.source_image.tolist() == ["a.jpg"]


def test_percent_encoding_and_accents(tmp_path: Path):
    picture(tmp_path / "set" / "my é.jpg")
    manifest, _ = one_file(tmp_path, [annotation(), annotation(2)],
                           images=[image(file_name="my%20%C3%A9.jpg"), image(2, "my e\u0301.jpg")])
    assert manifest.source_image.tolist() == ["my é.jpg"] * 2 and manifest.image_path.nunique() == 2


def test_missing_twin_and_outside_pictures_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("a.jpg", "x/twin.jpg", "y/twin.jpg", "unlisted.jpg"):
        picture(tmp_path / "set" / name)
    picture(tmp_path / "secret.jpg")
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "set" / "broken.jpg").write_text("<html>")
    names = {1: "a.jpg", 2: "twin.jpg", 3: "link.jpg", 4: "gone.jpg", 5: "broken.jpg", 6: "x/twin.jpg"}
    manifest, skipped = one_file(tmp_path, [annotation(i) for i in (*names, 99)],
                                 images=[image(i, name) for i, name in names.items()])
    assert manifest.source_image.tolist() == ["a.jpg", "x/twin.jpg"]
    assert skipped == {"several photos have that file name": 1, "photo not found": 2, "photo cannot be read": 1,
                       "image_id that no image has": 1}
    assert "0 background, 2 missing, 2 unusable, 3 on disk but not used" in capsys.readouterr().out


def test_most_pictures_missing_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"2 of 3 photos are not in .*, e\.g\. b\.jpg; .*--images_dir"):
        one_file(tmp_path, [annotation()], images=[image(), image(2, "b.jpg"), image(3, "c.jpg")])
    assert not (tmp_path / "out").exists()


def test_duplicate_image_ids_and_file_names(tmp_path: Path):
    picture(tmp_path / "set" / "b.jpg", 1)
    manifest, skipped = one_file(tmp_path, [annotation(1), annotation("2"), annotation(3)],
                                 images=[image(1), image(2), image(3, "b.jpg"), image("3", "a.jpg"), image(1)])
    assert manifest.mask_path.tolist() == ["Class_1_disc/masks/a_0001.png", "Class_1_disc/masks/a_0002.png"]
    assert skipped == {"image id of two different photos": 1}


@pytest.mark.parametrize(("stored", "orientation", "claimed", "box", "size"), [
    pytest.param((50, 80), 1, (80, 50), (20, 10, 60, 30), (80, 50), id="as in the JSON"),
    pytest.param((50, 80), 1, (None, None), (20, 10, 60, 30), (80, 50), id="no size in the JSON"),
    pytest.param((100, 160), 1, (80, 50), (40, 20, 120, 60), (160, 100), id="twice as large"),
    pytest.param((80, 50), 6, (80, 50), (20, 10, 60, 30), (80, 50), id="EXIF, annotated upright"),
    pytest.param((50, 80), 6, (80, 50), (20, 10, 60, 30), (80, 50), id="EXIF, annotated as stored"),
])
def test_sizes_and_exif(tmp_path: Path, stored: tuple, orientation: int, claimed: tuple, box: tuple, size: tuple):
    (tmp_path / "set").mkdir()
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((*stored, 3), np.uint8)).save(tmp_path / "set" / "a.jpg", exif=exif)
    manifest, _ = one_file(tmp_path, [annotation()], "--padding", 0,
                           images=[image(width=claimed[0], height=claimed[1])])
    row = manifest.iloc[0]
    assert (row.crop_x0, row.crop_y0, row.crop_x1, row.crop_y1) == box
    assert (row.source_width, row.source_height) == size
    assert load_image(tmp_path / "out" / row.image_path).shape == (box[3] - box[1], box[2] - box[0], 3)


def test_a_picture_of_another_shape_is_skipped(tmp_path: Path):
    picture(tmp_path / "set" / "b.jpg", size=(50, 50))
    manifest, skipped = one_file(tmp_path, [annotation(), annotation(2), annotation(2)],
                                 images=[image(), image(2, "b.jpg")])
    assert len(manifest) == 1 and skipped == {"photo of another shape than width and height in the JSON": 2}


BOX_ONLY = "only a box, no outline (--boxes rectangle takes it)"
NO_BOX = "neither an outline nor a box"
NO_PART = "no polygon part of three finite points"
COUNTS = "a plain list of numbers that looks like RLE counts"


# ---- annotations ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("more", "flags", "reason"), [
    pytest.param({"category_id": 9}, [], "category_id that no category has", id="unknown category"),
    pytest.param({"category_id": None}, [], "category_id that no category has", id="no category"),
    pytest.param({"image_id": {}}, [], "image_id that no image has", id="image id of another kind"),
    pytest.param({"iscrowd": 1}, [], "iscrowd (--crowd keep takes it)", id="crowd"),
    pytest.param({"iscrowd": 1}, ["--crowd", "keep"], None, id="crowd kept"),
    pytest.param({"segmentation": None}, [], BOX_ONLY, id="null"),
    pytest.param({"segmentation": []}, [], BOX_ONLY, id="[]"),
    pytest.param({"segmentation": [[]]}, [], BOX_ONLY, id="[[]]"),
    pytest.param({"segmentation": []}, ["--boxes", "rectangle"], None, id="box taken"),
    pytest.param({"segmentation": [], "bbox": None}, ["--boxes", "rectangle"], NO_BOX, id="no box"),
    pytest.param({"segmentation": [], "bbox": [5, 5, -3, 9]}, ["--boxes", "rectangle"], NO_BOX,
                 id="negative box"),
    pytest.param({"segmentation": [[1, 2, 3, 4]]}, [], NO_PART, id="two points"),
    pytest.param({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, [], NO_PART, id="NaN"),
    pytest.param({"segmentation": [[1, 2, 30, 4, 50, 1e400]]}, [], NO_PART, id="Inf"),
    pytest.param({"segmentation": [[1, 2, 3, 4, 5]]}, [], NO_PART, id="odd"),
    pytest.param({"segmentation": [["1", "2", "3", "4", "5", "6"]]}, [], NO_PART, id="text"),
    pytest.param({"segmentation": [SQUARE, [1, 2, 3, 4], [1, 2, float("inf"), 2, 3, 3]]}, [], None, id="one good part"),
    pytest.param({"segmentation": [[20, 10, 60, 1e8, 1e8, 1e8, 1e8, 10]]}, [], None, id="far out of the picture"),
    pytest.param({"segmentation": [[200, 10, 260, 10, 230, 40]]}, [], "covers no pixel of the photo", id="outside"),
    pytest.param({"segmentation": SQUARE}, [], None, id="outer list missing"),
    pytest.param({"segmentation": [100, 3000, 900]}, [], COUNTS, id="odd counts"),
    pytest.param({"segmentation": [1000, 1000, 1000, 1000, 0, 0]}, [], COUNTS,
                 id="counts that sum to the picture"),
    pytest.param({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 3800]}}, [],
                 "RLE counts that do not add up to its size", id="RLE cut off"),
    pytest.param({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [100, 3900]}}, [],
                 "RLE of another size than its photo", id="RLE with width and height swapped"),
    pytest.param({"segmentation": {"counts": "04"}}, [], "RLE without a size of two whole numbers",
                 id="RLE without size"),
    pytest.param({"segmentation": [{"size": [HEIGHT, WIDTH], "counts": [500, 3500]}]}, [], None, id="RLE in a list"),
    pytest.param({"segmentation": {"size": [HEIGHT // 2, WIDTH // 2], "counts": [0, 1000]}}, [], None,
                 id="RLE at half size"),
    pytest.param({"segmentation": "polygon"}, [], "segmentation that is neither polygons nor RLE", id="text"),
])
def test_one_annotation_is_a_crop_or_a_reason(tmp_path: Path, more: dict, flags: list[str], reason: str | None):
    manifest, skipped = one_file(tmp_path, [annotation(), {**annotation(), **more}], *flags)
    assert skipped == ({} if reason is None else {reason: 1})
    assert len(manifest) == (2 if reason is None else 1)


def test_bare_and_odd_annotations(tmp_path: Path):
    bare = {"image_id": "1", "category_id": 1.0, "segmentation": [SQUARE]}
    manifest, skipped = one_file(tmp_path, [bare, "text", None, 5, {}])
    assert len(manifest) == 1 and manifest.mask_area.tolist() == [800]
    assert skipped == {"not an annotation": 3, "image_id that no image has": 1}


def test_masks_that_are_all_crowd_are_kept_as_cvat_means_them(tmp_path: Path, capsys: pytest.CaptureFixture):
    rle = {"size": [HEIGHT, WIDTH], "counts": [500, 3500]}
    crowds = [annotation(segmentation=rle, iscrowd=1) for _ in range(3)]
    assert len(one_file(tmp_path, crowds)[0]) == 3
    assert "3 of 3 masks are RLE with iscrowd, as CVAT writes any mask: kept" in capsys.readouterr().out
    mixed = [*crowds, annotation()]
    assert one_file(tmp_path, mixed, "--overwrite")[1] == {"iscrowd (--crowd keep takes it)": 3}
    assert one_file(tmp_path, mixed, "--overwrite", "--crowd", "keep")[1] == {}


finite = st.floats(-1e9, 1e9) | st.integers(-10**6, 10**6)
odd = st.sampled_from([None, True, "1", float("nan"), float("inf"), 10**400, [], {}])
part = st.lists(st.one_of(finite, finite, odd), max_size=10)
segmentations = st.one_of(st.none(), part, st.lists(part, max_size=4),
                          st.dictionaries(st.text(max_size=6), part, max_size=2))


@settings(max_examples=200, deadline=None)
@given(segmentations)
def test_any_segmentation_is_polygons_rle_or_a_reason(segmentation: object):
    try:
        polygons, rle = parse_segmentation(segmentation, (WIDTH, HEIGHT), Counter())
    except AnnotationError as error:
        assert str(error)
    else:
        assert not (polygons and rle is not None)
        assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 and np.isfinite(np.array(polygon, float)).all()
                   for polygon in polygons)


@pytest.mark.parametrize(("value", "text"), [(12, "12"), ("12", "12"), (" 12 ", "12"), (12.0, "12"), (0, "0"),
                                             (None, ""), (True, ""), (1.5, ""), ({}, ""), ("a1", "a1"),
                                             (float("nan"), "")])
def test_id_text(value: object, text: str):
    assert id_text(value) == text


# ---- categories and splits --------------------------------------------------------------------------------

def classes_of(*uses: tuple[str, str]) -> dict[str, tuple]:
    classes = object_classes(Counter(uses), ConversionReport("annotations"))
    return {name: (found.class_id, found.folder) for name, found in classes.items()}


def test_classes():
    assert classes_of(("disc", "74676216"), ("bar", "0"), ("disc", "12")) == {
        "bar": (0, "Class_0_bar"), "disc": (12, "Class_12_disc")}
    assert classes_of(("disc", "1"), ("bar", "1"), ("Disc", "2")) == {
        "bar": (1, "Class_1_bar"), "disc": (3, "Class_3_disc"), "Disc": (2, "Class_2_Disc")}
    assert classes_of(("x", "k9"), ("../y", "-3")) == {"../y": (-3, "Class_-3_.._y"), "x": ("k9", "Class_k9_x")}
    assert classes_of() == {}


@pytest.mark.parametrize(("path", "images_dir", "split"), [
    ("annotations/instances_train2017.json", "images", "train"), ("valid/_annotations.coco.json", "valid", "val"),
    ("x/coco.json", "test2017", "test"), ("x/train_val.json", "images", ""), ("x/coco.json", "images", ""),
    ("train/contest.json", "images", "train")])
def test_split_of(path: str, images_dir: str, split: str):
    assert split_of(Path("/data") / path, Path("/data") / images_dir) == split


# ---- bad input --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("content", "flags", "said"), [
    pytest.param(None, [], "no such file", id="missing"),
    pytest.param("", [], "broken JSON", id="empty"),
    pytest.param("{'a': 1}", [], "broken JSON", id="not JSON"),
    pytest.param(b"\xff\xfe\x00", [], "broken JSON", id="not UTF-8"),
    pytest.param('{"images": ' + "[" * 100000, [], "broken JSON", id="too deep"),
    pytest.param("[]", [], "found a list, as COCO result files are", id="results"),
    pytest.param("3", [], "no list of images, annotations, categories", id="a number"),
    pytest.param('{"images": [], "annotations": {}}', [], "no list of annotations, categories", id="keys missing"),
    pytest.param('{"images": [], "categories": [], "annotations": [{"caption": "a"}]}', [], "holds captions",
                 id="captions"),
    pytest.param('{"images": [], "categories": [], "annotations": [{"segments_info": []}]}', [], "holds panoptic",
                 id="panoptic"),
    pytest.param('{"images": [], "categories": [], "annotations": []}', [], "nothing to convert", id="no annotations"),
    pytest.param('{"images": [3], "categories": [3, {"id": 1}], "annotations": [3]}', [],
                 "nothing to convert.*1 not an annotation", id="numbers for entries"),
    pytest.param("{}", ["--images_dir", "gone"], "gone: no such folder", id="images_dir missing"),
    pytest.param(json.dumps({"images": [image()], "categories": [{"id": 1, "name": "x"}],
                             "annotations": [annotation(segmentation=[])]}), [], "--boxes rectangle",
                 id="detection only"),
    pytest.param(json.dumps({"images": [image()], "categories": [{"id": 1, "name": "x"}],
                             "annotations": [annotation(), annotation(category_id=4)]}), ["--strict"],
                 "annotation 7: category_id that no category has", id="strict"),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch,
                                                  content: str | bytes | None, flags: list[str], said: str):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "set" / "a.jpg")
    path = tmp_path / "set" / "coco.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, get_args_parser(), ["--coco_json", str(path), "--output_dir", str(tmp_path / "out"), *flags])
    message = capsys.readouterr().err.strip()
    assert stopped.value.code == 1
    assert "\n" not in message and re.search(said, message), message
    assert not (tmp_path / "out").exists()


def test_flags_that_contradict(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, get_args_parser(), ["--coco_json", "a", "b", "c", "--images_dir", "x", "y"])
    assert stopped.value.code == 2
    assert "--images_dir: 2 folders for 3 JSON files" in capsys.readouterr().err


def test_a_file_that_is_a_folder_and_a_full_output_folder(tmp_path: Path):
    with pytest.raises(UserError, match="is a folder"):
        run(tmp_path / "out", "--coco_json", tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not empty .1 entries, e.g. mine.txt.; give --overwrite"):
        run(tmp_path / "full", "--coco_json", tmp_path / "a.json")
    assert files_in(tmp_path) == ["full/mine.txt"]


@pytest.mark.parametrize(("folder", "total", "skipped", "classes"), [
    pytest.param("calculus-coco", 851, {"smaller than --min_size": 7}, {"Class_1_Calculus"}, id="calculus"),
    pytest.param("brain-tumor-coco", 233, {}, {"Class_1_object"}, id="brain tumours"),
])
def test_real_data(tmp_path: Path, folder: str, total: int, skipped: dict[str, int], classes: set[str]):
    files = sorted((DATA / folder).glob("*/_annotations.coco.json"))
    if not files:
        pytest.skip(f"{DATA / folder} is not there")
    manifest = run(tmp_path / "out", "--coco_json", *files)
    report = pd.read_csv(tmp_path / "out" / "conversion_report.csv")
    assert report.reason.value_counts().to_dict() == skipped
    assert len(manifest) == total - sum(skipped.values())
    assert set(manifest.source_split) == {"train", "val", "test"}
    assert {path.name for path in (tmp_path / "out").glob("Class_*")} == classes


# ---- every rule of shared/formats.md that no test above names ---------------------------------------------

def rle_of(box: tuple[int, int, int, int]) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[box[1]:box[3], box[0]:box[2]] = 1
    return {"size": [HEIGHT, WIDTH], "counts": runs_of(mask)}


RING = [[10, 5, 60, 5, 60, 45, 10, 45], [20, 15, 50, 15, 50, 35, 20, 35]]


@pytest.mark.parametrize(("annotations", "flags", "areas", "skipped", "said"), [
    pytest.param([annotation(segmentation=[[0, 0, 20, 0, 20, 10, 0, 10], [40, 30, 60, 30, 60, 50, 40, 50]])], [],
                 [600], {}, "", id="multi-part polygon: one object, the union"),
    pytest.param([annotation(segmentation=RING)], [], [2000], {}, "", id="inner polygon is no hole"),
    pytest.param([annotation(segmentation=rle_of((20, 10, 60, 30)))], [], [800], {}, "", id="RLE, counts a list"),
    pytest.param([annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "a7zzzz"})], [], None,
                 {"damaged": 1}, "", id="RLE text that is damaged"),
    pytest.param([annotation(segmentation=SQUARE)], [], [800], {}, "", id="flat polygon"),
    pytest.param([annotation(segmentation=[100, 30, 20, 30, 20, 3800])], [], None, {COUNTS: 1}, "",
                 id="flat RLE counts"),
    pytest.param([annotation(segmentation=rle_of((20, 10, 60, 30)), iscrowd=1)] * 3, [], [800] * 3, {},
                 "3 of 3 masks are RLE with iscrowd", id="iscrowd on every CVAT mask"),
    pytest.param([annotation(segmentation=rle_of((20, 10, 60, 30)), iscrowd=1)] * 3, ["--crowd", "skip"], None,
                 {"iscrowd (--crowd keep takes it)": 3}, "", id="iscrowd on every CVAT mask, --crowd skip"),
    pytest.param([annotation(iscrowd=1), annotation()], [], [800], {"iscrowd (--crowd keep takes it)": 1}, "",
                 id="iscrowd on one polygon"),
    pytest.param([{"image_id": 1, "category_id": 1, "segmentation": [SQUARE]}], [], [800], {}, "",
                 id="no iscrowd, bbox, area, id"),
    pytest.param([{"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}], [], None, {BOX_ONLY: 1}, "",
                 id="no segmentation: detection-only export"),
    pytest.param([annotation(segmentation=[SQUARE, [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7],
                                           [1, 1, float("nan"), 2, 3, 3]])], [], [800], {}, "part was dropped",
                 id="short, odd and NaN parts go, the good one stays"),
    pytest.param([annotation(bbox=[3, 70, -9, 1e9])], [], [800], {}, "", id="a wrong bbox does not count"),
    pytest.param([annotation(segmentation=[[10, 10, 50, 40, 50, 10, 10, 40]])], [], [600], {}, "",
                 id="self-intersecting polygon"),
    pytest.param([annotation(segmentation=[[-1e6, 10, 1e6, 10, 1e6, 30, -1e6, 30]])], [], [1600], {}, "",
                 id="out of bounds: clipped"),
    pytest.param([annotation(category_id=2), annotation(image_id=9), annotation()], [], [800],
                 {"category_id that no category has": 1, "image_id that no image has": 1}, "",
                 id="unknown category_id and image_id"),
    pytest.param([annotation("1", "1"), annotation(1.0, 1.0), annotation(True, 1), annotation(1, True),
                  annotation([1])], [], [800, 800],
                 {"image_id that no image has": 2, "category_id that no category has": 1}, "",
                 id="ids as text and floats are ids, bools and lists are none"),
    pytest.param([annotation(), annotation()], [], [800, 800], {}, "", id="duplicate annotation ids"),
    pytest.param([annotation(segmentation=[[5, 5, 11, 5, 11, 11, 5, 11]]), annotation()], [], [800],
                 {"smaller than --min_size": 1}, "", id="tiny object"),
    pytest.param([annotation(segmentation=[[10, 10, 1e308, 10, 30, 40]])], [], None, {NO_PART: 1}, "", id="1e308"),
    pytest.param([annotation(segmentation=[[10, 10, 10**400, 10, 30, 40]])], [], None, {NO_PART: 1}, "",
                 id="a whole number of 400 digits"),
    pytest.param([annotation(segmentation={"size": [2**14, 2**14], "counts": [2**28]})], [], None,
                 {"RLE of another size than its photo": 1}, "", id="RLE bomb"),
    pytest.param([annotation(segmentation=[[[[[SQUARE]]]]])], [], None, {NO_PART: 1}, "", id="nested lists"),
])
def test_rules_of_annotations(tmp_path: Path, capsys: pytest.CaptureFixture, annotations: list, flags: list[str],
                              areas: list | None, skipped: dict, said: str):
    if areas is None:  # an object beside it, for an export without any is an error
        annotations, areas = [*annotations, annotation()], [800]
        if any("iscrowd" in reason for reason in skipped):
            flags = flags or ["--crowd", "skip"]
    manifest, found = one_file(tmp_path, annotations, *flags)
    assert np.abs(manifest.mask_area.to_numpy() - areas).max() <= 12
    assert {next((word for word in skipped if word in reason), reason): count
            for reason, count in found.items()} == skipped
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("categories", "used", "classes"), [
    pytest.param([{"id": 5, "name": "x"}, {"id": 74673216, "name": "y"}, {"id": 0, "name": "z"}], [5, 74673216, 0],
                 {"Class_5_x", "Class_74673216_y", "Class_0_z"}, id="ids with gaps, huge, zero"),
    pytest.param([{"id": 0, "name": "parts"}, {"id": 1, "name": "x"}], [1], {"Class_1_x"}, id="unused parent category"),
    pytest.param([{"id": 1, "name": "x"}, {"id": 2, "name": "x"}], [1, 2], {"Class_1_x"}, id="a name twice"),
    pytest.param([{"id": 1, "name": "../x"}, {"id": 2, "name": "a/b"}], [1, 2], {"Class_1_.._x", "Class_2_a_b"},
                 id="paths"),
    pytest.param([{"id": 1, "name": "CON"}, {"id": 2, "name": "x. "}], [1, 2], {"Class_1_CON", "Class_2_x"},
                 id="reserved on Windows, trailing dot and blank"),
    pytest.param([{"id": "a", "name": "Car"}, {"id": "A", "name": "car"}], ["a", "A"], {"Class_A_car", "Class_a_Car-2"},
                 id="equal but for case"),
    pytest.param([{"id": 1, "name": "x" * 300}, {"id": 2, "name": "😀"}], [1, 2], {"Class_1_" + "x" * 78, "Class_2"},
                 id="300 characters, emoji"),
    pytest.param([{"id": 1, "name": None}, {"id": 2}, {"id": 3, "name": {"a": 1}}], [1, 2, 3],
                 {f"Class_{i}_category_{i}" for i in (1, 2, 3)}, id="no name"),
    pytest.param([{"id": 1, "name": "a\nb\rc"}, {"id": 2, "name": "\ud800"}], [1, 2], {"Class_1_a_b_c", "Class_2"},
                 id="line breaks and half a character"),
    pytest.param([{"id": "--3", "name": "x"}, {"id": "9" * 5000, "name": "y"}, {"id": "007", "name": "z"}],
                 ["--3", "9" * 5000, "007"], {"Class_--3_x", "Class_" + "9" * 80, "Class_007_z"},
                 id="ids that only look like numbers"),
])
def test_rules_of_categories(tmp_path: Path, categories: list, used: list, classes: set[str]):
    manifest, _ = one_file(tmp_path, [annotation(1, key) for key in used], categories=categories)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == classes
    assert len(manifest) == len(used)
    assert set(json.loads((tmp_path / "out" / "classes.json").read_text(encoding="utf-8"))) == classes


@pytest.mark.parametrize("file_name", [
    pytest.param("../../secret.jpg", id="up"), pytest.param("{}/secret.jpg", id="absolute"),
    pytest.param("link.jpg", id="a link out of the folder"), pytest.param("linked/secret.jpg", id="a linked folder"),
    pytest.param("%2e%2e/%2e%2e/secret.jpg", id="percent-encoded"),
    pytest.param("..\\..\\secret.jpg", id="backslashes"), pytest.param("\0", id="NUL"),
    pytest.param("x" * 10**5, id="100,000 characters"),
    pytest.param(["a.jpg"], id="a list")])
def test_no_picture_outside_its_folder(tmp_path: Path, file_name: str):
    picture(tmp_path / "secret.jpg")
    picture(tmp_path / "set" / "a.jpg")
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "set" / "linked").symlink_to(tmp_path)
    name = file_name.format(tmp_path) if isinstance(file_name, str) else file_name
    manifest, skipped = one_file(tmp_path, [annotation(1), annotation(2)], images=[image(1), image(2, name)])
    assert skipped == {"photo not found": 1} and manifest.source_image.tolist() == ["a.jpg"]


@pytest.mark.parametrize(("make", "reason"), [
    pytest.param(lambda path: path.write_bytes(b"<html>"), "photo cannot be read", id="no picture"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:900]), "photo cannot be read", id="truncated"),
    pytest.param(lambda path: Image.new("RGB", (WIDTH, HEIGHT)).save(path, "PNG"), "", id="a PNG named .jpg"),
    pytest.param(lambda path: Image.new("RGB", (9, 5)).save(path), "smaller than --min_size", id="under ten pixels"),
    pytest.param(lambda path: Image.new("RGB", (HEIGHT, WIDTH)).save(path),
                 "photo of another shape than width and height in the JSON", id="width and height swapped, no EXIF"),
    pytest.param(lambda path: Image.new("RGB", (2 * WIDTH, 2 * HEIGHT)).save(path), "", id="twice the size: scaled"),
])
def test_rules_of_pictures(tmp_path: Path, make, reason: str):
    picture(tmp_path / "set" / "a.jpg")
    picture(tmp_path / "set" / "b.jpg", 1)
    make(tmp_path / "set" / "b.jpg")
    manifest, skipped = one_file(tmp_path, [annotation(1), annotation(2)], images=[image(1), image(2, "b.jpg")])
    assert skipped == ({reason: 1} if reason else {}) and len(manifest) == (1 if reason else 2)


def test_images_without_an_id_belong_to_no_annotation(tmp_path: Path):
    manifest, skipped = one_file(tmp_path, [annotation(), annotation(None), annotation(True)],
                                 images=[image(), {"file_name": "a.jpg"}])
    assert len(manifest) == 1 and skipped == {"image_id that no image has": 2}


# ---- JSON -------------------------------------------------------------------------------------------------

def test_numbers_are_packed(tmp_path: Path):
    rle = {"size": [1, 2], "counts": [0, 2]}
    path = write_json(tmp_path / "a.json", [annotation(segmentation=[SQUARE, [1, True, "x"]]),
                                            annotation(segmentation=rle, keypoints=[1] * 9)])
    first, second = read_coco_json(path, tmp_path).annotations
    assert first["segmentation"] == [array("d", SQUARE), [1, True, "x"]]
    assert second["segmentation"] == {"size": [1, 2], "counts": array("d", [0, 2])} and "keypoints" not in second


def test_of_a_large_file_only_what_is_needed_stays_in_memory(tmp_path: Path):
    """The text once, and packed numbers, 8 bytes for each of 7 characters; as lists it was seven times the file."""
    outline = np.random.default_rng(0).uniform(100, 999, 400).round(2).tolist()
    path = write_json(tmp_path / "a.json", [annotation(segmentation=[outline], keypoints=[1.5] * 99,
                                                       attributes={"text": "x" * 900})] * 1000)
    tracemalloc.start()
    read = read_coco_json(path, tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read.annotations) == 1000 and read.annotations[0].keys() == {
        "id", "image_id", "category_id", "iscrowd", "bbox", "segmentation"}
    assert kept < path.stat().st_size and peak < 2.5 * path.stat().st_size


@pytest.mark.parametrize(("text", "said"), [
    pytest.param('{"images": [{"id": 1}], "images": [], "annotations": [], "categories": []}', "nothing to convert",
                 id="a key twice: the last counts"),
    pytest.param('{"images": [{"id": ' + "9" * 5000 + "}]}", "broken JSON .Exceeds the limit", id="5000 digits"),
    pytest.param('{"images": [' + '{"a":' * 50000, "broken JSON", id="objects too deep"),
    pytest.param('{"images": []} {"annotations": []}', "broken JSON .Extra data", id="two values"),
    pytest.param('{"images": [], "annotations": [], "categories": [', "broken JSON", id="cut off"),
    pytest.param('"images"', "no list of images, annotations, categories", id="a text"),
    pytest.param('[{"image_id": 1, "segmentation": [[1, 2]]}]', "found a list", id="a list of annotations"),
])
def test_json_of_other_shapes(tmp_path: Path, text: str, said: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        run(tmp_path / "out", "--coco_json", tmp_path / "a.json")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["id", "segmentation", "counts", "size", "other", "é"]), inner, max_size=4), max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["images", "segmentation", "counts", "other"]), json_values, max_size=4))
def test_slim_drops_keys_and_packs_numbers_and_changes_nothing_else(content: dict):
    def expected(value: object) -> object:
        if isinstance(value, dict):
            return {key: expected(inner) for key, inner in value.items() if key in KEPT_KEYS}
        return [*map(expected, value)] if isinstance(value, list) else value

    def unpacked(value: object) -> object:
        if isinstance(value, dict):
            return {key: unpacked(inner) for key, inner in value.items()}
        return [*map(unpacked, value)] if isinstance(value, list | array) else value
    assert unpacked(json.loads(json.dumps(content), object_hook=slim)) == expected(content)
