"""Make the demo's data set: the same procedural photos in YOLO form and in COCO form.

There are three classes, each made of parts, so that three clicks leave open what is meant: a berry with its leaves and
highlight, a cell with its nucleus, ring and pale halo, a striped beetle with its head. Annotations always cover the
whole object, which fine-tuning can learn and an untuned model cannot know. Pebbles, twigs and loose leaves lie about
without annotations; twigs cut some objects into several parts.

Writes  OUTPUT_DIR/yolo/data.yaml, OUTPUT_DIR/yolo/{train,valid,test}/{images,labels}/   polygons, one row per object
        OUTPUT_DIR/coco/annotations.json, OUTPUT_DIR/coco/images/   polygons of one or more parts, some as RLE

    python demo/make_dataset.py --output_dir demo_output/data --seed 7
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sam_lora import cli

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CLASS_NAMES = ("berry", "cell", "beetle")
SPLIT_FRACTIONS = (("train", 0.6), ("valid", 0.2), ("test", 0.2))
FINER = 4            # masks are drawn at this multiple of the size, so that outlines have sub-pixel corners
MIN_AREA = 120       # visible pixels an object needs to be annotated
RLE_EVERY = 9        # every ninth COCO annotation is RLE, alternately uncompressed and compressed


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--num_images", type=cli.positive_int, default=75, metavar="N",
                      help="photos, alternately 320 x 240 and 240 x 320 pixels")
    cli.add_seed(data)
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default="demo_output/data", metavar="DIR", help="yolo/ and coco/ go here")
    cli.add_overwrite(out)
    return parser


def main(args: argparse.Namespace) -> None:
    import cv2
    import numpy as np
    from tqdm import tqdm

    from sam_lora.files import staged_folder
    sys.path.insert(0, str(ROOT / "pretrain"))
    from textures import TextureBank

    cv2.setNumThreads(1)
    rng = np.random.default_rng(args.seed)
    bank = TextureBank(rng, count=40)
    splits = split_names(rng, args.num_images)
    images, annotations = [], []
    with staged_folder(args.output_dir, ("yolo", "coco"), args.overwrite) as folder:
        make_folders(folder)
        for number in tqdm(range(args.num_images), desc="pictures", disable=None):
            size = (320, 240) if number % 2 == 0 else (240, 320)
            picture, objects = draw_picture(rng, bank, *size)
            stem = f"plate_{number:03d}"
            write_picture(folder, splits[number], stem, picture, objects)
            images.append({"id": number + 1, "file_name": f"{stem}.jpg", "width": size[0], "height": size[1]})
            for item in objects:
                annotations.append(coco_annotation(len(annotations) + 1, number + 1, item, *size))
        write_indices(folder, images, annotations)
    print(f"{args.num_images} pictures with {len(annotations)} objects in {args.output_dir}/yolo and "
          f"{args.output_dir}/coco")


def make_folders(folder: Path) -> None:
    for split, _ in SPLIT_FRACTIONS:
        for kind in ("images", "labels"):
            (folder / "yolo" / split / kind).mkdir(parents=True)
    (folder / "coco" / "images").mkdir(parents=True)


def write_picture(folder: Path, split: str, stem: str, picture: "np.ndarray", objects: list["Annotated"]) -> None:
    """The picture (H, W, 3) uint8 RGB as JPEG in both forms, and its YOLO labels."""
    import cv2
    height, width = picture.shape[:2]
    _, packed = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    for images in (folder / "yolo" / split / "images", folder / "coco" / "images"):
        (images / f"{stem}.jpg").write_bytes(packed.tobytes())
    rows = [yolo_row(item.class_id, item.outlines, width, height) for item in objects]
    (folder / "yolo" / split / "labels" / f"{stem}.txt").write_text("".join(f"{row}\n" for row in rows),
                                                                    encoding="utf-8")


def write_indices(folder: Path, images: list[dict], annotations: list[dict]) -> None:
    """data.yaml of the YOLO form and annotations.json of the COCO form."""
    import json
    (folder / "yolo" / "data.yaml").write_text(
        "".join(f"{split.replace('valid', 'val')}: {split}/images\n" for split, _ in SPLIT_FRACTIONS)
        + f"\nnc: {len(CLASS_NAMES)}\nnames: [{', '.join(CLASS_NAMES)}]\n", encoding="utf-8")
    categories = [{"id": i + 1, "name": name, "supercategory": "demo"} for i, name in enumerate(CLASS_NAMES)]
    (folder / "coco" / "annotations.json").write_text(json.dumps(
        {"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8")


def split_names(rng: "np.random.Generator", count: int) -> list[str]:
    """A random split for each photo, in the proportions of SPLIT_FRACTIONS; from three photos on no split is empty."""
    names = [name for name, fraction in SPLIT_FRACTIONS[1:] for _ in range(max(1, round(fraction * count)))]
    names = (["train"] * count + names)[-count:] if count > len(names) else ["train", *names][:count]
    return [names[i] for i in rng.permutation(len(names))]


# ---- pictures -----------------------------------------------------------------------------------------------

@dataclass
class Annotated:
    """One visible object: class, mask (H, W) bool, and the outlines (N, 2) xy of its parts in pixels, largest first."""

    class_id: int
    mask: "np.ndarray"
    outlines: list["np.ndarray"]


class Plate:
    """A canvas FINER times as large as the photo. Each layer has coverage and colour; later layers lie on top."""

    def __init__(self, rng: "np.random.Generator", bank, width: int, height: int) -> None:
        import numpy as np
        self.rng, self.bank = rng, bank
        self.width, self.height = width * FINER, height * FINER
        base = rng.uniform(70, 170) + rng.normal(0, 14, 3)
        self.canvas = self.surface(base, rng.uniform(12, 30), self.height, self.width)
        self.owner = np.zeros((self.height, self.width), np.int16)

    def surface(self, base, contrast: float, height: int, width: int) -> "np.ndarray":
        """Textured (height, width, 3) uint8 around the RGB colour `base`."""
        import cv2
        import numpy as np
        from textures import palette
        field = self.bank.cut(self.rng, max(4, height // FINER), max(4, width // FINER))
        field = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
        return palette(self.rng, np.asarray(base, float), contrast, grey=False)[field]

    def layer(self, outline: "np.ndarray", base, contrast: float, owner: int | None = None, opacity: float = 1.0,
              dome: float = 0.0, soft: float = 0.0) -> None:
        """Paint the inside of an outline ((N, 2) xy, pixels of the finished photo).

        `owner` is the object that the pixels then belong to, 0 for none; None leaves them to their object.
        """
        import cv2
        import numpy as np
        points = np.round(outline * FINER * 16).astype(np.int32)
        x0, y0 = np.maximum(points.min(axis=0) // 16 - 12, 0)
        x1, y1 = np.minimum(points.max(axis=0) // 16 + 13, (self.width, self.height))
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [points - np.array([x0, y0]) * 16], 255, cv2.LINE_8, 4)
        colour = self.surface(base, contrast, *mask.shape).astype(np.float32)
        if dome:
            rise = np.sqrt(cv2.distanceTransform(mask, cv2.DIST_L2, 3))
            colour *= (1 + dome * (rise / max(float(rise.max()), 1) - 0.6))[..., None]
        cover = cv2.GaussianBlur(mask, (0, 0), soft * FINER) if soft else mask
        alpha = cover.astype(np.float32)[..., None] * (opacity / 255)
        under = self.canvas[y0:y1, x0:x1]
        self.canvas[y0:y1, x0:x1] = np.clip(under + (colour - under) * alpha, 0, 255)
        if owner is not None:
            self.owner[y0:y1, x0:x1][mask > 0] = owner

    def finish(self) -> "np.ndarray":
        """Light, grain, and down to the picture's own size."""
        import cv2
        import numpy as np
        width, height = self.width // FINER, self.height // FINER
        image = cv2.resize(self.canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        light = cv2.resize(self.rng.normal(1, 0.12, (3, 3)).astype(np.float32), (width, height),
                           interpolation=cv2.INTER_CUBIC)
        image = cv2.GaussianBlur(image * light[..., None], (0, 0), 0.5) + self.rng.normal(0, 4, image.shape)
        return np.clip(image, 0, 255).astype(np.uint8)


def draw_picture(rng: "np.random.Generator", bank, width: int, height: int) -> tuple["np.ndarray", list[Annotated]]:
    """One picture (H, W, 3) uint8 RGB and its visible objects."""
    import numpy as np
    plate = Plate(rng, bank, width, height)
    for _ in range(rng.integers(3, 8)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        grey = rng.uniform(60, 190) + rng.normal(0, 10, 3)
        plate.layer(wavy(rng, x, y, rng.uniform(6, 20), rng.uniform(0.5, 1), 0.1), grey, 14, dome=0.4)
    classes = []
    places: list[tuple[float, float, float]] = []
    for _ in range(60):
        radius = rng.uniform(20, 44)
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        if all(np.hypot(x - px, y - py) > 0.95 * (radius + other) for px, py, other in places):
            places.append((x, y, radius))
        if len(places) == 5:
            break
    for x, y, radius in places[:rng.integers(3, 6)]:
        class_id = int(rng.integers(len(CLASS_NAMES)))
        classes.append(class_id)
        (draw_berry, draw_cell, draw_beetle)[class_id](plate, len(classes), x, y, radius)
    for _ in range(rng.integers(1, 3)):
        x, y = rng.uniform(0.2, 0.8, 2) * (width, height)
        if rng.random() < 0.5:
            brown = np.array((95, 70, 45)) + rng.normal(0, 12, 3)
            plate.layer(twig(rng, x, y, rng.uniform(60, 170)), brown, 18, owner=0)
        else:
            green = np.array((75, 115, 55)) + rng.normal(0, 15, 3)
            plate.layer(leaf(rng, x, y, rng.uniform(0, 6.3), rng.uniform(18, 34), 0.3), green, 18, owner=0)
    picture = plate.finish()
    objects = []
    for owner, class_id in enumerate(classes, start=1):
        outlines = outlines_of(plate.owner == owner)
        mask = mask_of(outlines, width, height)
        if mask.sum() >= MIN_AREA:
            objects.append(Annotated(class_id, mask, outlines))
    return picture, objects


def draw_berry(plate: Plate, owner: int, x: float, y: float, radius: float) -> None:
    """A round fruit, two or three leaves at its stalk, a highlight: all of it is the berry."""
    import numpy as np
    rng = plate.rng
    up = rng.uniform(0, 2 * np.pi)
    body = 0.68 * radius
    cx, cy = x - np.cos(up) * 0.3 * radius, y - np.sin(up) * 0.3 * radius
    flesh = np.array(((165, 40, 50), (90, 50, 120), (200, 120, 40))[rng.integers(3)]) + rng.normal(0, 12, 3)
    plate.layer(wavy(rng, cx, cy, body, rng.uniform(0.85, 1), 0.03), flesh, 22, owner, dome=0.5)
    sx, sy = cx + np.cos(up) * body * 0.85, cy + np.sin(up) * body * 0.85
    for turn in np.linspace(-0.9, 0.9, rng.integers(2, 4)) + rng.normal(0, 0.1):
        green = np.array((85, 130, 60)) + rng.normal(0, 14, 3)
        plate.layer(leaf(rng, sx, sy, up + turn, radius * rng.uniform(0.6, 0.8), 0.24), green, 16, owner)
    plate.layer(wavy(rng, cx - body * 0.3, cy - body * 0.35, body * 0.24, 0.7, 0.05), (240, 235, 230), 6, opacity=0.75,
                soft=0.8)


def draw_cell(plate: Plate, owner: int, x: float, y: float, radius: float) -> None:
    """A dark nucleus in pale plasma, a bright ring, a faint halo: all of it is the cell."""
    import numpy as np
    rng = plate.rng
    tint = rng.normal(0, 14, 3)
    outer = wavy(rng, x, y, radius, rng.uniform(0.8, 1), 0.04)
    centre = np.array([x, y])
    plate.layer(outer, np.array((178, 178, 200)) + tint, 12, owner, opacity=0.6)
    plate.layer(centre + (outer - centre) * 0.74, np.array((228, 222, 170)) + tint, 14)
    plate.layer(centre + (outer - centre) * 0.62, np.array((150, 165, 175)) + tint, 26)
    shift = rng.uniform(-0.15, 0.15, 2) * radius
    nucleus = wavy(rng, *(centre + shift), radius * rng.uniform(0.25, 0.34), 0.85, 0.08)
    plate.layer(nucleus, np.array((62, 48, 92)) + tint, 16, soft=0.5)


def draw_beetle(plate: Plate, owner: int, x: float, y: float, radius: float) -> None:
    """A striped back, a dark collar and a head: all of it is the beetle."""
    import numpy as np
    rng = plate.rng
    heading = rng.uniform(0, 2 * np.pi)
    ahead, aside = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    centre = np.array([x, y])

    def oval(at: float, long: float, wide: float) -> np.ndarray:
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)[:, None]
        return centre + ahead * radius * (at + long * np.cos(angle)) + aside * radius * wide * np.sin(angle)

    shell = np.array(((190, 150, 60), (70, 120, 95), (165, 85, 50))[rng.integers(3)]) + rng.normal(0, 12, 3)
    dark = np.array((45, 38, 35)) + rng.normal(0, 6, 3)
    plate.layer(oval(0.82, 0.2, 0.2), dark * 1.9, 10, owner, dome=0.4)                  # head
    plate.layer(oval(0.5, 0.26, 0.4), dark, 10, owner, dome=0.4)                        # collar
    plate.layer(oval(-0.25, 0.72, 0.52), shell, 14, owner, dome=0.4)                    # back
    for at in np.arange(-0.75, 0.3, rng.uniform(0.2, 0.3)):                             # stripes across it
        wide = 0.5 * np.sqrt(max(0.05, 1 - ((at + 0.25) / 0.72) ** 2))
        corners = np.array([[at, -wide], [at + 0.09, -wide], [at + 0.09, wide], [at, wide]]) * radius
        plate.layer(centre + corners[:, :1] * ahead + corners[:, 1:] * aside, dark, 8, opacity=0.85, soft=0.3)


def wavy(rng: "np.random.Generator", x: float, y: float, radius: float, flat: float, roughness: float) -> "np.ndarray":
    """A closed round outline (N, 2) around (x, y), squeezed by `flat`, its radius waving by `roughness`."""
    import numpy as np
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = np.arange(2, 7)[:, None]
    heights = rng.normal(0, roughness, (5, 1)) * 2 / waves
    reach = radius * (1 + (heights * np.cos(waves * angle + rng.uniform(0, 6.3, (5, 1)))).sum(axis=0))
    turn = rng.uniform(0, np.pi)
    along, across = reach * np.cos(angle), reach * np.sin(angle) * flat
    return np.stack([x + along * np.cos(turn) - across * np.sin(turn),
                     y + along * np.sin(turn) + across * np.cos(turn)], axis=1)


def leaf(rng: "np.random.Generator", x: float, y: float, heading: float, length: float, width: float) -> "np.ndarray":
    """A pointed outline that starts at (x, y)."""
    import numpy as np
    along = np.linspace(0, 1, 24)
    half = np.sin(np.pi * along) ** 0.8 * width
    bend = np.sin(np.pi * along) * rng.uniform(-0.15, 0.15)
    points = np.concatenate([np.stack([along, bend + half], 1), np.stack([along, bend - half], 1)[::-1]]) * length
    cos, sin = np.cos(heading), np.sin(heading)
    return points @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def twig(rng: "np.random.Generator", x: float, y: float, length: float) -> "np.ndarray":
    """A thin bent band around (x, y)."""
    import numpy as np
    turn = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, 20))
    line = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1) * length / 20, axis=0)
    line += np.array([x, y]) - line.mean(axis=0)
    normal = np.stack([-np.sin(turn), np.cos(turn)], 1) * np.linspace(3.2, 1.6, 20)[:, None]
    return np.concatenate([line + normal, (line - normal)[::-1]])


# ---- annotations --------------------------------------------------------------------------------------------

def outlines_of(fine_mask: "np.ndarray") -> list["np.ndarray"]:
    """Outlines (N, 2) xy in pixels of the picture of a (H * FINER, W * FINER) bool mask, the largest first.

    Specks under 25 pixels are left out, and so are holes: polygons of both formats have none.
    """
    import cv2
    import numpy as np
    contours, _ = cv2.findContours(fine_mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contours = sorted(contours, key=cv2.contourArea, reverse=True)
    contours = [cv2.approxPolyDP(contour, 0.3 * FINER, True)[:, 0] for contour in contours
                if cv2.contourArea(contour) >= 25 * FINER ** 2]
    # + 0.5: OpenCV names pixel centres, annotations measure from the picture's corner
    return [np.round((contour + 0.5) / FINER, 2) for contour in contours if len(contour) >= 3]


def mask_of(outlines: list["np.ndarray"], width: int, height: int) -> "np.ndarray":
    """The (H, W) bool mask inside the outlines, as pycocotools draws it."""
    import numpy as np
    from pycocotools import mask as coco_mask
    if not outlines:
        return np.zeros((height, width), bool)
    parts = coco_mask.frPyObjects([outline.ravel().tolist() for outline in outlines], height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def yolo_row(class_id: int, outlines: list["np.ndarray"], width: int, height: int) -> str:
    """One label row: class and polygon, x and y divided by the width and height.

    YOLO allows one polygon per row, so parts are joined by bridges of zero width, as the usual converters do.
    """
    import numpy as np
    joined = outlines[0]
    for outline in outlines[1:]:
        gaps = ((joined[:, None] - outline[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(gaps.argmin(), gaps.shape)
        loop = np.roll(outline, -there, axis=0)
        joined = np.concatenate([joined[:here + 1], loop, loop[:1], joined[here:]])
    normalised = np.clip(joined / (width, height), 0, 1)
    return " ".join([str(class_id), *(f"{value:.6f}" for value in normalised.ravel())])


def coco_annotation(number: int, image_id: int, item: Annotated, width: int, height: int) -> dict:
    """One COCO annotation. Category ids start at 1."""
    import numpy as np
    from pycocotools import mask as coco_mask
    segmentation: object = [outline.ravel().tolist() for outline in item.outlines]
    if number % RLE_EVERY == 0:
        if number % (2 * RLE_EVERY):
            flat = item.mask.ravel(order="F")
            ends = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
            segmentation = {"size": [height, width], "counts": [0, *counts] if flat[0] else counts}
        else:
            packed = coco_mask.encode(np.asfortranarray(item.mask.astype(np.uint8)))
            segmentation = {"size": [height, width], "counts": packed["counts"].decode("ascii")}
    rows, columns = np.flatnonzero(item.mask.any(axis=1)), np.flatnonzero(item.mask.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1] + 1 - columns[0]), int(rows[-1] + 1 - rows[0])]
    return {"id": number, "image_id": image_id, "category_id": item.class_id + 1, "segmentation": segmentation,
            "area": int(item.mask.sum()), "bbox": box, "iscrowd": 0}


if __name__ == "__main__":
    cli.run(main, get_args_parser())
