"""Turns Ctrl-C and SIGTERM into a request to stop cleanly; a second signal stops at once."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

SIGNAL_POLL_SECONDS: Final = 0.5
"""Longest single wait for a signal."""


class Stop:
    """Whether the command has been asked to stop; `stop_on_signals` makes one.

    Attributes:
        requested: Whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        # Not a `threading.Event`, whose lock the interrupted thread may hold: the handler would
        # wait for it forever.  A handler may call `SimpleQueue.put` at any moment.
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wait(self, seconds: float) -> bool:
        """Wait up to *seconds* for a signal, and return whether one has arrived."""
        if not self.requested:
            with suppress(queue.Empty):
                self._signals.get(timeout=max(0.0, seconds))
                self._signals.put(None)  # for others that wait
        return self.requested

    def wait_for_signal(self) -> None:
        """Block until a signal arrives."""
        # Windows handles no signal during a wait without a timeout.
        while not self.wait(SIGNAL_POLL_SECONDS):
            pass

    def handle_signal(self, _signal: int, _frame: FrameType | None) -> None:
        """Record a signal.

        Raises:
            KeyboardInterrupt: It is the second one.
        """
        second, self.requested = self.requested, True
        self._signals.put(None)
        if second:
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Handle the signals until the end of the block."""
    stop = Stop()
    before = [(number, signal.signal(number, stop.handle_signal)) for number in _SIGNALS]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
