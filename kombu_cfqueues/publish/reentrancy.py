"""A publish within a publish of the same thread: it would wait for what waits for it.

A signal handler runs in the main thread, between any two steps of what it interrupts, and so does
whatever garbage collection calls.  If that is a publish, which holds a lock or is about to post for
others, a second one below it would wait for ever.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType, TracebackType
from typing import Final

from ..errors import PermanentError


class _NoReentry:
    """Makes sure that a block runs once in a thread's stack, or a greenlet's.

    Raises:
        PermanentError: It runs further up already.  Nothing has been sent.
    """

    def __init__(self) -> None:
        # By thread: the frame whose block runs.  Each access is a single step, so no lock.
        self._frames: dict[int, FrameType] = {}

    def __enter__(self) -> None:
        # Looked up at each call, because gevent and eventlet may replace it later.
        me = threading.get_ident()
        # An exception out of a signal handler may have kept `__exit__` from being called, and a
        # thread may have got the number of one that is gone: what counts is the stack.
        if (frame := self._frames.get(me)) is not None and _is_below(frame):
            raise PermanentError(
                "this thread is publishing already, and a signal handler, a finalizer or a logging "
                "handler has interrupted it to publish another message, which would wait for "
                "ever: start a thread there that publishes, or set a flag and publish later"
            )
        self._frames[me] = sys._getframe(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._frames.pop(threading.get_ident(), None)


no_reentry: Final = _NoReentry()


def _is_below(frame: FrameType) -> bool:
    """Whether *frame* is one of those that have led here."""
    link: FrameType | None = sys._getframe(1)
    while link is not None and link is not frame:
        link = link.f_back
    return link is not None
