"""Files that are whole or absent: atomic replacement and staged output folders.

Output is written under a temporary name beside its final one and renamed when it is complete, so that no error and no
Ctrl-C leaves it half-written. Temporary files and folders are removed when writing fails. One that outlives its process
(`kill -9`, a power cut) is removed by the next run that writes into the same folder.
"""

import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil

from sam_lora.errors import UserError

STAGING_PREFIX = ".partial-"

_swept: set[Path] = set()  # folders whose leftovers this process has removed


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `final`; renamed over it on success, removed on any error.

    The temporary name keeps the suffix, so writers that choose the format by it (cv2, matplotlib) work unchanged.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent)
    temporary = final.parent / _temporary_name(final.suffix)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError if any of `paths` exists and `overwrite` is off, or if the parent of one is a file."""
    for folder in sorted({path.parent for path in paths}):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; expected a folder")
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        names = ", ".join(str(path) for path in existing)
        raise UserError(f"{names}: already there; give --overwrite to replace, or write elsewhere")


def refuse_replacing(inputs: Iterable[Path], final: str | Path, owned: Sequence[str]) -> None:
    """Raise UserError if one of `inputs` lies in an entry of the folder `final` that this run would replace.

    `owned`: names of the entries of `final` that the run replaces.
    """
    final = Path(final).resolve()
    for path in inputs:
        resolved = path.resolve()
        if resolved.is_relative_to(final) and resolved != final and resolved.relative_to(final).parts[0] in owned:
            raise UserError(f"{path}: this run reads it and would replace it; give another --output_dir than {final}")


@contextmanager
def staged_folder(final: str | Path, owned: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """Yield an empty staging folder inside `final`; on success its entries become `final`'s.

    `owned` are glob patterns of the top-level entries that this kind of output consists of. A folder that is not empty
    is refused without `overwrite`; with it, only owned entries are replaced, and only once the new ones are complete.
    On any error, Ctrl-C included, the staging folder is removed and `final` is left as it was.
    """
    final = Path(final)
    if final.exists() and not final.is_dir():
        raise UserError(f"{final}: is a file; expected a folder, new or empty")
    if final.is_dir():
        entries = sorted(entry.name for entry in final.iterdir() if not entry.name.startswith(STAGING_PREFIX))
        if entries and not overwrite:
            raise UserError(f"{final}: not empty ({len(entries)} entries, e.g. {entries[0]}); "
                            "give --overwrite to replace what this script wrote, or another folder")
    new_folders = [folder for folder in (final, *final.parents) if not folder.exists()]  # innermost first
    staging, replaced = final / _temporary_name(), final / _temporary_name()
    try:
        final.mkdir(parents=True, exist_ok=True)
        remove_leftovers(final)
        staging.mkdir()
        yield staging
        replaced.mkdir()
        _swap(staging, final, owned, replaced)
        shutil.rmtree(replaced, ignore_errors=True)  # the old output: this may take a while
        staging.rmdir()
    except BaseException:
        for folder in (staging, replaced):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in new_folders:
            with suppress(OSError):  # not empty: another process writes there too
                folder.rmdir()
        raise


def _swap(staging: Path, final: Path, owned: Sequence[str], replaced: Path) -> None:
    """Move `staging`'s entries into `final` in place of its owned ones, which go to `replaced`.

    On any error everything is put back.
    """
    old = {entry for pattern in owned for entry in final.glob(pattern) if not entry.name.startswith(STAGING_PREFIX)}
    moves = []
    try:
        for source, target in [*((entry, replaced / entry.name) for entry in sorted(old)),
                               *((entry, final / entry.name) for entry in sorted(staging.iterdir()))]:
            moves.append((source, target))
            source.replace(target)
    except BaseException:
        for source, target in reversed(moves):
            if not os.path.lexists(source):  # the last move may not have happened
                target.replace(source)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` whose process has ended. Looks once per folder and process.

    Kept are those of running processes, those that another machine made (`folder` may be shared) and the partial
    download of SAM's weights, which carries no process id. A process id in use again by another program only puts the
    removal off.
    """
    folder = folder.absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    pattern = re.compile(re.escape(f"{STAGING_PREFIX}{_machine()}-") + r"(\d{1,9})-[0-9a-f]{8}(\.|$)")
    leftovers = []
    with suppress(OSError), os.scandir(folder) as entries:
        leftovers = [entry for entry in entries
                     if (match := pattern.match(entry.name)) and not psutil.pid_exists(int(match[1]))]
    for entry in leftovers:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with suppress(OSError):  # another process may have removed it meanwhile
                Path(entry.path).unlink()


def _temporary_name(suffix: str = "") -> str:
    return f"{STAGING_PREFIX}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


@cache
def _machine() -> str:
    """Names what a process id belongs to: the host and, on Linux, the container (its namespace of process ids)."""
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:60]
    with suppress(OSError):
        return f"{host}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return host
