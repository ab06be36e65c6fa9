"""What one connection consumes, and what was pulled for it and not yet delivered."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..api.models import PullConsumer, Queue
from ..errors import CFQueuesError
from ..metrics import metrics
from ..options import Options
from ..runtime.fork import renew_in_child
from .delivery import Delivery
from .poll_interval import PollInterval
from .prefetch_window import PrefetchWindow


class Subscription:
    """One channel's wish for the messages of one queue.

    The receiver's lock guards it, as all that is in this module.

    Args:
        name: Kombu's name of the queue.
        queue: The queue at Cloudflare.
        consumer: Its pull consumer.
        options: How it is pulled.
        window: The channel's slots.
        inbox: Where its messages go.
    """

    def __init__(
        self,
        name: str,
        queue: Queue,
        *,
        consumer: PullConsumer,
        options: Options,
        window: PrefetchWindow,
        inbox: Inbox,
    ) -> None:
        self.name = name
        self.queue = queue
        self.consumer = consumer
        self.options = options
        self.window = window
        self.inbox = inbox
        self.counts = True  # against the prefetch count; not what is acknowledged on receipt
        self.cancelled = False
        self.flowing = False  # the last pull brought all that it asked for
        self.came_at = 0.0
        self.trouble: CFQueuesError | None = None  # the last pull failed, and may succeed again
        self.troubled_at = 0.0
        self.failure: CFQueuesError | None = None  # pulling again does not mend it; to be raised
        self.refused_since: float | None = None  # 405: HTTP pull is not in force
        self.poll_interval = PollInterval(
            options.polling_interval, options.max_polling_interval, time.monotonic()
        )
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Await no answer that the parent gets."""
        self.in_flight = 0  # pulls on their way

    def __repr__(self) -> str:
        return f"<Subscription to {self.name!r}>"


class Arrival(NamedTuple):
    """A message that waits to be delivered."""

    subscription: Subscription
    delivery: Delivery


class Inbox:
    """The subscriptions of one connection, and the messages that wait for it.

    Args:
        lock: The receiver's, which guards all of it.
        wanted: Called, with the lock held, when there may be a reason to pull.
    """

    def __init__(self, lock: threading.Lock, wanted: Callable[[], None]) -> None:
        self.subscriptions: list[Subscription] = []
        self.abandoned = False
        self._wanted = wanted
        self.renew(lock)

    def renew(self, lock: threading.Lock) -> None:
        """Start empty in a forked child: what was pulled is the parent's."""
        self._lock = lock
        self._changed = threading.Condition(lock)
        self._arrivals: deque[Arrival] = deque()
        # Nothing is pulled before somebody asks: a forked child inherits its parent's
        # subscriptions, and need not consume.
        self.drained = False

    def take(self, deadline: float | None) -> Arrival | None:
        """Block until a message may be delivered; None at *deadline* (monotonic seconds).

        Its slot goes over from held to unsettled.

        Raises:
            CFQueuesError: A pull failed in a way that pulling again does not mend.
        """
        had_to_wait = False
        with self._lock:
            while True:
                arrival = self._pick()
                if arrival is not None:
                    self._hand_out(arrival, had_to_wait=had_to_wait)
                    return arrival
                self._raise_failure()
                self._miss()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                had_to_wait = True
                self._changed.wait(left)

    def _raise_failure(self) -> None:
        """Raise what has failed for good, once."""
        for subscription in self.subscriptions:
            failure, subscription.failure = subscription.failure, None
            if failure is not None:
                raise failure

    def _miss(self) -> None:
        self.drained = True
        for subscription in self.subscriptions:
            subscription.window.missed()
        self._wanted()

    def take_of(self, subscription: Subscription, deadline: float) -> Arrival | None:
        """A message of *subscription* that is here or on its way; does not wait for others."""
        with self._lock:
            while True:
                for arrival in self._arrivals:
                    if arrival.subscription is subscription:
                        self._arrivals.remove(arrival)
                        self._hand_out(arrival, had_to_wait=False)
                        return arrival
                left = deadline - time.monotonic()
                if not subscription.in_flight or left <= 0:
                    return None
                self._changed.wait(left)

    # For the receiver, which holds the lock

    def put(self, arrivals: list[Arrival]) -> None:
        """Messages were pulled."""
        self._arrivals.extend(arrivals)
        self._changed.notify_all()

    def abandon(self) -> None:
        """Whoever owned it is gone, and has not closed it.  Needs no lock."""
        self.abandoned = True

    def wait_for_change(self, deadline: float) -> None:
        """Block until a pull has ended, or until *deadline* (monotonic seconds)."""
        self._changed.wait(max(0.0, deadline - time.monotonic()))

    def changed(self) -> None:
        """Wake whoever waits: a pull has ended, or there is room in a window."""
        self._changed.notify_all()

    def withdraw(self, subscription: Subscription) -> list[Delivery]:
        """Take out what waits for *subscription*, and is not to be delivered."""
        out = [one.delivery for one in self._arrivals if one.subscription is subscription]
        if out:
            self._arrivals = deque(
                one for one in self._arrivals if one.subscription is not subscription
            )
            subscription.window.held -= len(out)
        return out

    def _pick(self) -> Arrival | None:
        now = time.monotonic()
        for arrival in self._deliverable():
            self._arrivals.remove(arrival)
            if arrival.delivery.leased_until > now:
                return arrival
            # Somebody else has it by now.
            arrival.subscription.window.held -= 1
            metrics.expired(arrival.delivery.queue.name)
        return None

    def _deliverable(self) -> Iterator[Arrival]:
        for arrival in list(self._arrivals):
            subscription = arrival.subscription
            if not subscription.counts or subscription.window.may_deliver:
                yield arrival

    def _hand_out(self, arrival: Arrival, *, had_to_wait: bool) -> None:
        subscription = arrival.subscription
        subscription.window.delivered(time.monotonic(), had_to_wait=had_to_wait)
        if subscription.window.freed(time.monotonic()):
            self._wanted()
