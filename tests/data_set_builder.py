"""YOLO and COCO data sets for tests: written file by file, or drawn like real ones (blobs, cracks, three splits)."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pandas as pd
import pytest

import process_coco_dataset
import process_yolo_to_classwise
from sam_lora import cli
from sam_lora.data.imaging import write_jpeg, write_png

WIDTH, HEIGHT = 80, 50                                # of a photo written file by file
POLYGON = "0.25 0.2 0.75 0.2 0.75 0.6 0.25 0.6"       # 40 x 20 pixels from (20, 10)
SQUARE = [20, 10, 60, 10, 60, 30, 20, 30]             # the same in pixels
BOX_ONLY = "only a box, no outline (--boxes rectangle takes it)"
OTHER_OUTPUT = ["classes.json", "conversion_report.csv", "instances.csv", "preview.jpg"]


def write_photo(path: Path, seed: int = 0, size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    """A photo of noise: another seed, another content."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), dtype=np.uint8)
    (write_png if path.suffix.lower() == ".png" else write_jpeg)(path, pixels)


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, relative to it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def run_script(script: ModuleType, *argv: object) -> None:
    script.main(script.get_args_parser().parse_args([*map(str, argv)]))


def skip_reasons(out: Path) -> list[str]:
    """The reasons in a conversion report, in its order."""
    return pd.read_csv(out / "conversion_report.csv", keep_default_na=False).reason.tolist()


def refused(capsys: pytest.CaptureFixture, script: ModuleType, *argv: object) -> tuple[int, str]:
    """Exit code and the last line of what a script that ends in an error prints to stderr."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(script.main, script.get_args_parser(), [*map(str, argv)])
    return stopped.value.code, capsys.readouterr().err.splitlines()[-1]


def read_text(path: str | Path) -> pd.DataFrame:
    """A CSV whose cells all stay text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def entries(folder: Path) -> list[str]:
    """The names of what is in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


# ---- YOLO -------------------------------------------------------------------------------------------------

def add_photo(root: Path, image: str, label: str | None, rows: str | bytes = f"0 {POLYGON}\n", seed: int = 0) -> None:
    """One photo and its label file."""
    write_photo(root / image, seed)
    if label is not None:
        (root / label).parent.mkdir(parents=True, exist_ok=True)
        (root / label).write_bytes(rows if isinstance(rows, bytes) else rows.encode())


def flat_set(root: Path) -> None:
    add_photo(root, "images/a.jpg", "labels/a.txt")


def run_yolo(root: Path, out: Path, *flags: object) -> pd.DataFrame:
    """Convert a YOLO data set -> the manifest, empty after a dry run."""
    run_script(process_yolo_to_classwise, "--dataset_dir", root, "--output_dir", out, "--num_workers", 0, *flags)
    return pd.DataFrame() if "--dry_run" in flags else pd.read_csv(out / "instances.csv", keep_default_na=False)


# ---- COCO -------------------------------------------------------------------------------------------------

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


def run_coco(out: Path, *flags: object) -> pd.DataFrame:
    """Convert COCO files -> the manifest."""
    run_script(process_coco_dataset, "--output_dir", out, "--num_workers", 0, *flags)
    return pd.read_csv(out / "instances.csv", keep_default_na=False)


def run_coco_file(tmp_path: Path, annotations: list, *flags: object, images: list | None = None,
                  categories: list | None = None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Convert one JSON file whose photo is a.jpg: (manifest, skips by reason)."""
    if not (tmp_path / "set" / "a.jpg").exists():
        write_photo(tmp_path / "set" / "a.jpg")
    path = write_json(tmp_path / "set" / "instances.json", annotations, images, categories)
    manifest = run_coco(tmp_path / "out", "--coco_json", path, *flags)
    reasons = pd.Series(skip_reasons(tmp_path / "out"), dtype=object)
    assert len(annotations) == len(manifest) + len(reasons)
    return manifest, reasons.value_counts().to_dict()


def runs_of(mask: np.ndarray) -> list[int]:
    """A mask's run lengths down its columns, background first: the `counts` of an uncompressed RLE."""
    flat = mask.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


# ---- drawn like real ones ---------------------------------------------------------------------------------

DRAWN_WH = (400, 300)
DRAWN_PHOTOS, DRAWN_OBJECTS = 4, 3                    # in each split; in each photo
DRAWN_NAMES = ["blob", "crack"]
SPECK = np.array([(5, 5), (11, 5), (11, 11)], float)  # smaller than the default --min_size


def draw_outlines(rng: np.random.Generator, count: int) -> list[tuple[int, np.ndarray]]:
    """(class id, (N, 2) float xy) of objects that lie in a photo of `DRAWN_WH`: blobs, and cracks of 12 to 24 px."""
    width, height = DRAWN_WH
    outlines = []
    for number in range(count):
        if number % 3 < 2:
            angle = np.linspace(0, 2 * np.pi, int(rng.integers(12, 60)), endpoint=False)
            radius = rng.uniform(30, 70) * (1 + 0.3 * np.sin(int(rng.integers(2, 6)) * angle + rng.uniform(0, 6)))
            centre = rng.uniform((100, 100), (width - 100, height - 100))
            outlines.append((0, centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)))
        else:
            xs = np.linspace(20, width - 20, 15)
            ys = height / 2 + np.cumsum(rng.uniform(-12, 12, len(xs)))
            half = rng.uniform(6, 12)
            edges = [np.stack([xs, ys + side], axis=1) for side in (-half, half)]
            outlines.append((1, np.concatenate([edges[0], edges[1][::-1]])))
    return outlines


def drawn_photos(seed: int) -> Iterator[tuple[str, str, np.ndarray, list[tuple[int, np.ndarray]]]]:
    """(split, stem, pixels, outlines) of a data set's photos."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for number in range(DRAWN_PHOTOS):
            outlines = draw_outlines(rng, DRAWN_OBJECTS)
            pixels = rng.integers(40, 120, (*DRAWN_WH[::-1], 3)).astype(np.uint8)
            for class_id, outline in outlines:
                cv2.fillPoly(pixels, [outline.round().astype(np.int32)], [(200, 90, 60), (20, 20, 30)][class_id])
            yield split, f"{split}{number}", pixels, outlines


def draw_yolo_set(root: Path) -> tuple[int, dict[str, int]]:
    """`<split>/images` and `labels`; in the first file also a box, a speck and a class without a name.

    Returns (polygons that make a crop, skips by reason) at default settings.
    """
    polygons = 0
    for split, stem, pixels, outlines in drawn_photos(seed=1):
        write_jpeg(root / split / "images" / f"{stem}.jpg", pixels)
        objects = outlines if polygons else [*outlines, (0, SPECK), (9, outlines[0][1])]
        rows = [" ".join(map(repr, [class_id, *(outline / DRAWN_WH).ravel().tolist()]))
                for class_id, outline in objects]
        if not polygons:
            rows.append("0 0.5 0.5 0.25 0.5")
        polygons += len(outlines)
        label = root / split / "labels" / f"{stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("\n".join(rows) + "\n")
    (root / "data.yaml").write_text(f"names: {DRAWN_NAMES}\n")
    return polygons, {BOX_ONLY: 1, "class id that has no name": 1, "smaller than --min_size": 1}


def draw_coco_set(root: Path) -> tuple[int, dict[str, int]]:
    """`<split>/_annotations.coco.json` beside its photos; in train also an object of two parts and a speck.

    Returns (annotations that make a crop, skips by reason) at default settings.
    """
    contents: dict[str, dict] = {}
    crops = 0
    for split, stem, pixels, outlines in drawn_photos(seed=2):
        write_jpeg(root / split / f"{stem}.jpg", pixels)
        content = contents.setdefault(split, {"images": [], "annotations": [], "categories": [
            {"id": number + 1, "name": name} for number, name in enumerate(DRAWN_NAMES)]})
        image_id = len(content["images"])
        content["images"].append({"id": image_id, "file_name": f"{stem}.jpg", "width": DRAWN_WH[0],
                                  "height": DRAWN_WH[1]})
        objects = [(class_id, [outline]) for class_id, outline in outlines]
        crops += len(objects)
        if split == "train" and image_id == 0:
            objects += [(0, [outline for _, outline in draw_outlines(np.random.default_rng(9), 2)]), (0, [SPECK])]
            crops += 1
        content["annotations"] += [
            {"id": len(content["annotations"]) + number, "image_id": image_id, "category_id": class_id + 1,
             "iscrowd": 0, "segmentation": [part.ravel().tolist() for part in parts]}
            for number, (class_id, parts) in enumerate(objects)]
    for split, content in contents.items():
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return crops, {"smaller than --min_size": 1}
