"""Group commit: many callers, few requests, an outcome for each caller.

A request is what is scarce, and it carries many items, so callers that come at about the same time
share one.  No thread stands behind a lane: one of the callers *leads*.  It waits until a request
may leave, and only *then* takes what waits, also what came meanwhile, posts it and settles every
item of it.  The others sleep until they are settled, are asked to lead, or run out of time.

The life of an item::

    submit --> WAITING --take--> TAKEN --accepted, or refused for good--> SETTLED
                  ^                |
                  +--put back------+   (at its deadline an item is SETTLED from either state)

Everything that a caller owns in a lane (its waiting items, the lead, a batch on its way) is filed
under that caller, so whatever ends it, `Lane._leave` finds what must be passed on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from itertools import chain, count
from typing import Any, Final, Generic, TypeAlias, TypeVar

from .. import limits
from ..errors import CFQueuesError, ConnectionFailed, PublishTimeout, TransientError, copy_of
from ..metrics import metrics
from ..runtime.clock import Clock, Lock
from ..runtime.fork import renew_in_child
from ..runtime.rng import rng

T = TypeVar("T")

BULK_IN_FLIGHT: Final = 2
"""Requests in flight for `Lane.submit_many`: two reach what one queue takes (5,000 a second)."""

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0

HOLD_ON: Final = 3
"""So many callers in a quarter of the hold are worth another quarter."""

REFUSED_ALIKE: Final = 3
"""So many single items of a batch refused alike, and none accepted: the rest is not asked."""


class Verdict(Enum):
    """What a failed post says."""

    THE_ITEMS = auto()
    """Something about the items: the batch is split until the bad one is alone."""
    NOT_NOW = auto()
    """Nothing about the items: they are posted again until each one's own deadline."""
    NEVER = auto()
    """Nothing about the items, but repeating is useless: all of the batch fail with it."""


class Lane(Generic[T]):
    """The callers that share requests: all that publish to one queue of one account.

    An error that several callers share reaches each as a copy of its own.

    Args:
        post: Sends these items; returns or raises by the deadline (seconds of *clock*).  Its
            `CFQueuesError` is an answer, which *judge* reads.  Anything else that it raises ends
            that caller alone: the rest of its batch goes out once more under another.
        permit: Blocks until one request may leave; a `TransientError` says that none will before
            the deadline.  Anything else that it raises reaches the caller as it is.
        judge: Says what a failed post means.
        max_items: Most items of one request.
        max_bytes: Most bytes of one request, counted by the sizes that the callers give.  An
            item that is larger goes alone.
        max_in_flight: Requests on their way at once.
        hold_seconds: How long callers that shared the last request are waited for.
        retry_uncertain: Whether items are posted again that may have arrived.
        clock: Time and waiting.
    """

    def __init__(
        self,
        post: Callable[[Sequence[T], float], None],
        permit: Callable[[float], None],
        judge: Callable[[CFQueuesError], Verdict],
        *,
        max_items: int = limits.BATCH_MESSAGES,
        max_bytes: int = limits.BATCH_BYTES,
        max_in_flight: int = 1,
        hold_seconds: float = 0.002,
        retry_uncertain: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._post = post
        self._permit = permit
        self._judge = judge
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_in_flight = max_in_flight
        self._hold_seconds = hold_seconds
        self._retry_uncertain = retry_uncertain
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty.  What the parent's callers wait for is the parent's to settle."""
        # _lock guards all that follows, and the entries' states and outcomes.  It is never held
        # over a post, a permit or a sleep.  _leader and _resume_at are also read without it.
        self._lock = self._clock.lock()
        self._numbers = count()
        self._singles: _Waiting[T] = OrderedDict()  # entries in the order of their numbers
        self._bulk: _Waiting[T] = OrderedDict()
        self._bulk_first = False  # the last request had no room for bulk
        self._leader: _Caller[T] | None = None  # who waits for a permit, and then takes and posts
        self._posting: dict[_Caller[T], list[_Entry[T]]] = {}  # what is on its way, by who posts
        self._sharers = 0  # single callers of the last request
        self._post_seconds = 0.0  # how long the last accepted post took
        self._trouble: CFQueuesError | None = None  # why nothing leaves before _resume_at
        self._pauses = 0  # in a row
        self._resume_at = 0.0
        # How the first single items of a split batch were refused; None: some were accepted.
        self._refusals: list[tuple[type[CFQueuesError], int | None]] | None = None

    def submit(self, item: T, size: int, deadline: float) -> None:
        """Hand over *item*, of *size* bytes; block until it is accepted.

        Raises:
            PublishTimeout: *deadline* passed, or the server asks to wait for longer than that.
                The last failure is its cause; ``delivered`` is ``"no"`` only if it surely is not.
            CFQueuesError: Why this item was refused; ``delivered`` counts its earlier tries too.
        """
        (outcome,) = self._serve([(item, size)], deadline, self._singles)
        if outcome is not None:
            try:
                raise outcome
            finally:
                del outcome  # its traceback holds this frame: no cycle

    def submit_many(
        self, items: Sequence[tuple[T, int]], deadline: float
    ) -> list[CFQueuesError | None]:
        """Hand over many ``(item, size)``; block until each is settled.

        They leave in their order, behind what single callers wait for; a request that had no room
        for them is followed by one that has.  Two threads that call this reach two requests in
        flight, also where single callers have one.

        Returns:
            The outcome of each: None if it was accepted, else what `submit` would raise.  What
            ends the caller itself (an interrupt, a bug) is raised, and what has not left is
            taken back.
        """
        return self._serve(items, deadline, self._bulk)

    # -- a caller's way through ---------------------------------------------------------------

    def _serve(
        self, items: Iterable[tuple[T, int]], deadline: float, waiting: _Waiting[T]
    ) -> list[CFQueuesError | None]:
        came = self._clock.monotonic()
        caller: _Caller[T] = _Caller(came, deadline, waiting, self._clock.lock())
        try:
            with self._lock:
                for item, size in items:
                    entry = _Entry(next(self._numbers), item, size, self._max_items, caller)
                    caller.entries.append(entry)
                    caller.unsettled += 1
                    waiting[entry] = None
                self._appoint()
                self._overtake(caller)
            while caller.unsettled:
                now = self._clock.monotonic()
                if deadline <= max(now, self._resumes_for(caller)) and self._expire(caller, now):
                    continue
                if self._leader is caller:
                    self._lead(caller, now)
                else:
                    caller.wake.acquire(timeout=min(deadline - now, threading.TIMEOUT_MAX))
        finally:
            # Read without the lock: nobody hands anything to a caller whose items are settled.
            if caller.unsettled or self._leader is caller or caller in self._posting:
                self._leave(caller)
            entries, caller.entries = caller.entries, []  # no cycle: memory is free at once
        return [entry.error and _outcome(entry, entry.error) for entry in entries]

    def _lead(self, caller: _Caller[T], now: float) -> None:
        """Send one request, as soon as one may leave."""
        resumes_at = min(self._resumes_for(caller), caller.deadline)
        if resumes_at > now:
            caller.asleep_until = resumes_at
            self._clock.sleep(resumes_at - now)
            with self._lock:  # so that whoever overtakes has either done so, or cannot any more
                caller.asleep_until = 0.0
            return  # the world may have changed
        # A permit that leaves no time to post would be lost, and the post cut short for everyone.
        reserve = min(self._post_seconds, (caller.deadline - now) / 2)
        try:
            self._permit(caller.deadline - reserve)
        except TransientError as error:
            self._expire(caller, now, error)
            return
        self._hold(now)
        with self._lock:
            batch = self._take(caller)
        if batch:
            self._send(caller, batch)

    def _resumes_for(self, caller: _Caller[T]) -> float:
        """Return when *caller* may post, after a failure.

        A pause that the server did not ask for is only our caution.  It must not keep a caller in a
        hurry from its first try: perhaps the trouble is over.
        """
        trouble = self._trouble
        tried = caller.failed or any(entry.error for entry in caller.entries)
        if trouble is None or trouble.retry_after or tried:
            return self._resume_at
        return min(self._resume_at, (caller.came + caller.deadline) / 2)

    def _hold(self, since: float) -> None:
        """Let the callers of the last request come again, or they split into two lines.

        Sixty threads need more than the usual hold only to wake up, one after the other, so it
        goes on for as long as they come thick and fast; not where others may be on their way
        already, since who comes too late for this request finds another.
        """
        before = len(self._singles)
        while self._sharers > 1 and (here := len(self._singles)) < self._sharers:
            held = self._clock.monotonic() - since
            thick = here - before >= HOLD_ON and self._max_in_flight == 1
            if held >= self._hold_seconds and not thick:
                return
            before = here
            self._clock.sleep(self._hold_seconds / 4)

    def _send(self, caller: _Caller[T], batch: list[_Entry[T]]) -> None:
        started = self._clock.monotonic()
        try:
            self._post([entry.item for entry in batch], caller.deadline)
        except CFQueuesError as error:
            if error.__traceback__ is not None:
                # Who keeps the error keeps no batch: without this frame, which holds it.
                error.__traceback__ = error.__traceback__.tb_next
            verdict = self._judge(error)
            with self._lock:
                self._refused(caller, error, verdict)
        else:
            with self._lock:
                self._accepted(caller)
                self._post_seconds = self._clock.monotonic() - started

    def _expire(self, caller: _Caller[T], now: float, why: CFQueuesError | None = None) -> bool:
        """Settle what *caller* waits for in vain, and take the lead from it.

        That is what still waits; what was taken may be answered until the deadline itself.
        """
        with self._lock:
            over = [
                entry
                for entry in caller.entries
                if entry.state is _State.WAITING
                or (entry.state is _State.TAKEN and caller.deadline <= now)
            ]
            for entry in over:
                self._settle(entry, _timeout(entry, why or entry.error or self._trouble))
            if caller.deadline <= now:
                caller.unsettled = 0  # whatever became of its items: nobody waits for ever
            self._step_down(caller)
        return bool(over) or not caller.unsettled

    def _leave(self, caller: _Caller[T]) -> None:
        """Pass on what *caller* leaves behind: an interrupt, a killed greenlet or a bug ended it.

        Nobody else will ever wake those who wait for it.
        """
        interrupted = ConnectionFailed(
            "the thread that was posting the message was interrupted", delivered="unknown"
        )
        with self._lock:
            for entry in caller.entries:
                self._settle(entry, interrupted)
            orphans = self._posting.get(caller, [])
            for entry in orphans:
                entry.uncertain = True
                # Once: an item that ends whoever posts it must not go through all callers.
                if entry.orphaned or not self._retry_uncertain:
                    self._settle(entry, interrupted)
                entry.orphaned = True
            self._put_back(orphans)
            self._posting.pop(caller, None)
            self._step_down(caller)

    # -- below, the caller of each method holds _lock -----------------------------------------

    def _appoint(self) -> None:
        """Give the lead, if it is free and a request may be on its way, to who came first."""
        if self._leader is not None:
            return
        bulk_in_flight = max(self._max_in_flight, BULK_IN_FLIGHT)
        for waiting, in_flight in (
            (self._singles, self._max_in_flight),
            (self._bulk, bulk_in_flight),
        ):
            if len(self._posting) < in_flight:
                for entry in waiting:
                    if entry.caller not in self._posting:
                        self._leader = entry.caller
                        entry.caller.call()
                        return

    def _overtake(self, caller: _Caller[T]) -> None:
        """Take the lead from one that sleeps through a pause which *caller* has no time for."""
        leader = self._leader
        if (
            leader is not None
            and leader.asleep_until > self._resumes_for(caller)
            and len(self._posting) < self._max_in_flight
        ):
            self._leader = caller

    def _step_down(self, caller: _Caller[T]) -> None:
        if self._leader is caller:
            self._leader = None
        self._appoint()

    def _take(self, caller: _Caller[T]) -> list[_Entry[T]]:
        """Make *caller* post the next batch, and free the lead for the one after."""
        batch = self._posting[caller] = []
        singles, bulk = len(self._singles), len(self._bulk)
        size = 0
        queues = (self._bulk, self._singles) if self._bulk_first else (self._singles, self._bulk)
        for waiting in queues:
            while waiting:
                entry = next(iter(waiting))
                # Items of a refused batch stay among themselves.
                if batch and (
                    len(batch) >= entry.most
                    or entry.most != batch[0].most
                    or size + entry.size > self._max_bytes
                ):
                    break
                batch.append(entry)
                entry.state = _State.TAKEN
                del waiting[entry]
                size += entry.size
        self._sharers = singles - len(self._singles)
        self._bulk_first = 0 < bulk == len(self._bulk)
        if not batch:
            del self._posting[caller]
        self._step_down(caller)
        return batch

    def _accepted(self, caller: _Caller[T]) -> None:
        self._trouble, self._pauses, self._resume_at = None, 0, 0.0
        self._refusals = None
        for entry in self._posting.get(caller, ()):
            self._settle(entry, None)
        self._posting.pop(caller, None)
        self._appoint()

    def _refused(self, caller: _Caller[T], error: CFQueuesError, verdict: Verdict) -> None:
        posted = self._posting.get(caller, [])
        # Who ran out of time meanwhile has its outcome.
        batch = [entry for entry in posted if entry.state is _State.TAKEN]
        uncertain = error.delivered == "unknown"
        for entry in batch:
            entry.error = error
            entry.uncertain |= uncertain
        if verdict is Verdict.NEVER or (uncertain and not self._retry_uncertain):
            for entry in batch:
                self._settle(entry, error)
        elif verdict is Verdict.NOT_NOW:
            caller.failed = True
            self._put_back(batch)
            self._pause(error)
            metrics.retried(error)
        elif len(posted) == 1:
            self._settle(posted[0], error)
            self._give_up_alike(error)
        else:
            if posted[0].most == self._max_items:  # these are refused for the first time
                self._refusals = []
            for entry in batch:
                entry.most = (len(posted) + 1) // 2
            self._put_back(batch)
        self._posting.pop(caller, None)
        self._appoint()

    def _put_back(self, batch: list[_Entry[T]]) -> None:
        for entry in batch:
            if entry.state is _State.TAKEN:
                entry.caller.waiting[entry] = None
                entry.state = _State.WAITING
        for waiting in (self._singles, self._bulk):
            for entry in sorted(waiting, key=_number):
                waiting.move_to_end(entry)

    def _pause(self, error: CFQueuesError) -> None:
        """Send nothing for a while: as long as the server asks for, else twice as long each time.

        The pause is random, so that those whom one outage stopped do not come back as one.
        """
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._pauses, 10))
        pause = max(rng.uniform(0, longest), error.retry_after or 0.0)
        self._pauses += 1
        self._trouble = error
        self._resume_at = self._clock.monotonic() + pause
        for entry in chain(self._singles, self._bulk):
            if entry.caller.deadline <= self._resume_at:
                entry.caller.call()

    def _give_up_alike(self, error: CFQueuesError) -> None:
        """Stop splitting where the server seems to refuse everything: requests are scarce."""
        if self._refusals is None or len(self._refusals) >= REFUSED_ALIKE:
            return
        self._refusals.append((type(error), error.code))
        if len(set(self._refusals)) > 1:
            return
        suspects = [e for e in chain(self._singles, self._bulk) if e.most < self._max_items]
        if len(self._refusals) == REFUSED_ALIKE:
            for entry in suspects:
                self._settle(entry, error)
        elif len(self._refusals) == REFUSED_ALIKE - 1 and suspects:
            # Bad items are often neighbours.  The one farthest off is asked, alone, before all
            # the rest is given up.
            farthest = suspects[-1]
            farthest.most = 1
            farthest.caller.waiting.move_to_end(farthest, last=False)

    def _settle(self, entry: _Entry[T], error: CFQueuesError | None) -> None:
        if entry.state is _State.SETTLED:
            return
        if entry.state is _State.WAITING:
            entry.caller.waiting.pop(entry, None)
        entry.error = error
        entry.state = _State.SETTLED
        entry.caller.unsettled -= 1
        if not entry.caller.unsettled:
            entry.caller.call()


class _State(Enum):
    WAITING = auto()  # in one of the lane's two lines
    TAKEN = auto()  # in the batch of somebody who posts
    SETTLED = auto()  # its outcome stands


class _Caller(Generic[T]):
    """A thread that waits for its items.  Its lane's lock guards it."""

    __slots__ = (
        "asleep_until", "came", "deadline", "entries", "failed", "unsettled", "waiting", "wake",
    )  # fmt: skip

    def __init__(self, came: float, deadline: float, waiting: _Waiting[T], wake: Lock) -> None:
        self.came = came
        self.asleep_until = 0.0  # where it leads, and waits for a pause to end
        self.failed = False  # it has posted in vain, perhaps only what came before its own items
        self.deadline = deadline
        self.waiting = waiting  # the line that its items stand in
        self.entries: list[_Entry[T]] = []
        self.unsettled = 0
        self.wake = wake  # locked while there is no news
        wake.acquire()

    def call(self) -> None:
        """Wake this caller: it is settled, leads, or has waited in vain."""
        if self.wake.locked():
            self.wake.release()


class _Entry(Generic[T]):
    """An item on its way.  Its lane's lock guards it."""

    __slots__ = (
        "caller", "error", "item", "most", "number", "orphaned", "size", "state", "uncertain",
    )  # fmt: skip

    def __init__(self, number: int, item: T, size: int, most: int, caller: _Caller[T]) -> None:
        self.number = number
        self.item = item
        self.size = size
        self.most = most  # items that may travel with it, itself included
        self.caller = caller
        self.state = _State.WAITING
        self.error: CFQueuesError | None = None  # of the last try; once SETTLED, the outcome
        self.uncertain = False  # it may have arrived, although no answer said so
        self.orphaned = False  # who posted it was interrupted


_Waiting: TypeAlias = "OrderedDict[_Entry[T], None]"
"""A line whose first can be read, and any member taken out, in constant time."""


def _number(entry: _Entry[Any]) -> int:
    return entry.number


def _timeout(entry: _Entry[Any], why: CFQueuesError | None) -> PublishTimeout:
    if entry.state is _State.TAKEN:
        entry.uncertain = True
        text = "the request that carries the message was not answered in time"
    else:
        text = "no request could leave for the message in time"
    error = PublishTimeout(
        f"{text} (last failure: {why})" if why else text,
        retry_after=why.retry_after if why else None,
    )
    error.__cause__ = why
    return error


def _outcome(entry: _Entry[Any], error: CFQueuesError) -> CFQueuesError:
    """Return *error* for one caller: raising adds to a traceback, which is not to be shared."""
    copy = copy_of(error)
    if entry.uncertain:  # by an earlier try, whatever the last one says
        copy.delivered = "unknown"
    return copy
