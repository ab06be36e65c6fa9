"""The request allowance of an API token: how many requests may leave, and what stops them.

Cloudflare counts requests per token.  Exceeding the limit blocks *every* call of the token for 5
minutes (``limits.REQUESTS_PER_WINDOW``), so it is always cheaper to wait here.

`Allowance` is arithmetic: an immutable value of a few numbers, whose methods return a changed copy.
`Budget` keeps one for the threads of a process.  The spool keeps one in its file, for the processes
of a machine.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from . import limits
from .errors import CFQueuesError, RateLimited, Scope
from .metrics import metrics
from .options import DEFAULT_REQUEST_BURST, DEFAULT_REQUEST_RATE
from .runtime.clock import Clock
from .runtime.fork import renew_in_child

INITIAL_TOKENS: Final = 5
"""Tokens of a new bucket: requests that left before this process started are unknown."""

_ROUNDING: Final = 1e-9
"""The fraction of a token that a sum of floats may miss."""


class Limit(NamedTuple):
    """A rate limit: in any ``s`` seconds at most ``rate * s + burst`` requests leave."""

    rate: float
    """Requests per second, after the burst is spent."""
    burst: int
    """Requests that may leave at once after a quiet time."""


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
        if now < self.counted_at:  # the clock restarted: earn nothing, and keep little
            return self._replace(tokens=min(self.tokens, 1.0), counted_at=now)
        slow = max(0.0, min(now, self.slow_until) - self.counted_at)
        full = now - self.counted_at - slow
        tokens = min(float(limit.burst), self.tokens + slow * self.slow_rate + full * limit.rate)
        return self._replace(tokens=tokens, counted_at=now)

    def ready_at(self, limit: Limit, tokens: int = 1) -> float:
        """Return when *tokens* tokens will be available: ``counted_at`` if they already are."""
        missing = tokens - self.tokens
        if missing <= _ROUNDING:
            return self.counted_at
        slow = max(0.0, self.slow_until - self.counted_at)
        if missing <= slow * self.slow_rate:
            return self.counted_at + missing / self.slow_rate
        return self.counted_at + slow + (missing - slow * self.slow_rate) / limit.rate

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
        """Return a copy after the API has stopped *scope*, which is not `Scope.QUEUE`."""
        if scope is Scope.EVERYTHING:
            return self._replace(stopped_until=max(self.stopped_until, until))
        return self._replace(publishing_stopped_until=max(self.publishing_stopped_until, until))


class Budget:
    """The allowance of one API token, shared by the threads of a process.

    Threads get permits in the order in which they asked.

    Args:
        limit: The limit; None if requests are not limited, so that only a refusal of the API makes
            callers wait.
        clock: Time and waiting.
    """

    def __init__(
        self, limit: Limit | None = CLOUDFLARE_LIMIT, *, clock: Clock | None = None
    ) -> None:
        self._limit = limit
        self._clock = clock or Clock()
        self._lock = self._clock.lock()  # guards all fields below; never held during a sleep
        now = self._clock.monotonic()
        self._allowance = Allowance.new(limit, now) if limit else Allowance(0.0, now)
        self._queue_stopped_until: dict[str, float] = {}
        self._line: list[object] = []  # who waits for a token, in order
        self._free = limit is None  # nothing to wait for, ever yet; also read without the lock
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start without the parent's threads, and without the tokens that the parent will spend."""
        self._lock = self._clock.lock()
        self._line = []
        tokens = min(self._allowance.tokens, INITIAL_TOKENS)
        self._allowance = self._allowance._replace(tokens=tokens)

    def acquire(self, deadline: float, *, queue: str | None = None) -> None:
        """Block until one more request may leave.

        Args:
            deadline: Until when this may block, in seconds of the clock.
            queue: Where the request publishes to; None for every other call.

        Raises:
            RateLimited: The wait would pass *deadline*.  Raised as soon as that is known; no token
                is spent.
        """
        if self._free:
            return
        place = object()
        since = self._clock.monotonic()
        try:
            while wait := self._try(place, queue, deadline):
                self._clock.sleep(wait)
            metrics.waited(self._clock.monotonic() - since)
        finally:
            if place in self._line:
                with self._lock:
                    self._line.remove(place)

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
        """Stop what *error* stops (`CFQueuesError.stops`), for its ``retry_after``.

        Without ``retry_after``, a single queue is not stopped, because the caller that retries
        backs off.  Anything else is stopped for the length of Cloudflare's window.
        """
        scope = error.stops
        if scope is None:
            return
        with self._lock:
            now = self._clock.monotonic()
            self._free = False
            if scope is not Scope.QUEUE:
                seconds = limits.WINDOW_SECONDS if error.retry_after is None else error.retry_after
                self._allowance = self._allowance.stopped(scope, now + seconds)
            elif queue is not None and error.retry_after:
                stops = {q: until for q, until in self._queue_stopped_until.items() if until > now}
                self._queue_stopped_until = stops | {queue: now + error.retry_after}

    def _try(self, place: object, queue: str | None, deadline: float) -> float:
        """Spend a token and return 0, or return the seconds after which to try again."""
        with self._lock:
            now = self._clock.monotonic()
            ready_at, why = self._ready_at(place, queue, now)
            if ready_at > max(now, deadline):
                raise RateLimited(why, retry_after=ready_at - now)
            if ready_at > now:
                return ready_at - now
            self._allowance = self._allowance.spent()
            if place in self._line:
                self._line.remove(place)
            return 0.0

    def _ready_at(self, place: object, queue: str | None, now: float) -> tuple[float, str]:
        """Return when *place* may go as things stand, and why not now.  The caller holds _lock."""
        allowance = self._allowance
        stop, why = allowance.stopped_until, "the API has stopped every call of the token"
        if queue is not None:
            stop, why = max(
                (stop, why),
                (allowance.publishing_stopped_until, "the API has stopped publishing"),
                (self._queue_stopped_until.get(queue, 0.0), "the queue takes no messages now"),
            )
        if stop > now:
            if place in self._line:
                self._line.remove(place)  # those whom this does not stop may go
            return stop, why
        if self._limit is None:
            return now, ""
        self._allowance = allowance.counted(self._limit, now)
        if place not in self._line:
            self._line.append(place)
        # A caller may go when there are tokens for all callers before it as well.  So no caller has
        # to wake another, and a caller that is late or gives up delays nobody.
        tokens = 1 + self._line.index(place)
        return self._allowance.ready_at(self._limit, tokens), "the request allowance is used up"


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
