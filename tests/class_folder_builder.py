"""Class folders for tests, written file by file: what the converters would leave, or a user's own."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sam_lora import contracts

BAR = np.zeros((24, 40), bool)   # non-square; a bar of 21 x 7 pixels, its middle at (20, 11)
BAR[8:15, 10:31] = True
EMPTY = np.zeros((24, 40), bool)


def write_image(path: Path, seed: int, size_hw: tuple[int, int] = (24, 40)) -> None:
    """A picture of noise: another seed, another content."""
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
