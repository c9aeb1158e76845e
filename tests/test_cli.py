import argparse
import importlib
import subprocess
import sys

import pytest
from conftest import ROOT, run_python

from sam_lora import cli
from sam_lora.errors import UserError

SCRIPTS = ("process_yolo_to_classwise", "process_coco_dataset", "Create_yolo_csv", "Create_csv", "reformated_csv",
           "train", "run_inference", "run_base_sam_inference", "export_sam")
HEAVY = ("torch", "torchvision", "peft", "matplotlib", "pandas", "cv2", "pycocotools", "numpy", "PIL")


def parser(docstring="What it does.\n\n    the command --here\n"):
    made = cli.make_parser(docstring)
    made.prog = "script.py"
    return made


# ---- help -------------------------------------------------------------------------------------------------

def test_help_keeps_line_breaks_and_shows_defaults():
    made = parser()
    made.add_argument("--size", type=cli.positive_int, default=10, help="how big")
    made.add_argument("--name", help="no default")
    made.add_argument("--names", nargs="*", default=[], help="none by default")
    cli.add_overwrite(made)
    text = made.format_help()
    assert "What it does.\n\n    the command --here\n" in text
    assert "how big (default: 10)" in text
    assert text.count("default:") == 1


def test_abbreviated_flags_are_refused(capsys):
    made = parser()
    made.add_argument("--dataset_dir")
    with pytest.raises(SystemExit) as exit_info:
        made.parse_args(["--dataset", "x"])
    assert exit_info.value.code == 2
    assert "unrecognized arguments: --dataset x" in capsys.readouterr().err


def test_these_are_all_the_scripts():
    assert sorted(SCRIPTS) == sorted(path.stem for path in ROOT.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_docstring_and_defaults_and_imports_no_heavy_library(name):
    """So that it appears at once."""
    code = (f"import runpy, sys; sys.argv = ['{name}.py', '--help']\n"
            "try:\n"
            "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally:\n"
            f"    print([module for module in {HEAVY!r} if module in sys.modules], file=sys.stderr)")
    done = run_python("-c", code)
    assert (done.stderr, done.returncode) == ("[]\n", 0)
    assert importlib.import_module(name).__doc__.strip() in done.stdout and "(default: " in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_answers_a_wrong_flag_in_one_line(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        importlib.import_module(name).get_args_parser().parse_args(["--no_such_flag"])
    assert exit_info.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_the_same_flag_is_the_same_everywhere():
    """One type and one help text for each flag that scripts share."""
    seen = {}
    shared = {"--overwrite", "--seed", "--num_workers", "--split", "--resplit", "--device", "--padding", "--no_crop",
              "--square", "--tile"}
    for name in SCRIPTS:
        for action in importlib.import_module(name).get_args_parser()._actions:
            for flag in shared & set(action.option_strings):
                seen.setdefault(flag, {})[name] = (action.type, action.help)
    assert {"--overwrite", "--seed", "--num_workers"} <= seen.keys()
    for flag, of_scripts in seen.items():
        assert len(set(of_scripts.values())) == 1, (flag, of_scripts)


# ---- run --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("error", "code", "line"), [
    pytest.param(UserError("a.csv: no such file"), 1, "script.py: error: a.csv: no such file", id="bad data"),
    pytest.param(KeyboardInterrupt(), 130, "script.py: stopped by Ctrl-C; nothing half-written was left", id="Ctrl-C"),
    pytest.param(PermissionError(13, "Permission denied", "/out"), 1, "script.py: error: /out: Permission denied",
                 id="unwritable folder"),
    pytest.param(OSError(28, "No space left"), 1, "script.py: error: No space left", id="full disk"),
    pytest.param(OSError("odd"), 1, "script.py: error: odd", id="no error number"),
])
def test_run_turns_user_errors_into_one_line(capsys, error, code, line):
    def main(args):
        raise error
    with pytest.raises(SystemExit) as exit_info:
        cli.run(main, parser(), [])
    assert exit_info.value.code == code
    assert capsys.readouterr().err == line + "\n"


def test_an_error_that_ctrl_c_turned_into_counts_as_ctrl_c(capsys):
    """As when it interrupts a library in the middle of its cleanup."""
    def main(args):
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError(9, "Bad file descriptor")
    with pytest.raises(SystemExit) as exit_info:
        cli.run(main, parser(), [])
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "script.py: stopped by Ctrl-C; nothing half-written was left\n"


def test_run_passes_the_arguments_and_hides_no_bug():
    made, seen = parser(), []
    made.add_argument("--x", type=int)
    cli.run(lambda args: seen.append(args.x), made, ["--x", "3"])
    assert seen == [3]
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda args: 1 / 0, made, [])


def test_names_that_the_terminal_lacks_or_that_break_lines():
    """A pipe in ASCII, a class name in another script, a file name of two lines."""
    code = ("from sam_lora import cli; from sam_lora.errors import UserError\n"
            "def main(args):\n    print('裂缝 \\ud800')\n    raise UserError('a\\nb\\x1b[31m: bad')\n"
            "parser = cli.make_parser('x'); parser.prog = 'x.py'; cli.run(main, parser, [])")
    done = run_python("-c", code, env={"PYTHONIOENCODING": "ascii"})
    assert (done.stdout, done.stderr) == ("\\u88c2\\u7f1d \\ud800\n", "x.py: error: a b [31m: bad\n")
    assert done.returncode == 1


def test_a_closed_pipe_ends_quietly():
    """As in `script | head -1`."""
    code = ("from sam_lora import cli\n"
            "def main(args):\n"
            "    for _ in range(100000): print('line')\n"
            "cli.run(main, cli.make_parser('x'), [])\n")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=pipe) as done:
        done.stdout.readline()
        done.stdout.close()
        assert done.stderr.read() == b""


# ---- types ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("kind", "text", "expected"), [
    (cli.positive_int, "3", 3), (cli.positive_int, "0", None), (cli.positive_int, "2.5", None),
    (cli.non_negative_int, "0", 0), (cli.non_negative_int, "-1", None), (cli.non_negative_int, "x", None),
    (cli.non_negative_float, "0.5", 0.5), (cli.non_negative_float, "-0.1", None), (cli.non_negative_float, "nan", None),
    (cli.non_negative_float, "inf", None), (cli.fraction, "0", 0), (cli.fraction, "0.99", 0.99),
    (cli.fraction, "1", None), (cli.fraction, "-0.1", None), (cli.fraction, "nan", None),
])
def test_number_types(kind, text, expected):
    if expected is None:
        with pytest.raises((ValueError, argparse.ArgumentTypeError)):
            kind(text)
    else:
        assert kind(text) == expected


@pytest.mark.parametrize(("fractions", "good"), [
    pytest.param("0.6 0.2 0.2", True, id="the default"),
    pytest.param("1 0 0", True, id="train only"),
    pytest.param("0.7 0.1 0.2", True, id="a sum that is 1 but for rounding"),
    pytest.param("60 20 20", False, id="per cent"),
    pytest.param("0 0 1", True, id="test only"),
    pytest.param("0.5 0.5", False, id="two"),
    pytest.param("0.6 0.6 -0.2", False, id="negative"),
])
def test_split_fractions(fractions, good, capsys):
    made = parser()
    cli.add_split_tables(made)
    if good:
        assert made.parse_args(["--split", *fractions.split()]).split == [float(text) for text in fractions.split()]
    else:
        with pytest.raises(SystemExit) as exit_info:
            made.parse_args(["--split", *fractions.split()])
        assert exit_info.value.code == 2
        assert "argument --split: " in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "said"), [
    pytest.param(["--no_crop", "--square"], "not allowed with", id="whole images cannot be made square"),
    pytest.param(["--tile", "512", "--no_crop"], "not allowed with", id="tiles or whole images"),
    pytest.param(["--tile", "63"], "at least 64 pixels", id="tiles too small to train on"),
    pytest.param(["--tile", "x"], "invalid", id="no number"),
])
def test_shapes_of_crops_that_make_no_sense(capsys, argv, said):
    made = parser()
    cli.add_conversion(made)
    with pytest.raises(SystemExit) as exit_info:
        made.parse_args(argv)
    assert exit_info.value.code == 2
    assert said in capsys.readouterr().err
    assert made.parse_args(["--tile", "64"]).tile == 64 and made.parse_args([]).tile is None
