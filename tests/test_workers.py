import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from sam_lora.errors import UserError
from sam_lora.workers import THREADS, map_in_order, map_in_threads

ROOT = Path(__file__).parents[1]


def square(number):
    return number ** 2, os.getpid()


def die(number):
    os._exit(1)


@pytest.mark.parametrize(("num_workers", "count"), [pytest.param(0, 40, id="none"), pytest.param(2, 10, id="few items"),
                                                    pytest.param(2, 40, id="two")])
def test_results_come_in_order(num_workers, count):
    results = list(map_in_order(square, range(count), num_workers, "squares"))
    assert [result for result, _ in results] == [number ** 2 for number in range(count)]
    here = all(process == os.getpid() for _, process in results)
    assert here == (num_workers == 0 or count < 16)


def test_a_process_that_dies_is_told():
    with pytest.raises(UserError, match="a worker process died"):
        list(map_in_order(die, range(40), 2, "items"))


def test_closing_ends_the_processes():
    with closing(map_in_order(square, range(400), 2, "squares")) as results:
        _, process = next(results)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_threads_keep_the_order_and_run_ahead_a_little_only():
    taken = []

    def numbers():
        for number in range(100):
            taken.append(number)
            yield number

    def slow_first(number):
        time.sleep(0.05 * (number == 0))
        return -number

    results = map_in_threads(slow_first, numbers())
    assert next(results) == 0
    assert len(taken) <= 2 * THREADS + 1
    assert [0, *results] == [-number for number in range(100)]


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda number: 1 // number, [1, 0, 1]))


def test_giving_up_waits_for_the_threads_and_drops_what_has_not_begun():
    begun, ended = [], []

    def slow(number):
        begun.append(number)
        time.sleep(0.05 * (number > 0))
        ended.append(number)

    results = map_in_threads(slow, range(100))
    next(results)
    results.close()
    assert len(begun) <= THREADS + 1
    assert begun and sorted(begun) == sorted(ended)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_second_ctrl_c_waits_for_the_threads_too():
    code = ("import os, signal, sys, time; from sam_lora import cli, workers\n"
            "def slow(number):\n"
            "    time.sleep(0.3); print('ended', number, flush=True)\n"
            "def numbers():\n"
            "    yield 1\n"
            "    yield 2\n"
            "    print('started', flush=True); time.sleep(60)\n"
            "def main(args):\n"
            "    try: list(workers.map_in_threads(slow, numbers()))\n"
            "    finally: print('cleaned up', flush=True)\n"
            "parser = cli.make_parser('x'); parser.prog = 'x.py'; cli.run(main, parser, [])")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.readline()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "x.py: stopped by Ctrl-C; nothing half-written was left\n")
    *ended, last = said.splitlines()
    assert sorted(ended) == ["ended 1", "ended 2"] and last == "cleaned up"
