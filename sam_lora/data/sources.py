"""What a data set holds, as its format's parser hands it to `class_folders`: photos, their objects, their classes."""

import os
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sam_lora import contracts
from sam_lora.data.names import printable
from sam_lora.errors import UserError

# what annotation tools and phones write and Pillow opens; HEIC so that its true fault is told
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp",
                  ".avif", ".gif", ".jp2", ".ppm", ".pgm", ".pnm", ".tga", ".heic", ".heif")
TEXT_SUFFIXES = {".txt", ".json", ".yaml", ".yml", ".md", ".csv", ".xml", ".cache", ".py"}  # not worth a note


@dataclass(frozen=True)
class ObjectClass:
    """`folder` is the class's safe folder name, `class_name` its true name."""
    class_id: int | str
    class_name: str
    folder: str


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object as the data set outlines it: polygons or an RLE.

    `index` is unique within the photo. `polygons`: flat [x, y, x, y, …] each, finite, three points or more, in the
    photo's `frame_wh`. `rle`: as in COCO, not checked yet. `bbox`: (x, y, width, height) in that frame, where the data
    set states one beside the outline.
    """
    index: int
    source_id: str
    class_key: str
    polygons: Sequence[Sequence[float]] = ()
    rle: dict | None = None
    is_rectangle: bool = False
    bbox: tuple[float, ...] | None = None


@dataclass(frozen=True)
class SourceImage:
    """A photo and its objects.

    `name` is its path below the data set's folder, with /. `frame_wh` is the size of the frame that polygons are in:
    (1, 1) for fractions of width and height, None for the photo's own pixels. `upright` off: the frame is the photo as
    stored, before its EXIF rotation. `complete`: every annotation of it is among its objects, so that what they do not
    cover is background.
    """
    path: Path
    name: str
    split: str
    objects: Sequence[SourceObject]
    label_file: str
    frame_wh: tuple[float, float] | None = None
    upright: bool = True
    stem: str = ""
    complete: bool = False


def source_files(root: Path, output_dir: Path, more_suffixes: Sequence[str] = (), notes: Counter | None = None,
                 follow_links: bool = False) -> list[PurePosixPath]:
    """Image files, and those with one of `more_suffixes`, below `root`: relative to it, sorted, suffixes in any case.

    Left out: hidden files, class folders made earlier, pipes and the like. Suffixes that are not an image's are counted
    in `notes`. Links as in `files_below`.
    """
    output, others = output_dir.resolve(), Counter()

    def is_made(folder: Path) -> bool:
        return folder.resolve() == output or (folder / contracts.MANIFEST_FILE).is_file()
    found = files_below(root, {*IMAGE_SUFFIXES, *more_suffixes}, follow_links, is_made, others)
    others = Counter({suffix: count for suffix, count in others.items() if suffix not in TEXT_SUFFIXES})
    if others and notes is not None:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(others.items()))
        notes[f"{root}: files not taken as photos: {kinds[:200]}"] += 1
    return found


def files_below(root: Path, suffixes: Container[str], follow_links: bool = False,
                leave_out: Callable[[Path], bool] = lambda folder: False, others: Counter | None = None
                ) -> list[PurePosixPath]:
    """Files with one of `suffixes` (lower case) below `root`: relative to it, sorted. Hidden ones are left out.

    Symbolic links are followed where they stay inside `root`. Where some lead out of it, UserError says how many,
    unless `follow_links` takes them. Other suffixes are counted in `others`, printable.
    """
    found, leading_out, inside = [], [], root.resolve()
    walked = {inside}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here, kept = Path(folder), []
        for name in sorted(subfolders):
            path = here / name
            if name.startswith(".") or leave_out(path):
                continue
            if path.is_symlink():
                target = path.resolve()
                if not follow_links and not target.is_relative_to(inside):
                    leading_out.append(path)
                    continue
                if target in walked or here.resolve().is_relative_to(target):    # a circle, or a second link to it
                    continue
                walked.add(target)
            kept.append(name)
        subfolders[:] = kept
        for name in files:
            path = here / name
            if name.startswith("."):
                continue
            if path.suffix.lower() not in suffixes:
                if others is not None:
                    others[printable(path.suffix.lower())] += 1
            elif path.is_symlink() and not follow_links and not path.resolve().is_relative_to(inside):
                leading_out.append(path)
            elif path.is_file():
                found.append(PurePosixPath(path.relative_to(root).as_posix()))
    if leading_out:
        first = leading_out[0]
        raise UserError(f"{root}: {len(leading_out)} symbolic links lead out of it, e.g. {first} to {first.resolve()}; "
                        "--follow_links takes what they lead to")
    return sorted(found)
