"""The converters against themselves in four encodings, against pycocotools, and against supervision's own loader.

On drawn data, and on the data in ../shared/data where it is there. supervision needs another build of OpenCV than this
project and must not share its environment:
    python -m venv .venv-peers && .venv-peers/bin/pip install -r requirements-peers.txt
"""

import json
import os
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from data_set_builder import draw_coco_set, draw_yolo_set, run_coco, run_yolo, runs_of
from pycocotools import mask as coco_mask

from sam_lora.data.imaging import image_size, load_mask
from sam_lora.data.manifest import mask_in_source

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
PEERS_PYTHON = Path(os.environ.get("PEERS_PYTHON", ROOT / ".venv-peers" / "bin" / "python"))
SETS = ("drawn-coco", "drawn-yolo", "brain-tumor-coco", "calculus-coco", "crack-yolo", "mixed-yolo-fixture")
ALL = ["--min_size", "1", "--padding", "0"]   # leave out nothing that is merely small


def convert(folder: Path, out: Path, *flags: str) -> pd.DataFrame:
    """Convert a data set of either kind; the manifest, `mask` as (H, W) bool in the photo's frame."""
    json_files = sorted(map(str, folder.glob("**/*.json")))
    manifest = run_coco(out, "--coco_json", *json_files, *ALL, *flags) if json_files else run_yolo(
        folder, out, *ALL, *flags)
    manifest["mask"] = [mask_in_source(load_mask(out / row["mask_path"]), row) for row in manifest.to_dict("records")]
    return manifest


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return np.count_nonzero(first & second) / max(np.count_nonzero(first | second), 1)


def data(name: str, tmp_path: Path) -> Path:
    """The folder of a data set, drawn below `tmp_path` or one of ../shared/data."""
    if name.startswith("drawn"):
        (draw_coco_set if is_coco(name) else draw_yolo_set)(tmp_path / name)
        return tmp_path / name
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there")
    return DATA / name


def is_coco(name: str) -> bool:
    return name.endswith("-coco")


# ---- four encodings ---------------------------------------------------------------------------------------

def encode_again(source: Path, target: Path, kind: str) -> None:
    """A COCO data set's val and test as `target`: "polygons", "RLE list", "RLE string" (COCO) or "YOLO"."""
    for split in ("val", "test"):
        content = json.loads((source / split / "_annotations.coco.json").read_text())
        photos = target / split / "images" if kind == "YOLO" else target / split
        photos.mkdir(parents=True)
        size = {}
        for image in content["images"]:
            (photos / image["file_name"]).write_bytes((source / split / image["file_name"]).read_bytes())
            size[image["id"]] = (image["width"], image["height"])
        if kind == "YOLO":
            rows = defaultdict(list)
            for annotation in content["annotations"]:
                (polygon,) = annotation["segmentation"]
                fractions = np.array(polygon).reshape(-1, 2) / size[annotation["image_id"]]
                rows[annotation["image_id"]].append(" ".join(map(repr, [0, *fractions.ravel().tolist()])))
            for image in content["images"]:
                label = target / split / "labels" / f"{Path(image['file_name']).stem}.txt"
                label.parent.mkdir(exist_ok=True)
                label.write_text("\n".join(rows[image["id"]]))
            (target / "data.yaml").write_text("names: [object]\n")
            continue
        for annotation in content["annotations"] if kind != "polygons" else ():
            width, height = size[annotation["image_id"]]
            rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], height, width))
            annotation["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()
                                          if kind == "RLE string" else runs_of(coco_mask.decode(rle))}
        (target / split / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["drawn-coco", "brain-tumor-coco"])
def test_four_encodings_of_one_data_set_give_the_same_crops(tmp_path: Path, name: str):
    source = data(name, tmp_path)
    made = {}
    for kind in ("polygons", "YOLO", "RLE list", "RLE string"):
        encode_again(source, tmp_path / kind, kind)
        found = convert(tmp_path / kind, tmp_path / "out" / kind)
        found["file"] = found.source_split + "/" + found.source_image.map(lambda path: Path(path).name)
        # objects of a photo in their order: a line number here, an annotation's place there
        found["object"] = found.groupby("file").cumcount()
        made[kind] = found.set_index(["file", "object"]).sort_index()
    polygons = made["polygons"]
    assert len(polygons) > 20
    boxes = ["crop_x0", "crop_y0", "crop_x1", "crop_y1"]
    for kind, other in made.items():
        assert other.index.equals(polygons.index), kind
        off = (other[boxes] - polygons[boxes]).abs().to_numpy()
        ious = [iou(*pair) for pair in zip(other["mask"], polygons["mask"])]
        ratio = other.mask_area.sum() / polygons.mask_area.sum()
        if kind in ("polygons", "YOLO"):  # the same rasteriser; fractions of the width are rounded once more
            assert off.max() <= 1 and min(ious) > 0.99 and np.mean(ious) > 0.9999, kind
        else:
            measured = off.max(), np.mean(ious), ratio
            assert off.max() <= 2 and np.mean(ious) > 0.95 and 0.95 < ratio < 1.03, (kind, measured)
    for one, other in zip(made["RLE list"]["mask"], made["RLE string"]["mask"]):
        assert np.array_equal(one, other)


# ---- pycocotools ------------------------------------------------------------------------------------------

def theirs_of_coco(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """{(photo, source_id): mask} as COCO.annToMask gives it."""
    from pycocotools.coco import COCO
    found = {}
    for path in sorted(folder.glob("*/*.json")):
        coco = COCO(str(path))
        for key, annotation in coco.anns.items():
            name = f"{path.parent.name}/{coco.imgs[annotation['image_id']]['file_name']}"
            found[name, f"annotation {key}"] = coco.annToMask(annotation).astype(bool)
    return found


def theirs_of_yolo(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """The same for label rows that are polygons of a class with a name."""
    found = {}
    for path in sorted(folder.glob("*/labels/*.txt")):
        image = next((path.parents[1] / "images").glob(f"{path.stem}.*"))
        width, height = image_size(image)
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            numbers = line.split()
            if len(numbers) < 7 or int(float(numbers[0])) > 2:
                continue
            polygon = (np.array(numbers[1:], float).reshape(-1, 2) * (width, height)).ravel().tolist()
            key = image.relative_to(folder).as_posix(), f"{path.relative_to(folder).as_posix()}:{number}"
            found[key] = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], height, width))).astype(bool)
    return found


@pytest.mark.parametrize("name", SETS)
def test_agreement_with_pycocotools(tmp_path: Path, name: str, capsys: pytest.CaptureFixture):
    folder = data(name, tmp_path)
    theirs = (theirs_of_coco if is_coco(name) else theirs_of_yolo)(folder)
    ours = {(row.source_image, row.source_id): row.mask for row in convert(folder, tmp_path / "out").itertuples()}
    missing = {key: int(mask.sum()) for key, mask in theirs.items() if key not in ours}
    assert max(missing.values(), default=0) <= 2, missing  # a sliver that covers no pixel by half
    ious = [iou(ours[key], mask) for key, mask in theirs.items() if key in ours]
    ratio = sum(ours[key].sum() for key in theirs if key in ours) / sum(mask.sum() for mask in theirs.values())
    with capsys.disabled():
        if os.environ.get("SHOW_FIGURES"):
            print(f"\n{name}: {len(theirs)} objects of pycocotools, {len(missing)} missing, mean IoU "
                  f"{np.mean(ious):.4f}, area ratio {ratio:.3f}")
    assert np.mean(ious) >= 0.95 and 0.97 <= ratio <= 1.06


# ---- supervision ------------------------------------------------------------------------------------------

LOADER = """
import sys
from pathlib import Path
import numpy as np
import supervision as sv
kind, folder, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
found = []
for split in sorted(path for path in folder.iterdir() if path.is_dir()):
    if kind == "coco":
        loaded = sv.DetectionDataset.from_coco(str(split), str(split / "_annotations.coco.json"), force_masks=True)
    else:
        try:
            loaded = sv.DetectionDataset.from_yolo(str(split / "images"), str(split / "labels"),
                                                   str(folder / "data.yaml"), force_masks=True)
        except IndexError:  # one class id without a name, and it loads nothing of a split
            continue
    for path, detections in loaded.annotations.items():
        name = Path(path).relative_to(folder).as_posix()
        for mask, class_id in zip(detections.mask if detections.mask is not None else (), detections.class_id):
            mask = np.asarray(mask, bool)
            found.append((name, int(class_id), mask.shape, np.packbits(mask)))
np.savez_compressed(target, names=[name for name, *_ in found], classes=[number for _, number, *_ in found],
                    shapes=[shape for *_, shape, _ in found], masks=np.array([bits for *_, bits in found] + [None],
                    dtype=object)[:-1])
"""


@pytest.mark.parametrize("name", SETS)
def test_agreement_with_supervision(tmp_path: Path, name: str, capsys: pytest.CaptureFixture):
    """Every mask that supervision loads is found by ours, and they agree as far as two rasterisers do."""
    if not PEERS_PYTHON.is_file():
        pytest.skip(f"no supervision: {PEERS_PYTHON} is not there; it is made as requirements-peers.txt says")
    target, folder = tmp_path / "theirs.npz", data(name, tmp_path)
    subprocess.run([PEERS_PYTHON, "-c", LOADER, "coco" if is_coco(name) else "yolo", str(folder), str(target)],
                   check=True)
    loaded = np.load(target, allow_pickle=True)  # our own file, a moment old
    ours = defaultdict(list)
    for row in convert(folder, tmp_path / "out", "--boxes", "rectangle").itertuples():
        ours[row.source_image].append(row.mask)
    ious, inner, lost = [], [], Counter()
    for file, shape, bits in zip(loaded["names"], loaded["shapes"], loaded["masks"]):
        mask = np.unpackbits(bits)[:shape[0] * shape[1]].reshape(shape).astype(bool)
        best = max(ours[file], key=lambda mine: iou(mask, mine), default=np.zeros_like(mask))
        if mask.any() and not (best & mask).any():
            lost[int(mask.sum())] += 1
            continue
        ious.append(iou(best, mask))
        # their fillPoly paints the outline's pixels whole: where the masks differ on a pixel of it, nobody is wrong
        wide, narrow = (cv2.morphologyEx(mask.astype(np.uint8), kind, np.ones((3, 3), np.uint8)).astype(bool)
                        for kind in (cv2.MORPH_DILATE, cv2.MORPH_ERODE))
        inner.append(iou(np.where(wide & ~narrow, mask, best), mask))
    with capsys.disabled():
        if os.environ.get("SHOW_FIGURES"):
            print(f"\n{name}: {len(loaded['names'])} masks of supervision, {sum(map(len, ours.values()))} of ours, "
                  f"{sum(lost.values())} not found (areas {dict(lost)}), mean IoU {np.mean(ious):.4f}, "
                  f"but for the outline's pixels {np.mean(inner):.4f}")
    assert not lost, lost
    assert np.mean(inner) >= 0.95
