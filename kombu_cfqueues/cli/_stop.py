"""Ctrl-C and SIGTERM as a wish to end well; the second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether somebody wants the command to end.

    Use `listening`, which hears the signals.
    """

    def __init__(self) -> None:
        self._wanted = threading.Event()

    @property
    def wanted(self) -> bool:
        """Whether it was said."""
        return self._wanted.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for it; returns whether it was said."""
        return self._wanted.wait(seconds)

    def hear(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        second = self._wanted.is_set()
        self._wanted.set()
        if second:
            raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[Stop]:
    """Until the end of the block, the first signal is a wish."""
    stop = Stop()
    before = [(number, signal.signal(number, stop.hear)) for number in _SIGNALS]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
