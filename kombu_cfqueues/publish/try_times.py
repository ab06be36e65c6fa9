"""When a request for a caller may leave: not during a pause, and early enough for an answer."""

from __future__ import annotations

from math import inf

from ..retry import LAST_TRY_SECONDS
from .callers import Caller
from .sender import Sender


class TryTimes:
    """The times between which a request for a caller may leave.

    Args:
        sender: Knows the current pause, and how long a request takes.
        shared: Whether other processes may post the same messages.
    """

    def __init__(self, sender: Sender, *, shared: bool) -> None:
        self._sender = sender
        self._shared = shared

    def last_moment(self, caller: Caller) -> float:
        """Return until when a request for *caller* may leave, in monotonic seconds.

        The request must be answered before the deadline.  A single slow answer must not keep every
        caller from trying, so the first half of a caller's whole time is always open for tries.
        """
        return max(caller.deadline - self._sender.request_seconds, caller.half_time)

    def resumes_at(self, caller: Caller) -> float:
        """Return the time from which a request for *caller* may leave, in monotonic seconds.

        A pause that the server did not ask for is only a precaution.  It does not prevent a
        caller's first try, because the failure may be over, or its last try.
        """
        pause = self._sender.pause
        if pause is None:
            return 0.0
        until = pause.until
        if not caller.has_failed():
            until = min(until, caller.half_time)
        last_try = self._last_try(caller)
        if pause.since < last_try:
            until = min(until, last_try)
        return max(until, pause.asked_until)

    def next_within_pause(self, caller: Caller, now: float) -> float:
        """Return when *caller* may next try amid a pause, in monotonic seconds; `inf` for never.

        The pause may begin at any time before, and nobody tells the caller of it.
        """
        tries = [self._last_try(caller)]
        if not caller.has_failed():
            tries.append(caller.half_time)
        return min((at for at in tries if at > now), default=inf)

    def _last_try(self, caller: Caller) -> float:
        margin = min(LAST_TRY_SECONDS, (caller.deadline - caller.half_time) / 5)
        return self.last_moment(caller) - margin

    def pause_is_too_long(self, caller: Caller) -> bool:
        """Whether the pause ends after the last moment at which *caller* may post."""
        pause = self._sender.pause
        if caller.is_late or pause is None:
            return False
        # Other processes post from a shared room.  Only a pause that the server asked for stops
        # them too.
        until = pause.asked_until if self._shared else self.resumes_at(caller)
        return until > self.last_moment(caller)
