"""What one connection consumes, and the messages that were pulled for it and not yet delivered.

The receiver's lock guards everything in this module.
"""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ..envelope import Address
from ..errors import CFQueuesError, ConnectionFailed, TransientError
from ..metrics import metrics
from ..options import Options
from ..runtime.condition import Condition
from ..runtime.fork import renew_in_child
from ..runtime.locks import Lock
from .delivery import Delivery
from .flow import Flow
from .poll_interval import PollInterval
from .prefetch_hint import PrefetchHint
from .prefetch_window import PrefetchWindow
from .pulse import Pulse
from .source import Source


class Subscription:
    """One queue that one channel consumes.

    Args:
        name: Kombu's name of the queue.
        options: The options to pull it with.
        window: The channel's slots.
        inbox: Where pulled messages wait for their delivery.
        fails_over: Whether an outage that lasts ``failover_after`` is raised to the application,
            because Kombu has another URL.
        is_reply: Whether results of tasks come to the queue.

    Attributes:
        queue: The queue at Cloudflare.
        consumer: The queue's pull consumer.
        found: Whether these two are known.
        searching: Whether a thread is looking for them.
        counts: Whether its messages take slots of the prefetch count; those of consumers with
            ``no_ack`` do not.
        for_worker: Whether a Celery worker consumes it, which an error of one queue must not stop.
        cancelled: No further pull starts.
        in_flight: Pulls that have not ended.
        flow: Whether its messages flow.
        hint: Whether the prefetch count of its worker is too small for its tasks.
        messages_seen_at: When messages were last known to be in the queue (monotonic seconds).
        pulse: Whether its pulls are answered.
        outage: What the last pull failed with, if another try may succeed.
        lost: Whether this queue cannot be pulled because it was deleted or a Worker consumes it.
        outage_since: When the outage began (monotonic seconds).
        failure: An error that another pull does not repair; to be raised to the application.
        not_enabled_since: Since when pulls fail with HTTP 405 (monotonic seconds), which means that
            HTTP pull is not in force; None if they do not.
    """

    def __init__(
        self,
        name: str,
        *,
        options: Options,
        window: PrefetchWindow,
        inbox: Inbox,
        fails_over: bool,
        is_reply: bool,
    ) -> None:
        self.name = name
        self.queue, self.consumer = Source.unknown(name)
        self.found = False
        self.options = options
        self.window = window
        self.inbox = inbox
        self.fails_over = fails_over
        self.counts = True
        self.for_worker = False
        self.cancelled = False
        self.flow = Flow()
        self.hint = PrefetchHint()
        self.messages_seen_at = 0.0
        self.outage: TransientError | None = None
        self.outage_since = 0.0
        self.lost = False
        self.failure: CFQueuesError | None = None
        self.not_enabled_since: float | None = None
        self.poll_interval = PollInterval(
            options.polling_interval,
            options.max_polling_interval,
            time.monotonic(),
            is_reply=is_reply,
        )
        self.renew_after_fork()
        renew_in_child(self)

    @property
    def publishers_names(self) -> tuple[str, ...]:
        """What publishers may call the queue: see `Address.name`."""
        by_id = Address.of_id(self.queue.id).name
        # If the application gave an id, the name at Cloudflare is unknown.
        return (by_id,) if self.name in self.options.queues else (by_id, self.queue.name)

    def renew_after_fork(self) -> None:
        """Forget the parent's pulls, whose responses the parent gets, and when the next is due."""
        self.in_flight = 0
        self.searching = False
        self.pulse = Pulse()
        self.poll_interval.reset(time.monotonic())

    def has_messages(self) -> None:
        """Note that there certainly is a message in the queue.  The caller holds the lock."""
        self.messages_seen_at = time.monotonic()
        self.poll_interval.reset(self.messages_seen_at)

    def pulled(self, started: float, *, found: int, asked: int, is_alone: bool) -> None:
        """Note a pull that did not fail, and set when the next one is due.

        The caller holds the receiver's lock.

        Args:
            started: When it started, in seconds of `time.monotonic`.
            found: How many messages it returned.
            asked: How many it asked for.
            is_alone: See `PollInterval.empty`.
        """
        now = time.monotonic()
        self.flow.pulled(full=found == asked)
        if self.for_worker:
            idle = self.window.idle_seconds
            self.hint.pulled(started, now, idle_seconds=idle, flows=self.flow.is_steady)
        self.not_enabled_since = self.failure = None
        if found:
            self.messages_seen_at = now
            self.poll_interval.reset(now)
        # Unless another pull has found messages since, or a message was given back.
        elif self.messages_seen_at < started:
            self.poll_interval.empty(now, started, is_alone=is_alone)
            self.window.queue_was_empty()

    def __repr__(self) -> str:
        return f"<Subscription to {self.name!r}>"


class Arrival(NamedTuple):
    """A message that waits to be delivered."""

    subscription: Subscription
    delivery: Delivery


Call = Callable[[], None]
"""Delivers a message that was not pulled, in the thread that takes it."""


class Inbox:
    """The subscriptions of one connection, and the messages that wait for it.

    Args:
        lock: The receiver's lock.
        on_pull_wanted: Called, with the lock held, when a pull may have become due.
        on_left: Called, with the lock held, before an outage is raised so that Kombu leaves the
            broker.

    Attributes:
        subscriptions: What the connection consumes.
        asked: Whether the application has asked for a message in this process.  Nothing is pulled
            before: a forked child inherits its parent's subscriptions and need not consume.
        abandoned: The connection was garbage-collected and never closed.
        is_open: Whether the connection has consumed, and was not closed since.
        interrupted: The application is told to stop, and gets no more messages.
    """

    def __init__(
        self,
        lock: Lock,
        on_pull_wanted: Callable[[], None],
        on_left: Callable[[TransientError], None],
    ) -> None:
        self._on_left = on_left
        self.subscriptions: list[Subscription] = []
        self.abandoned = False
        self._on_pull_wanted = on_pull_wanted
        self.renew(lock)

    def renew(self, lock: Lock) -> None:
        """Start empty in a forked child: the parent delivers what it pulled."""
        self._lock = lock
        self._changed = Condition(lock)
        self._arrivals: deque[Arrival] = deque()
        self._calls: deque[Call] = deque()
        self._missed = False  # the last `take` found no message at once
        self._on_ready: Callable[[], None] | None = None
        self.asked = self.interrupted = self.is_open = False

    def take(self, deadline: float | None) -> Arrival | Call | None:
        """Block until a message may be delivered, and move its slot from held to unsettled.

        Args:
            deadline: When to stop waiting, in seconds of `time.monotonic`; None waits forever.

        Returns:
            The message, or a call that delivers one; None if the deadline has passed, and after
            `interrupt`.

        Raises:
            CFQueuesError: A pull failed, and another pull does not repair it.
        """
        with self._lock:
            while not self.interrupted:
                if self._calls:  # few, and somebody waits for an answer to most of them
                    return self._calls.popleft()
                arrival = self._pop(_is_deliverable)
                if arrival is not None:
                    window = arrival.subscription.window
                    self._hand_out(arrival, window, had_to_wait=self._missed)
                    self._missed = False
                    return arrival
                self._raise_failure()
                self._ask_for_messages()
                self._missed = True
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
        return None

    def put_call(self, deliver: Call) -> None:
        """Add a message from elsewhere: `take` returns *deliver*.  Any thread may call this."""
        with self._lock:
            self._calls.append(deliver)
            self.notify()

    def interrupt(self) -> None:
        """End every `take`, and all later ones.  Takes no lock: a signal handler may call it."""
        self.interrupted = True
        if self._on_ready is not None:
            self._on_ready()
        # Not `threading.Thread`, whose locks the interrupted code may hold.
        _thread.start_new_thread(self._wake, ())

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def watch(self, on_ready: Callable[[], None] | None) -> None:
        """Call *on_ready* whenever `take` has something to return or to raise, and once now.

        Args:
            on_ready: Called by any thread, with the lock held; None to stop.  A forked child does
                not call it.
        """
        with self._lock:
            self._on_ready = on_ready
            if on_ready is not None:
                on_ready()

    def take_from(self, name: str, window: PrefetchWindow, deadline: float) -> Arrival | None:
        """Return a message that was pulled for any subscription to a queue, and not delivered.

        Waits only for pulls that are in flight.  The message takes an unsettled slot of *window*,
        instead of the slot that was held for it.

        Args:
            name: Kombu's name of the queue.
            window: The slots of the channel that asks.
            deadline: When to stop waiting, in seconds of `time.monotonic`.
        """
        with self._lock:
            ids = self.ids_of(name)
            while True:
                arrival = self._pop(lambda one: one.subscription.queue.id in ids)
                if arrival is not None:
                    self._hand_out(arrival, window, had_to_wait=False)
                    return arrival
                left = deadline - time.monotonic()
                pulls = (one.in_flight for one in self.subscriptions if one.queue.id in ids)
                if left <= 0 or not any(pulls):
                    return None
                self._changed.wait(left)

    def await_search(self, subscription: Subscription, *, deadline: float) -> None:
        """Block until it is known what *subscription* pulls, or until *deadline*.

        Returns early once the server fails, because it may stay down.  The caller holds the lock.

        Raises:
            CFQueuesError: A request failed, and another try does not repair it.
            ConnectionFailed: The server is down, and Kombu has another URL.
        """
        while not subscription.found and time.monotonic() < deadline:
            if subscription.failure is not None:
                raise subscription.failure
            outage = subscription.outage
            if outage is not None:
                if subscription.fails_over and isinstance(outage, ConnectionFailed):
                    raise outage
                return
            self.wait_for_change(deadline)

    def abandon(self) -> None:
        """Note that the connection was garbage-collected and never closed.  Needs no lock."""
        self.abandoned = True

    # For the receiver, which holds the lock

    def waiting(self) -> list[Delivery]:
        """Return the messages that wait for their delivery."""
        return [arrival.delivery for arrival in self._arrivals]

    def put(self, arrivals: list[Arrival]) -> None:
        """Add messages that were pulled, and wake the threads that wait for one."""
        self._arrivals.extend(arrivals)
        self.notify()

    def newest(self, subscription: Subscription) -> Subscription:
        """Return the newest subscription of this connection to the queue of *subscription*.

        It gets all messages of the queue.  An application may have forgotten the earlier ones, and
        messages that are delivered to those would stay leased.
        """
        name, queue_id = subscription.name, subscription.queue.id
        return next(
            one
            for one in reversed([subscription, *self.subscriptions])
            # The queue of the newest may not be found yet.
            if one.name == name or one.queue.id == queue_id
        )

    def ids_of(self, name: str) -> set[str]:
        """Return the ids at Cloudflare of Kombu's queue *name*, which other names may also mean."""
        return {one.queue.id for one in self.subscriptions if one.name == name}

    def found(self, subscription: Subscription, source: Source) -> None:
        """Note what a subscription pulls; the newest one takes over messages of earlier ones."""
        subscription.queue, subscription.consumer = source
        subscription.found = True
        if subscription.cancelled:
            return
        subscription = self.newest(subscription)
        arrivals, self._arrivals = self._arrivals, deque()
        for arrival in arrivals:
            if arrival.subscription.queue.id == subscription.queue.id:
                arrival.subscription.window.held -= 1
                subscription.window.held += 1
                arrival = Arrival(subscription, arrival.delivery)  # noqa: PLW2901
            self._arrivals.append(arrival)
        if self._on_ready is not None:  # an event loop always wants messages
            self._ask_for_messages()
        self.notify()

    def notify(self) -> None:
        """Wake the threads that wait: a pull has ended, or a window has room."""
        self._changed.notify_all()
        if self._on_ready is not None and self._has_something():
            self._on_ready()

    def wait_for_change(self, deadline: float) -> None:
        """Block until the next `notify` or `put`, or until *deadline* (monotonic seconds)."""
        self._changed.wait(deadline - time.monotonic())

    def withdraw(self, subscription: Subscription) -> list[Delivery]:
        """Remove and return the messages of *subscription*, and free their slots."""
        out = [
            arrival.delivery for arrival in self._arrivals if arrival.subscription is subscription
        ]
        if out:
            self._arrivals = deque(
                arrival for arrival in self._arrivals if arrival.subscription is not subscription
            )
            subscription.window.held -= len(out)
        return out

    # Private; the caller holds the lock

    def _pop(self, is_wanted: Callable[[Arrival], bool]) -> Arrival | None:
        """Remove and return the first wanted arrival whose lease has not ended.

        Every message goes through here before its delivery.
        """
        now = time.monotonic()
        while (arrival := next(filter(is_wanted, self._arrivals), None)) is not None:
            self._arrivals.remove(arrival)
            if arrival.delivery.leased_until > now:
                return arrival
            # Cloudflare may have delivered it to another consumer by now.
            arrival.subscription.window.held -= 1
            metrics.expired(arrival.delivery.queue.name)
        return None

    def _has_something(self) -> bool:
        """Whether `take` would return or raise something now."""
        if self._calls or any(map(_is_deliverable, self._arrivals)):
            return True
        return any(subscription.failure for subscription in self.subscriptions)

    def _hand_out(self, arrival: Arrival, window: PrefetchWindow, *, had_to_wait: bool) -> None:
        """Free the slot that is held for a message, and take an unsettled one of *window*."""
        held_by = arrival.subscription.window
        held_by.held -= 1
        window.held += 1
        window.delivered(time.monotonic(), had_to_wait=had_to_wait)
        if held_by.freed(time.monotonic()):
            self._on_pull_wanted()

    def _raise_failure(self) -> None:
        """Raise the first failure that was not raised yet, once."""
        for subscription in self.subscriptions:
            failure, subscription.failure = subscription.failure, None
            if failure is not None:
                if isinstance(failure, TransientError):
                    self._on_left(failure)
                raise failure

    def _ask_for_messages(self) -> None:
        self.asked = True
        for subscription in self.subscriptions:
            subscription.window.missed()
        self._on_pull_wanted()


def _is_deliverable(arrival: Arrival) -> bool:
    subscription = arrival.subscription
    return not subscription.counts or subscription.window.may_deliver
