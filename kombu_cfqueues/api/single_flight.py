"""One thread makes a request, and the other threads that want its result wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from ..errors import ConnectionFailed, PermanentError, copy_of
from ..runtime.flag import Event
from ..runtime.locks import new_lock

T = TypeVar("T")


class SingleFlight:
    """Requests of a process, at most one at a time for each key.

    Threads that wait for a request share its result.  They also share its `PermanentError`, because
    another request would fail as well.  After any other failure the next thread makes a request,
    because the failed one may have had an earlier deadline.

    A forked child needs a new `SingleFlight`: the parent's threads do not exist there.
    """

    def __init__(self) -> None:
        self._lock = new_lock()  # guards _flights; never held over a request
        self._flights: dict[Hashable, _Flight] = {}

    def run(
        self,
        key: Hashable,
        *,
        known: Callable[[], T | None],
        ask: Callable[[], T],
        action: str,
        deadline: float,
    ) -> T:
        """Return what is *known*, or else the result of one thread's *ask*.

        Args:
            key: What is asked for.
            known: Returns the result if this process has it; must not block.
            ask: Makes the request, and stores the result for *known*.
            action: What *ask* does, for the text of a timeout.
            deadline: When to stop waiting, in seconds of `time.monotonic`.

        Raises:
            ConnectionFailed: The deadline passed while another thread asked.
            CFQueuesError: What *ask* raised.
        """
        while True:
            own = _Flight()
            try:
                with self._lock:
                    if (found := known()) is not None:
                        return found
                    flight = self._flights.setdefault(key, own)
                if flight is own:
                    return own.fly(ask)
            finally:
                # Even after a KeyboardInterrupt: nothing else would wake the other threads.
                self._end(key, own)
            if not flight.landed.wait(deadline - time.monotonic()):
                raise _timeout(action)
            if flight.error is not None:
                raise copy_of(flight.error)
            if flight.results:
                return cast("T", flight.results[0])

    def _end(self, key: Hashable, flight: _Flight) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.landed.set()


def _timeout(action: str) -> ConnectionFailed:
    return ConnectionFailed(f"{action} failed: it did not end before the deadline; try again")


class _Flight:
    """The request of one thread.

    Attributes:
        landed: Set when the request has ended, whatever ended it.
        results: Its result, if it has one; the result may be None.
        error: Its permanent failure, if it has one.
    """

    def __init__(self) -> None:
        self.landed = Event()
        self.results: list[Any] = []
        self.error: PermanentError | None = None

    def fly(self, ask: Callable[[], T]) -> T:
        """Return what *ask* returns, and keep it, or its permanent failure, for other threads."""
        try:
            result = ask()
        except PermanentError as error:
            self.error = error
            raise
        self.results.append(result)
        return result
