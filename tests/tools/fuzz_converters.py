"""Mutation fuzzer of both converters: damaged annotation files, class lists and photos.

    python tests/tools/fuzz_converters.py --count 10000 --seed 0

Each case is a small data set, one or several of its files damaged, converted in a process that is watched from
outside. Prints the outcomes by kind; exit code 1 if any case broke a promise:
  never a traceback      exit code 0, or 1 with one line of error and no output folder
  never a crash          nor a hang: a case has 20 seconds and 4 GB
  never a file outside   nothing but --output_dir changes
  never a lost object    label rows or annotations, counted here by other means = crops + report rows; every file listed
The same seed gives the same cases. One case again: --first 1234 --count 1 --keep FOLDER.
"""

import argparse
import copy
import csv
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import tifffile
from PIL import Image, features
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import process_coco_dataset
import process_yolo_to_classwise
from sam_lora import cli

WIDTH, HEIGHT = 40, 24
CASE_SECONDS, CASE_BYTES = 20, 4 * 2**30
PROCESS_SECONDS = 600   # far more than CASES_A_PROCESS cases take on a busy machine: for a hang that no alarm ends
CASES_A_PROCESS = 200
TABLES = {"instances.csv", "classes.json", "conversion_report.csv", "preview.jpg"}


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--count", type=int, default=10000, help="cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="at a time")
    parser.add_argument("--work_dir", metavar="DIR", help="folder below which the cases run and vanish; default: the "
                                                          "system's for temporary files")
    parser.add_argument("--keep", metavar="DIR", help="run in this process and keep the last case's files there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


# ---- values that break things -----------------------------------------------------------------------------

def odd_values(outside: str) -> list:
    size = [HEIGHT, WIDTH]
    return [None, True, False, 0, -1, 1, 2, 7, 1.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), 10**30, 10**400,
            2**31, 2**63, "", " ", "1", "1.0", "-1", "--3", "9" * 5000, "nan", "a/b", "../x", "../../../../x", outside,
            "CON", "nul.txt", ".", "..", "~", "x" * 300, "😀", "图像", "e\u0301", "\ud800", "\0", "a\nb\rc", "\x1b[31m",
            "A", "a", "https://example.org/a.jpg", "C:\\a.jpg", "a%2e%2e%2fb", "%00", [], {}, [[]], [[[[[[1]]]]]], [0],
            [1, 2], [1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]], [[0, 0, 1e9, 0, 1e9, 1e9]], {"size": size},
            {"size": size, "counts": [HEIGHT * WIDTH]}, {"size": size, "counts": "0"},
            {"size": [2**15, 2**15], "counts": [2**30]}, {"size": size[::-1], "counts": [1, 2, 3]}, {"a": {"b": 1}}]


TOKENS = ["nan", "inf", "-inf", "NaN", "Infinity", "1e308", "1e400", "-1", "1_0", "0x10", "٣", "1.0", "0.5", "99",
          "rle", "crack", ",", ";", ":", "\t", " ", "\n", "\r", "\r\n", "\0", "\ufeff", "\u2028", "\x1b", "\x85", "[",
          "]", "{", "}", "[[[[[[", '"', "'", "\\", "\\ud800", "- ", "? ", "| ", "> ", "&a ", "*a", "<<: *a",
          "!!python/object:os.system ", "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!x ",
          "%YAML 1.1", "---", "...", "#", "names:", "nc: -1", "train:", "kpt_shape:", "../../x", "null",
          "true", "9" * 400, "1:1:1", "2001-99-99", "~"]


def odd_bytes(random: np.random.Generator) -> bytes:
    if random.random() < 0.3:
        return random.bytes(int(random.integers(1, 12)))
    return TOKENS[random.integers(len(TOKENS))].encode()


def mutated_bytes(data: bytes, random: np.random.Generator) -> bytes:
    """Flip, cut, repeat, insert or swap pieces of `data`; several times."""
    for _ in range(int(random.integers(1, 6))):
        start, end = sorted(random.integers(0, len(data) + 1, 2).tolist())
        end = min(end, start + int(random.integers(1, 30))) if random.random() < 0.8 else end
        match random.integers(7):
            case 0 if data:
                place = int(random.integers(len(data)))
                data = data[:place] + bytes([data[place] ^ 1 << int(random.integers(8))]) + data[place + 1:]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:end] + data[start:end] * int(random.integers(1, 4)) + data[end:]
            case 3:
                data = data[:start] + odd_bytes(random) + data[start:]
            case 4:
                data = data[:start] + odd_bytes(random) + data[end:]
            case 5 if random.random() < 0.3:
                data = data[:start]
            case _:
                data = data[:start] + data[start:end][::-1] + data[end:]
    return data


def nodes(value: object) -> list[tuple]:
    """(container, key) of every value inside a JSON value."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [place for key, inner in pairs for place in [(value, key), *nodes(inner)]]


def mutated_json(content: dict, random: np.random.Generator, outside: str) -> bytes:
    content, odd = copy.deepcopy(content), odd_values(outside)
    for _ in range(int(random.integers(1, 5))):
        places = nodes(content)
        if not places:
            break
        container, key = places[random.integers(len(places))]
        match random.integers(6):
            case 0:
                del container[key]
            case 1:
                source, source_key = places[random.integers(len(places))]
                if source_key in (source if isinstance(source, dict) else range(len(source))):
                    container[key] = copy.deepcopy(source[source_key])
            case 2 if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
            case _:
                container[key] = copy.deepcopy(odd[random.integers(len(odd))])
    if random.random() < 0.05:
        content = [content, odd[random.integers(len(odd))]][random.integers(2)]
    text = json.dumps(content, ensure_ascii=bool(random.random() < 0.5), indent=[None, 1][random.integers(2)])
    return text.encode(errors="surrogatepass")


def mutated_rows(text: str, random: np.random.Generator, outside: str) -> bytes:
    rows = [row.split() for row in text.splitlines()]
    odd = [str(value) for value in odd_values(outside)[:45] if not isinstance(value, int) or value < 10**300] + TOKENS
    for _ in range(int(random.integers(1, 5))):
        row = rows[random.integers(len(rows))]
        place = int(random.integers(len(row))) if row else 0
        match random.integers(7):
            case 0:
                del row[place:place + int(random.integers(1, 4))]
            case 1:
                row.insert(place, odd[random.integers(len(odd))])
            case 2:
                rows.append(list(row))
            case 3:
                row[:] = [str(float(token) * 640) if re.fullmatch(r"\d*\.?\d+", token) else token for token in row]
            case 4:
                row *= int(random.integers(1, 3))
            case _:
                row[place:place + 1] = [odd[random.integers(len(odd))]]
    joint = [" ", " ", " ", "\t", ",", "  "][random.integers(6)]
    end = ["\n", "\n", "\r\n", "\n\n", "\r"][random.integers(5)]
    start = "\ufeff" if random.random() < 0.1 else ""
    return (start + end.join(joint.join(row) for row in rows)).encode(errors="surrogatepass")


def mutated_yaml(content: dict, random: np.random.Generator, outside: str) -> bytes:
    import yaml
    content, odd = copy.deepcopy(content), odd_values(outside)
    if random.random() < 0.5:
        container, key = nodes(content)[random.integers(len(nodes(content)))]
        container[key] = copy.deepcopy(odd[random.integers(len(odd))])
        return yaml.safe_dump(content, allow_unicode=True).encode(errors="surrogatepass")
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join(f'*{old}' for _ in range(9))}]\n" for old, new in zip("abcdefgh", "bcdefghi"))
    text = [yaml.safe_dump(content), bomb + "names: *i\n", bomb + "names: [x]\ntrain: *i\n", "names: &a [*a]\n",
            "names: {0: x, ? [1] : y}\n", "names: !!set {x, y}\n", "names: [" * 3000][
                random.choice(7, p=[.7] + [.05] * 6)]
    return mutated_bytes(text.encode(), random) if random.random() < 0.8 else text.encode()


# ---- data sets --------------------------------------------------------------------------------------------

def photos() -> dict[str, bytes]:
    """{name: file content} of photos of many kinds, most of them 40 x 24."""
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    whole = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[274] = 6
    kinds = {
        "jpg": (whole, "JPEG", {}), "turned": (whole, "JPEG", {"exif": turned}),
        "grey": (whole.convert("L"), "JPEG", {}),
        "progressive": (whole, "JPEG", {"progressive": True}), "cmyk": (whole.convert("CMYK"), "JPEG", {}),
        "png": (whole, "PNG", {}), "rgba": (whole.convert("RGBA"), "PNG", {}),
        "palette": (whole.convert("P"), "PNG", {}), "bmp": (whole, "BMP", {}),
        "deep": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 200), "PNG", {}),
        "one bit": (whole.convert("1"), "PNG", {}), "tif": (whole, "TIFF", {}),
        "deflate": (whole, "TIFF", {"compression": "tiff_deflate"}),
        "deep tif": (Image.fromarray(pixels[..., 0].astype(np.uint16)), "TIFF", {}),
        "float tif": (Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF", {}), "webp": (whole, "WEBP", {}),
        "gif": (whole, "GIF", {"save_all": True, "append_images": [whole.rotate(9)]}), "ppm": (whole, "PPM", {}),
        "clear": (Image.new("RGBA", (WIDTH, HEIGHT)), "PNG", {}),
        "alpha": (Image.merge("RGBA", [*whole.split(), whole.split()[0]]), "PNG", {}),
        "infrared": (Image.merge("RGBA", [*whole.split(), whole.split()[0]]), "TIFF", {}),
        "animated": (whole, "WEBP", {"save_all": True, "append_images": [whole.rotate(9)]}), "ico": (whole, "ICO", {}),
        "small": (whole.resize((9, 5)), "PNG", {}), "wide": (whole.resize((80, 24)), "PNG", {}),
        "double": (whole.resize((80, 48)), "PNG", {})}
    if features.check("avif"):
        kinds["avif"] = (whole, "AVIF", {})
    found = {}
    for name, (photo, kind, settings) in kinds.items():
        stream = io.BytesIO()
        photo.save(stream, kind, **settings)
        found[name] = stream.getvalue()
    for name, array in (("deep colour", pixels.astype(np.uint16) * 99), ("float colour", pixels.astype(np.float32))):
        found[name] = cv2.imencode(".png" if name == "deep colour" else ".tiff", array)[1].tobytes()
    for name, count, kind in (("five bands", 5, np.uint8), ("eight bands", 8, np.uint16)):
        stream = io.BytesIO()
        tifffile.imwrite(stream, np.dstack([pixels] * 3)[..., :count].astype(kind), photometric="minisblack",
                         planarconfig="contig")
        found[name] = stream.getvalue()
    bomb = bytearray(found["png"])
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    return {**found, "bomb": bytes(bomb), "empty": b"", "html": b"<html>not found</html>"}


def rle_list(box: tuple[int, int, int, int]) -> list[int]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[box[1]:box[3], box[0]:box[2]] = 1
    return np.diff([0, *(np.flatnonzero(np.diff(mask.ravel(order="F"))) + 1), mask.size]).tolist()


def yolo_set(folder: Path, kinds: list[bytes]) -> list[Path]:
    for split, stem, data in zip(("train", "train", "valid"), ("a", "b.rf.x", "a"), kinds):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        (folder / split / "images" / f"{stem}.jpg").write_bytes(data)
    (folder / "train/labels/a.txt").write_text(
        "0 0.1 0.1 0.7 0.1 0.7 0.8 0.1 0.8\n1 0.2 0.2 0.9 0.3 0.5 0.9\n0 0.5 0.5 0.4 0.4\n"
        "2 0.1 0.2 0.9 0.2 0.8 0.3 0.7\n")
    (folder / "train/labels/b.rf.x.txt").write_text("1 0.3 0.1 0.8 0.2 0.8 0.9 0.3 0.1\n1 0 0 1 0 1 1 0 1\n")
    (folder / "valid/labels/a.txt").write_text("2 0.3 0.3 0.9 0.3 0.6 0.9\n")
    (folder / "data.yaml").write_text(json.dumps(YAML))
    return sorted(folder.rglob("labels/*.txt"))


SUFFIXES = [".jpg", ".jpg", ".JPG", ".jfif", ".Jpe", ".MPO", ".avif", ".heic", ".raw", ""]   # of JPEGs
ENCODINGS = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gbk"]
ODD_NAMES = ["yes", "no", "off", "Null", "~", "010", "1_000", "12:30", "1e3", "0x1F", "2001-99-99", "裂缝", "剥落",
             "crack"]


def varied_yolo(labels: list[Path], random: np.random.Generator) -> list[str]:
    """The same set as other tools write it: numbers beside outlines, other names, encodings, suffixes, links.

    Returns the class names.
    """
    kind = int(random.integers(6))
    encoding = ENCODINGS[random.integers(len(ENCODINGS))]
    names = [ODD_NAMES[random.integers(len(ODD_NAMES))] for _ in range(3)]
    data = labels[0].parents[2]
    if random.random() < 0.5:
        (data / "data.yaml").write_bytes(f"names: [{', '.join(names)}]\n".encode(encoding))
    else:
        (data / "data.yaml").unlink()
        (data / "classes.txt").write_bytes("\n".join(names).encode(encoding))
    for path in labels:
        rows = [row.split() for row in path.read_text().splitlines()]
        text = "".join(" ".join(with_extra_numbers(row, kind, random)) + "\n" for row in rows)
        path.write_bytes(text.encode(encoding if encoding.startswith("utf") else "utf-8"))
    for photo in sorted(data.rglob("images/*.jpg")):
        photo.rename(photo.with_suffix(SUFFIXES[random.integers(len(SUFFIXES))]))
    link_some(data, random)
    return names


def link_some(data: Path, random: np.random.Generator) -> None:
    """Put folders or files of a set elsewhere below it and leave links in their places, or add links in circles."""
    match random.integers(6):
        case 0:
            name = ["train/images", "train/labels", "valid/images", "valid"][random.integers(4)]
            (data / "store").mkdir()
            (data / name).rename(data / "store" / Path(name).name)
            (data / name).symlink_to(data / "store" / Path(name).name)
        case 1:
            files = sorted(path for path in data.rglob("*") if path.is_file())
            (data / "blobs").mkdir()
            for number, path in enumerate(files):
                path.rename(data / "blobs" / str(number))
                path.symlink_to(os.path.relpath(data / "blobs" / str(number), path.parent))
        case 2:
            for name in ("train/up", "valid/images/again", "train/labels/x"):
                (data / name).symlink_to(["..", ".", "../../valid", "/dev", str(data)][random.integers(5)])


def with_extra_numbers(row: list[str], kind: int, random: np.random.Generator) -> list[str]:
    """A row with what models, trackers and labelling tools add to it; as it is where it has that, or is a box."""
    if len(row) % 2 == 0 or len(row) < 7:
        return row
    xs, ys = (list(map(float, row[start::2])) for start in (1, 2))
    box = [f"{number:.5f}" for number in (sum((min(xs), max(xs))) / 2, sum((min(ys), max(ys))) / 2, max(xs) - min(xs),
                                          max(ys) - min(ys))]
    confidence, number = f"{random.uniform(0.25, 0.99):.3g}", str(random.integers(2, 2000))
    before, behind = [([], [confidence]), ([], [number]), ([], [confidence, number]), ([number], []), (box, []),
                      ([number], [confidence])][kind]
    return [row[0], *before, *row[1:], *behind]


YAML = {"train": "../train/images", "val": "C:\\x\\valid\\images", "nc": 3, "names": ["crack", "a/b", "Crack"]}


def coco_set(folder: Path, kinds: list[bytes]) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in zip("abc", kinds):
        (folder / f"{name}.jpg").write_bytes(data)
    runs = rle_list((3, 4, 20, 15))
    text = coco_mask.frPyObjects({"size": [HEIGHT, WIDTH], "counts": runs}, HEIGHT, WIDTH)["counts"].decode()
    outlines = [[[2, 2, 30, 2, 30, 20, 2, 20]], [[1, 1, 9, 1, 9, 9], [20, 3, 38, 3, 38, 15, 20, 15]],
                {"size": [HEIGHT, WIDTH], "counts": runs}, {"size": [HEIGHT, WIDTH], "counts": text}, [],
                [5, 5, 25, 5, 25, 15.5], [[3, 3, 35, 20, 35, 3, 3, 20]]]
    return {"info": {"year": 2026}, "licenses": [{"id": 1}],
            "images": [{"id": i, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT}
                       for i, name in enumerate("abc")],
            "categories": [{"id": 0, "name": "parts"}, {"id": 3, "name": "disc"}, {"id": 74673216, "name": "a/b"}],
            "annotations": [{"id": i, "image_id": i % 3, "category_id": (3, 74673216)[i % 2], "segmentation": outline,
                             "iscrowd": int(i == 2), "area": 9.5, "bbox": [2, 2, 20, 12]}
                            for i, outline in enumerate(outlines)]}


def varied_coco(content: dict, folder: Path, random: np.random.Generator) -> list[dict]:
    """The same set as other tools write it, its photos moved below `folder`: one JSON's content, or two."""
    content = copy.deepcopy(content)
    for annotation in content["annotations"]:
        if random.random() < 0.6:
            annotation["segmentation"] = varied_outline(annotation["segmentation"], random)
        if random.random() < 0.2:
            annotation["bbox"] = [None, [0, 0, 1, 1], [2, 2, 30, 20], [0.1, 0.1, 0.4, 0.5], {"x": 1, "y": 2}][
                random.integers(5)]
        if random.random() < 0.1:
            mark = ["isbbox", "obb", "attributes"][random.integers(3)]
            annotation[mark] = [True, {"isbbox": True}][random.integers(2)]
    if random.random() < 0.3:
        for annotation in content["annotations"]:
            annotation["segmentation"] = fractions_of(annotation["segmentation"])
    copies = random.integers(0, len(content["annotations"]), int(random.integers(3)))
    content["annotations"] += [copy.deepcopy(content["annotations"][place]) for place in copies]
    for image in content["images"]:
        name, folders = image["file_name"], ["cam1", "cam2", "train", "val", "Validation", "x/train"]
        if random.random() < 0.6:
            place = folder / folders[random.integers(len(folders))] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(place)
        image["file_name"] = varied_name(name, folders, random)
        if random.random() < 0.2:
            image["coco_url"] = f"http://images.example.org/train2017/{name}?sig=a%2Fb"
            image["file_name"] = [None, "", image["file_name"]][random.integers(3)]
    content["images"] += [{**image, "id": 10 + number, "file_name": varied_name("a.jpg", ["cam1", "cam2"], random)}
                          for number, image in enumerate(content["images"][:int(random.integers(3))])]
    content["annotations"] += [{**annotation, "image_id": 10} for annotation in content["annotations"][:2]]
    return [content, copy.deepcopy(content)][:1 + (random.random() < 0.4)]


def varied_name(name: str, folders: list[str], random: np.random.Generator) -> str:
    other = folders[random.integers(len(folders))]
    return [name, f"{other}/{name}", f"{other}\\{name}", f"/home/me/{other}/{name}", f"https://x.org/{other}/{name}?a=b.c",
            f"images%2F{other}%2F{name}", f"./{name}#1", f" {name}", f"../{other}/{name}"][random.integers(9)]


def varied_outline(outline: object, random: np.random.Generator) -> object:
    """An outline in another tool's words; what is no list of polygons goes one of a few other ways."""
    if isinstance(outline, dict):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[4:15, 3:20] = 1
        by_rows = np.diff([0, *(np.flatnonzero(np.diff(mask.ravel())) + 1), mask.size]).tolist()
        counts = [by_rows, by_rows, [], None, [HEIGHT * WIDTH], outline["counts"]][random.integers(6)]
        return [{**outline, "counts": counts}, [outline, {**outline, "counts": counts}],
                {"size": outline["size"][::-1], "counts": counts}][random.choice(3, p=[0.6, 0.2, 0.2])]
    parts = outline if outline and isinstance(outline[0], list) else [outline]
    points = [[list(point) for point in zip(part[::2], part[1::2])] for part in parts]
    return [points, points[0], [points], [[parts]], [[[point] for point in part] for part in points],
            [[{"x": x, "y": y} for x, y in part] for part in points], [[*point, 0] for point in points[0]],
            {"x": parts[0][::2], "y": parts[0][1::2]}, json.dumps(parts), [part[:4] for part in parts], [[], []],
            [point[::-1] for point in points[0]], [2, 2, 20, 12], [[2, 2, 20, 12]]][random.integers(14)]


def fractions_of(outline: object) -> object:
    """Numbers as fractions of width and height, in flat lists at any depth."""
    if isinstance(outline, list) and outline and all(isinstance(number, int | float) for number in outline):
        return [number / (HEIGHT if place % 2 else WIDTH) for place, number in enumerate(outline)]
    return [fractions_of(inner) for inner in outline] if isinstance(outline, list) else outline


def break_photos(files: list[Path], known: dict[str, bytes], random: np.random.Generator, outside: Path) -> None:
    for path in files:
        match random.integers(12):
            case 0 | 1 | 2:
                path.write_bytes(mutated_bytes(path.read_bytes(), random))
            case 3 | 4:
                start = path.read_bytes()
                path.write_bytes(mutated_bytes(start[:200], random) + start[200:])
            case 5:
                path.write_bytes(known[list(known)[random.integers(len(known))]])
            case 6:
                path.unlink()
            case 7:
                path.unlink()
                [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(outside),
                 lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("/dev/zero")][
                     random.integers(5)](path)
            case 8:
                path.rename(path.with_name(["é.jpg", "x" * 240 + ".jpg", "a_0001.png", "A.JPG", "CON.jpg", "a b.webp",
                                            "new\nline.jpg", "a.jpg.jpg"][random.integers(8)]))


def flags_of(random: np.random.Generator, coco: bool) -> list[str]:
    flags = ["--min_size", str(random.choice([1, 3, 10])), "--padding", str(random.choice([0, 0.1, 3]))]
    flags += [["--no_crop"], ["--square"], ["--tile", "64"], [], [], []][random.integers(6)]
    for flag, chance in (("--strict", 0.05), ("--dry_run", 0.08), ("--boxes", 0.4), ("--crowd", 0.3 if coco else 0)):
        if random.random() < chance:
            choice = ["keep", "skip"][random.integers(2)]
            flags += [flag, *{"--boxes": ["rectangle"], "--crowd": [choice]}.get(flag, [])]
    return flags


# ---- one case ---------------------------------------------------------------------------------------------

def damage_of(number: int, seed: int) -> str:
    """What a case damages."""
    random = np.random.default_rng([seed, number, 1])
    return ["YOLO rows", "YOLO variants", "data.yaml", "COCO JSON", "COCO variants", "photos"][
        random.choice(6, p=[0.2, 0.15, 0.1, 0.2, 0.2, 0.15])]


def run_case(number: int, seed: int, folder: Path, known: dict[str, bytes]) -> str:
    """How a case ended; raises AssertionError, which says what promise was broken."""
    random = np.random.default_rng([seed, number])
    data, out = folder / "a" / "b" / "c" / "set", folder / "a" / "b" / "c" / "out"
    secret = folder / "secret.jpg"
    secret.write_bytes(known["jpg"])
    here = folder / "here"
    here.mkdir()
    names, what = list(known), damage_of(number, seed)
    kinds = [known["jpg"] if random.random() < 0.8 or what == "YOLO variants"
             else known[names[random.integers(len(names))]] for _ in range(3)]
    coco = what.startswith("COCO") or (what == "photos" and random.random() < 0.5)
    bytewise = random.random() < 0.35
    if coco:
        content = coco_set(data, kinds)
        path = data / "coco.json"
        path.write_text(json.dumps(content))
        if what == "COCO JSON":
            path.write_bytes(mutated_bytes(path.read_bytes(), random) if bytewise
                             else mutated_json(content, random, str(folder / "escaped.png")))
        script, argv = process_coco_dataset, ["--coco_json", str(path)]
        if what == "COCO variants":
            contents = varied_coco(content, data, random)
            names = [["coco.json", "instances_val.json"], ["coco.json", "other.json"]][random.integers(2)]
            paths = [data / name for name in names[:len(contents)]]
            for path, content in zip(paths, contents):
                path.write_text(json.dumps(content))
            argv = ["--coco_json", *map(str, paths)]
    else:
        labels = yolo_set(data, kinds)
        if what == "YOLO rows":
            for path in labels[:int(random.integers(1, 4))]:
                path.write_bytes(mutated_bytes(path.read_bytes(), random) if bytewise
                                 else mutated_rows(path.read_text(), random, str(folder / "escaped.png")))
        elif what == "data.yaml":
            path = data / "data.yaml"
            path.write_bytes(mutated_bytes(path.read_bytes(), random) if bytewise
                             else mutated_yaml(YAML, random, str(folder / "escaped.png")))
        elif what == "YOLO variants":
            class_names = varied_yolo(labels, random)
        script, argv = process_yolo_to_classwise, ["--dataset_dir", str(data)]
    if what == "photos":
        break_photos(sorted(data.rglob("*.jpg")), known, random, secret)
    argv += ["--output_dir", str(out), "--num_workers", "0", *flags_of(random, coco)]
    before = tree(folder, out)
    os.chdir(here)
    code, printed, error = call(script, argv)
    assert tree(folder, out) == before, "a file outside --output_dir changed"
    outcome = judge(code, printed, error, out, data, "--dry_run" in argv, coco)
    if what == "COCO variants" and code == 0 and out.exists():
        judge_photos(out, data)
    if what == "YOLO variants" and code == 0 and out.exists():
        areas = plain_areas(known["jpg"])
        for row in read_csv(out / "instances.csv"):
            assert row["class_name"] in class_names, f"{row['class_name']!r} is not among {class_names}"
            area = areas[row["source_id"]]
            assert int(row["mask_area"]) == area, f"{row['source_id']}: {row['mask_area']} pixels, plain {area}"
    return outcome


@functools.cache
def plain_areas(photo: bytes) -> dict[str, int]:
    """{source_id: mask area} of the set that nobody has changed, boxes among them."""
    with tempfile.TemporaryDirectory() as folder:
        yolo_set(Path(folder) / "set", [photo] * 3)
        code, _, error = call(process_yolo_to_classwise, [
            "--dataset_dir", f"{folder}/set", "--output_dir", f"{folder}/out", "--num_workers", "0", "--min_size", "1",
            "--boxes", "rectangle"])
        assert code == 0, error
        return {row["source_id"]: int(row["mask_area"]) for row in read_csv(Path(folder) / "out" / "instances.csv")}


def call(script, argv: list[str]) -> tuple[int, str, str]:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    code = 0
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]), time_limit():
        try:
            cli.run(script.main, script.get_args_parser(), argv)
        except SystemExit as stopped:
            code = stopped.code or 0
    printed, error = (stream.seek(0) or stream.read() for stream in streams)
    return code, printed, error


@contextmanager
def time_limit():
    def stop(*_):
        raise AssertionError(f"took more than {CASE_SECONDS} s")
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(CASE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def tree(folder: Path, out: Path) -> dict[str, object]:
    """Everything below `folder` but `out`: {path: content}."""
    found = {}
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(here) / name != out]
        for name in [*folders, *files]:
            path = Path(here) / name
            found[str(path)] = path.read_bytes() if path.is_file() and not path.is_symlink() else path.is_symlink()
    return found


def judge(code: int, printed: str, error: str, out: Path, data: Path, dry_run: bool, coco: bool) -> str:
    """The outcome in words; asserts that it is an allowed one."""
    rows = sum_of_annotations(data) if coco else label_rows(data)
    if code:
        assert code == 1, f"exit code {code}: {error[:300]}"
        assert len(error.splitlines()) == 1 and ": error: " in error, f"not one line of error: {error[:300]!r}"
        assert not out.exists(), "an error left an output folder"
        assert not coco or ("broken JSON" in error) == (rows is None), f"JSON that json.loads judges otherwise: {error}"
        known = [kind for kind in ("broken JSON", "broken YAML", "nothing to convert", "no list of", "found a list",
                                   "--strict is on", "photos are not in", "not UTF-8", "out of it", "names",
                                   "no photo found", "found a", "not one label file", "pose data set") if kind in error]
        return f"error: {known[0]}" if known else f"error: {error.split(': error: ')[1][:90].strip()}"
    assert rows is not None, "json.loads refuses this file"
    total, crops, skipped = map(int, re.match(r"[\w ]+: (\d+) = (\d+) crops \+ (\d+) skipped", printed).groups())
    assert total == crops + skipped == rows and crops, f"{rows} in the files, but {total} = {crops} + {skipped}"
    if dry_run:
        assert not out.exists(), "a dry run wrote"
        return "dry run"
    pairs = re.search(r"(\d+) pairs of image and mask", printed)
    manifest, report = read_csv(out / "instances.csv"), read_csv(out / "conversion_report.csv")
    assert len(report) == skipped, f"{len(report)} rows in the report, {skipped} skipped"
    assert len(manifest) == (int(pairs[1]) if pairs else crops), f"{len(manifest)} rows in the manifest, {crops} crops"
    listed = {row[key] for row in manifest for key in ("image_path", "mask_path")} | TABLES
    if (out / "background.csv").exists():
        listed |= {"background.csv", *(row["image_path"] for row in read_csv(out / "background.csv"))}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    assert files == listed, f"files and manifest differ: {files ^ listed}"
    assert len({row["mask_path"].casefold() for row in manifest}) == len(manifest), "two objects share a mask file"
    for row in manifest:
        image, mask = cv2.imread(str(out / row["image_path"])), cv2.imread(str(out / row["mask_path"]), -1)
        assert image.shape[:2] == mask.shape, f"{row['mask_path']}: image {image.shape}, mask {mask.shape}"
        assert set(np.unique(mask)) <= {0, 255} and (mask > 0).sum() == int(row["mask_area"]) > 0, row["mask_path"]
    classes = {entry.name for entry in out.iterdir() if entry.is_dir()} - {"background"}
    assert set(json.loads((out / "classes.json").read_text(encoding="utf-8"))) == classes, "classes.json"
    return "converted, some skipped" if skipped else "converted whole"


def read_csv(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def label_rows(data: Path) -> int:
    return sum(bool(line.strip()) for path in {path.resolve() for path in data.rglob("labels/*.txt")}
               for line in label_text(path.read_bytes()).splitlines())


def label_text(data: bytes) -> str:
    """Digits and blanks: in UTF-16 every second byte is zero."""
    zeros = data[::2].count(0), data[1::2].count(0)
    if sum(zeros) * 4 < len(data) or data.startswith(b"\xef\xbb\xbf"):
        return data.decode("utf-8-sig", errors="replace")
    return data.decode("utf-16-be" if zeros[0] else "utf-16-le", errors="replace").removeprefix("\ufeff")


def judge_photos(out: Path, data: Path) -> None:
    """Assert that no object was cut from a photo that another entry names, nor from one that its own name excludes."""
    names, exact = defaultdict(set), set()   # of the photos of each annotation id: ids repeat in copies
    for path in data.glob("*.json"):
        content = json.loads(path.read_text())
        named = {image["id"]: image["file_name"] or image.get("coco_url") for image in content["images"]}
        exact |= {name for name in named.values() if (data / name).is_file()}
        for annotation in content["annotations"]:
            name = unquote(named.get(annotation["image_id"], "")).replace("\\", "/").strip()
            names[f"annotation {annotation['id']}"].add(re.split("[?#]", name)[0])
    for row in read_csv(out / "instances.csv"):
        photo = row["source_image"]
        ends = [name for name in names[row["source_id"]] if name.split("/")[-1] == Path(photo).name]
        assert ends, f"{row['source_id']} was cut from {photo}"
        assert photo not in exact or any(f"/{name}".endswith(f"/{photo}") for name in ends), \
            f"{row['source_id']} of {ends} was cut from {photo}, which another entry names"


def sum_of_annotations(data: Path) -> int | None:
    counts = [annotations(path) for path in data.glob("*.json")]
    return None if None in counts else counts[0] if len(counts) == 1 else sum(counts)


def annotations(path: Path) -> int | None:
    """Count of annotations; None where the file is no JSON, -1 where it holds no list of them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    found = content.get("annotations") if isinstance(content, dict) else None
    return len(found) if isinstance(found, list) else -1


# ---- processes --------------------------------------------------------------------------------------------

def child(first: int, count: int, seed: int, base: Path) -> None:
    """Run cases in the folder `base` and print one line of JSON before and after each; the last one's files stay."""
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (CASE_BYTES, CASE_BYTES))
    cv2.setNumThreads(1)
    known = photos()
    base.mkdir(exist_ok=True)
    try:
        for number in range(first, first + count):
            print(json.dumps({"start": number}), flush=True)
            folder = base / "case"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            outcome = broken = ""
            what = damage_of(number, seed)
            try:
                outcome = run_case(number, seed, folder, known)
                assert list(base.iterdir()) == [folder], "a file beside the case's folder"
            except AssertionError as error:
                broken = str(error)
                if error.__traceback__ and "judge" not in (names := [frame.name for frame in traceback.extract_tb(
                        error.__traceback__)]) and "_check" in names:
                    broken = f"traceback: {broken}"
            except (Exception, KeyboardInterrupt) as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(frame.filename).name}:{frame.lineno}"
                broken = f"traceback: {type(error).__name__} in {where}: {error}"[:300]
            print(json.dumps({"end": number, "what": what, "outcome": outcome, "broken": broken}), flush=True)
    finally:
        os.chdir("/")


def watched(first: int, count: int, seed: int, folder: Path) -> list[dict]:
    """The results of `count` cases in processes of their own; one that dies costs only the case it was at."""
    results, number, end = [], first, first + count
    while number < end:
        command = [sys.executable, __file__, "--child", "--first", str(number), "--count", str(end - number), "--seed",
                   str(seed), "--work_dir", str(folder / f"from-{number}")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "OFF"})
        try:
            printed, error = process.communicate(timeout=PROCESS_SECONDS)
            died = f"the process died with {process.returncode}: {error[-200:]}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            died = "the process hung"
        lines = [json.loads(line) for line in printed.splitlines() if line.endswith("}")]
        results += [line for line in lines if "end" in line]
        started = [line["start"] for line in lines if "start" in line]
        if not started:
            return [*results, {"end": number, "what": "?", "outcome": "", "broken": f"no case was begun: {died}"}]
        at = started[-1]
        if died or len(results) < at + 1 - first:
            results.append({"end": at, "what": "?", "outcome": "", "broken": died or "the process ended early"})
        number = at + 1
    return results


def main(args: argparse.Namespace) -> int:
    if args.child or args.keep:
        child(args.first, args.count, args.seed, Path(args.keep or args.work_dir))
        return 0
    start = time.perf_counter()
    firsts = range(args.first, args.first + args.count, CASES_A_PROCESS)
    with (tempfile.TemporaryDirectory(prefix="fuzz-", dir=args.work_dir) as folder,
          ThreadPoolExecutor(args.processes) as pool):
        chunks = list(pool.map(lambda first: watched(first, min(CASES_A_PROCESS, args.first + args.count - first),
                                                     args.seed, Path(folder)), firsts))
    results = [result for chunk in chunks for result in chunk]
    damaged = Counter(result["what"] for result in results)
    print(f"{len(results)} cases in {time.perf_counter() - start:.0f} s, seed {args.seed}: "
          + ", ".join(f"{what} {count}" for what, count in damaged.most_common()))
    for outcome, count in Counter(result["outcome"] for result in results if not result["broken"]).most_common():
        print(f"  {count:6d}  {outcome}")
    broken = [result for result in results if result["broken"]]
    for result in broken[:40]:
        print(f"BROKEN case {result['end']} ({result['what']}): {result['broken']}")
    print(f"{len(broken)} promises broken")
    return int(bool(broken) or len(results) != args.count)


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
