"""Symbolic links below a folder of data: those that stay in it are followed, those that lead out only if asked for."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sam_lora.data.names import printable

WAYS = 16    # by which one folder may be reached: enough for the folds of a data set, and links upon links end
LINK_OUT = "photo is a link that leads out of the data set's folder (--follow_links takes it)"


@dataclass
class Links:
    """What became of the links below `root`; `inside`, resolved, is where they may lead, None for anywhere."""
    root: Path
    inside: Path | None
    followed: int = 0
    refused: dict[PurePosixPath, Path] = field(default_factory=dict)    # below `root` -> where it leads
    broken: list[PurePosixPath] = field(default_factory=list)           # below `root`, leading nowhere

    @classmethod
    def below(cls, root: Path, follow: bool = False) -> "Links":
        return cls(root, None if follow else root.resolve())

    def walk(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        """(folder, its subfolders, its files), as os.walk gives them; subfolders may be taken out of their list.

        Hidden folders are left out.
        """
        ways: Counter[Path] = Counter()
        for folder, subfolders, files in os.walk(self.root, followlinks=True):
            here = Path(folder)
            subfolders[:] = [name for name in subfolders
                             if not name.startswith(".") and self._enters(here / name, ways)]
            yield here, subfolders, files

    def _enters(self, folder: Path, ways: Counter[Path]) -> bool:
        if not folder.is_symlink():
            return True
        if not self._leads_inside(folder):
            return False
        target = folder.resolve()
        ways[target] += 1
        above = {parent.resolve() for parent in folder.parents if parent == self.root or self.root in parent.parents}
        return target not in above and ways[target] <= WAYS  # a link to a folder above would never end

    def takes(self, path: Path) -> bool:
        """Is it a file, and if a link one that may be followed?"""
        if not path.is_symlink():
            return path.is_file()
        if not path.exists():
            self.broken.append(self._below(path))
            return False
        return path.is_file() and self._leads_inside(path)

    def takes_folder(self, path: Path) -> bool:
        """Is it a folder, and if a link one that may be followed?"""
        return path.is_dir() and (not path.is_symlink() or self._leads_inside(path))

    def _leads_inside(self, path: Path) -> bool:
        target = path.resolve()
        if self.inside is not None and not target.is_relative_to(self.inside):
            self.refused[self._below(path)] = target
            return False
        self.followed += 1
        return True

    def _below(self, path: Path) -> PurePosixPath:
        return PurePosixPath(path.relative_to(self.root).as_posix())

    def refuses(self, path: PurePosixPath) -> bool:
        """Is `path`, or a folder above it, a link that was not followed?"""
        return not self.refused.keys().isdisjoint((path, *path.parents))

    def refusal(self) -> str:
        """One line on the links that were not followed."""
        link, target = next(iter(sorted(self.refused.items())))
        them = "it" if len(self.refused) == 1 else "them"
        return printable(f"{self.root}: {_lead(len(self.refused))} out of it, e.g. {link} to {target}; --follow_links "
                         f"takes {them}")

    def note(self, notes: Counter) -> None:
        """Count in `notes` what was not followed."""
        if self.refused:
            notes[self.refusal()] += 1
        if self.broken:
            notes[f"{self.root}: {_lead(len(self.broken))} nowhere, e.g. {min(self.broken)}"] += 1


def _lead(count: int) -> str:
    return "1 link leads" if count == 1 else f"{count} links lead"
