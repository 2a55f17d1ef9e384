"""Interrupts and terminations that wait until an update is whole and everything is saved."""

import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """The record of whether SIGINT or SIGTERM came, which a call returns."""

    def __init__(self) -> None:
        self._came = self._raising = False

    def __call__(self) -> bool:
        return self._came

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Raise KeyboardInterrupt at once in a block that takes long and changes nothing."""
        self._raising = True
        try:
            if self._came:
                raise KeyboardInterrupt
            yield
        finally:
            self._raising = False

    def note(self, *_: object) -> None:
        self._came = True
        if self._raising:
            self._raising = False  # a second signal must not interrupt the cleaning up
            raise KeyboardInterrupt


@contextmanager
def deferred_interrupts() -> Generator[Interrupts]:
    """Make SIGINT and SIGTERM wait; the value that is yielded says whether one came."""
    interrupts = Interrupts()
    with handling((signal.SIGINT, signal.SIGTERM), interrupts.note):
        yield interrupts


@contextmanager
def terminate_as_interrupt() -> Generator[None]:
    """Let SIGTERM, which schedulers send, raise KeyboardInterrupt as Ctrl-C does."""
    with handling((signal.SIGTERM,), signal.default_int_handler):
        yield


@contextmanager
def handling(numbers: Sequence[int], handler: Callable[[int, Any], Any]) -> Generator[None]:
    """Set handlers for the block, in the main thread alone: Python allows no other to do so.

    A signal that the process ignores stays ignored, as SIGINT is in background processes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            if old is not None:  # None: it was not set by Python, and cannot be put back
                signal.signal(number, old)
