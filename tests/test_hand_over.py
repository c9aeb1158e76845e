"""Steps 1 to 3 together: every shape of crop becomes training rows whose points lie on the object in the photo."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_set_builder import run_script as run

import Create_csv
import Create_yolo_csv
import process_coco_dataset
import process_yolo_to_classwise
import reformated_csv
from sam_lora import contracts
from sam_lora.data.imaging import image_size, load_mask, write_png
from sam_lora.data.manifest import mask_in_source
from sam_lora.data.samples import check_samples, read_samples
from sam_lora.tables import read_table

WIDTH, HEIGHT = 300, 200
PHOTOS = 10
# pixels, x1 and y1 exclusive: one that every tile of 128 may hold, one that none does
OBJECTS = ((0, (40, 30, 90, 60)), (1, (10, 120, 290, 150)))
NAMES = ("disc", "long bar")


def write_photos(folder: Path) -> None:
    for number in range(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        write_png(folder / f"p{number}.png", pixels)


def corners(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def write_yolo(root: Path) -> list[str]:
    write_photos(root / "images")
    (root / "labels").mkdir()
    (root / "data.yaml").write_text(f"names: {list(NAMES)}")
    rows = [" ".join(map(str, [class_id, *(value / (WIDTH, HEIGHT)[i % 2] for i, value in enumerate(corners(box)))]))
            for class_id, box in OBJECTS]
    for number in range(PHOTOS):
        (root / "labels" / f"p{number}.txt").write_text("\n".join(rows))
    return ["--dataset_dir", str(root)]


def write_coco(root: Path) -> list[str]:
    write_photos(root)
    images = [{"id": number, "file_name": f"p{number}.png", "width": WIDTH, "height": HEIGHT}
              for number in range(PHOTOS)]
    annotations = [{"id": 10 * number + class_id, "image_id": number, "category_id": class_id,
                    "segmentation": [corners(box)]} for number in range(PHOTOS) for class_id, box in OBJECTS]
    categories = [{"id": class_id, "name": name} for class_id, name in enumerate(NAMES)]
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return ["--coco_json", str(root / "a.json")]


def in_box(mask: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    x0, y0, x1, y1 = box
    outside = mask.copy()
    outside[y0:y1, x0:x1] = False
    return mask.any() and not outside.any()


@pytest.mark.parametrize(("converter", "write", "tables"), [
    pytest.param(process_yolo_to_classwise, write_yolo, Create_yolo_csv, id="YOLO"),
    pytest.param(process_coco_dataset, write_coco, Create_csv, id="COCO"),
])
@pytest.mark.parametrize(("flags", "size_of", "rows_of_photo"), [
    pytest.param([], {"disc": (60, 36), "long bar": (300, 36)}, 2, id="crops"),
    pytest.param(["--padding", "0.5"], {"disc": (100, 60), "long bar": (300, 60)}, 2, id="padding 0.5"),
    pytest.param(["--square"], {"disc": (60, 60), "long bar": (300, 200)}, 2, id="square"),
    pytest.param(["--no_crop"], {"disc": (300, 200), "long bar": (300, 200)}, 2, id="no_crop"),
    pytest.param(["--tile", "128"], {"disc": (128, 128), "long bar": (128, 128)}, 4, id="tile"),
])
def test_every_shape_of_crop_reaches_training(tmp_path, monkeypatch, converter, write, tables, flags, size_of,
                                              rows_of_photo):
    monkeypatch.chdir(tmp_path)
    run(converter, *write(Path("set")), "--num_workers", "0", *flags)
    run(tables, "--num_workers", "0")
    run(reformated_csv)
    manifest = {f"processed_dataset/{row['mask_path']}": row for row in read_table(
        "processed_dataset/instances.csv", contracts.MANIFEST_COLUMNS, "").to_dict("records")}
    photos_of, rows = {}, 0
    for split in contracts.SPLITS:
        table = f"{split}_reformatted.csv"
        samples = read_samples(table)
        check_samples(samples, table, need_labels=True)
        rows += len(samples)
        for sample in samples:
            row = manifest[sample.label_text]
            photos_of.setdefault(split, set()).add(row["source_image"])
            assert image_size(sample.image) == size_of[row["class_name"]]
            back = mask_in_source(load_mask(sample.label), row)
            assert back.shape == (HEIGHT, WIDTH) and in_box(back, OBJECTS[NAMES.index(row["class_name"])][1])
            assert len(set(sample.points)) == 3
            for x, y in sample.points:
                assert back[int(row["crop_y0"]) + int(y), int(row["crop_x0"]) + int(x)]
    assert rows == len(manifest) == rows_of_photo * PHOTOS
    assert sum(map(len, photos_of.values())) == PHOTOS and len(photos_of) == 3  # no photo on two sides


def test_copies_of_a_photo_under_other_names_stay_together_whatever_is_labelled_in_them(tmp_path, monkeypatch):
    """Photo p1 is p0 again, but another object is labelled in it: their crops have nothing in common."""
    monkeypatch.chdir(tmp_path)
    flags = write_yolo(Path("set"))
    Path("set/images/p1.png").write_bytes(Path("set/images/p0.png").read_bytes())
    for number, row in enumerate(Path("set/labels/p0.txt").read_text().splitlines()):
        Path(f"set/labels/p{number}.txt").write_text(row)
    run(process_yolo_to_classwise, *flags, "--num_workers", "0")
    for seed in range(6):
        run(Create_yolo_csv, "--num_workers", "0", "--seed", str(seed), "--overwrite")
        output = read_table("output.csv", contracts.SPLIT_COLUMNS, "")
        copies = output[output["source_image"].isin(["images/p0.png", "images/p1.png"])]
        assert len(copies) == 2 and copies["split"].nunique() == 1


def test_the_split_does_not_depend_on_the_order_of_files(tmp_path, monkeypatch):
    """The same set written first to last and last to first, converted by one process and by two."""
    monkeypatch.chdir(tmp_path)
    run(process_yolo_to_classwise, *write_yolo(Path("one/set")), "--num_workers", "0", "--output_dir", "one/out")
    for path in sorted(Path("one/set").rglob("*.*"), reverse=True):
        copy = Path("two") / path.relative_to("one")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    run(process_yolo_to_classwise, "--dataset_dir", "two/set", "--num_workers", "2", "--output_dir", "two/out")
    for folder in ("one", "two"):
        monkeypatch.chdir(tmp_path / folder)
        run(Create_yolo_csv, "--num_workers", "0", "--dataset_dir", "out")
    monkeypatch.chdir(tmp_path)
    for name in ("output.csv", "train.csv", "val.csv", "test.csv"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_tiles_of_a_photo_stay_together_without_the_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(process_yolo_to_classwise, *write_yolo(Path("set")), "--num_workers", "0", "--tile", "128")
    Path("processed_dataset/instances.csv").unlink()
    run(Create_yolo_csv, "--num_workers", "0")
    output = read_table("output.csv", contracts.SPLIT_COLUMNS, "")
    assert sorted(set(output["source_image"])) == [f"p{number}" for number in range(PHOTOS)]
    assert (output.groupby("source_image")["split"].nunique() == 1).all() and len(output) == 4 * PHOTOS
