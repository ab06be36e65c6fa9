"""Refuses a publish inside a publish of the same thread, because the two would deadlock.

A signal handler runs in the main thread between any two of its instructions, and a finalizer runs
in any thread.  Either may interrupt a publish that holds a lock or is about to post for others.  If
it then publishes too, it waits forever for the publish that it has interrupted.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Final

from ..errors import PermanentError


class _NoReentry:
    """A context manager whose block runs at most once in the stack of a thread or greenlet.

    Raises:
        PermanentError: The block already runs in this stack.  Nothing was sent.
    """

    def __init__(self) -> None:
        # By thread: the frame whose block runs.  Each access is a single step, so there is no lock.
        self._frames: dict[int, FrameType] = {}

    def __enter__(self) -> None:
        # Look `get_ident` up at each call, because gevent and eventlet may replace it later.
        thread = threading.get_ident()
        # Check the stack too: an exception from a signal handler may have skipped `__exit__`, and
        # the system reuses the numbers of threads that have ended.
        if (frame := self._frames.get(thread)) is not None and _is_in_stack(frame):
            raise PermanentError(
                "the message was not sent: this thread is already publishing, and a signal "
                "handler, finalizer or logging handler interrupted it to publish another message, "
                "which would deadlock; publish from another thread, or set a flag and publish later"
            )
        self._frames[thread] = sys._getframe(1)

    def __exit__(self, *_: object) -> None:
        self._frames.pop(threading.get_ident(), None)


no_reentry: Final = _NoReentry()


def _is_in_stack(frame: FrameType) -> bool:
    """Whether *frame* is in the stack of the current thread."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None
