"""What a machine knows of its share of the token, which other machines may use too.

A machine cannot see the requests of others.  A block of the token is the one thing that all see:
at that moment 1,200 requests were made (``limits.REQUESTS_PER_WINDOW``), and each machine knows how
many were its own.  So it goes on with that share of its rate.  After a while it tries more, in
small steps at first, and it waits longer each time that a block was the answer.

``benchmarks/fleet.py`` simulates a fleet of such machines; the numbers below were chosen with it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .. import limits
from ..options import DEFAULT_REQUEST_RATE

LEAST_SHARE: Final = 1 / 40
"""A machine that has made hardly any request before a block keeps this share.

It may publish as soon as a block is over, and 40 machines that do not publish take no more than
one that does.  Blocked again at this share, it keeps half of it, for fleets of up to 80."""

HOLD_SECONDS: Final = 3600.0
"""How long a machine keeps to a share before it tries more.

Each block that such a try met doubles it, so that a fleet that does not change is blocked ever more
rarely."""

MAX_HOLD_SECONDS: Final = 86_400.0
"""The longest hold: a fleet that has become smaller is noticed within a day."""

STEP_SECONDS: Final = 60.0
"""Interval between two steps of growth."""

PACE: Final = 0.0013
"""The first step makes the share this much larger, the second twice as much, and so on.

The first steps are small: in a fleet that uses all of the limit, a few of them are a block, and
their size is by how much the fleet then misjudges its shares.  If no block comes, nobody else uses
the limit, and the share may grow fast: from 1/40 to the whole in 75 minutes."""


class Share(NamedTuple):
    """The share of one machine.  Times are seconds of one monotonic clock."""

    part: float = 1.0
    """The part of the rate and the burst that the machine uses."""
    grows_at: float = 0.0
    """When more may be tried."""
    hold_seconds: float = HOLD_SECONDS
    """How long the share was last held."""
    steps: int = 0
    """Steps of growth in a row since the last block."""
    learned_at: float = 0.0
    """When the last block taught; 0 if none has."""
    own: float = 0.0
    """About how many requests of its window were this machine's."""
    counted_from: float = 0.0
    """Since when `sent` counts."""
    sent: int = 0
    """Requests of this machine since then."""
    sent_before: int = 0
    """The same of the window before."""

    @property
    def is_whole(self) -> bool:
        """Whether the machine uses all of its rate."""
        return self.part >= 1.0

    def turned(self, now: float) -> Share:
        """Return a copy that counts in the window of *now*."""
        windows = int((now - self.counted_from) / limits.WINDOW_SECONDS)
        if windows < 1:
            return self
        return self._replace(
            counted_from=self.counted_from + windows * limits.WINDOW_SECONDS,
            sent_before=self.sent if windows == 1 else 0,
            sent=0,
        )

    def recent(self, now: float) -> float:
        """Return about how many requests of this machine left in the last window."""
        turned = self.turned(now)
        past = (now - turned.counted_from) / limits.WINDOW_SECONDS
        return turned.sent + turned.sent_before * (1 - past)

    def counted(self, now: float, *, waited: bool) -> Share:
        """Return a copy after one more request; it grows if that one has *waited* for a permit.

        A machine that never waits needs no more than it has.
        """
        turned = self.turned(now)
        share = turned._replace(sent=turned.sent + 1)
        if self.is_whole or not waited or now < self.grows_at:
            return share
        steps = 1 if now - self.grows_at > HOLD_SECONDS else self.steps + 1
        return share._replace(
            part=min(1.0, self.part * (1 + PACE * steps)),
            grows_at=max(self.grows_at, now - STEP_SECONDS) + STEP_SECONDS,
            steps=steps,
        )

    def learned(self, rate: float, now: float, until: float) -> Share:
        """Return a copy after the API has blocked the token.

        Args:
            rate: The whole rate, in requests per second.
            now: When the machine heard of the block.
            until: When the block ends.
        """
        own = max(0.0, self.recent(now) - 1)  # without the one that was refused
        # A rate that somebody has divided by hand is a share already.
        whole = max(1.0, DEFAULT_REQUEST_RATE / rate)
        least = whole * LEAST_SHARE
        least = max(least / 2, min(least, self.part / 2))
        return Share(
            part=min(self.part, max(least, whole * own / limits.REQUESTS_PER_WINDOW)),
            grows_at=until + (hold := self._next_hold(now)),
            hold_seconds=hold,
            learned_at=now,
            own=own,
            counted_from=until,
        )

    def _next_hold(self, now: float) -> float:
        if not self.steps:
            return self.hold_seconds  # others have caused the block
        if now - self.grows_at > HOLD_SECONDS:
            return HOLD_SECONDS  # it grew long ago, and nothing happened
        return min(MAX_HOLD_SECONDS, 2 * self.hold_seconds)

    def moved(self, seconds: float) -> Share:
        """Return a copy for a clock that shows *seconds* more."""
        return self._replace(
            grows_at=self.grows_at + seconds,
            learned_at=self.learned_at and self.learned_at + seconds,
            counted_from=self.counted_from + seconds,
        )
