"""What a data set holds, as its format's parser hands it to `class_folders`: photos, their objects, their classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sam_lora import contracts
from sam_lora.data.links import Links
from sam_lora.data.names import printable

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
    stored, before its EXIF rotation. `background`: the data set knows the photo and says that it has no object.
    """
    path: Path
    name: str
    split: str
    objects: Sequence[SourceObject]
    label_file: str
    frame_wh: tuple[float, float] | None = None
    upright: bool = True
    stem: str = ""
    background: bool = False


def source_files(root: Path, output_dir: Path, more_suffixes: Sequence[str] = (), notes: Counter | None = None,
                 links: Links | None = None) -> list[PurePosixPath]:
    """Image files, and those with one of `more_suffixes`, below `root`: relative to it, sorted, suffixes in any case.

    Left out: hidden files, class folders made earlier, pipes and the like, and links that lead out of `root`, unless
    `links` takes them; these are counted in `notes`, as are suffixes that are not an image's (.gif, .heic).
    """
    from sam_lora.data.imaging import IMAGE_SUFFIXES
    suffixes = {*IMAGE_SUFFIXES, *more_suffixes}
    found, others = [], Counter()
    output, links = output_dir.resolve(), links or Links.below(root)
    for here, subfolders, files in links.walk():
        subfolders[:] = [name for name in subfolders if not name.startswith(".")
                         and (here / name).resolve() != output
                         and not (here / name / contracts.MANIFEST_FILE).is_file()]
        for name in files:
            path = here / name
            suffix = path.suffix.lower()
            if name.startswith(".") or suffix in TEXT_SUFFIXES - suffixes:
                continue
            if suffix not in suffixes:
                others[printable(suffix)] += 1
            elif links.takes(path):
                found.append(PurePosixPath(path.relative_to(root).as_posix()))
    if notes is not None:
        if others:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(others.items()))
            notes[f"{root}: files not taken as photos: {kinds[:200]}"] += 1
        links.note(notes)
    return sorted(found)
