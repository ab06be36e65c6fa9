"""The waiting room of a process alone: the messages for one queue, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Final, Protocol

from .. import limits
from ..errors import CFQueuesError, RateLimited
from ..rate_limit import Place
from ..runtime.clock import Clock
from ..runtime.fork import renew_in_child
from ..runtime.rng import rng
from ..waiting_room import (
    Claim,
    ClaimOutcome,
    ClaimTerms,
    Item,
    Kind,
    Outcomes,
    Settled,
    Wait,
    Withdrawn,
)

CROWD: Final = 3
"""Callers that arrive within a quarter of the hold and extend it by another quarter."""


class Permits(Protocol):
    """The request allowance, as far as the room needs it."""

    def try_take(self, place: Place, *, queue: str) -> RateLimited | None:
        """Take a permit, or return why there is none until ``place.ready_at``."""

    def leave(self, place: Place) -> None:
        """Give up a place in the line."""


class MemoryRoom:
    """Messages of one process for one queue.

    The permit comes first and the messages after it, so that whatever arrives during the wait goes
    along.

    Args:
        permits: The request allowance.
        queue_id: The queue, as *permits* knows it.
        max_batch: Messages of one request.
        max_bytes: Bytes of one request.  A message that is larger goes alone.
        hold_seconds: How long the callers that shared the last request are waited for.
        extends: Whether the hold goes on while many arrive; not where several requests may be on
            their way at once, since who comes too late for this one finds another.
        clock: Time and waiting.
    """

    shared = False

    def __init__(
        self,
        permits: Permits,
        queue_id: str = "",
        *,
        max_batch: int = limits.BATCH_MESSAGES,
        max_bytes: int = limits.BATCH_BYTES,
        hold_seconds: float = 0.002,
        extends: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.max_batch = max_batch
        self._permits = permits
        self._queue_id = queue_id
        self._max_bytes = max_bytes
        self._hold_seconds = hold_seconds
        self._extends = extends
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty.  What the parent's callers wait for is the parent's to post."""
        self._lock = self._clock.lock()  # guards all that follows, and the items' places
        self._numbers = count()
        # In the order of their numbers; the first can be read, and any taken out, at once.
        self._singles: _Line = OrderedDict()
        self._bulk: _Line = OrderedDict()
        self._claims: dict[int, dict[Item, None]] = {}
        self._bulk_first = False  # the last request had no room for bulk
        self._sharers = 0  # single messages of the last request
        self._place = Place()
        self._has_permit = False  # and holds it for those who are about to come
        self._held_since: float | None = None
        self._arrived = 0  # single messages that waited at the last look

    def enter(
        self, items: Sequence[Item], *, number: int, may_skip: bool, until: float
    ) -> Claim | None:
        """See `WaitingRoom.enter`; nothing skips the line, which costs nothing here."""
        with self._lock:
            for item in items:
                item.place = next(self._numbers)
                item.max_batch = self.max_batch
                self._line_of(item)[item] = None
        return None

    def outcomes(self, *, until: float) -> Outcomes:
        """See `WaitingRoom.outcomes`; nobody else has a say here."""
        return Outcomes({}, bool(self._singles or self._bulk))

    def claim(self, terms: ClaimTerms) -> Claim | Wait:
        """See `WaitingRoom.claim`."""
        with self._lock:
            now = self._clock.monotonic()
            first = next(self._eligible(chain(self._singles, self._bulk), terms, now), None)
            if first is None or first.address.name in terms.busy:
                self._forget_permit()
                return Wait(None)
            if self._held_since is None:
                self._held_since, self._arrived = now, len(self._singles)
            if not self._has_permit:
                why = self._permits.try_take(self._place, queue=self._queue_id)
                if why is not None:
                    return Wait(self._place.ready_at, why)
                self._has_permit = True
            if self._holds(now - self._held_since):
                return Wait(now + self._hold_seconds / 4)
            self._has_permit, self._held_since = False, None
            if first.address.name in terms.sample:
                items = self._sample(terms, now)
            else:
                items = self._take(terms, now)
            return self._claimed(terms.number, items)

    def settle(self, claim: Claim, outcome: ClaimOutcome, *, until: float) -> Settled:
        """See `WaitingRoom.settle`."""
        with self._lock:
            held = self._claims.pop(claim.number, {})
            for item in outcome.returned:
                if outcome.max_batch is not None:
                    item.max_batch = outcome.max_batch
            self._put_back(item for item in outcome.returned if item in held)
            if outcome.give_up is None:
                return {}
            given_up: dict[Item, CFQueuesError | None] = {}
            for line in (self._singles, self._bulk):
                for item in [item for item in line if item.max_batch < self.max_batch]:
                    given_up[item] = outcome.give_up
                    del line[item]
            return given_up

    def release(self, number: int) -> None:
        """See `WaitingRoom.release`."""
        with self._lock:
            self._put_back(self._claims.pop(number, ()), uncertain=True)

    def withdraw(
        self, items: Sequence[Item], *, claimed: bool, until: float
    ) -> Mapping[Item, Withdrawn | CFQueuesError | None]:
        """See `WaitingRoom.withdraw`."""
        known: dict[Item, Withdrawn | CFQueuesError | None] = {}
        with self._lock:
            for item in items:
                line = self._line_of(item)
                if item in line:
                    del line[item]
                    sent = item.uncertain
                elif claimed:
                    for held in self._claims.values():
                        held.pop(item, None)
                    sent = True
                else:
                    continue
                known[item] = Withdrawn.PERHAPS_SENT if sent else Withdrawn.NOT_SENT
            if not (self._singles or self._bulk):
                self._forget_permit()
        return known

    # -- below, the caller of each method holds _lock -----------------------------------------

    def _line_of(self, item: Item) -> _Line:
        return self._bulk if item.kind is Kind.BULK else self._singles

    def _eligible(self, items: Iterable[Item], terms: ClaimTerms, now: float) -> Iterator[Item]:
        must_last = now + terms.request_seconds
        return (
            item
            for item in items
            if item.deadline <= terms.latest and (item.deadline > must_last or item.half_time > now)
        )

    def _holds(self, held_seconds: float) -> bool:
        """Let the callers of the last request come again, or they split into two lines.

        Sixty threads need more than the usual hold only to wake up, one after the other, so it
        goes on for as long as they come thick and fast.
        """
        here, before = len(self._singles), self._arrived
        if self._sharers <= 1 or here >= self._sharers:
            return False
        self._arrived = here
        crowded = self._extends and here - before >= CROWD
        return held_seconds < self._hold_seconds or crowded

    def _take(self, terms: ClaimTerms, now: float) -> list[Item]:
        lines = (self._bulk, self._singles) if self._bulk_first else (self._singles, self._bulk)
        singles, bulk = len(self._singles), len(self._bulk)
        batch: list[Item] = []
        size = 0
        for line in lines:
            for item in self._eligible(list(line), terms, now):
                # Messages of a refused batch stay among themselves.
                if batch and (
                    len(batch) >= item.max_batch
                    or item.max_batch != batch[0].max_batch
                    or size + item.message.size > self._max_bytes
                ):
                    break
                batch.append(item)
                size += item.message.size
                del line[item]
        self._sharers = singles - len(self._singles)
        self._bulk_first = 0 < bulk == len(self._bulk)
        return batch

    def _sample(self, terms: ClaimTerms, now: float) -> list[Item]:
        waiting = self._eligible(chain(self._singles, self._bulk), terms, now)
        suspects = [item for item in waiting if item.max_batch < self.max_batch]
        if not suspects:
            return self._take(terms, now)
        item = rng.choice(suspects)
        del self._line_of(item)[item]
        return [item]

    def _claimed(self, number: int, items: list[Item]) -> Claim:
        self._claims[number] = dict.fromkeys(items)
        return Claim(number, items[0].address, items)

    def _put_back(self, items: Iterable[Item], *, uncertain: bool = False) -> None:
        for item in items:
            item.uncertain |= uncertain
            self._line_of(item)[item] = None
        for line in (self._singles, self._bulk):
            for item in sorted(line, key=_number):
                line.move_to_end(item)

    def _forget_permit(self) -> None:
        self._permits.leave(self._place)
        self._has_permit, self._held_since = False, None


_Line = OrderedDict[Item, None]


def _number(item: Item) -> int:
    number: int = item.place
    return number
