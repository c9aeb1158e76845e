"""Records what tests make outside pytest's own folder: one line for each path, with the test that was running.

Comparing folders before and after would blame this suite for what other programs write at the same time. An audit hook
sees only what its own process makes. So every process of the suite has one: pytest's by conftest.py, each Python that a
test starts by sitecustomize.py beside this file, a folder that the suite puts on PYTHONPATH. Recorded is also what is
removed again: whoever reads the record looks whether it is still there. Unseen is what C code makes, which writes
nowhere but where Python code tells it to.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

ALLOWED_FOLDER = "SAM_LORA_TESTS_FOLDER"  # the environment names with it where everything of the tests belongs
RECORD = "new_paths.txt"                  # in that folder; each line: path, tab, test
TEST = "PYTEST_CURRENT_TEST"              # pytest's own, absent between tests; processes started by a test inherit it
CACHES = {"__pycache__", ".pytest_cache", ".hypothesis"}  # of Python and of the tools, wherever they are

_watching = False


def watch() -> None:
    """Record from now on; there is no way to stop. Does nothing where the environment names no folder."""
    global _watching
    if not _watching and ALLOWED_FOLDER in os.environ:
        _watching = True
        sys.addaudithook(_record)


def left_behind(folder: Path) -> dict[str, str]:
    """Recorded paths that are still there, and the test that made each."""
    record = folder / RECORD
    if not record.exists():
        return {}
    lines = record.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    made = dict(line.split("\t", 1) for line in lines)
    return {path: test for path, test in made.items() if os.path.lexists(path)}


def _record(event: str, arguments: tuple) -> None:
    if event in _NEW_PATH and TEST in os.environ:
        path = _NEW_PATH[event](*arguments)
        if isinstance(path, str | bytes | os.PathLike):  # not a file descriptor, a network address, None
            with suppress(OSError, ValueError):  # a folder that is gone, a null byte: for the call itself to answer
                _record_path(os.fsdecode(path))


def _record_path(path: str) -> None:
    folder, path = os.environ[ALLOWED_FOLDER], os.path.realpath(path)
    if path.startswith((folder + os.sep, "/proc/", "/dev/")) or CACHES & set(Path(path).parts) or os.path.lexists(path):
        return
    with Path(folder, RECORD).open("a", encoding="utf-8", errors="surrogateescape") as record:
        record.write(f"{path}\t{os.environ[TEST]}\n")


_NEW_PATH = {  # audit event -> the path it is about to make
    "open": lambda path, mode, flags: path if flags & os.O_CREAT else None,
    "os.mkdir": lambda path, mode, folder: path,
    "os.rename": lambda source, target, *folders: target,
    "os.link": lambda source, target, *folders: target,
    "os.symlink": lambda source, target, *folders: target,
    "socket.bind": lambda socket, address: address,
}
