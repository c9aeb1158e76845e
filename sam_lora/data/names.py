"""Names: what a text may become on disk or on a terminal, and what a file's name says of its photo and its split.

A crop's mask is `<stem>_<index>.png`, `<stem>` standing for its photo and `<index>`, four digits or more, for the
object; a tile of the photo is `<stem>.tile.<x0>.<y0>.png`. No stem is another stem followed by `.tile.<x0>.<y0>`, by
`_` and four or more digits, or by both, so the mask's name without them names the photo.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from sam_lora import contracts

SPLIT_ALIASES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}
OBJECT_NUMBER = re.compile(r"_\d{4,}$")                # <photo>_0003: an object of <photo>
TILE_PLACE = re.compile(r"\.tile\.\d+\.\d+$")          # <photo>.tile.768.0: a tile of it


# ---- text -------------------------------------------------------------------------------------------------

def printable(text: str) -> str:
    """A path or id that can be printed on one line and written as UTF-8.

    Control characters, and bytes of a file name that are not UTF-8, become _.
    """
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "_", text)


def clean_name(name: object) -> str:
    """A class name as text, on one line; "" for a value that cannot be a name."""
    if name is None or isinstance(name, list | dict | set) or (isinstance(name, int) and abs(name) > 10**18):
        return ""
    return printable(str(name)).strip()


# ---- classes ----------------------------------------------------------------------------------------------

def class_slug(name: str) -> str:
    """A class name as a safe part of a folder name: NFC, letters, digits, - _ . of any script, 80 bytes at most."""
    name = unicodedata.normalize("NFC", name)
    kept = "".join(letter if letter in "-_." or unicodedata.category(letter)[0] in "LMN" else "_" for letter in name)
    return _shortened(kept, 80).strip("._") or "unnamed"


def class_folder_names(labels: Mapping[str, str]) -> dict[str, str]:
    """{key: label} -> {key: folder name}, safe and different even where case does not count."""
    folders, taken = {}, set()
    for key, label in labels.items():
        base = folder = contracts.CLASS_FOLDER_PREFIX + class_slug(label)
        number = 2
        while folder.casefold() in taken:
            folder = f"{base}-{number}"
            number += 1
        taken.add(folder.casefold())
        folders[key] = folder
    return folders


def merge_same_names(names: Mapping[str, str]) -> dict[str, list[str]]:
    """{key: class name} -> {class name: its keys, in order}."""
    merged = defaultdict(list)
    for key, name in names.items():
        merged[name].append(key)
    return dict(merged)


# ---- photos -----------------------------------------------------------------------------------------------

def unique_stems(photos: Sequence[tuple[str, str]]) -> list[str]:
    """(path below the data set's folder, split) of each photo -> a stem that starts with its file name's and is unique.

    Where two photos would share a stem, or one stem is another followed by `_0001`, `.tile.0.0` or both, a hash of the
    path and split is added.
    """
    stems = [_safe_stem(PurePosixPath(path).stem) for path, _ in photos]
    count = Counter(stem.casefold() for stem in stems)
    unique = []
    for (path, split), stem in zip(photos, stems):
        without_number = OBJECT_NUMBER.sub("", stem)
        shorter = {without_number, TILE_PLACE.sub("", without_number)} - {stem}
        if count[stem.casefold()] > 1 or len(stem.encode()) > 160 or any(base.casefold() in count for base in shorter):
            digest = hashlib.sha256(f"{path}|{split}".encode(errors="surrogateescape")).hexdigest()[:8]
            stem = f"{_shortened(stem, 160)}-{digest}"
        unique.append(stem)
    return unique


def photo_stem(image_path: str, mask_path: str) -> str:
    """The photo's stem, as the names of a crop and its mask give it.

    An image named as its mask is a crop, <photo>_<number>; any other is the photo itself or, as
    <photo>.tile.<x0>.<y0>, a tile of it.
    """
    image, mask = PurePosixPath(image_path).stem, PurePosixPath(mask_path).stem
    return OBJECT_NUMBER.sub("", image) if image == mask else TILE_PLACE.sub("", image)


def _safe_stem(stem: str) -> str:
    stem = unicodedata.normalize("NFC", stem)
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", stem)
    stem = printable(stem)
    return "_" + stem if stem.startswith(".") else stem


def _shortened(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore")


# ---- splits -----------------------------------------------------------------------------------------------

def normalise_split(text: str) -> str:
    """train, val or test for any of their usual names, in any case; "" for other text."""
    return SPLIT_ALIASES.get(text.strip().casefold(), "")
