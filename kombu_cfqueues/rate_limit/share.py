"""The share of the rate that a machine uses if other machines use the same token.

A machine cannot see the requests of other machines, but all machines see a block of the token.  At
that moment 1,200 requests were made (``limits.REQUESTS_PER_WINDOW``), and each machine knows how
many of them it made.  From then on, it uses that share of its rate.  After a while it tries a
larger share, in small steps at first.  After each try that ends in a block, it waits longer.

``benchmarks/fleet.py`` simulates a fleet of such machines; the numbers below were chosen with it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .. import limits
from ..options import DEFAULT_REQUEST_RATE

LEAST_SHARE: Final = 1 / 40
"""The smallest share, for a machine that made hardly any request before a block.

The machine may publish as soon as the block is over, and 40 such machines use at most the rate of
one.  If it is blocked again at this share, it keeps half of it, which suits fleets of up to 80."""

SHARE_HOLD_SECONDS: Final = 3600.0
"""How long a machine keeps a share before it tries a larger one.

The time doubles with each block that ends such a try, so a fleet that does not change is blocked
less and less often."""

MAX_SHARE_HOLD_SECONDS: Final = 86_400.0
"""The longest hold: a fleet that has become smaller is noticed within a day."""

STEP_SECONDS: Final = 60.0
"""Interval between two steps of growth."""

FIRST_STEP: Final = 0.0013
"""Growth of the share in the first step; the second step is twice as large, and so on.

The first steps are small.  In a fleet that uses the whole limit, a few steps cause a block, and the
shares that the machines learn from it are wrong by the size of the steps.  If no block comes, no
other machine uses the limit, and the share may grow fast: from 1/40 to the whole in 75 minutes."""


class Share(NamedTuple):
    """The share of one machine.  Times are seconds of one monotonic clock."""

    part: float = 1.0
    """The part of the rate and the burst that the machine uses."""
    grows_at: float = 0.0
    """When a larger share may be tried."""
    hold_seconds: float = SHARE_HOLD_SECONDS
    """How long the share was last held."""
    steps: int = 0
    """Steps of growth in a row since the last block."""
    learned_at: float = 0.0
    """When the share was last learned from a block; 0 if it never was."""
    own: float = 0.0
    """About how many requests of that block's window this machine made."""
    counted_from: float = 0.0
    """Start of the window in which `sent` counts."""
    sent: int = 0
    """Requests of this machine in that window."""
    sent_before: int = 0
    """Requests of this machine in the window before."""

    @property
    def is_whole(self) -> bool:
        """Whether the machine uses all of its rate."""
        return self.part >= 1.0

    def turned(self, now: float) -> Share:
        """Return a copy whose current window contains *now*."""
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
        """Return a copy after one more request; the share grows if it has *waited* for a permit.

        A machine that never waits needs no larger share.
        """
        turned = self.turned(now)
        share = turned._replace(sent=turned.sent + 1)
        if self.is_whole or not waited or now < self.grows_at:
            return share
        steps = 1 if now - self.grows_at > SHARE_HOLD_SECONDS else self.steps + 1
        return share._replace(
            part=min(1.0, self.part * (1 + FIRST_STEP * steps)),
            grows_at=max(self.grows_at, now - STEP_SECONDS) + STEP_SECONDS,
            steps=steps,
        )

    def learned(self, rate: float, now: float, until: float) -> Share:
        """Return a copy after the API has blocked the token.

        Args:
            rate: The whole rate, in requests per second.
            now: When the machine learned of the block.
            until: When the block ends.
        """
        own = max(0.0, self.recent(now) - 1)  # without the refused request
        # A request_rate below the default is a share already, which the user has chosen.
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
            return self.hold_seconds  # this machine did not try more, so others caused the block
        if now - self.grows_at > SHARE_HOLD_SECONDS:
            return SHARE_HOLD_SECONDS  # the share grew long ago, without a block
        return min(MAX_SHARE_HOLD_SECONDS, 2 * self.hold_seconds)

    def moved(self, seconds: float) -> Share:
        """Return a copy for a clock that shows *seconds* more."""
        return self._replace(
            grows_at=self.grows_at + seconds,
            learned_at=self.learned_at and self.learned_at + seconds,
            counted_from=self.counted_from + seconds,
        )
