"""The allowance of a token, for the threads of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .. import limits
from ..errors import CFQueuesError, RateLimited, Scope
from ..metrics import metrics
from ..runtime.clock import Clock
from ..runtime.fork import renew_in_child
from .allowance import CLOUDFLARE_LIMIT, INITIAL_TOKENS, Allowance, Limit, parse_ratelimit
from .stop_log import StopLog
from .waits import QUEUE_STOPPED, no_permit, stopped

UNCLAIMED_SECONDS: Final = 1.0
"""A waiter that does not ask within this time after `Waiter.ready_at` is considered dead and is
removed.  A live thread asks within milliseconds, and Cloudflare allows about four requests per
second, so a dead waiter costs the others little."""


class Waiter:
    """A thread that waits for a permit.  It may be used for several permits, one after the other.

    Attributes:
        since: When it began to wait, in monotonic seconds; None if it does not wait.
        ready_at: When to ask again, in monotonic seconds.
    """

    __slots__ = ("ready_at", "since")

    def __init__(self) -> None:
        self.since: float | None = None
        self.ready_at = 0.0


class Budget:
    """The allowance of one API token, shared by the threads of a process.

    Threads get permits in the order in which they asked.

    Args:
        limit: The limit; None means no limit, so that only the API's refusals make callers wait.
        clock: Tells the time and sleeps.
        stop_log: Logs stops.
    """

    def __init__(
        self,
        limit: Limit | None,
        *,
        clock: Clock | None = None,
        stop_log: StopLog | None = None,
    ) -> None:
        self._limit = limit
        self._clock = clock or Clock()
        self.stop_log = stop_log or StopLog(self._clock)
        self._lock = self._clock.lock()  # guards all fields below; never held during a sleep
        now = self._clock.monotonic()
        self._allowance = Allowance.new(limit, now) if limit else Allowance(0.0, now)
        self._queue_stopped_until: dict[str, float] = {}
        self._waiters: list[Waiter] = []  # in the order in which they asked
        self._free = limit is None  # no limit, and no 429 so far; also read without the lock
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start without the parent's threads, and without the tokens that the parent will spend."""
        self._lock = self._clock.lock()
        self._waiters = []
        tokens = min(self._allowance.tokens, INITIAL_TOKENS)
        self._allowance = self._allowance._replace(tokens=tokens)

    def acquire(
        self,
        deadline: float,
        *,
        queue: str | None = None,
        for_message: bool = False,
        is_known: Callable[[], bool] | None = None,
    ) -> None:
        """Block until one more request may leave.

        Args:
            deadline: Until when this may block, in seconds of the clock.
            queue: The id of the queue to which the request publishes; None for any other request.
            for_message: Whether a message waits for the answer.  Not used: the threads of one
                process get their permits in the order in which they asked.
            is_known: Whether another process knows the answer.  Not used: processes share nothing.

        Raises:
            RateLimited: The wait would pass *deadline*.  Raised as soon as that is known; no token
                is spent.
        """
        if self._free:
            return
        waiter = Waiter()
        try:
            while (refusal := self._try(waiter, queue)) is not None:
                now = self._clock.monotonic()
                if waiter.ready_at > max(now, deadline):
                    raise refusal
                self._clock.sleep(max(0.0, waiter.ready_at - now))
        finally:
            self.leave(waiter)

    def try_take(self, waiter: Waiter, *, queue: str) -> RateLimited | None:
        """Take a permit for a request that publishes to *queue*, if one is free; never block.

        Args:
            waiter: The caller, which asks again at ``waiter.ready_at`` if it gets no permit.
            queue: The id of the queue to which the request publishes.

        Returns:
            None if a permit was taken, else why not; ``waiter.ready_at`` is when one may be free.
        """
        return None if self._free else self._try(waiter, queue)

    def leave(self, waiter: Waiter) -> None:
        """Stop waiting for a permit."""
        if waiter in self._waiters:
            with self._lock:
                self._leave(waiter)

    def observe(self, ratelimit: str | None) -> None:
        """Adapt to the ``Ratelimit`` header of a response; None if it had none."""
        if ratelimit is None or self._limit is None:
            return
        grant = parse_ratelimit(ratelimit)
        if grant is None:
            return
        with self._lock:
            counted = self._allowance.counted(self._limit, self._clock.monotonic())
            self._allowance = counted.guarded(self._limit, *grant)

    def refused(self, error: CFQueuesError, *, queue: str | None = None) -> None:
        """Stop the requests that *error* concerns (`CFQueuesError.stops`).

        They stop for the ``retry_after`` seconds of *error*.  Without ``retry_after``, a single
        queue is not stopped, because the caller that retries backs off; publishing and all calls
        are stopped for the length of Cloudflare's window.
        """
        scope = error.stops
        if scope is None:
            return
        seconds = limits.WINDOW_SECONDS if error.retry_after is None else error.retry_after
        with self._lock:
            now = self._clock.monotonic()
            self._free = False
            if scope is not Scope.QUEUE:
                self._allowance = self._stopped(error, now, now + seconds)
            elif queue is not None and error.retry_after:
                stops = {q: until for q, until in self._queue_stopped_until.items() if until > now}
                self._queue_stopped_until = stops | {queue: now + seconds}
            lesson = self._lesson()
        if scope is not Scope.QUEUE:
            self.stop_log.stopped(error, now + seconds, lesson if error.is_block else "")

    def _stopped(self, error: CFQueuesError, now: float, until: float) -> Allowance:
        """Return the allowance after *error*, which stops more than a queue.

        The caller holds _lock.
        """
        if self._limit is None:
            return self._allowance.stopped(error.stops or Scope.EVERYTHING, until)
        counted = self._allowance.counted(self._limit, now)
        if error.is_block:
            blocked = counted.blocked(self._limit, until)
            metrics.share = blocked.share.part
            return blocked
        return counted.stopped(error.stops or Scope.EVERYTHING, until)

    def _lesson(self) -> str:
        """Return what a block has taught.  The caller holds _lock."""
        return self._allowance.lesson(self._limit, "this process") if self._limit else ""

    def _try(self, waiter: Waiter, queue: str | None) -> RateLimited | None:
        """Spend a token, or return why not; `Waiter.ready_at` says when to try again."""
        why = self._try_locked(waiter, queue)
        if why is None:
            self.stop_log.resumed()
        return why

    def _try_locked(self, waiter: Waiter, queue: str | None) -> RateLimited | None:
        with self._lock:
            now = self._clock.monotonic()
            if waiter.since is None:
                waiter.since = now
            waiter.ready_at, stop = self._ready_at(waiter, queue, now)
            seconds = waiter.ready_at - now
            if seconds > 0:
                if stop:
                    return stopped(stop, seconds, self._lesson())
                return no_permit(self._limit or CLOUDFLARE_LIMIT, seconds, self._allowance)
            self._allowance = self._allowance.spent(self._limit, now - waiter.since)
            metrics.share = self._allowance.share.part
            self._leave(waiter)
            metrics.waited(now - waiter.since)
            waiter.since = None
            return None

    def _ready_at(self, waiter: Waiter, queue: str | None, now: float) -> tuple[float, str]:
        """Return when *waiter* may take a permit, and what the API has stopped or "".

        The caller holds _lock.
        """
        allowance = self._allowance
        stop, why = allowance.stop_of(publishing=queue is not None)
        if queue is not None:
            of_queue = self._queue_stopped_until.get(queue, 0.0)
            stop, why = max((stop, why), (of_queue, QUEUE_STOPPED))
        if stop > now:
            self._leave(waiter)  # waiters for other queues may go
            return stop, why
        if self._limit is None:
            return now, ""
        self._allowance = allowance.counted(self._limit, now)
        # A thread that was interrupted while it waited does not ask again, and must not delay
        # others.
        self._waiters = [
            other for other in self._waiters if now < other.ready_at + UNCLAIMED_SECONDS
        ]
        if waiter not in self._waiters:
            self._waiters.append(waiter)
        # A caller may take a token when there are tokens for all callers before it as well.  So no
        # caller has to wake another, and a caller that is late or gives up does not delay others.
        tokens = 1 + self._waiters.index(waiter)
        return self._allowance.ready_at(self._limit, tokens), ""

    def _leave(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
