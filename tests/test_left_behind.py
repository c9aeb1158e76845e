"""Everything that tests write lies below pytest's own folder, or the run fails: see tests/watch."""

import os
from pathlib import Path

import pytest
from conftest import ROOT, WATCH, allowed_folder, run_python

SUITE = """
import os, subprocess, sys, tempfile
from pathlib import Path
folder = Path({folder!r})

def test_inside(tmp_path):
    (tmp_path / "a.txt").write_text("")
    tempfile.mkstemp()

def test_removed_again():
    (folder / "b.txt").write_text("")
    (folder / "b.txt").unlink()

def test_there_before():
    (folder / "here.txt").write_text("more")
"""

LEAVING = """
def test_file():
    (folder / "file").write_text("")

def test_renamed_folder():
    (folder / "c").mkdir()
    (folder / "c").rename(folder / "renamed_folder")

def test_child():
    subprocess.run([sys.executable, "-c", "import os, sys; os.mkdir(sys.argv[1])", folder / "child"], check=True)
"""


@pytest.mark.parametrize(("leaving", "flags"), [
    pytest.param("", (), id="nothing is left"),
    pytest.param(LEAVING, (), id="one process"),
    pytest.param(LEAVING, ("-n", "2"), id="pytest-xdist"),
])
def test_what_is_left_outside_fails_the_run(tmp_path, leaving, flags):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "here.txt").write_text("")
    (tmp_path / "test_suite.py").write_text(SUITE.format(folder=str(folder)) + leaving)
    done = run_python("-m", "pytest", "-p", "conftest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, *flags,
                      "test_suite.py", cwd=tmp_path,
                      env={"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", WATCH)))})
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("LEFT BEHIND"))
    if not leaving:
        assert (done.returncode, lines) == (0, []), done.stdout + done.stderr
        return
    assert done.returncode == 1 and "6 passed" in done.stdout, done.stdout + done.stderr
    assert len(lines) == 3
    for line, name in zip(lines, ("child", "file", "renamed_folder")):
        assert line.startswith(f"LEFT BEHIND {folder / name}, outside ") and f"::test_{name} " in line


WHERE = """
import multiprocessing.util, os, tempfile
print(tempfile.gettempdir(), os.environ["TMPDIR"], multiprocessing.util.get_temp_dir(), sep="\\n")
import matplotlib
print(matplotlib.get_cachedir(), matplotlib.get_configdir(), sep="\\n")
"""


def test_temporary_files_and_caches_of_children_are_inside():
    done = run_python("-c", WHERE)
    assert (done.returncode, done.stderr) == (0, "")
    folders = done.stdout.split()
    assert len(folders) == 5
    assert not [folder for folder in folders if not Path(os.path.realpath(folder)).is_relative_to(allowed_folder())]
