import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam_lora.errors import UserError
from sam_lora.files import STAGING_PREFIX, atomic_path, refuse_existing, refuse_replacing, staged_folder

ROOT = Path(__file__).parents[1]


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


def test_what_a_killed_run_left_does_not_count_as_content(tmp_path):
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


# ---- Ctrl-C -------------------------------------------------------------------------------------------------

WRITE_FOREVER = """
import sys
from pathlib import Path
from sam_lora import cli
from sam_lora.files import atomic_path, staged_folder

def main(args):
    folder = Path(args.folder)
    print("started", flush=True)
    for number in range(10 ** 9):
        with atomic_path(folder / "file.txt") as temporary:
            temporary.write_text(str(number))
        with staged_folder(folder / "deep" / f"out{number % 2}", ("*",), overwrite=True) as staging:
            (staging / "inner").mkdir()
            with atomic_path(staging / "inner" / "file.txt") as temporary:
                temporary.write_text(str(number))

parser = cli.make_parser("x")
parser.prog = "x.py"
parser.add_argument("folder")
cli.run(main, parser)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("most", [pytest.param(1, id="once"), pytest.param(4, id="up to four times")])
def test_ctrl_c_at_any_moment_leaves_nothing_half_written(tmp_path, most):
    moments = random.Random(most)
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(folder)], cwd=ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGINT)
        for _ in range(moments.randrange(most)):
            time.sleep(moments.uniform(0, 0.003))
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert (process.returncode, said) == (130, "x.py: stopped by Ctrl-C; nothing half-written was left\n")
        names = set(tree(folder))
        whole = {f"deep/out{i}/{name}" for i in (0, 1) for name in ("", "inner/", "inner/file.txt")}
        assert names <= {"file.txt", "deep/"} | whole
        for out in ("deep/out0/", "deep/out1/"):  # all of a folder, or not even the folder
            assert len([name for name in names if name.startswith(out)]) in (0, 3)
        assert all(content.isdigit() for content in tree(folder).values() if content is not None)


def test_what_an_interrupt_kept_from_being_removed_goes_at_the_end(tmp_path):
    """A context that never ends, as when a second Ctrl-C comes while the first is cleaned up after."""
    code = ("import sys; from pathlib import Path; from sam_lora.files import atomic_path, staged_folder\n"
            "folder = Path(sys.argv[1])\n"
            "contexts = [atomic_path(folder / 'a.txt'), staged_folder(folder / 'deep' / 'out', ('*',), False)]\n"
            "entered = [context.__enter__() for context in contexts]\n"
            "entered[0].write_text('half'); (entered[1] / 'b.txt').write_text('half')\n"
            "sys.modules['kept'] = contexts\n"
            "print(len(list(folder.rglob('.partial-*'))))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)
    assert tree(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_process_leaves_its_parents_files_alone(tmp_path):
    code = ("import os, sys; from pathlib import Path; from sam_lora.files import atomic_path\n"
            "with atomic_path(Path(sys.argv[1])) as temporary:\n"
            "    temporary.write_text('whole')\n"
            "    if not (child := os.fork()):\n"
            "        sys.modules['kept'] = temporary; import atexit; atexit._run_exitfuncs(); os._exit(0)\n"
            "    os.waitpid(child, 0)\n")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], cwd=ROOT, check=True)
    assert tree(tmp_path) == {"a.txt": "whole"}
