"""Which photos belong together: copies of one photo must never lie on two sides of a split, nor count as two."""

import re
from collections.abc import Hashable, Sequence
from pathlib import PurePosixPath

from sam_lora.data.names import SPLIT_ALIASES

# Folders that say a file's split or kind, not which photo it is.
LAYOUT_FOLDERS = frozenset({*SPLIT_ALIASES, "images"})
# Roboflow's name for one of several exported (augmented) copies of a photo: <photo>.rf.<hash>.jpg
EXPORTED_COPY = re.compile(r"\.rf\.[0-9A-Za-z_-]{8,}$")


def source_group(source_image: str) -> str:
    """A photo's path (below the data set's folder, with /) -> the photo it is a copy of.

    Exported copies of one photo share a group whatever split folder they lie in; any other file is a group of its own.
    """
    path = PurePosixPath(source_image.replace("\\", "/"))
    photo = EXPORTED_COPY.sub("", path.stem)
    if photo == path.stem:
        return str(path)
    folders = [part for part in path.parts[:-1] if part.lower() not in LAYOUT_FOLDERS]
    return "/".join([*folders, photo])


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
