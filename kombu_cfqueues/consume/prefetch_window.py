"""How many messages one channel may have: its prefetch count, and how much of it is in use.

A message is *held* from the request for it until its delivery, and *unsettled* from then until the
application acknowledges or rejects it.  Both take a slot.  A slot is taken before the request
leaves, so a response never brings more messages than the window has room for.

Nothing here locks: the owner of a window guards it.
"""

from __future__ import annotations

import math
from typing import Final

from .flow import FLOWING_PULLS

PULLS_AHEAD: Final = 2
"""Full pulls that may wait undelivered: the application processes one while the next arrives."""

MAX_PULLS_AHEAD: Final = 5
"""The same for an application that has to wait for messages although they are pulled ahead.  As
many as may be in flight, so that few of them wait here."""

QUEUES_AHEAD: Final = 8
"""Maximum number of queues that are pulled at once for an application without a prefetch count.
Pulled one after the other, empty queues would delay those that have messages."""

SMALL_WINDOW: Final = 32
"""While messages flow and the application has to wait for them, a pull is for an eighth of a window
of at most this many slots, since eight may be in flight (`FLOWING_PULLS`): a slot that waits for
others is empty for several milliseconds of each round trip."""

SMALL_PULL: Final = 16
"""Otherwise, a pull is for a quarter of the slots, if that is at most this many: then little of the
window waits for the next pull.  In a larger window it is for half of them, because each pull costs
as much CPU as some ten messages."""

GATHER_SECONDS: Final = 0.01
"""A pull for few free slots waits this long for more.  Short tasks free their slots one after the
other; with a pull for each slot, most slots would have to wait for the next pull."""

LOOP_SECONDS: Final = 1.0
"""An application that asks for its next message within this time is considered to loop, so more
than one message at a time is pulled for it."""


class PrefetchWindow:
    """The slots of one channel.

    Args:
        pull_batch_size: Maximum number of messages of one pull.

    Attributes:
        queue_count: How many queues share the slots.
        prefetch: Maximum number of messages that the application may have; 0 means no limit.
        held: Messages that were requested or pulled, and not delivered.
        unsettled: Messages that were delivered, and neither acknowledged nor rejected.
        idle_seconds: How long the application had no message, until the last one was delivered.
    """

    def __init__(self, pull_batch_size: int) -> None:
        self._pull_batch_size = pull_batch_size
        self._usual_target = PULLS_AHEAD * pull_batch_size
        self._target = 1  # messages to pull ahead; grows if the application has to wait
        self._asked = False  # the application asked for a message, and none was there
        self._delivered_at = self._waited_at = -LOOP_SECONDS
        self._room_since = self._idle_since = 0.0
        self.idle_seconds = 0.0
        self.queue_count = 0
        self.prefetch = 0
        self.held = 0
        self.unsettled = 0

    @property
    def capacity(self) -> int:
        """How many messages would be pulled ahead if none were held."""
        if self.prefetch:
            return min(self.prefetch, max(self._target, self._usual_target))
        return max(self._target, min(self.queue_count, QUEUES_AHEAD))

    @property
    def room(self) -> int:
        """How many messages may be requested now."""
        if self.prefetch:
            return max(0, min(self.prefetch - self.unsettled, self.capacity) - self.held)
        # An application without a prefetch count may want one message and end.  Messages that are
        # pulled ahead for it would be hidden from other consumers until it closes.
        if self._target == 1 and not self._asked:
            return 0
        return max(0, self.capacity - self.held)

    def enough_room(self, *, flows: bool) -> int:
        """With this many free slots, a pull does not wait for more.

        Args:
            flows: Whether the messages of the queue flow, so that several pulls share the slots.
        """
        flowing, usual = self._enough()
        return flowing if flows else usual

    def _enough(self) -> tuple[int, int]:
        """Return `enough_room` while messages flow, and otherwise."""
        capacity = self.capacity
        half, quarter = (capacity + 1) // 2, (capacity + 3) // 4
        half = min(half, self._pull_batch_size)
        waits = self._delivered_at - self._waited_at < LOOP_SECONDS
        if waits and capacity <= SMALL_WINDOW:
            return (capacity + FLOWING_PULLS - 1) // FLOWING_PULLS, half
        return (quarter if quarter <= SMALL_PULL else half), half

    def pull_at(self, *, flows: bool) -> float:
        """When a pull is worth its request, in seconds of `time.monotonic`; infinity if unknown."""
        room, enough = self.room, self.enough_room(flows=flows)
        if not room:
            return math.inf
        if room >= enough or not self.held:
            return 0.0
        # Enough messages are held, so there is time for this pull to become as large.
        if self.held >= enough:
            return math.inf
        return self._room_since + GATHER_SECONDS

    def freed(self, now: float) -> bool:
        """Note at *now* that a slot was freed; return whether this may make a pull due."""
        room = self.room
        if room == 1:
            self._room_since = now
        if not self.unsettled:
            self._idle_since = now
        enough = self._enough()
        return room == 1 or room in enough or (self.held + 1 in enough and room > 0)

    @property
    def may_deliver(self) -> bool:
        """Whether one more message may be delivered."""
        return not self.prefetch or self.unsettled < self.prefetch

    def missed(self) -> None:
        """Note that the application asked for a message, and none was there."""
        self._asked = True

    def delivered(self, now: float, *, had_to_wait: bool) -> None:
        """Move a slot from held to unsettled: its message goes to the application.

        Args:
            now: The time now, in seconds of `time.monotonic`.
            had_to_wait: Whether the application was waiting for the message.
        """
        if not self.unsettled:
            self.idle_seconds += now - self._idle_since
        self.held -= 1
        self.unsettled += 1
        self._asked = False
        if had_to_wait:
            if now - self._delivered_at < LOOP_SECONDS:
                self._raise_target()
            self._waited_at = now
        elif now - self._waited_at > LOOP_SECONDS:
            self._target = min(self._target, self._usual_target)
        self._delivered_at = now

    def _raise_target(self) -> None:
        least = self._usual_target if self.prefetch else 1
        most = MAX_PULLS_AHEAD * self._pull_batch_size
        self._target = min(2 * max(self._target, least), most)

    def queue_was_empty(self) -> None:
        """Start again with one message at a time, unless other messages are held."""
        if not self.held:
            self._target = 1
