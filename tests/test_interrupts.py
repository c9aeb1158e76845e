import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sam_lora.interrupts import Answer, HeldBack

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")


@pytest.fixture(autouse=True)
def answered():
    """As in a terminal, wherever the tests run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ctrl_c(taken_by_another_thread: bool = False) -> None:
    if not taken_by_another_thread:
        os.kill(os.getpid(), signal.SIGINT)
        return
    def take():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # as in one that was there before
        signal.raise_signal(signal.SIGINT)
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()


@pytest.mark.parametrize("other_thread", [False, True])
def test_it_comes_at_the_end_of_the_block(other_thread):
    done = []
    with pytest.raises(KeyboardInterrupt):
        with HeldBack():
            ctrl_c(other_thread)
            done.append(sum(range(10_000)))
        done.append("not reached")
    assert done == [49_995_000]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_of_nested_blocks_the_outer_one_counts():
    done = []
    with pytest.raises(KeyboardInterrupt), HeldBack():
        with HeldBack():
            ctrl_c()
        done.append("inner")
    assert done == ["inner"]


def test_an_error_in_the_block_is_not_lost():
    with pytest.raises(ZeroDivisionError), HeldBack():
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt) as caught, HeldBack():
        ctrl_c()
        1 / 0  # noqa: B018
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_nothing_changes_in_other_threads_or_where_it_is_ignored():
    def look():
        with HeldBack():
            handlers.append(signal.getsignal(signal.SIGINT))
    handlers = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with HeldBack():
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_script_answers_until_it_is_over():
    answer = Answer()
    answer.begin()
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    assert answer.raised
    answer.over = True
    ctrl_c()
    answer.end()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_background_job_goes_on_ignoring_it():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer = Answer()
    answer.begin()
    ctrl_c()
    answer.end()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not answer.raised


def test_a_script_that_exits_is_not_disturbed():
    """Ctrl-C again and again until the process is gone, which a thread and exit functions hold up."""
    code = ("import atexit, threading, time; from sam_lora import cli\n"
            "atexit.register(time.sleep, 0.2)\n"
            "def main(args):\n"
            "    threading.Thread(target=time.sleep, args=(0.3,)).start()\n"
            "    print('started', flush=True)\n"
            "    time.sleep(60)\n"
            "parser = cli.make_parser('x'); parser.prog = 'x.py'; cli.run(main, parser, [])")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.readline()
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    assert process.returncode == 130
    assert process.stderr.read() == "x.py: stopped by Ctrl-C; nothing half-written was left\n"


def test_an_error_that_an_interrupt_turned_into_counts_as_the_interrupt(capsys):
    from sam_lora import cli

    def main(args):
        try:
            ctrl_c()
        finally:
            raise OSError(9, "Bad file descriptor")
    parser = cli.make_parser("x")
    parser.prog = "x.py"
    with pytest.raises(SystemExit) as exit_info:
        cli.run(main, parser, [])
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "x.py: stopped by Ctrl-C; nothing half-written was left\n"
