"""When a request for a caller may leave: not in a pause, and not too late for its answer."""

from __future__ import annotations

from ..retry import LAST_TRY_SECONDS
from .callers import Caller
from .sender import Sender


class TryTimes:
    """The times between which a request for a caller may leave.

    Args:
        sender: Knows why nothing leaves now, and how long a request takes.
        shared: Whether other processes may post the same messages.
    """

    def __init__(self, sender: Sender, *, shared: bool) -> None:
        self._sender = sender
        self._shared = shared

    def last_moment(self, caller: Caller) -> float:
        """Return until when a request for *caller* may leave, in monotonic seconds.

        It has to be answered in time.  One slow answer must not silence everybody, so half of a
        caller's whole time is always there for tries.
        """
        return max(caller.deadline - self._sender.request_seconds, caller.half_time)

    def resumes_at(self, caller: Caller) -> float:
        """Return from when on a request for *caller* may leave, in monotonic seconds.

        A pause that the server did not ask for is only our caution.  It must keep no caller from a
        first try, since the trouble may be over, nor from a last one.
        """
        pause = self._sender.pause
        if pause is None:
            return 0.0
        until = pause.until
        if not caller.has_failed():
            until = min(until, caller.half_time)
        margin = min(LAST_TRY_SECONDS, (caller.deadline - caller.half_time) / 5)
        last_try = self.last_moment(caller) - margin
        if pause.since < last_try:
            until = min(until, last_try)
        return max(until, pause.asked_until)

    def is_hopeless(self, caller: Caller) -> bool:
        """Whether a pause outlasts all that *caller* can do."""
        pause = self._sender.pause
        if caller.is_late or pause is None:
            return False
        # In a shared room others may post, if only our own caution is in the way.
        until = pause.asked_until if self._shared else self.resumes_at(caller)
        return until > self.last_moment(caller)
