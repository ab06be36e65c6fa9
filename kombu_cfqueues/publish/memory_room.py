"""The waiting room of a single process: the messages for one queue, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Final, Protocol

from .. import limits
from ..errors import CFQueuesError, RateLimited
from ..rate_limit import Waiter
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

PERMIT_HOLD_SECONDS: Final = 0.002
"""How long a permit waits for the callers that shared the last request.  They need about this long
to wake up and publish again.  A request takes ten times as long or more."""

LONE_CALLERS: Final = 1.25
"""A request is not held if at most this many callers are expected: a lone caller must not wait."""

PERMIT_HOLD_STEP_SECONDS: Final = PERMIT_HOLD_SECONDS / 4
"""Pause between two looks at how many callers have arrived during the hold."""

EXTEND_AT: Final = 3
"""Extend the hold by one step if at least this many callers arrived in the last step."""


class PermitSource(Protocol):
    """The part of the request allowance that the room needs."""

    def try_take(self, waiter: Waiter, *, queue: str) -> RateLimited | None:
        """Take a permit, or return why there is none before ``waiter.ready_at``."""

    def leave(self, waiter: Waiter) -> None:
        """Stop waiting for a permit."""


class MemoryRoom:
    """Messages of one process for one queue.

    The room takes the permit first and chooses the messages afterwards, so that messages that
    arrive during the wait for the permit go along.

    Args:
        permits: The request allowance.
        queue_id: The id of the queue, for *permits*.
        extends: Whether to extend the hold while many callers arrive.  False where several
            requests may be in flight at once: a caller that misses one joins another.
        max_batch: Maximum number of messages in a request.
        max_bytes: Maximum bytes in a request.  A larger message is posted alone.
        clock: Tells the time and makes locks.
    """

    shared = False

    def __init__(
        self, permits: PermitSource, queue_id: str, *, extends: bool,
        max_batch: int = limits.BATCH_MESSAGES, max_bytes: int = limits.BATCH_BYTES,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.max_batch = max_batch
        self._permits = permits
        self._queue_id = queue_id
        self._max_bytes = max_bytes
        self._extends = extends
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty: only the parent posts what its callers wait for."""
        self._lock = self._clock.lock()  # guards all fields below, and ``Item.place``
        self._numbers = count()
        # In the order of their numbers; the first can be read, and any removed, in one step.
        self._singles: _Waiting = OrderedDict()
        self._bulk: _Waiting = OrderedDict()
        self._claims: dict[int, dict[Item, None]] = {}
        self._bulk_first = False  # bulk messages waited, but the last request had no room for any
        self._sharers = 0.0  # single messages that the next request is held for
        self._waiter = Waiter()
        self._has_permit = False  # a permit was taken, and is held for more callers
        self._held_since: float | None = None
        self._arrived = 0  # single messages that waited at the last look

    def enter(
        self, items: Sequence[Item], *, number: int, may_skip: bool, until: float
    ) -> Claim | None:
        """See `WaitingRoom.enter`.  Always returns None: an early claim would gain nothing here."""
        with self._lock:
            waiting = self._waiting(items[0])  # one caller's items have one kind
            for item in items:
                item.place = next(self._numbers)
                item.max_batch = self.max_batch
                waiting[item] = None
        return None

    def outcomes(self, *, until: float) -> Outcomes:
        """See `WaitingRoom.outcomes`.  No other process posts from this room."""
        return Outcomes({}, bool(self._singles or self._bulk))

    def claim(self, terms: ClaimTerms) -> Claim | Wait:
        """See `WaitingRoom.claim`."""
        with self._lock:
            now = self._clock.monotonic()
            first = next(self._eligible(chain(self._singles, self._bulk), terms, now), None)
            if first is None or first.address.name in terms.busy:
                self._forget_permit()
                return Wait(None)
            wait = self._wait(now)
            if wait is not None:
                return wait
            self._has_permit, self._held_since = False, None
            take = self._sample if first.address.name in terms.sample else self._take
            items = take(terms, now)
            self._claims[terms.number] = dict.fromkeys(items)
            return Claim(terms.number, items[0].address, items)

    def settle(self, claim: Claim, outcome: ClaimOutcome, *, until: float) -> Settled:
        """See `WaitingRoom.settle`."""
        with self._lock:
            held = self._claims.pop(claim.number, {})
            for item in outcome.returned:
                if outcome.max_batch is not None:
                    item.max_batch = outcome.max_batch
            self._put_back([item for item in outcome.returned if item in held])
            if outcome.give_up is None:
                return {}
            given_up: dict[Item, CFQueuesError | None] = {}
            for waiting in (self._singles, self._bulk):
                for item in [item for item in waiting if item.max_batch < self.max_batch]:
                    given_up[item] = outcome.give_up
                    del waiting[item]
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
                waiting = self._waiting(item)
                if item in waiting:
                    del waiting[item]
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

    def _waiting(self, item: Item) -> _Waiting:
        return self._bulk if item.kind is Kind.BULK else self._singles

    def _eligible(self, items: Iterable[Item], terms: ClaimTerms, now: float) -> Iterator[Item]:
        must_last = now + terms.request_seconds
        return (
            item
            for item in items
            if item.deadline <= terms.latest and (item.deadline > must_last or item.half_time > now)
        )

    def _wait(self, now: float) -> Wait | None:
        """Take a permit if there is none yet; return when to look again, or None to post now."""
        if self._held_since is None:
            self._held_since, self._arrived = now, len(self._singles)
        if not self._has_permit:
            why = self._permits.try_take(self._waiter, queue=self._queue_id)
            if why is not None:
                return Wait(self._waiter.ready_at, why)
            self._has_permit = True
        return Wait(now + PERMIT_HOLD_STEP_SECONDS) if self._holds(now - self._held_since) else None

    def _holds(self, held_seconds: float) -> bool:
        """Whether to wait for more of the callers that shared the last request.

        Otherwise these callers split into two groups, and each request carries only one of them.
        Sixty threads that wake up one after the other need longer than the usual hold, so the hold
        is extended while many of them arrive.
        """
        waiting, before = len(self._singles), self._arrived
        if self._sharers <= LONE_CALLERS or waiting >= self._sharers:
            return False
        self._arrived = waiting
        many_arrive = self._extends and waiting - before >= EXTEND_AT
        return held_seconds < PERMIT_HOLD_SECONDS or many_arrive

    def _take(self, terms: ClaimTerms, now: float) -> list[Item]:
        both = (self._bulk, self._singles) if self._bulk_first else (self._singles, self._bulk)
        singles, bulk = len(self._singles), len(self._bulk)
        batch: list[Item] = []
        size = 0
        for waiting in both:
            for item in self._eligible(list(waiting), terms, now):
                # Messages of a split batch do not mix with others.
                if batch and (
                    len(batch) >= item.max_batch
                    or item.max_batch != batch[0].max_batch
                    or size + item.message.size > self._max_bytes
                ):
                    break
                batch.append(item)
                size += item.message.size
                del waiting[item]
        self._sharers = self._expected(singles - len(self._singles))
        self._bulk_first = 0 < bulk == len(self._bulk)
        return batch

    def _expected(self, taken: int) -> float:
        """Return how many callers to hold the next request for, after one with *taken* of them.

        If several requests may be in flight, a request with few callers proves little: the other
        callers are in other requests.  So the number falls slowly, which lets the groups merge.
        """
        return taken if self._extends else max(taken, 0.75 * self._sharers + 0.25 * taken)

    def _sample(self, terms: ClaimTerms, now: float) -> list[Item]:
        waiting = self._eligible(chain(self._singles, self._bulk), terms, now)
        suspects = [item for item in waiting if item.max_batch < self.max_batch]
        if not suspects:
            return self._take(terms, now)
        item = rng.choice(suspects)
        del self._waiting(item)[item]
        return [item]

    def _put_back(self, items: Collection[Item], *, uncertain: bool = False) -> None:
        if not items:
            return
        for item in items:
            item.uncertain |= uncertain
            self._waiting(item)[item] = None
        for waiting in (self._singles, self._bulk):
            for item in sorted(waiting, key=_number):
                waiting.move_to_end(item)

    def _forget_permit(self) -> None:
        self._permits.leave(self._waiter)
        self._has_permit, self._held_since = False, None


_Waiting = OrderedDict[Item, None]


def _number(item: Item) -> int:
    number: int = item.place
    return number
