import os
import time
from contextlib import closing

import pytest

from sam_lora.errors import UserError
from sam_lora.workers import THREADS, map_in_order, map_in_threads


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
