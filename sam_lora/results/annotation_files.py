"""Predicted masks as annotation tools read them: COCO's JSON, and a YOLO data set.

COCO's RLE holds the very pixels of a mask, a YOLO polygon nearly.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sam_lora import contracts
from sam_lora.data import geometry, imaging
from sam_lora.files import atomic_path
from sam_lora.results.prompt_table import PromptedObject, PromptTable
from sam_lora.workers import map_in_threads


@dataclass(frozen=True)
class AnnotatedMask:
    """What the annotation files need of a predicted mask, in values that JSON can hold."""

    annotation: dict            # of a COCO file, without id
    size_wh: Sequence[int]
    polygon: list | None        # (N, 2) xy, N 0 for an empty mask; None unless asked for


def annotated_mask(mask: np.ndarray, score: float, item: PromptedObject, with_polygon: bool) -> AnnotatedMask:
    """`mask` (H, W) bool; `score` is what the model itself expects of it."""
    annotation = {"image_id": item.image_id, "category_id": item.category_id, **mask_to_coco(mask), "iscrowd": 0,
                  "score": round(score, 6), "mask": item.mask_name}
    polygon = geometry.mask_to_polygon(mask).tolist() if with_polygon else None
    return AnnotatedMask(annotation, mask.shape[::-1], polygon)


# ---- COCO ---------------------------------------------------------------------------------------------------

def mask_to_coco(mask: np.ndarray) -> dict:
    """A mask, (H, W) bool, in COCO's terms: segmentation (compressed RLE, counts as text), bbox [x, y, w, h], area."""
    from pycocotools import mask as coco_mask
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    x0, y0, x1, y1 = geometry.mask_to_xyxy(mask) or (0, 0, 0, 0)
    return {"segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
            "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(np.count_nonzero(mask))}


def coco_content(table: PromptTable, annotated: Sequence[AnnotatedMask],
                 sizes_wh: Sequence[Sequence[int]] | None = None) -> dict:
    """The content of predictions.json: all images, and an annotation for each mask that is not empty.

    `sizes_wh` of the images; None: from their masks.
    """
    sizes = sizes_wh or [annotated[rows[0]].size_wh for rows in table.rows_of.values()]
    kept = [item.annotation for item in annotated if item.annotation["area"]]
    return {"info": {"description": "masks predicted by SAM; score is the IoU that the model itself expects"},
            "licenses": [],
            "images": [{"id": number, "file_name": image, "width": width, "height": height}
                       for number, (image, (width, height)) in enumerate(zip(table.rows_of, sizes), start=1)],
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(kept, start=1)],
            "categories": [{"id": number, "name": name, "supercategory": ""}
                           for name, number in table.categories.items()]}


def write_coco(table: PromptTable, annotated: Sequence[AnnotatedMask], folder: Path,
               sizes_wh: Sequence[Sequence[int]] | None = None) -> dict:
    """Write predictions.json; returns what it holds. Arguments as for `coco_content`."""
    content = coco_content(table, annotated, sizes_wh)
    with atomic_path(folder / contracts.COCO_PREDICTIONS) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return content


# ---- YOLO ---------------------------------------------------------------------------------------------------

def write_yolo(table: PromptTable, annotated: Sequence[AnnotatedMask], folder: Path) -> None:
    """A whole data set: data.yaml, the images, and a label file for each, empty where it has no mask."""
    import yaml
    folder.mkdir()
    class_names = list(table.categories)
    settings = {"train": contracts.IMAGES_FOLDER, "val": contracts.IMAGES_FOLDER, "nc": len(class_names),
                "names": dict(enumerate(class_names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def write(image_name: str) -> None:
        (source, stem), rows = table.files[image_name], table.rows_of[image_name]
        suffix = source.suffix if source.suffix.lower() in imaging.YOLO_SUFFIXES else ".png"
        image, label = folder / contracts.IMAGES_FOLDER / f"{stem}{suffix}", folder / "labels" / f"{stem}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == source.suffix:
            shutil.copyfile(source, image)
        else:  # a kind of file that YOLO tools skip
            imaging.write_png(image, imaging.load_image(source))
        label.write_text("".join(yolo_row(item.annotation["category_id"] - 1, item.polygon, item.size_wh)
                                 for item in (annotated[row] for row in rows) if item.annotation["area"]),
                         encoding="utf-8")
    written = map_in_threads(write, table.rows_of)
    for _ in tqdm(written, "labels", len(table.rows_of), unit="image", disable=None):
        pass


def yolo_row(class_id: int, polygon: Sequence[Sequence[float]], size_wh: Sequence[int]) -> str:
    """One line of a label file: the class id, then x and y of each corner as fractions of width and height."""
    numbers = (np.asarray(polygon) / size_wh).ravel()
    return f"{class_id} {' '.join(f'{number:.6f}' for number in numbers)}\n"
