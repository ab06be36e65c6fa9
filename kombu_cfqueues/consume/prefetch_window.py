"""How many messages one channel may hold: its prefetch count, and what of it is used.

A message is *held* from before it is asked for until it is delivered, and *unsettled* from then
until the application acknowledges or rejects it.  Both count: a slot is taken before the request
leaves, so that no answer ever brings more than may be there.

Nothing here locks: whoever owns a window guards it.
"""

from __future__ import annotations

import math
from typing import Final

PULLS_AHEAD: Final = 2
"""Full pulls that may wait undelivered: while one is handled, the next is on its way."""

QUEUES_AHEAD: Final = 8
"""Queues that may be asked together by an application that states no prefetch count: one after the
other, the empty ones would hold up the others."""

GATHER_SECONDS: Final = 0.01
"""How long little room waits for more: short tasks free their slots one after the other, and a
pull for each would have most of them wait for the next."""

SOON_SECONDS: Final = 1.0
"""An application that asks again within this is a loop, which wants more than one at a time."""


class PrefetchWindow:
    """The slots of one channel.

    Args:
        batch: Most messages of one pull.
    """

    def __init__(self, batch: int) -> None:
        self._most_ahead = PULLS_AHEAD * batch
        self._target = 1
        self._wanted = False
        self._delivered_at = -SOON_SECONDS
        self._room_since = 0.0
        self.queues = 0  # that share it
        self.prefetch = 0  # messages that the application may hold; 0: it does not say
        self.held = 0  # asked for or pulled, and not delivered
        self.unsettled = 0  # delivered, and neither acknowledged nor rejected

    @property
    def capacity(self) -> int:
        """Messages that would be pulled ahead if none were there."""
        wanted = self.prefetch or max(self._target, min(self.queues, QUEUES_AHEAD))
        return min(wanted, self._most_ahead)

    @property
    def room(self) -> int:
        """Messages that may be asked for now."""
        if self.prefetch:
            free = self.prefetch - self.held - self.unsettled
            return max(0, min(free, self._most_ahead - self.held))
        # An application that states no prefetch count may want one message, and be gone: what is
        # pulled ahead for it would be withheld from others until it closes.
        if self._target == 1 and not self._wanted:
            return 0
        return max(0, self.capacity - self.held)

    @property
    def plenty(self) -> int:
        """Room for which nobody waits for more."""
        return (self.capacity + 1) // 2

    def ask_at(self) -> float:
        """From when on a pull is worth its request, as things stand."""
        room = self.room
        if not room:
            return math.inf
        if room >= self.plenty or not self.held:
            return 0.0
        return self._room_since + GATHER_SECONDS

    def freed(self, now: float) -> bool:
        """A slot has become free; return whether somebody should look at the room."""
        room = self.room
        if room == 1:
            self._room_since = now
        return room in (1, self.plenty)

    @property
    def may_deliver(self) -> bool:
        """Whether one more message may be delivered."""
        return not self.prefetch or self.unsettled < self.prefetch

    def missed(self) -> None:
        """The application asked for a message, and none was there."""
        self._wanted = True

    def delivered(self, now: float, *, had_to_wait: bool) -> None:
        """A held message goes to the application, and its slot with it.

        Args:
            now: The time, in seconds of `time.monotonic`.
            had_to_wait: The application was waiting for it.
        """
        self.held -= 1
        self.unsettled += 1
        self._wanted = False
        if had_to_wait and now - self._delivered_at < SOON_SECONDS:
            self._target = min(2 * self._target, self._most_ahead)
        self._delivered_at = now

    def ran_dry(self) -> None:
        """A queue is empty: if nothing else is here either, begin small again."""
        if not self.held:
            self._target = 1
