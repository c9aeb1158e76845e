"""The photos that annotation files list by name, found on disk: the right file for each entry, or the reason why not.

Names come from other machines: their folders may be gone, renamed or a URL's. So the longest common end of the two
paths counts, down to the base name alone; but no file is given to an entry that another entry names better, nor to two
entries of different names.
"""

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote

from sam_lora.data.conversion_report import PHOTO_MISSING, PHOTO_UNREADABLE
from sam_lora.data.links import LINK_OUT, Links
from sam_lora.data.names import normalise_split, printable
from sam_lora.data.segmentation import is_number
from sam_lora.data.sources import source_files

SEVERAL_PHOTOS = "several photos have that file name"
SEVERAL_PHOTOS_AND_FILES = f"{SEVERAL_PHOTOS}; give one --images_dir for each JSON file"
SHARED_FALLBACK = ("several JSON files name that photo, without the folder it lies in; give one --images_dir for each "
                   "JSON file")
ELSEWHERE = "found by base name alone, in another folder than the file_name has"
SIZE_DIFFERS = "photo of another shape than width and height in the JSON"
SCALED = "a photo's size differs from the JSON's: its annotations were scaled"
STORED_FRAME = "a photo's annotations refer to it as stored, before its EXIF rotation: it was not rotated"
# words that stand beside a split in a folder's name: train_images, images-val2017, subset_test
LAYOUT_WORDS = frozenset(("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "frame", "frames",
                          "data", "dataset", "set", "subset", "split", "coco"))

Parts = tuple[str, ...]


class PhotoError(ValueError):
    """Why an entry has no photo: (reason, detail); `nowhere`: there is no file of that base name."""

    def __init__(self, reason: str, detail: str = "", nowhere: bool = False):
        super().__init__(reason)
        self.reason, self.detail, self.nowhere = reason, detail, nowhere


class PhotoFolder:
    """The photos below one folder."""

    def __init__(self, folder: Path, output_dir: Path, notes: Counter, follow_links: bool = False,
                 data_set: Path | None = None):
        """`data_set`: the folder above that links may lead to; None: they have to stay below `folder`."""
        self.folder, self.root = folder, folder.resolve()
        self.links = Links(folder, None if follow_links else (data_set or folder).resolve())
        listed = source_files(folder, output_dir, links=self.links)
        self.links.note(notes)
        # files of other kinds only if an entry names them: what Pillow can open counts
        self.others = {*listed.others}
        # links that were not followed are found, too: so that no other photo of that name is taken instead
        folders = {link for link in self.links.refused if (folder / link).is_dir()}
        self.files = sorted({*listed.named, *self.others, *(self.links.refused.keys() - folders)})
        self.behind_links = {*_plain(link.name for link in folders)}
        self.known = set(self.files)
        self.above = _plain(self.root.parts)

    @functools.cached_property
    def by_end(self) -> dict[Parts, list[PurePosixPath]]:
        """The files by their base names, and by these with the folder they lie in: ("a.jpg",), ("cam1", "a.jpg")."""
        ends = defaultdict(list)
        for path in self.files:
            end = (*self.above[-1:], *_plain(path.parts[-2:]))[-2:]
            ends[end].append(path)
            ends[end[-1:]].append(path)
        return dict(ends)


@dataclass(frozen=True)
class Entry:
    """A photo as the file of annotations `source` lists it: `name` a path or URL, `split` the file's own or ""."""
    name: str
    folder: PhotoFolder
    source: str = ""
    split: str = ""


@dataclass
class _Match:
    """A file for an entry of `source`. `strength`: how much of the two paths agrees."""
    path: PurePosixPath
    source: str
    parts: Parts                 # of the entry's name, spelt plainly; of an exact one no matter
    strength: float
    diverges: bool = False       # both paths go on, with different folders

    EXACT = float("inf")

    @property
    def is_exact(self) -> bool:
        return self.strength == self.EXACT


def find_photos(entries: Sequence[Entry], notes: Counter) -> list[PurePosixPath | PhotoError]:
    """For each entry the path of its photo below its folder, or why it has none.

    The reason is PHOTO_MISSING, with `nowhere` set where no file has that base name, LINK_OUT or SEVERAL_PHOTOS.
    """
    several = SEVERAL_PHOTOS if len({entry.source for entry in entries}) < 2 else SEVERAL_PHOTOS_AND_FILES
    found: list[_Match | PhotoError] = []
    for entry in entries:
        try:
            found.append(_match(entry, several))
        except PhotoError as error:
            found.append(error)
    _withdraw(entries, found)
    elsewhere = [(entry, match) for entry, match in zip(entries, found) if isinstance(match, _Match) and match.diverges]
    if elsewhere:
        entry, match = elsewhere[0]
        notes[f"photos {ELSEWHERE}: {len(elsewhere)}, e.g. {entry.name[:200]} as {match.path}"] += 1
    return [match.path if isinstance(match, _Match) else match for match in found]


def _match(entry: Entry, several: str) -> _Match:
    """The best file for an entry by itself. Raises PhotoError."""
    folder = entry.folder
    for name in _spellings(entry.name):
        path = PurePosixPath(name.replace("\\", "/"))
        if folder.links.refuses(path):
            raise PhotoError(LINK_OUT, _shown(entry.name))
        if path in folder.known:
            return _Match(_same_name_in_split(path, entry), entry.source, (), _Match.EXACT)
        parts = _plain(part for part in path.parts if part not in ("/", "..", "."))
        candidates = folder.by_end.get(parts[-2:]) or folder.by_end.get(parts[-1:])
        if candidates:
            match = _best(candidates, parts, entry, several)
            if folder.links.refuses(match.path) or (match.diverges and not folder.behind_links.isdisjoint(parts[:-1])):
                raise PhotoError(LINK_OUT, _shown(entry.name))
            return match
        if not folder.behind_links.isdisjoint(parts[:-1]):
            raise PhotoError(LINK_OUT, _shown(entry.name))
    raise PhotoError(PHOTO_MISSING, _shown(entry.name), nowhere=True)


def _same_name_in_split(path: PurePosixPath, entry: Entry) -> PurePosixPath:
    """`path`, or for a bare name its namesake in the folder of the entry's split, where there is one."""
    if not entry.split or len(path.parts) > 1:
        return path
    namesakes = [other for other in entry.folder.by_end[_plain(path.parts)]
                 if split_of_folders(other.parts[:-1]) == entry.split]
    return namesakes[0] if len(namesakes) == 1 else path


def _best(candidates: Sequence[PurePosixPath], parts: Parts, entry: Entry, several: str) -> _Match:
    matches = []
    for path in candidates:
        below = _plain(path.parts)
        common = _common_end(parts, entry.folder.above + below)
        split = split_of_folders(path.parts[:-1])
        agrees = 0.5 * ((split == entry.split) - (split not in ("", entry.split))) if entry.split else 0.0
        strength = _Match.EXACT if parts == below else common + agrees
        matches.append(_Match(path, entry.source, parts, strength, common < min(len(parts), len(below))))
    strongest = max(match.strength for match in matches)
    best = [match for match in matches if match.strength == strongest]
    if len(best) > 1 and len({(entry.folder.folder / match.path).resolve() for match in best}) > 1:
        places = ", ".join(str(match.path) for match in best[:3])
        raise PhotoError(several, f"{_shown(entry.name)}: {places}")
    return best[0]


def _withdraw(entries: Sequence[Entry], found: list[_Match | PhotoError]) -> None:
    """Take back the matches that are not the entry's own: a file that another entry names better, names otherwise, or
    names in another JSON file too, without its folder, or a file in a folder where others name files exactly."""
    doubtful = [index for index, match in enumerate(found) if isinstance(match, _Match) and not match.is_exact]
    if not doubtful:
        return
    claims: dict[str, list[_Match]] = defaultdict(list)
    named_folders = set()
    for entry, match in zip(entries, found):
        if isinstance(match, _Match):
            claims[f"{entry.folder.root}/{match.path}"].append(match)
            if match.is_exact and len(match.path.parts) > 1:
                named_folders.add(f"{entry.folder.root}/{match.path.parent}")
    for index in doubtful:
        entry, match = entries[index], found[index]
        rivals = claims[f"{entry.folder.root}/{match.path}"]
        strongest = max(rival.strength for rival in rivals)
        rivals = [rival for rival in rivals if rival.strength == strongest]
        names, sources = {rival.parts for rival in rivals}, {rival.source for rival in rivals}
        in_named_folder = match.diverges and f"{entry.folder.root}/{match.path.parent}" in named_folders
        if match.strength < strongest or len(names) > 1 or in_named_folder:
            found[index] = PhotoError(PHOTO_MISSING, f"{_shown(entry.name)}; {match.path} is another entry's photo")
        elif len(sources) > 1 and len(match.parts) < len(match.path.parts):
            found[index] = PhotoError(SHARED_FALLBACK, f"{_shown(entry.name)}: {match.path}")


def split_of_folders(folders: Sequence[str]) -> str:
    """train, val or test by the innermost of `folders` that is named for one (Train, val2017, test_images); else ""."""
    for folder in reversed(folders):
        words = _split_words(folder)
        splits = {*words.values()} - {""}
        if len(splits) == 1 and all(split or word in LAYOUT_WORDS for word, split in words.items()):
            return splits.pop()
    return ""


def split_named(text: str) -> str:
    """train, val or test where just one of them is among the words of `text`; else ""."""
    splits = {*_split_words(text).values()} - {""}
    return splits.pop() if len(splits) == 1 else ""


def _split_words(text: str) -> dict[str, str]:
    """{word in `text`, lower case: the split it names or ""}: train_images, TrainImages, trainset, train2017."""
    words = [word.casefold() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", text)]
    return {word: normalise_split(word) or normalise_split(word.removesuffix("set")) for word in words}


def _spellings(name: str) -> Iterator[str]:
    """`name` as it stands, without percent-encoding, and without a URL's query; at last what that query names."""
    yield name
    yield unquote(name)
    yield name.strip()
    cut = re.split("[?#]", name, maxsplit=1)
    if len(cut) > 1:
        yield cut[0]
        yield unquote(cut[0])
        yield from (value for _, value in parse_qsl(cut[1]) if "." in value)


def _plain(parts: Sequence[str] | Iterator[str]) -> Parts:
    # macOS writes accents as separate characters
    return tuple(part.casefold() if part.isascii() else unicodedata.normalize("NFC", part).casefold()
                 for part in parts)


def _common_end(first: Parts, second: Parts) -> int:
    return next((length for length, (a, b) in enumerate(zip(reversed(first), reversed(second))) if a != b),
                min(len(first), len(second)))


def _shown(name: str) -> str:
    return printable(name[:200])


# ---- its size ---------------------------------------------------------------------------------------------

def photo_frame(path: Path, width: object, height: object, notes: Counter
                ) -> tuple[tuple[int, int], tuple[float, float] | None, bool]:
    """(the photo's size, upright; that of its annotations' frame, None for the photo's own; is that the upright one?).

    `width` and `height` as the JSON has them; both 1, which go with fractions, say nothing. Raises PhotoError for a
    photo of another shape or a broken one.
    """
    from sam_lora.data.geometry import same_aspect
    from sam_lora.data.imaging import ImageError, image_size
    try:
        upright, stored = image_size(path), image_size(path, upright=False)
    except ImageError as error:
        raise PhotoError(PHOTO_UNREADABLE, error.reason) from None
    if not (is_number(width) and is_number(height) and min(width, height) > 0) or width == height == 1:
        return upright, None, True
    frame_wh = (width, height)
    fits = [size == frame_wh for size in (upright, stored)]
    if not any(fits):
        fits = [same_aspect(frame_wh, size) for size in (upright, stored)]
        if not any(fits):
            raise PhotoError(SIZE_DIFFERS, f"{' x '.join(map(str, upright))}, in the JSON {width} x {height}")
        notes[SCALED] += 1
    if not fits[0]:
        notes[STORED_FRAME] += 1
    return upright, frame_wh, fits[0]
