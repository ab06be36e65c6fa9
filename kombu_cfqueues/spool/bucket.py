"""The allowance in the file: one bucket per token.  The caller is in a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import RateLimited, Scope
from ..metrics import metrics
from ..rate_limit import Allowance, Limit, no_permit, stopped
from ..rate_limit.allowance import ROW
from ..waiting_room import Kind

if TYPE_CHECKING:
    import sqlite3

NO_LIMIT: Final = Limit(rate=1e6, burst=10**6)
"""No limit: for a server without a rate limit, or where each process limits its own requests."""

_COLUMNS: Final = ", ".join(ROW)
_VALUES: Final = ", ".join("?" * (1 + len(ROW)))


class LearnedShare(NamedTuple):
    """The share of the rate that a machine has learned, for display.

    Attributes:
        part: The part of the rate that the machine uses.
        rate: Requests per second that the machine uses.
        own: About how many of the requests before the last block this machine made.
        age_seconds: Seconds since that block began.
        held_seconds: Seconds until the machine tries a larger share.
    """

    part: float
    rate: float
    own: float
    age_seconds: float
    held_seconds: float


class Bucket:
    """One token's allowance at one moment, which can be read, spent and saved.

    Args:
        connection: In a transaction.
        token: The token's hash.
        limit: The rate at which the bucket fills, and its size.
        now: The monotonic clock.
    """

    def __init__(
        self, connection: sqlite3.Connection, token: str, limit: Limit, now: float
    ) -> None:
        self._connection = connection
        self._token = token
        self._limit = limit
        self._now = now
        self._allowance = self._load()
        if limit is not NO_LIMIT:
            self._allowance = self._allowance.counted(limit, now)
            metrics.share = self._allowance.share.part

    @property
    def tokens(self) -> float:
        """Number of requests that may leave now."""
        if self._limit is NO_LIMIT:
            return float(self._limit.burst)
        # Rounding may leave the sum slightly below an integer.
        return self._allowance.tokens + 1e-9

    def ready_at(self, tokens: int = 1) -> float:
        """Return when *tokens* requests may leave, in monotonic seconds."""
        if self._limit is NO_LIMIT:
            return self._now
        return self._allowance.ready_at(self._limit, tokens)

    def stopped(self, *, publishing: bool) -> RateLimited | None:
        """Return the 429 that stops admin requests, or *publishing*; None if there is none."""
        until, why = self._allowance.stop_of(publishing=publishing)
        if until <= self._now:
            return None
        return stopped(why, until - self._now, self.lesson)

    @property
    def share(self) -> LearnedShare | None:
        """What blocks have taught; None if this machine uses all of the rate."""
        share = self._allowance.share
        if self._limit is NO_LIMIT or share.is_whole:
            return None
        return LearnedShare(
            share.part,
            self._allowance.mine(self._limit).rate,
            share.own,
            max(0.0, self._now - share.learned_at),
            max(0.0, share.grows_at - self._now),
        )

    @property
    def lesson(self) -> str:
        """What a block has taught this machine; see `Allowance.lesson`."""
        if self._limit is NO_LIMIT:
            return ""
        return self._allowance.lesson(self._limit, "this machine")

    def exhausted(self) -> RateLimited | None:
        """Return the error for a request that cannot leave now; None if one can."""
        seconds = self.ready_at() - self._now
        if seconds <= 0:
            return None
        return no_permit(self._limit, seconds, self._allowance)

    def spend(self, kind: Kind, waited_seconds: float = 0.0) -> None:
        """Take a permit for a request of *kind* that has waited for this long."""
        self._take_token(waited_seconds)
        self._connection.execute("UPDATE machine SET last_kind = ?", (kind,))

    def _take_token(self, waited_seconds: float) -> None:
        # Without a limit, the bucket stays as it is, because other processes may have a limit.
        if self._limit is not NO_LIMIT:
            self._save(self._allowance.spent(self._limit, waited_seconds))

    def stop(self, scope: Scope, seconds: float, *, is_block: bool = False) -> float:
        """Stop the requests of *scope* for this many seconds; return when that ends (monotonic).

        The machine learns its share from a block of the token; see `CFQueuesError.is_block`.
        """
        until = self._now + seconds
        if is_block and self._limit is not NO_LIMIT:
            self._save(self._allowance.blocked(self._limit, until))
        else:
            self._save(self._allowance.stopped(scope, until))
        return until

    def would_heed(self, left: int, reset_seconds: float) -> bool:
        """Whether `heed` would change anything."""
        guarded = self._allowance.guarded(self._limit, left, reset_seconds)
        return guarded.slow_until > self._now or self._allowance.slow_until > self._now

    def heed(self, left: int, reset_seconds: float) -> None:
        """Spread the requests that the server has *left* over the time until its reset."""
        self._save(self._allowance.guarded(self._limit, left, reset_seconds))

    def _load(self) -> Allowance:
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM bucket WHERE token = ?",  # noqa: S608  constant names
            (self._token,),
        ).fetchone()
        if row is not None:
            return Allowance.of_row(row)
        new = Allowance.new(self._limit, self._now)
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM bucket ORDER BY counted_at DESC LIMIT 1"  # noqa: S608
        ).fetchone()
        if row is None:
            return new
        # The token was replaced.  The new token inherits what the old one spent and its stops,
        # because Cloudflare's limit applies to the user.  It also inherits the machine's share.
        before = Allowance.of_row(row).counted(self._limit, self._now)
        return before._replace(tokens=min(before.tokens, new.tokens))

    def _save(self, allowance: Allowance) -> None:
        self._allowance = allowance
        if self._limit is not NO_LIMIT:
            metrics.share = allowance.share.part
        self._connection.execute(
            f"INSERT OR REPLACE INTO bucket (token, {_COLUMNS}) VALUES ({_VALUES})",  # noqa: S608
            (self._token, *allowance.row),
        )


def last_kind(connection: sqlite3.Connection) -> Kind | None:
    """Return the kind of request that got the last permit."""
    (kind,) = connection.execute("SELECT last_kind FROM machine").fetchone()
    return None if kind is None else Kind(kind)
