"""What a data set holds, as its format's parser hands it to `class_folders`: photos, their objects, their classes."""

from collections import Counter
from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True)
class SourceFiles:
    """Below a folder and relative to it, sorted: `named`, with a suffix that was asked for, and `others`."""
    named: list[PurePosixPath]
    others: list[PurePosixPath]


def source_files(root: Path, output_dir: Path, more_suffixes: Sequence[str] = (), links: Links | None = None
                 ) -> SourceFiles:
    """Image files, and those with one of `more_suffixes`, below `root`; suffixes in any case.

    Left out: hidden files, class folders made earlier, pipes and the like, and links that lead out of `root`, unless
    `links` takes them. Other files may be photos too, if an annotation names them.
    """
    from sam_lora.data import imaging
    suffixes = {*imaging.IMAGE_SUFFIXES, *more_suffixes}
    if not imaging.heic_opens():
        suffixes.difference_update(imaging.HEIC_SUFFIXES)
    named, others = [], []
    output, links = output_dir.resolve(), links or Links.below(root)
    for here, subfolders, files in links.walk():
        subfolders[:] = [name for name in subfolders if (here / name).resolve() != output
                         and not (here / name / contracts.MANIFEST_FILE).is_file()]
        for name in files:
            path = here / name
            suffix = path.suffix.lower()
            if not name.startswith(".") and suffix not in TEXT_SUFFIXES - suffixes and links.takes(path):
                (named if suffix in suffixes else others).append(PurePosixPath(path.relative_to(root).as_posix()))
    return SourceFiles(sorted(named), sorted(others))


def note_others(root: Path, others: Iterable[PurePosixPath], notes: Counter) -> None:
    """A note that counts files which are no photos, by their suffixes."""
    count = Counter(printable(path.suffix.lower()) for path in others)
    if count:
        kinds = ", ".join(f"{number} {suffix or 'without suffix'}" for suffix, number in sorted(count.items()))
        notes[f"{root}: files not taken as photos: {kinds[:200]}"] += 1
