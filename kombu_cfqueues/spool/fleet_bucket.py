"""The machine's part of an allowance that Redis shares.  The caller is in a transaction.

One process of the machine at a time asks Redis for a permit, between two transactions, and puts the
permit into the file.  Then the permit goes to the next contender of this machine, like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import RateLimited, Scope
from ..rate_limit import Limit, NoPermit, no_permit
from ..redis_allowance import LONGEST_WAIT_SECONDS, REDIS_TIMEOUT_SECONDS
from .bucket import Bucket

if TYPE_CHECKING:
    import sqlite3

PERMIT_KEPT_SECONDS: Final = 2.0
"""A permit that nothing uses for this long expires.

Its messages may have been withdrawn.  Permits that are used late would add to the requests of a
later window."""

ASK_SECONDS: Final = 4 * REDIS_TIMEOUT_SECONDS
"""Longest time that the other processes of the machine wait for the one that asks Redis.  Longer
than a call may take, so it matters only if that process dies."""

ASK_POLL_SECONDS: Final = 0.01
"""Poll interval while another process asks Redis, which answers in a few milliseconds."""


class Row(NamedTuple):
    """What the file records about Redis.

    Attributes:
        permit_at: When the reserved permit may be used, in monotonic seconds; None without one.
        ask_at: When a process may ask Redis, in monotonic seconds.
        trouble: Why Redis is not used now; None if it is.
    """

    permit_at: float | None = None
    ask_at: float = 0.0
    trouble: str | None = None


class FleetBucket(Bucket):
    """One token's allowance, shared through Redis; without Redis, the machine's own part.

    Args:
        connection: In a transaction.
        token: The token's hash.
        fleet: The allowance of the whole fleet.
        now: The monotonic clock.
        asks: Whether the caller asks Redis next.  Then a permit that it may ask for counts as free.
    """

    def __init__(
        self, connection: sqlite3.Connection, token: str, fleet: Limit, now: float, *,
        asks: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(connection, token, fleet, now)
        self._fleet = fleet
        self._row = row = self._load_row()
        self.trouble = row.trouble
        """Why Redis is not used now; None if it is."""
        self.may_ask = row.permit_at is None and row.ask_at <= now
        """Whether a process may ask Redis for a permit."""
        self._asks = asks and self.may_ask
        if row.trouble and self._allowance.share.is_whole:
            self._limit = fleet.alone  # it has not learned a share
            self._allowance = self._load().counted(self._limit, now)

    @property
    def lesson(self) -> str:
        """What a block has taught this machine; ``""`` while Redis gives out the permits."""
        return super().lesson if self.trouble else ""

    def stop(self, scope: Scope, seconds: float, *, is_block: bool = False) -> float:
        """Stop the requests of *scope*; see `Bucket.stop`.  A share is a part of the fleet rate."""
        self._limit = self._fleet
        return super().stop(scope, seconds, is_block=is_block)

    @property
    def tokens(self) -> float:
        """Number of requests that may leave now."""
        if self._row.permit_at is not None:
            return float(self._row.permit_at <= self._now)
        if self._asks:
            return 1.0
        return super().tokens if self.trouble else 0.0

    def ready_at(self, tokens: int = 1) -> float:
        """Return when *tokens* requests may leave, in monotonic seconds."""
        more = (tokens - 1) / self._fleet.rate
        if self._row.permit_at is not None:
            return max(self._row.permit_at, self._now) + more
        if self._asks:
            return self._now + more
        if self.trouble:
            return super().ready_at(tokens)
        return self._now + ASK_POLL_SECONDS + more

    def exhausted(self) -> RateLimited | None:
        """Return the error for a request that cannot leave now; None if one can."""
        seconds = self.ready_at() - self._now
        if seconds <= 0:
            return None
        if self.trouble and self._row.permit_at is None:
            text = (
                "the request allowance is used up; this machine has only a part of it, because "
                f"Redis cannot be used: {self.trouble}"
            )
            return NoPermit(text, retry_after=seconds)
        return no_permit(self._fleet, seconds)

    def _take_token(self, waited_seconds: float) -> None:
        if self._row.permit_at is None:
            super()._take_token(waited_seconds)
            return
        self._save_row(self._row._replace(permit_at=None))
        # Count the request, so that the machine can learn its share from a later block.
        share = self._allowance.share.counted(self._now, waited=False)
        self._save(self._allowance._replace(share=share))

    def asking(self) -> None:
        """Record that this process asks Redis, so that the others wait for it."""
        self._save_row(self._row._replace(ask_at=self._now + ASK_SECONDS))

    def granted(self, wait: float) -> None:
        """Record that Redis has reserved a permit, which is ready after *wait* seconds."""
        self._save_row(Row(self._now + wait))

    def not_granted(self, pause: float) -> None:
        """Record that Redis answers, and ask it again after *pause* seconds."""
        self._save_row(Row(None, self._now + pause))

    def failed(self, trouble: str, pause: float) -> None:
        """Record that Redis does not answer, and ask it again after *pause* seconds."""
        self._save_row(Row(None, self._now + pause, trouble))

    def _load_row(self) -> Row:
        found = self._connection.execute(
            "SELECT permit_at, ask_at, trouble FROM fleet WHERE token = ?", (self._token,)
        ).fetchone()
        row = Row(*found) if found else Row()
        if row.permit_at is not None and not (
            -PERMIT_KEPT_SECONDS < row.permit_at - self._now < LONGEST_WAIT_SECONDS
        ):
            row = row._replace(permit_at=None)
        return row

    def _save_row(self, row: Row) -> None:
        self._row = row
        self._connection.execute(
            "INSERT OR REPLACE INTO fleet (token, permit_at, ask_at, trouble) VALUES (?, ?, ?, ?)",
            (self._token, *row),
        )
