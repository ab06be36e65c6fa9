"""The allowance of a token, as arithmetic: its tokens, how it earns them, and its stops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from .. import limits
from ..errors import Scope
from ..options import DEFAULT_REQUEST_BURST, DEFAULT_REQUEST_RATE
from ..runtime.rng import rng
from .share import Share

INITIAL_TOKENS: Final = 5
"""Tokens of a new bucket.  Few, because requests that left earlier are unknown."""

SAME_BLOCK_SECONDS: Final = 10.0
"""A block that begins this soon after the end of another one is the same block.

The clocks of a fleet differ slightly.  A machine that returned too early must not conclude that it
made no request before the block."""

_LATE_TOKENS: Final = 0.01
"""A request waited for a token if at least this much of a token was missing."""

_ROUNDING: Final = 1e-9
"""The fraction of a token that rounding may lose."""


SHARERS: Final = 16
"""A process or machine that cannot ask the others uses the allowance divided by this number.

If each of them used the whole allowance, together they would cause the block that the allowance
exists to avoid."""


class Limit(NamedTuple):
    """A rate limit: in any ``s`` seconds at most ``rate * s + burst`` requests leave."""

    rate: float
    """Requests per second, after the burst is spent."""
    burst: int
    """Requests that may leave at once after a time without requests."""

    @property
    def alone(self) -> Limit:
        """What one of the sharers may use while it does not know what the others do."""
        return Limit(self.rate / SHARERS, 1)


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
    share: Share = Share()
    """The machine's part of the limit, which it learns from blocks."""

    @classmethod
    def new(cls, limit: Limit, now: float) -> Allowance:
        """Return the allowance of a bucket without a known history."""
        tokens = min(limit.burst, INITIAL_TOKENS)
        return cls(tokens=tokens, counted_at=now, share=Share(counted_from=now))

    @classmethod
    def of_row(cls, row: Sequence[float]) -> Allowance:
        """Return the allowance whose `row` is *row*."""
        numbers: list[Any] = list(row)
        own = len(cls._fields) - 1
        return cls._make([*numbers[:own], Share._make(numbers[own:])])

    @property
    def row(self) -> tuple[float, ...]:
        """The whole allowance as numbers, for a row of the file; `ROW` has their names."""
        return (*self[:-1], *self.share)

    def mine(self, limit: Limit) -> Limit:
        """Return this machine's part of *limit*."""
        if self.share.is_whole:
            return limit
        return Limit(limit.rate * self.share.part, max(1, int(limit.burst * self.share.part)))

    def counted(self, limit: Limit, now: float) -> Allowance:
        """Return a copy with the tokens that were earned until *now*."""
        if now < self.counted_at:  # the clock restarted: earn nothing, and keep at most one
            share = self.share.moved(now - self.counted_at)
            return self._replace(tokens=min(self.tokens, 1.0), counted_at=now, share=share)
        limit = self.mine(limit)
        start = min(now, self._earns_from)
        slow = max(0.0, min(now, self.slow_until) - start)
        full = now - start - slow
        tokens = min(float(limit.burst), self.tokens + slow * self.slow_rate + full * limit.rate)
        return self._replace(tokens=tokens, counted_at=now)

    def ready_at(self, limit: Limit, tokens: int = 1) -> float:
        """Return when *tokens* tokens will be available: ``counted_at`` if they already are."""
        limit = self.mine(limit)
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
        """The time from which tokens that are not counted yet are earned; a block earns none."""
        return max(self.counted_at, self.stopped_until)

    def stop_of(self, *, publishing: bool) -> tuple[float, str]:
        """Return until when no admin request, or no *publishing* one, may leave, and why."""
        if publishing and self.publishing_stopped_until > self.stopped_until:
            return self.publishing_stopped_until, "the API has stopped publishing"
        return self.stopped_until, "the API has stopped every call of the token"

    def spent(self, limit: Limit | None = None, waited_seconds: float = 0.0) -> Allowance:
        """Return a copy with one token less.

        Args:
            limit: The whole limit.
            waited_seconds: How long the request has waited.  The share may grow if the request
                waited for a token and not for something else.
        """
        waited = False
        if limit is not None and not self.share.is_whole:
            # A request that waited for something else finds more tokens than it needs.
            earned = waited_seconds * self.mine(limit).rate
            waited = self.tokens - earned < 1 - _LATE_TOKENS
        share = self.share.counted(self.counted_at, waited=waited)
        return self._replace(tokens=self.tokens - 1, share=share)

    def guarded(self, limit: Limit, left: int, reset_seconds: float) -> Allowance:
        """Return a copy after the server said that *left* requests are left until its reset.

        Changes the rate only if the bucket could spend more than that before the reset.  Then the
        requests that are left are spread over the time until the reset.  The newest answer
        replaces the one before it.
        """
        if left >= self.tokens + self.mine(limit).rate * reset_seconds:
            return self._replace(slow_until=self.counted_at)
        return self._replace(
            tokens=0.0,
            slow_rate=left / reset_seconds,
            slow_until=self.counted_at + reset_seconds,
        )

    def stopped(self, scope: Scope, until: float) -> Allowance:
        """Return a copy after the API has stopped *scope*, which is not `Scope.QUEUE`.

        After a block of the token, the bucket has at most the tokens of a new one.  Otherwise all
        machines that were blocked would return with a full burst in the same second.
        """
        if scope is Scope.PUBLISHING:
            until = max(self.publishing_stopped_until, until)
            return self._replace(publishing_stopped_until=until)
        return self._replace(
            tokens=min(self.tokens, float(INITIAL_TOKENS)),
            stopped_until=max(self.stopped_until, until),
        )

    def blocked(self, limit: Limit, until: float) -> Allowance:
        """Return a copy after the API has said that the token is blocked *until* then.

        The machine learns its share from the block.  All machines of a fleet are blocked at once,
        so each starts with a random part of a token, and their first requests do not coincide.
        """
        stopped = self.stopped(Scope.EVERYTHING, until)
        if self.stopped_until and self.counted_at < self.stopped_until + SAME_BLOCK_SECONDS:
            return stopped
        share = self.share.learned(limit.rate, self.counted_at, stopped.stopped_until)
        return stopped._replace(tokens=min(stopped.tokens, rng.random()), share=share)

    def lesson(self, limit: Limit, who: str) -> str:
        """Return what the current block has taught *who*, as a sentence; "" if there is none."""
        if self.share.counted_from <= self.counted_at:
            return ""
        return (
            f"about {self.share.own:,.0f} of the {limits.REQUESTS_PER_WINDOW:,} requests were made "
            f"by {who}, which sends at most {self.mine(limit).rate:.3g} requests per second from "
            "now on"
        )


ROW: Final = (*Allowance._fields[:-1], *Share._fields)
"""The names of the numbers in `Allowance.row`."""

_LEFT_PATTERN: Final = re.compile(r";\s*r=(\d{1,9})(?!\d)")
_RESET_PATTERN: Final = re.compile(r";\s*t=(\d{1,9})(?!\d)")


def parse_ratelimit(header: str) -> tuple[int, int] | None:
    """Return the requests left and the seconds until the reset, of the strictest policy.

    >>> parse_ratelimit('"default";r=50;t=30')
    (50, 30)

    A reset is at most one of Cloudflare's windows away, so a longer time is cut: a wrong header
    must not slow down all processes of the machine for a day.

    Returns None if *header* has no such policy: the header is a hint, and must not fail a request.
    """
    grants = []
    for policy in header.split(","):
        left, reset = _LEFT_PATTERN.search(policy), _RESET_PATTERN.search(policy)
        if left and reset and int(reset[1]) > 0:
            grants.append((int(left[1]), min(int(reset[1]), limits.WINDOW_SECONDS)))
    return min(grants, key=lambda grant: grant[0] / grant[1], default=None)
