"""The photos that annotation files list by name, found on disk: the right file for each entry, or the reason why not.

Names come from other machines: their folders may be gone, renamed or a URL's. So the longest common end of the two
paths counts, down to the base name alone; but no file is given to an entry that another entry names better, nor to two
entries of different names.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote

from sam_lora.data.conversion_report import PHOTO_MISSING
from sam_lora.data.names import normalise_split, printable
from sam_lora.data.sources import source_files

SEVERAL_PHOTOS = "several photos have that file name"
SEVERAL_PHOTOS_AND_FILES = f"{SEVERAL_PHOTOS}; give one --images_dir for each JSON file"
ELSEWHERE = "found by base name alone, in another folder than the file_name has"

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

    def __init__(self, folder: Path, output_dir: Path, notes: Counter):
        self.folder, self.root = folder, folder.resolve()
        self.files = source_files(folder, output_dir, notes=notes)
        self.known = set(self.files)
        self.above = _plain(self.root.parts)
        self.by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
        for path in self.files:
            self.by_name[_plain(path.parts[-1:])[0]].append(path)


@dataclass(frozen=True)
class Entry:
    """A photo as the file of annotations `source` lists it: `name` a path or URL, `split` the file's own or ""."""
    name: str
    folder: PhotoFolder
    source: str = ""
    split: str = ""


@dataclass
class _Match:
    """A file for an entry. `strength`: how much of the two paths agrees."""
    path: PurePosixPath
    parts: Parts                 # of the entry's name, spelt plainly
    strength: float
    diverges: bool = False       # both paths go on, with different folders

    EXACT = float("inf")


def find_photos(entries: Sequence[Entry], notes: Counter) -> list[PurePosixPath | PhotoError]:
    """For each entry the path of its photo below its folder, or why it has none.

    The reason is PHOTO_MISSING, with `nowhere` set where no file has that base name, or SEVERAL_PHOTOS.
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
        if path in folder.known:
            return _Match(_same_name_in_split(path, entry), _plain(path.parts), _Match.EXACT)
        parts = _plain(part for part in path.parts if part not in ("/", "..", "."))
        candidates = folder.by_name.get(parts[-1], []) if parts else []
        if candidates:
            return _best(candidates, parts, entry, several)
    raise PhotoError(PHOTO_MISSING, _shown(entry.name), nowhere=True)


def _same_name_in_split(path: PurePosixPath, entry: Entry) -> PurePosixPath:
    """`path`, or for a bare name its namesake in the folder of the entry's split, where there is one."""
    if not entry.split or len(path.parts) > 1:
        return path
    namesakes = [other for other in entry.folder.by_name[_plain(path.parts)[0]]
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
        matches.append(_Match(path, parts, strength, common < min(len(parts), len(below))))
    strongest = max(match.strength for match in matches)
    best = [match for match in matches if match.strength == strongest]
    if len(best) > 1:
        places = ", ".join(str(match.path) for match in best[:3])
        raise PhotoError(several, f"{_shown(entry.name)}: {places}")
    return best[0]


def _withdraw(entries: Sequence[Entry], found: list[_Match | PhotoError]) -> None:
    """Take back the matches that are not the entry's own: a file that another entry names better or names otherwise,
    or a file in a folder of which other entries name files exactly."""
    claims: dict[Path, list[_Match]] = defaultdict(list)
    named_folders = set()
    for entry, match in zip(entries, found):
        if isinstance(match, _Match):
            claims[entry.folder.root / match.path].append(match)
            if match.strength == _Match.EXACT and len(match.path.parts) > 1:
                named_folders.add((entry.folder.root / match.path).parent)
    for index, (entry, match) in enumerate(zip(entries, found)):
        if not isinstance(match, _Match) or match.strength == _Match.EXACT:
            continue
        path = entry.folder.root / match.path
        strongest = max(claim.strength for claim in claims[path])
        names = {claim.parts for claim in claims[path] if claim.strength == strongest}
        if match.strength < strongest or len(names) > 1 or (match.diverges and path.parent in named_folders):
            found[index] = PhotoError(PHOTO_MISSING, f"{_shown(entry.name)}; {match.path} is another entry's photo")


def split_of_folders(folders: Sequence[str]) -> str:
    """train, val or test by the innermost of `folders` that is named for one (Train, val2017, test_images); else ""."""
    for folder in reversed(folders):
        words = re.findall("[a-z]+", folder.casefold())
        splits = {normalise_split(word) for word in words} - {""}
        if len(splits) == 1 and all(normalise_split(word) or word in LAYOUT_WORDS for word in words):
            return splits.pop()
    return ""


def _spellings(name: str) -> Iterator[str]:
    """`name` as it stands, without percent-encoding, and without a URL's query; at last what that query names."""
    yield name
    yield unquote(name)
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
