import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, files_below, run_python

from sam_lora import files
from sam_lora.errors import UserError
from sam_lora.files import STAGING_PREFIX, atomic_path, refuse_existing, refuse_replacing, staged_folder

posix_signals = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")


def tree(folder):
    """Relative path -> content, of every file; folders end in / and have None."""
    return {path.relative_to(folder).as_posix() + ("/" if path.is_dir() else ""):
            None if path.is_dir() else path.read_text() for path in folder.rglob("*")}


# ---- atomic_path ------------------------------------------------------------------------------------------

def test_a_file_appears_whole_in_a_folder_made_for_it(tmp_path):
    final = tmp_path / "new" / "t.csv"
    with atomic_path(final) as temporary:
        assert temporary.parent == final.parent and temporary.suffix == ".csv"
        temporary.write_text("half")
        assert not final.exists()
        temporary.write_text("whole")
    assert tree(tmp_path) == {"new/": None, "new/t.csv": "whole"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, error):
    final = tmp_path / "t.csv"
    final.write_text("old")
    with pytest.raises(error), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise error
    assert tree(tmp_path) == {"t.csv": "old"}


def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_path(tmp_path / "t.csv") as temporary:
        temporary.write_text("")
    assert stat.S_IMODE((tmp_path / "t.csv").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_folder_of_that_name_is_not_replaced(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(OSError), atomic_path(tmp_path / "t.csv") as temporary:
        temporary.write_text("x")
    assert tree(tmp_path) == {"t.csv/": None}


# ---- refuse_existing --------------------------------------------------------------------------------------

def test_refuse_existing_names_all(tmp_path):
    paths = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    refuse_existing(paths, overwrite=False)
    paths[0].write_text("")
    paths[2].write_text("")
    with pytest.raises(UserError, match=f"^{paths[0]}, {paths[2]}: already there; give --overwrite"):
        refuse_existing(paths, overwrite=False)
    refuse_existing(paths, overwrite=True)


def test_refuse_existing_wants_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file; expected a folder"):
        refuse_existing([tmp_path / "file" / "a.csv"], overwrite=True)


# ---- refuse_replacing -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("path", "refused"), [
    pytest.param("out/masks/a.png", True, id="in an owned folder"),
    pytest.param("out/masks", True, id="an owned folder"),
    pytest.param("other/../out/table.csv", True, id="an owned file, by a detour"),
    pytest.param("out/notes/masks/a.png", False, id="of that name deeper down"),
    pytest.param("out", False, id="the folder itself"),
    pytest.param("masks/a.png", False, id="elsewhere"),
])
def test_refuse_replacing_what_is_read(tmp_path, monkeypatch, path, refused):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    if not refused:
        refuse_replacing([Path(path)], "out", ("masks", "table.csv"))
        return
    with pytest.raises(UserError, match=f"^{path}: this run reads it and would replace it; give another --output_dir"):
        refuse_replacing([Path(path)], "out", ("masks", "table.csv"))


# ---- staged_folder ----------------------------------------------------------------------------------------

OWNED = ("Class_*", "instances.csv")


def fill(staging, name="Class_new"):
    (staging / name / "images").mkdir(parents=True)
    (staging / name / "images" / "a.png").write_text("new")
    (staging / "instances.csv").write_text("new")


NEW = {"Class_new/": None, "Class_new/images/": None, "Class_new/images/a.png": "new", "instances.csv": "new"}


def old_output(final):
    (final / "Class_old" / "images").mkdir(parents=True)
    (final / "Class_old" / "images" / "a.png").write_text("old")
    (final / "instances.csv").write_text("old")
    (final / "mine.txt").write_text("mine")
    return tree(final)


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_filled(tmp_path, exists):
    final = tmp_path / "deep" / "out"
    if exists:
        final.mkdir(parents=True)
    with staged_folder(final, OWNED, overwrite=False) as staging:
        assert not any(staging.iterdir())
        fill(staging)
        assert set(tree(final)) == {f"{staging.name}/{path}" for path in NEW} | {f"{staging.name}/"}
    assert tree(final) == NEW


def test_a_full_folder_is_refused(tmp_path):
    before = old_output(tmp_path / "out")
    with pytest.raises(UserError, match=r"out: not empty \(3 entries, e.g. Class_old\); give --overwrite"), \
            staged_folder(tmp_path / "out", OWNED, overwrite=False):
        pass
    assert tree(tmp_path / "out") == before


def test_overwrite_replaces_what_is_owned_and_keeps_the_rest(tmp_path):
    old_output(tmp_path / "out")
    with staged_folder(tmp_path / "out", OWNED, overwrite=True) as staging:
        fill(staging)
        assert (tmp_path / "out" / "Class_old" / "images" / "a.png").read_text() == "old"
    assert tree(tmp_path / "out") == NEW | {"mine.txt": "mine"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path, error, exists):
    final = tmp_path / "deep" / "out"
    before = old_output(final) if exists else None
    with pytest.raises(error), staged_folder(final, OWNED, overwrite=True) as staging:
        fill(staging)
        raise error
    assert tree(tmp_path) == ({"deep/": None, "deep/out/": None} | {f"deep/out/{k}": v for k, v in before.items()}
                              if exists else {})


def test_an_error_while_swapping_puts_everything_back(tmp_path):
    """A new entry meets a folder of the user's own: it must not be replaced, nor anything else lost."""
    final = tmp_path / "out"
    old_output(final)
    (final / "notes").mkdir()
    (final / "notes" / "mine.txt").write_text("mine")
    before = tree(final)
    with pytest.raises(OSError), staged_folder(final, OWNED, overwrite=True) as staging:
        fill(staging)
        (staging / "notes").mkdir()
        (staging / "notes" / "a.txt").write_text("new")
    assert tree(final) == before


def test_a_pattern_for_everything_spares_the_staging_folder(tmp_path):
    old_output(tmp_path / "out")
    with staged_folder(tmp_path / "out", ("*",), overwrite=True) as staging:
        fill(staging)
    assert tree(tmp_path / "out") == NEW


def test_what_another_run_is_writing_does_not_count_as_content(tmp_path):
    (tmp_path / "out" / f"{STAGING_PREFIX}xyz").mkdir(parents=True)
    with staged_folder(tmp_path / "out", OWNED, overwrite=False) as staging:
        fill(staging)
    assert tree(tmp_path / "out") == NEW | {f"{STAGING_PREFIX}xyz/": None}


def test_a_symlink_to_a_folder_is_replaced_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "Class_link").symlink_to(elsewhere)
    with staged_folder(tmp_path / "out", OWNED, overwrite=True) as staging:
        fill(staging)
    assert tree(tmp_path / "out") == NEW
    assert tree(elsewhere) == {"precious.txt": "mine"}


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="out: is a file; expected a folder, new or empty"), \
            staged_folder(tmp_path / "out", OWNED, overwrite=True):
        pass


def test_a_folder_that_cannot_be_made_leaves_no_parents(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError), staged_folder(tmp_path / "file" / "out", OWNED, overwrite=True):
        pass
    assert tree(tmp_path) == {"file": "x"}


# ---- what killed runs leave ------------------------------------------------------------------------------------

DEAD_PID = 999_999_999  # larger than a system hands out


@pytest.fixture
def as_in_a_new_process(monkeypatch):
    """This process has not looked for leftovers in any folder yet."""
    monkeypatch.setattr(files, "_swept", set())


def leftover(folder, pid=DEAD_PID, machine=None, suffix="", content=None):
    """A temporary entry as files.py names it; a folder if it has neither suffix nor content."""
    name = f"{STAGING_PREFIX}{machine or files._machine()}-{pid}-0123abcd{suffix}"
    if content is None:
        (folder / name / "inner").mkdir(parents=True)
        (folder / name / "inner" / "a.png").write_text("half")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return name


def write_a_file(folder):
    with atomic_path(folder / "t.csv") as temporary:
        temporary.write_text("whole")


def write_a_folder(folder):
    with staged_folder(folder, OWNED, overwrite=True) as staging:
        fill(staging)


@pytest.mark.parametrize("write", [write_a_file, write_a_folder])
def test_leftovers_of_processes_that_ended_are_removed(tmp_path, as_in_a_new_process, write):
    write(tmp_path / "expected")
    leftover(tmp_path / "out")
    leftover(tmp_path / "out", suffix=".csv", content="half")
    write(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")


@pytest.mark.parametrize("write", [write_a_file, write_a_folder])
def test_what_is_not_known_to_be_a_leftover_stays(tmp_path, as_in_a_new_process, write):
    out = tmp_path / "out"
    kept = {leftover(out, os.getppid()), leftover(out, os.getpid(), suffix=".csv", content="half"),
            leftover(out, machine="elsewhere.1", suffix=".csv", content="half"),
            leftover(out, machine=f"{files._machine()}-b")}
    for name in (f"{STAGING_PREFIX}sam_vit_b_01ec64.pth", f"{STAGING_PREFIX}x1y2z3", f"x{STAGING_PREFIX}"):
        (out / name).write_text("part")
        kept.add(name)
    write(out)
    assert kept <= {path.name for path in out.iterdir()}


def test_a_link_of_such_a_name_is_removed_not_followed(tmp_path, as_in_a_new_process):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{STAGING_PREFIX}{files._machine()}-{DEAD_PID}-0123abcd").symlink_to(tmp_path / "elsewhere")
    write_a_folder(tmp_path / "out")
    assert tree(tmp_path / "out") == NEW
    assert tree(tmp_path / "elsewhere") == {"precious.txt": "mine"}


def test_a_folder_is_searched_once(tmp_path, as_in_a_new_process):
    """A search of 100,000 files before each of 100,000 writes would take hours."""
    write_a_file(tmp_path)
    name = leftover(tmp_path, suffix=".csv", content="half")
    write_a_file(tmp_path)
    assert files_below(tmp_path) == {"t.csv", name}


def test_leftovers_that_disappear_meanwhile(tmp_path, as_in_a_new_process, monkeypatch):
    """Another run removes them at the same time."""
    names = {leftover(tmp_path), leftover(tmp_path, suffix=".csv", content="half")}

    def look_up(pid):
        for name in names:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            (tmp_path / name).unlink(missing_ok=True)
        return False

    monkeypatch.setattr(files.psutil, "pid_exists", look_up)
    files.remove_leftovers(tmp_path)
    assert not any(tmp_path.iterdir())


# ---- Ctrl-C and kill -----------------------------------------------------------------------------------------------

WRITE = """
import sys, time
from pathlib import Path
from sam_lora import cli, files

def pause(point):
    if point == args.point:
        print(point, flush=True)
        while True:     # in pieces: a signal just before a sleep begins does not cut it short
            time.sleep(0.02)

def main(_):
    folder = Path(args.folder)
    with files.atomic_path(folder / "file.txt") as temporary:
        temporary.write_text("ne")
        pause("in a file")
        temporary.write_text("new")
    with files.staged_folder(folder / "deep" / "out", ("*",), overwrite=True) as staging:
        (staging / "inner").mkdir()
        with files.atomic_path(staging / "inner" / "file.txt") as temporary:
            temporary.write_text("ne")
            pause("in a folder")
            temporary.write_text("new")

def rename(source, target):
    global renamed
    done = rename_path(source, target)
    renamed += target.parent.name == "out" or source.parent.name == "out"
    pause(f"after rename {renamed} of a folder's entries")
    return done

renamed, rename_path, Path.replace = 0, Path.replace, rename
parser = cli.make_parser("x")
parser.prog = "x.py"
parser.add_argument("folder")
parser.add_argument("point")
args = parser.parse_args()
cli.run(main, parser)
"""

POINTS = ("in a file", "in a folder", "after rename 1 of a folder's entries", "after rename 2 of a folder's entries")


def interrupted(folder, point, number):
    """Run WRITE, which replaces a file and then a folder, up to `point`; signal it; return its exit code and errors."""
    with subprocess.Popen([sys.executable, "-c", WRITE, str(folder), point], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == f"{point}\n"
        process.send_signal(number)
        return process.wait(PATIENCE), process.stderr.read()


def earlier_output(folder):
    (folder / "deep" / "out" / "older").mkdir(parents=True)
    (folder / "deep" / "out" / "older" / "file.txt").write_text("old")
    (folder / "file.txt").write_text("old")


NEW_OUTPUT = {"file.txt": "new", "deep/": None, "deep/out/": None, "deep/out/inner/": None,
              "deep/out/inner/file.txt": "new"}


@posix_signals
@pytest.mark.parametrize("point", POINTS)
def test_ctrl_c_leaves_what_was_there_before(tmp_path, point):
    earlier_output(tmp_path)
    before = tree(tmp_path)
    assert interrupted(tmp_path, point, signal.SIGINT) == (
        130, "x.py: stopped by Ctrl-C; nothing half-written was left\n")
    assert tree(tmp_path) == before | ({} if point == "in a file" else {"file.txt": "new"})


@posix_signals
@pytest.mark.parametrize("point", POINTS[:2])
def test_ctrl_c_leaves_nothing_where_nothing_was(tmp_path, point):
    assert interrupted(tmp_path, point, signal.SIGINT)[0] == 130
    assert tree(tmp_path) == ({} if point == "in a file" else {"file.txt": "new"})


@posix_signals
@pytest.mark.parametrize("point", POINTS)
def test_what_a_kill_leaves_goes_with_the_next_run(tmp_path, point):
    earlier_output(tmp_path)
    assert interrupted(tmp_path, point, signal.SIGKILL)[0] == -signal.SIGKILL
    assert list(tmp_path.rglob(f"{STAGING_PREFIX}*"))
    final = {path: content for path, content in tree(tmp_path).items() if STAGING_PREFIX not in path}
    assert set(final.values()) <= {None, "old", "new"}  # whole or absent
    done = run_python("-c", WRITE, tmp_path, "nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(tmp_path) == NEW_OUTPUT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_process_leaves_its_parents_files_alone(tmp_path):
    code = ("import os, sys; from pathlib import Path; from sam_lora.files import atomic_path\n"
            "final = Path(sys.argv[1])\n"
            "with atomic_path(final) as temporary:\n"
            "    temporary.write_text('whole')\n"
            "    if not (child := os.fork()):\n"
            "        with atomic_path(final.with_name('b.txt')) as other: other.write_text('whole')\n"
            "        import atexit; atexit._run_exitfuncs(); os._exit(0)\n"
            "    os.waitpid(child, 0)\n")
    done = run_python("-c", code, tmp_path / "a.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(tmp_path) == {"a.txt": "whole", "b.txt": "whole"}
