"""Which photos belong together: copies, tiles and frames of one photo must never lie on two sides of a split, nor count
as several."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from sam_lora.data.file_names import Origin, origins
from sam_lora.data.names import SPLIT_ALIASES

AUGMENTED_FOLDERS = frozenset({"aug", "augmented", "augmentation", "augmentations"})
# Folders that say a file's split or kind, not which photo it is.
LAYOUT_FOLDERS = frozenset({*SPLIT_ALIASES, *AUGMENTED_FOLDERS, "images", "original", "originals", "tiles", "slices",
                            "patches", "crops", "frames"})
FRAMES = "(frames)"   # the photo of frames whose names and folders say nothing of their video


class NameGroup(NamedTuple):
    """The photo of a file, and what its name says of it."""
    photo: str
    origin: Origin


class _Place(NamedTuple):
    split: str                  # of the folder that the file lies in; ""
    folders: tuple[str, ...]    # without LAYOUT_FOLDERS
    augmented: bool             # by its folder


def group_by_name(files: Iterable[str]) -> dict[str, NameGroup]:
    """Paths of photos (below the data set's folder, with /; without a manifest stems only) -> the photo of each.

    Copies, tiles and frames (`file_names`) have the photo that they come from, whatever split folder they lie in; any
    other file is a photo of its own, named by its path. A copy's photo is the file of that name in its own split, else
    in any.
    """
    files = sorted({*files})
    paths = {file: _path(file) for file in files}
    origin_of = dict(zip(files, origins([path.stem for path in paths.values()])))
    places = {file: _place(path) for file, path in paths.items()}
    named = _augmented_folders(files, origin_of, places)
    originals: dict[Hashable, list[str]] = defaultdict(list)
    for file in files:
        if file not in named:
            split, folders, _ = places[file]
            for place in ((split, folders), folders):
                originals[place, origin_of[file].photo].append(file)
    groups, links = [], []
    for file in files:
        if file not in named:
            groups.append(str(paths[file]))
            links.append([file])
            continue
        split, folders, _ = places[file]
        origin = named[file]
        beside = originals[(split, folders), origin.looked_for]
        name = "/".join([*folders, origin.photo] if origin.photo else folders) or FRAMES
        groups.append(str(paths[beside[0]]) if beside else name)    # other splits may number their photos anew
        links.append(beside or originals[folders, origin.looked_for] or [name])
    merged = _merge_linked(groups, links)
    return {file: NameGroup(group, named.get(file, origin_of[file])) for file, group in zip(files, merged)}


def _path(file: str) -> PurePosixPath:
    from sam_lora.data.imaging import IMAGE_SUFFIXES  # brings OpenCV, not needed for --help
    path = PurePosixPath(file.replace("\\", "/"))
    return path if path.suffix.lower() in IMAGE_SUFFIXES else PurePosixPath(f"{path}.png")


def _place(path: PurePosixPath) -> _Place:
    folders = [part.lower() for part in path.parts[:-1]]
    split = next((SPLIT_ALIASES[folder] for folder in folders if folder in SPLIT_ALIASES), "")
    return _Place(split, tuple(part for part in path.parts[:-1] if part.lower() not in LAYOUT_FOLDERS),
                  any(folder in AUGMENTED_FOLDERS for folder in folders))


def _augmented_folders(files: Sequence[str], origin_of: Mapping[str, Origin], places: Mapping[str, _Place]
                       ) -> dict[str, Origin]:
    """The origin of each file that comes from another one: by its name, or in augmented/ beside a photo of its name."""
    photos = {(places[file].folders, origin_of[file].photo) for file in files
              if not origin_of[file].kinds and not places[file].augmented}
    named = {}
    for file in files:
        origin, place = origin_of[file], places[file]
        if not origin.kinds and place.augmented and (place.folders, origin.photo) in photos:
            origin = origin._replace(kinds=("copies",))
        if origin.kinds:
            named[file] = origin
    return named


def _merge_linked(groups: Sequence[str], links: Sequence[Sequence[Hashable]]) -> list[str]:
    """`merge_groups` for files with several contents each."""
    flat = [(row, link) for row, its_links in enumerate(links) for link in its_links]
    merged = merge_groups([groups[row] for row, _ in flat], [link for _, link in flat])
    found: dict[int, str] = {}
    for (row, _), group in zip(flat, merged):
        found[row] = group
    return [found[row] for row in range(len(groups))]


def describe(files: Iterable[str], groups: Mapping[str, NameGroup]) -> str:
    """What was assumed of `files`, in words."""
    files = sorted({*files})
    size = Counter(groups[file].photo for file in files)
    kind_of = {file: groups[file].origin.kinds[0] for file in files
               if groups[file].origin.kinds and size[groups[file].photo] > 1}
    text, told = f"by file name: {len(size)} groups of {len(files)} files", []
    for kind, count in Counter(kind_of.values()).most_common():
        example = next(file for file in kind_of if kind_of[file] == kind)
        told.append(f"{count} {kind}, e.g. {example} of {groups[example].photo}")
    return f"{text} ({'; '.join(told)})" if told else text


def merge_groups(groups: Sequence[str], contents: Sequence[Hashable]) -> list[str]:
    """Unite groups that share a content (an image file's digest); a united group takes its first name in sort order."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    first: dict[Hashable, str] = {}
    for group, content in zip(groups, contents):
        a, b = root(group), root(first.setdefault(content, group))
        parent[max(a, b)] = min(a, b)
    return [root(group) for group in groups]
