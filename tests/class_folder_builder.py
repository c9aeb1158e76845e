"""Class folders for tests: written file by file, as a converter or a user would leave them, or converted from noise."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sam_lora import contracts
from sam_lora.data import class_folders
from sam_lora.data.conversion_report import ConversionReport
from sam_lora.data.imaging import write_png
from sam_lora.data.sources import ObjectClass, SourceImage, SourceObject

BAR = np.zeros((24, 40), bool)   # non-square; a bar of 21 x 7 pixels, its middle at (20, 11)
BAR[8:15, 10:31] = True
EMPTY = np.zeros((24, 40), bool)


def write_image(path: Path, seed: int, size_hw: tuple[int, int] = (24, 40)) -> None:
    """An image of noise: another seed, another content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*size_hw, 3)).astype(np.uint8))


def write_mask(path: Path, mask: np.ndarray = BAR) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), mask.astype(np.uint8) * 255)


def write_pair(root: Path, folder: str, name: str, seed: int, mask: np.ndarray = BAR) -> None:
    """`root`/`folder`/{images,masks}/`name`.png"""
    write_image(root / folder / "images" / f"{name}.png", seed, mask.shape)
    write_mask(root / folder / "masks" / f"{name}.png", mask)


def manifest_row(folder: str, name: str, class_id: object, class_name: str, source_image: str, source_split: str = "",
                 image_name: str | None = None) -> dict:
    row = dict.fromkeys(contracts.MANIFEST_COLUMNS, "0") | {"source_digest": ""}
    return row | {"image_path": f"{folder}/images/{image_name or name}.png", "mask_path": f"{folder}/masks/{name}.png",
                  "class_id": class_id, "class_name": class_name, "source_image": source_image,
                  "source_split": source_split}


def write_manifest(root: Path, rows: Sequence[dict]) -> None:
    pd.DataFrame(rows, columns=contracts.MANIFEST_COLUMNS).to_csv(root / contracts.MANIFEST_FILE, index=False)


def write_set(root: Path, folder: str, class_id: object, class_name: str, photos: Sequence[str],
              split_of: Sequence[str] | None = None, objects: int = 1, first_seed: int = 0) -> list[dict]:
    """`objects` pairs for each of `photos` (paths), and their manifest rows (not written)."""
    rows = []
    for number, photo in enumerate(photos):
        for index in range(objects):
            name = f"{Path(photo).stem}_{index:04d}"
            write_pair(root, folder, name, first_seed + number * objects + index)
            rows.append(manifest_row(folder, name, class_id, class_name, photo, split_of[number] if split_of else ""))
    return rows


# ---- conversions ------------------------------------------------------------------------------------------

CLASSES = {"a": ObjectClass(3, "red disc", "Class_3_red_disc"), "b": ObjectClass(5, "bar", "Class_5_bar")}


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def photo(folder: Path, name: str, objects: list[SourceObject], seed: int = 0, size_hw: tuple[int, int] = (60, 90),
          **more) -> SourceImage:
    """Write a photo of noise and describe it."""
    path = folder / name
    write_png(path, np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), dtype=np.uint8))
    return SourceImage(path, name, more.pop("split", ""), objects, "labels.txt", **more)


def large_photo(folder: Path) -> SourceImage:
    """400 x 300, in tiles of 128 at x 0 90 181 272 and y 0 86 172: a small object, a bar from end to end, a speck."""
    return photo(folder, "big.png", [
        SourceObject(1, "small", "a", (rectangle(100, 90, 120, 110),)),
        SourceObject(2, "bar", "b", (rectangle(5, 95, 395, 107),)),
        SourceObject(3, "specks", "a", (rectangle(0, 0, 4, 4), rectangle(390, 290, 394, 294)))], 5, (300, 400))


def convert(images: list[SourceImage], out: Path, num_workers: int = 0, strict: bool = False,
            **settings) -> tuple[pd.DataFrame, ConversionReport]:
    """`write_class_folders` -> (manifest, report)."""
    report = ConversionReport("objects", strict)
    for _ in [item for image in images for item in image.objects]:
        report.take()
    with class_folders.staged_output(out, False, False) as staging:
        class_folders.write_class_folders(images, CLASSES, staging, class_folders.CropSettings(**settings), num_workers,
                                          report)
    return pd.read_csv(out / contracts.MANIFEST_FILE, keep_default_na=False), report
