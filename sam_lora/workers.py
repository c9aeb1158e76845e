"""Processes and threads that work in parallel: map a function over items, in order."""

import ctypes
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from sam_lora.errors import UserError
from sam_lora.interrupts import HeldBack

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ITEMS_PER_WORKER = 8  # starting a process takes as long as about so many pictures
THREADS = 4           # PNG and JPEG coding and resizing let go of Python's lock


def map_in_threads(function: Callable, items: Iterable, threads: int = THREADS) -> Iterator:
    """`function(item)` for each item, in their order, by a few threads; no more than a few results wait in memory."""
    pool, waiting = ThreadPoolExecutor(threads), deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        _shut_down(pool)


def map_in_order(function: Callable, items: Sequence, num_workers: int, what: str) -> Iterator:
    """`function(item)` for each item, in their order. Few items, or `num_workers` 0 or 1: in this process.

    `what` names the items on the progress bar. `function` must pickle. Close the iterator (contextlib.closing) where
    its end may not be reached: the processes end with it. Raises UserError if a process dies.
    """
    from tqdm import tqdm
    num_workers = min(num_workers, len(items) // ITEMS_PER_WORKER)
    if num_workers <= 1:
        yield from tqdm(map(function, items), total=len(items), desc=what, unit="", disable=None)
        return
    # spawn everywhere: a forked process may inherit a lock that a thread of OpenCV holds
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        with HeldBack():  # what is started here inherits it, so that no starting process answers Ctrl-C
            results = pool.map(function, items, chunksize=4)
        yield from tqdm(results, total=len(items), desc=what, unit="", disable=None)
    except BrokenProcessPool as error:
        raise UserError("a worker process died, most likely for want of memory; give a smaller --num_workers, "
                        "0 for none") from error
    finally:
        _shut_down(pool)


def _shut_down(pool: Executor) -> None:
    """Drop what has not begun and wait for the rest.

    A Ctrl-C in the middle of that would let Python (3.11) take threads that still run for ended ones, write on into
    folders that are being removed, and wait for processes that nobody ends.
    """
    with HeldBack():
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    import cv2
    cv2.setNumThreads(1)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep freed pictures' memory for the next: giving it back and faulting it in anew is a quarter of the
    converters' processor time, and half of what a panel of step 5 takes. Does nothing with another C library."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**28)
