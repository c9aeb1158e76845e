import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psutil
import pytest
from conftest import PATIENCE, ROOT, wait_until

from sam_lora import workers
from sam_lora.errors import UserError
from sam_lora.workers import THREADS, map_in_order, map_in_threads

posix_signals = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")


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


def test_a_process_that_dies_is_reported():
    with pytest.raises(UserError, match="a worker process died, most likely because memory ran out"):
        list(map_in_order(die, range(40), 2, "items"))


def test_closing_ends_the_processes():
    with closing(map_in_order(square, range(400), 2, "squares")) as results:
        _, process = next(results)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_threads_keep_the_order_and_run_only_a_little_ahead():
    taken, last_one_in = [], threading.Event()

    def numbers():
        for number in range(100):
            taken.append(number)
            yield number

    def slow_first(number):
        if number == 2 * THREADS:  # the last that is handed out before the first result is taken
            last_one_in.set()
        if number == 0:
            assert last_one_in.wait(PATIENCE)
        return -number

    results = map_in_threads(slow_first, numbers())
    assert next(results) == 0
    assert len(taken) == 2 * THREADS + 1
    assert [0, *results] == [-number for number in range(100)]


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda number: 1 // number, [1, 0, 1]))


def test_giving_up_waits_for_the_threads_and_drops_what_has_not_begun(monkeypatch):
    begun, ended, busy, cancelled = [], [], threading.Semaphore(0), threading.Event()

    class Pool(ThreadPoolExecutor):
        """Lets the calls go on only when those that wait have been dropped."""

        def shutdown(self, wait, cancel_futures):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            cancelled.set()
            super().shutdown(wait=wait)

    def call(number):
        begun.append(number)
        if number > 0:
            busy.release()
            assert cancelled.wait(PATIENCE)
        ended.append(number)

    monkeypatch.setattr(workers, "ThreadPoolExecutor", Pool)
    results = workers.map_in_threads(call, range(100))
    next(results)
    for _ in range(THREADS):
        assert busy.acquire(timeout=PATIENCE)
    results.close()
    assert len(begun) == THREADS + 1
    assert sorted(begun) == sorted(ended)


# ---- Ctrl-C -------------------------------------------------------------------------------------------------

INTERRUPTED_THREADS = """
import signal, sys, time
from sam_lora import cli, workers

def call(number):
    while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        time.sleep(0.001)  # until the pool is being shut down
    if number == 1:
        print("shutting down", flush=True)
        sys.stdin.readline()
    ended.append(number)

def numbers():
    yield 1
    yield 2
    print("waiting", flush=True)
    while True:     # in pieces: a signal just before a sleep begins does not cut it short
        time.sleep(0.02)

def main(args):
    try:
        list(workers.map_in_threads(call, numbers()))
    finally:
        print("ended", *sorted(ended), flush=True)

ended = []
parser = cli.make_parser("x")
parser.prog = "x.py"
cli.run(main, parser, [])
"""


@posix_signals
def test_a_second_ctrl_c_waits_for_the_threads_too():
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED_THREADS], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "shutting down\n"
        process.send_signal(signal.SIGINT)
        printed, error = process.communicate("go on\n", timeout=PATIENCE)
    assert (process.returncode, error) == (130, "x.py: stopped by Ctrl-C; nothing half-written was left\n")
    assert printed == "ended 1 2\n"


PROCESSES = """
import os, sys, time
from contextlib import closing
from pathlib import Path
from sam_lora import cli, workers

def call(folder):
    (folder / f"{os.getpid()}.pid").touch()
    while not (folder / "go on").exists():
        time.sleep(0.001)

def main(args):
    folder = Path(args.folder)
    with closing(workers.map_in_order(call, [folder] * 100, 2, "items")) as results:
        list(results)

if __name__ == "__main__":
    parser = cli.make_parser("x")
    parser.prog = "x.py"
    parser.add_argument("folder")
    cli.run(main, parser)
"""


def start_processes(tmp_path):
    """PROCESSES as a script in a process group of its own, and its two workers, once both are in a call."""
    script = tmp_path / "x.py"
    script.write_text(PROCESSES)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], text=True, stderr=subprocess.PIPE,
                               start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, process)
    return process, [psutil.Process(int(file.stem)) for file in tmp_path.glob("*.pid")]


@posix_signals
def test_ctrl_c_in_a_terminal_ends_the_processes(tmp_path):
    process, children = start_processes(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    (tmp_path / "go on").touch()
    error = process.communicate(timeout=PATIENCE)[1]
    assert (process.returncode, error) == (130, "x.py: stopped by Ctrl-C; nothing half-written was left\n")
    assert not [child for child in children if child.is_running()]


@posix_signals
def test_the_processes_of_a_killed_script_end(tmp_path):
    process, children = start_processes(tmp_path)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert not psutil.wait_procs(children, PATIENCE)[1]
