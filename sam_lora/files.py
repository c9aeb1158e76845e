"""Files that are whole or absent: atomic replacement and staged output folders.

Ctrl-C may come at any moment, several times. What is being written is removed where it is given up; what an interrupt
kept from being removed goes at the end of the process.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sam_lora.errors import UserError
from sam_lora.interrupts import HeldBack

STAGING_PREFIX = ".partial-"

# Temporary files and folders of this process that did not become output, and the folders made for each. One that was
# removed stays here: a thread that a second Ctrl-C left running may make it anew.
_unfinished: dict[Path, list[Path]] = {}


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; renamed over it on success, removed on any error.

    The temporary name keeps the suffix, so writers that go by it (cv2, matplotlib) work unchanged.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    try:
        with HeldBack():
            handle, name = tempfile.mkstemp(prefix=STAGING_PREFIX, suffix=final.suffix, dir=final.parent)
            temporary = Path(name)
            _unfinished[temporary] = []
            os.close(handle)
        yield temporary
        with HeldBack():
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(final)
            del _unfinished[temporary]
    except BaseException:
        with HeldBack():
            if temporary in _unfinished:
                temporary.unlink(missing_ok=True)
                del _unfinished[temporary]
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError if any of `paths` exists and `overwrite` is off, or a file stands where their folder should."""
    for folder in sorted({path.parent for path in paths}):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; expected a folder")
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        names = ", ".join(str(path) for path in existing)
        raise UserError(f"{names}: already there; give --overwrite to replace, or write elsewhere")


def refuse_replacing(paths: Iterable[Path], final: str | Path, owned: Sequence[str]) -> None:
    """Raise UserError if one of `paths`, which the user still needs, is in `final` and would go with its owned entries.

    `owned`: names of entries of `final`.
    """
    final = Path(final).resolve()
    for path in paths:
        place = path.resolve()
        if place.is_relative_to(final) and place != final and place.relative_to(final).parts[0] in owned:
            raise UserError(f"{path}: this run reads it and would replace it; give another --output_dir than {final}")


@contextmanager
def staged_folder(final: str | Path, owned: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """Yield an empty staging folder inside `final`; on success its entries become `final`'s.

    `owned` are glob patterns of the top-level entries that this kind of output consists of. A folder that
    holds anything is refused without `overwrite`; with it, only owned entries are replaced, and only once the
    new ones are complete. On any error, Ctrl-C included, the staging folder goes and `final` is as before.
    """
    final = Path(final)
    if final.exists() and not final.is_dir():
        raise UserError(f"{final}: is a file; expected a folder, new or empty")
    if final.is_dir():
        found = sorted(entry.name for entry in final.iterdir() if not entry.name.startswith(STAGING_PREFIX))
        if found and not overwrite:
            raise UserError(f"{final}: not empty ({len(found)} entries, e.g. {found[0]}); "
                            "give --overwrite to replace what this script wrote, or another folder")
    staging, replaced, made = None, None, []
    try:
        with HeldBack():
            staging = _claim_folder(final, made)
        yield staging
        with HeldBack():
            replaced = _claim_folder(final, [])
            _swap(staging, final, owned, replaced)
            staging.rmdir()
            del _unfinished[staging]
    except BaseException:
        with HeldBack():
            for folder in (staging, replaced):
                if folder in _unfinished:
                    shutil.rmtree(folder, ignore_errors=True)
            _remove_empty(made)
        raise
    shutil.rmtree(replaced, ignore_errors=True)  # the old output; may take a while
    del _unfinished[replaced]


def _claim_folder(final: Path, made: list[Path]) -> Path:
    """A new staging folder in `final`, which is made if need be; `made` gets the folders that were new."""
    made += _make_folders(final)
    try:
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=final))
    except OSError:
        _remove_empty(made)
        raise
    _unfinished[staging] = made
    return staging


def _swap(staging: Path, final: Path, owned: Sequence[str], replaced: Path) -> None:
    """Move `staging`'s entries into `final` in place of its owned ones, which go to `replaced`.

    On any error everything is put back.
    """
    moves = []
    try:
        old = {entry for pattern in owned for entry in final.glob(pattern) if not entry.name.startswith(STAGING_PREFIX)}
        for before, after in [*((entry, replaced / entry.name) for entry in sorted(old)),
                              *((entry, final / entry.name) for entry in sorted(staging.iterdir()))]:
            before.replace(after)
            moves.append((before, after))
    except BaseException:
        for before, after in reversed(moves):
            after.replace(before)
        raise


@atexit.register
def _remove_unfinished() -> None:
    with HeldBack():
        for path, made in _unfinished.items():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                _remove_empty(made)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unfinished.clear)  # they are the parent's


def _make_folders(path: Path) -> list[Path]:
    """Create `path` and its parents; return the ones that were new, innermost first."""
    new = []
    while not path.exists():
        new.append(path)
        path = path.parent
    if new:
        new[0].mkdir(parents=True)
    return new


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
