"""The request allowance of an API token: how many requests may leave, and what stops them.

Cloudflare counts requests per token.  Exceeding the limit blocks *every* call of the token for 5
minutes (``limits.REQUESTS_PER_WINDOW``), so it is always cheaper to wait here.

`Allowance` is arithmetic: an immutable value of a few numbers, whose methods return a changed copy.
`Budget` keeps one for the threads of a process.  The spool keeps one in its file, for the processes
of a machine.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from . import limits
from .errors import CFQueuesError, RateLimited, Scope
from .metrics import metrics
from .options import DEFAULT_REQUEST_BURST, DEFAULT_REQUEST_RATE
from .runtime.clock import Clock
from .runtime.fork import renew_in_child

logger = logging.getLogger(__name__)

INITIAL_TOKENS: Final = 5
"""Tokens of a new bucket: requests that left before this process started are unknown."""

_ROUNDING: Final = 1e-9
"""The fraction of a token that a sum of floats may miss."""

UNCLAIMED_SECONDS: Final = 1.0
"""A waiter that does not ask within this time of `Waiter.ready_at` is considered dead and removed.
A live thread asks within milliseconds, and Cloudflare allows about four requests per second, so a
dead waiter costs the others little."""

SAME_STOP_SECONDS: Final = 1.0
"""Two stops of the API that end this close together are one, which two threads have seen."""


class NoPermit(RateLimited):
    """The request allowance is used up.  The library says so, not the server."""


def no_permit(limit: Limit, seconds: float) -> NoPermit:
    """Return the error of a request that would have to wait *seconds* for a permit of *limit*."""
    text = "the request allowance is used up"
    if limit.rate < 1:
        text += (
            f", which lets one request leave every {1 / limit.rate:.3g} s (request_rate): raise "
            "publish_timeout, or use publish_mode='spool'"
        )
    return NoPermit(text, retry_after=seconds)


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


class Limit(NamedTuple):
    """A rate limit: in any ``s`` seconds at most ``rate * s + burst`` requests leave."""

    rate: float
    """Requests per second, after the burst is spent."""
    burst: int
    """Requests that may leave at once after a time without requests."""


CLOUDFLARE_LIMIT: Final = Limit(DEFAULT_REQUEST_RATE, DEFAULT_REQUEST_BURST)
"""The default limit of requests to Cloudflare."""


class Allowance(NamedTuple):
    """What a token may still send, as plain numbers.  Times are seconds of one monotonic clock."""

    tokens: float
    """Requests that may leave at once, as counted at ``counted_at``."""
    counted_at: float
    slow_rate: float = 0.0
    """Requests per second until ``slow_until``, if the server has said that few are left."""
    slow_until: float = 0.0
    stopped_until: float = 0.0
    """No request may leave before this time."""
    publishing_stopped_until: float = 0.0
    """No publishing request may leave before this time."""

    @classmethod
    def new(cls, limit: Limit, now: float) -> Allowance:
        """Return the allowance of a bucket without a known history."""
        return cls(tokens=min(limit.burst, INITIAL_TOKENS), counted_at=now)

    def counted(self, limit: Limit, now: float) -> Allowance:
        """Return a copy with the tokens that were earned until *now*."""
        if now < self.counted_at:  # the clock restarted: earn nothing, and keep at most one
            return self._replace(tokens=min(self.tokens, 1.0), counted_at=now)
        start = min(now, self._earns_from)
        slow = max(0.0, min(now, self.slow_until) - start)
        full = now - start - slow
        tokens = min(float(limit.burst), self.tokens + slow * self.slow_rate + full * limit.rate)
        return self._replace(tokens=tokens, counted_at=now)

    def ready_at(self, limit: Limit, tokens: int = 1) -> float:
        """Return when *tokens* tokens will be available: ``counted_at`` if they already are."""
        missing = tokens - self.tokens
        if missing <= _ROUNDING:
            return self.counted_at
        start = self._earns_from
        slow = max(0.0, self.slow_until - start)
        if missing <= slow * self.slow_rate:
            return start + missing / self.slow_rate
        return start + slow + (missing - slow * self.slow_rate) / limit.rate

    @property
    def _earns_from(self) -> float:
        """Since when tokens have been earned that are not counted yet: none during a block."""
        return max(self.counted_at, self.stopped_until)

    def spent(self) -> Allowance:
        """Return a copy with one token less."""
        return self._replace(tokens=self.tokens - 1)

    def guarded(self, limit: Limit, left: int, reset_seconds: float) -> Allowance:
        """Return a copy after the server said that *left* requests are left until its reset.

        Changes the rate only if the bucket could spend more than that before the reset.  Then the
        requests that are left are spread over the time until the reset.  The newest answer
        replaces the one before it.
        """
        if left >= self.tokens + limit.rate * reset_seconds:
            return self._replace(slow_until=self.counted_at)
        return self._replace(
            tokens=0.0,
            slow_rate=left / reset_seconds,
            slow_until=self.counted_at + reset_seconds,
        )

    def stopped(self, scope: Scope, until: float) -> Allowance:
        """Return a copy after the API has stopped *scope*, which is not `Scope.QUEUE`.

        After a block of the token, the bucket is as good as new: what was saved before is gone,
        or all machines that were blocked would come back with a full burst in the same second.
        """
        if scope is Scope.PUBLISHING:
            until = max(self.publishing_stopped_until, until)
            return self._replace(publishing_stopped_until=until)
        return self._replace(
            tokens=min(self.tokens, float(INITIAL_TOKENS)),
            stopped_until=max(self.stopped_until, until),
        )


class StopLog:
    """Logs when the API stops the token, and when requests leave again: one line for each.

    Threads may share it.  Do not call it with a lock held or in a transaction, because a log
    handler is the application's code.

    Args:
        clock: Tells the time.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Log stops in the child too."""
        self._lock = self._clock.lock()
        self._until = 0.0  # until when nothing leaves; guarded by _lock
        self._is_logged = False  # and its end is not; guarded by _lock, but also read without it

    def stopped(self, error: CFQueuesError, until: float) -> None:
        """Log why nothing leaves *until* then, in monotonic seconds, unless a stop is logged.

        A thread that tells late of a stop that has ended, or of the one that is logged, tells
        nothing new.
        """
        now = self._clock.monotonic()
        with self._lock:
            is_new = now >= self._until and until > max(now, self._until + SAME_STOP_SECONDS)
            self._until = max(self._until, until)
            self._is_logged |= is_new
        if is_new:
            logger.warning(
                "the request limit of the API token is reached (HTTP 429), so no message leaves "
                "for %.0f s; messages wait: %s",
                max(0.0, until - now),
                error,
            )

    def resumed(self) -> None:
        """Log that requests leave again, if a stop is logged and has ended."""
        if not self._is_logged:
            return
        with self._lock:
            is_over = self._is_logged and self._until <= self._clock.monotonic()
            self._is_logged &= not is_over
        if is_over:
            logger.info("the block of the API token (HTTP 429) is over; messages leave again")


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
        limit: Limit | None = CLOUDFLARE_LIMIT,
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
            is_known: Whether another process has already asked.  Not used: there is only this one.

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
        """Adapt to the ``Ratelimit`` header of an answer; None if it had none."""
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

        They stop for its ``retry_after`` seconds.

        Without ``retry_after``, a single queue is not stopped, because the caller that retries
        backs off.  Anything else is stopped for the length of Cloudflare's window.
        """
        scope = error.stops
        if scope is None:
            return
        seconds = limits.WINDOW_SECONDS if error.retry_after is None else error.retry_after
        with self._lock:
            now = self._clock.monotonic()
            self._free = False
            if scope is not Scope.QUEUE:
                if self._limit is not None:
                    self._allowance = self._allowance.counted(self._limit, now)
                self._allowance = self._allowance.stopped(scope, now + seconds)
            elif queue is not None and error.retry_after:
                stops = {q: until for q, until in self._queue_stopped_until.items() if until > now}
                self._queue_stopped_until = stops | {queue: now + seconds}
        if scope is not Scope.QUEUE:
            self.stop_log.stopped(error, now + seconds)

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
            waiter.ready_at, stopped = self._ready_at(waiter, queue, now)
            seconds = waiter.ready_at - now
            if seconds > 0:
                if stopped:
                    return RateLimited(stopped, retry_after=seconds)
                return no_permit(self._limit or CLOUDFLARE_LIMIT, seconds)
            self._allowance = self._allowance.spent()
            self._leave(waiter)
            metrics.waited(now - waiter.since)
            waiter.since = None
            return None

    def _ready_at(self, waiter: Waiter, queue: str | None, now: float) -> tuple[float, str]:
        """Return when *waiter* may go as of now, and what the API has stopped, or "".

        The caller holds _lock.
        """
        allowance = self._allowance
        stop, why = allowance.stopped_until, "the API has stopped every call of the token"
        if queue is not None:
            stop, why = max(
                (stop, why),
                (allowance.publishing_stopped_until, "the API has stopped publishing"),
                (self._queue_stopped_until.get(queue, 0.0), "the queue takes no messages now"),
            )
        if stop > now:
            self._leave(waiter)  # waiters for other queues may go
            return stop, why
        if self._limit is None:
            return now, ""
        self._allowance = allowance.counted(self._limit, now)
        # A thread that was interrupted while it waited does not ask again, and must delay nobody.
        self._waiters = [
            other for other in self._waiters if now < other.ready_at + UNCLAIMED_SECONDS
        ]
        if waiter not in self._waiters:
            self._waiters.append(waiter)
        # A caller may go when there are tokens for all callers before it as well.  So no caller has
        # to wake another, and a caller that is late or gives up delays nobody.
        tokens = 1 + self._waiters.index(waiter)
        return self._allowance.ready_at(self._limit, tokens), ""

    def _leave(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)


_LEFT_PATTERN: Final = re.compile(r";\s*r=(\d{1,9})(?!\d)")
_RESET_PATTERN: Final = re.compile(r";\s*t=(\d{1,9})(?!\d)")


def parse_ratelimit(header: str) -> tuple[int, int] | None:
    """Return the requests left and the seconds until the reset, of the strictest policy.

    >>> parse_ratelimit('"default";r=50;t=30')
    (50, 30)

    The reset is at most one of Cloudflare's windows away, whatever the header says: a wrong value
    must not slow down all processes of the machine for a day.

    Returns None if *header* has no such policy: the header is a hint, and must not fail a request.
    """
    grants = []
    for policy in header.split(","):
        left, reset = _LEFT_PATTERN.search(policy), _RESET_PATTERN.search(policy)
        if left and reset and int(reset[1]) > 0:
            grants.append((int(left[1]), min(int(reset[1]), limits.WINDOW_SECONDS)))
    return min(grants, key=lambda grant: grant[0] / grant[1], default=None)
