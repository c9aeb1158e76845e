"""Processes and threads that work in parallel: map a function over items, in order."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress

from sam_lora.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
ITEMS_PER_WORKER = 8  # starting a process takes about as long as converting this many photos
THREADS = 4           # PNG and JPEG coding and resizing release Python's lock


def map_in_threads(function: Callable, items: Iterable, threads: int = THREADS) -> Iterator:
    """`function(item)` for each item, in order, in a few threads; only a few results wait in memory.

    Giving up (an error, Ctrl-C, closing the iterator) waits for the calls that have begun.
    """
    pool, pending = ThreadPoolExecutor(threads), deque()
    with _one_opencv_thread():
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            _shut_down(pool)


_opencv_users: list[int] = []  # for each block that is open, how many threads OpenCV had when the first one began


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Calls of OpenCV take one core each: threads of its own, waiting for work, would take time from the caller's."""
    import cv2
    _opencv_users.append(_opencv_users[0] if _opencv_users else cv2.getNumThreads())
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        threads = _opencv_users.pop()
        if not _opencv_users:
            cv2.setNumThreads(threads)


def map_in_order(function: Callable, items: Sequence, num_workers: int, description: str) -> Iterator:
    """`function(item)` for each item, in order, in processes. Few items, or `num_workers` 0 or 1: in this process.

    `description` labels the progress bar. `function` must pickle. Wrap the iterator in contextlib.closing where it may
    not be exhausted: closing it ends the processes. Raises UserError if a process dies.
    """
    from tqdm import tqdm
    num_workers = min(num_workers, len(items) // ITEMS_PER_WORKER)
    if num_workers <= 1:
        yield from tqdm(map(function, items), total=len(items), desc=description, unit="", disable=None)
        return
    # spawn on every system: a forked process may inherit a lock that a thread of OpenCV holds
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        with _ctrl_c_blocked():
            results = pool.map(function, items, chunksize=4)  # starts the processes
        yield from tqdm(results, total=len(items), desc=description, unit="", disable=None)
    except BrokenProcessPool as error:
        raise UserError("a worker process died, most likely because memory ran out; give a smaller --num_workers, "
                        "or 0 for none") from error
    finally:
        _shut_down(pool)


def _shut_down(pool: Executor) -> None:
    """Drop the calls that have not begun and wait for the rest. Ctrl-C, often the second one, is answered after that.

    Interrupted while it waits, Python (3.11) takes running threads for ended ones and never returns at exit.
    """
    pressed = []
    main_thread = threading.current_thread() is threading.main_thread()
    answers_ctrl_c = main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if answers_ctrl_c:
        signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        pool.shutdown(wait=True, cancel_futures=True)
    finally:
        if answers_ctrl_c:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Processes started in the block inherit that Ctrl-C is blocked, so one that is just starting prints no traceback.

    Does nothing on Windows. Other threads still receive the signal, so this process answers it as ever.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import cv2
    cv2.setNumThreads(1)
    keep_freed_memory()


def _end_with_parent() -> None:
    """After a `kill -9` of the parent, do not wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed images for the next ones. Returning it to the system and getting it back takes
    a quarter of the converters' processor time and half of a panel's in step 5. Does nothing with other C libraries."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**28)
