"""Ctrl-C, held back while a step must not be torn in two, and answered once by a script."""

import signal
import threading
from types import FrameType, TracebackType


class HeldBack:
    """`with HeldBack():` a Ctrl-C that comes in the block is answered at its end. For short blocks; may be nested.

    Python answers in the main thread, whichever thread the signal reaches: so the handler is what holds it back. The
    signal is blocked as well, for processes that are started in the block inherit that, and do not answer it at all.
    """

    def __enter__(self) -> "HeldBack":
        self.arrived, self.before, self.mask = False, None, None
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not None:
            self.before = signal.signal(signal.SIGINT, self._remember)  # from here on nothing is raised
            if hasattr(signal, "pthread_sigmask"):  # not on Windows
                self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            if self.arrived:
                signal.raise_signal(signal.SIGINT)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.arrived = True


class Answer:
    """A script's answer to Ctrl-C: KeyboardInterrupt, until `over` is set.

    An attribute is set in one step, so that between catching the interrupt and this no second one comes through.
    """

    def __init__(self) -> None:
        self.raised = False
        self.over = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.over:
            self.raised = True
            raise KeyboardInterrupt

    def begin(self) -> None:
        """Answer from now on, where Python would; not where Ctrl-C is ignored, as in a background job."""
        if (threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
            signal.signal(signal.SIGINT, self)

    def end(self) -> None:
        """Ignore Ctrl-C for good: what is left is Python's own exit, where it would only print a traceback."""
        if signal.getsignal(signal.SIGINT) is self:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
