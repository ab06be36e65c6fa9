"""Pulling: for all channels of a process, ahead of what they deliver, in threads of its own.

No thread of the application ever waits for a pull, which a server may let hang: it waits for a
message, for as long as it likes.  A failure that passes is logged once and never raised, because a
Celery worker that is told of it closes its connection while its tasks run.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final

from .. import envelope, limits
from ..api.client import Client
from ..api.directory import Directory
from ..api.models import PullConsumer, Queue
from ..errors import (
    CFQueuesError,
    PullNotEnabled,
    QueueDisabled,
    QueueNotFound,
    ServerError,
    TransientError,
)
from ..options import Options
from ..runtime.fork import renew_in_child
from ..runtime.thread_pool import Job, ThreadPool
from .acknowledger import Acknowledger
from .dead_letters import Forwarder, Publish
from .delivery import Delivery
from .inbox import Arrival, Inbox, Subscription
from .prefetch_window import PrefetchWindow

logger = logging.getLogger(__name__)

MOST_PULLS: Final = 8
"""Pulls at once, of all queues together."""

PULLS_PER_QUEUE: Final = 2
"""Pulls at once of a queue whose last pull brought all that it asked for."""

PULL_SECONDS: Final = 15.0
"""Longest that one pull may take, with what it may need before."""

ETA_SECONDS: Final = 60.0
"""A message that is due later than this is not delivered yet: whoever waits with it in his hands
may lose it, and its lease runs."""

ENABLING_SECONDS: Final = 30.0
"""How long HTTP 405 is put up with: a new pull consumer takes seconds to be in force."""

ENABLING_QUIETLY: Final = 10.0
"""For so long of them that is nothing to warn of: several people saw it take some seconds."""

ENABLING_INTERVAL: Final = 1.0
"""Seconds between two pulls that are refused that way."""

LONGEST_NAP: Final = 10.0
"""Seconds after which a thread looks around, for connections that were forgotten unclosed."""

RETURNING_INTERVAL: Final = 0.02
"""How soon to look again at a queue that messages are on their way back to."""


class Receiver:
    """Pulls messages for the connections of a process to one account, and settles their leases.

    Args:
        client: Where to pull.
        directory: Knows the queues.
        publish: Publishes copies of messages that cannot be moved otherwise.
    """

    def __init__(self, client: Client, directory: Directory, publish: Publish) -> None:
        self._client = client
        self._directory = directory
        self._acknowledger = Acknowledger(client, self.nudge)
        self._forwarder = Forwarder(
            publish,
            lambda title, deadline: directory.by_cloudflare_name(title, deadline=deadline),
            self._acknowledger.ack,
            self.nudge,
        )
        self._inboxes: weakref.WeakSet[Inbox] = weakref.WeakSet()
        self._subscriptions: list[Subscription] = []
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Pull nothing until somebody in this process asks for messages."""
        # Guards the windows, inboxes and subscriptions of all connections, and what follows.
        # Never held over a request.
        self._lock = threading.Lock()
        self._threads = ThreadPool("cfqueues-pull", MOST_PULLS, self._lock, self._next_job)
        for inbox in self._inboxes:
            inbox.renew(self._lock)

    # -- subscriptions

    def open_inbox(self, owner: object) -> Inbox:
        """An inbox for one connection.  If *owner* is forgotten unclosed, it closes by itself."""
        inbox = Inbox(self._lock, self._wake_threads)
        with self._lock:
            self._inboxes.add(inbox)
        # Nothing but a flag: garbage is collected anywhere, also where this thread has the lock.
        weakref.finalize(owner, inbox.abandon).atexit = False
        return inbox

    def subscribe(
        self, name: str, queue: Queue, options: Options, window: PrefetchWindow, inbox: Inbox
    ) -> Subscription:
        """Pull *queue* from the next time on that somebody takes from *inbox*."""
        consumer = self._directory.enable_pull(
            queue, options, deadline=time.monotonic() + PULL_SECONDS
        )
        subscription = Subscription(
            name, queue, consumer=consumer, options=options, window=window, inbox=inbox
        )
        with self._lock:
            self._subscriptions.append(subscription)
            window.queues += 1
            inbox.subscriptions.append(subscription)
            inbox.changed()
        return subscription

    def _wake_threads(self) -> None:
        self._threads.call()

    def cancel(self, subscription: Subscription) -> None:
        """Pull no more, and give back what was not delivered.  Returns at once."""
        with self._lock:
            if subscription.cancelled:
                return
            subscription.cancelled = True
            self._subscriptions.remove(subscription)
            subscription.window.queues -= 1
            subscription.inbox.subscriptions.remove(subscription)
            undelivered = subscription.inbox.withdraw(subscription)
            self._threads.dismiss()
        for delivery in undelivered:
            self.give_back(delivery)

    def discard(self, subscription: Subscription) -> None:
        """Forget what was pulled and not delivered: its queue has been purged."""
        with self._lock:
            undelivered = subscription.inbox.withdraw(subscription)
            self._threads.call()
        for delivery in undelivered:
            self._acknowledger.ack(delivery)

    def close(self, inbox: Inbox) -> None:
        """Cancel all subscriptions of a connection.  Returns at once."""
        for subscription in list(inbox.subscriptions):
            self.cancel(subscription)

    def set_prefetch(self, window: PrefetchWindow, count: int) -> None:
        """Let a channel hold up to *count* unsettled messages; 0: any number."""
        with self._lock:
            window.prefetch = count
            self._threads.call()
            self._wake()

    def settled(self, window: PrefetchWindow, count: int = 1) -> None:
        """*count* delivered messages are settled, and their slots free; if negative, taken."""
        with self._lock:
            was_full = not window.may_deliver
            window.unsettled = max(0, window.unsettled - count)
            if window.freed(time.monotonic()) or count > 1:
                self._threads.call()
            # Messages are here that the window had no room for: its prefetch count was lowered.
            if was_full and window.held:
                self._wake()

    def _wake(self) -> None:
        """Let whoever waits for a message look again.  The caller holds the lock."""
        for inbox in self._inboxes:
            inbox.changed()

    def nudge(self, queue_id: str) -> None:
        """There surely is a message in the queue: pull it at once."""
        with self._lock:
            for subscription in self._subscriptions:
                if subscription.queue.id == queue_id:
                    subscription.came_at = time.monotonic()
                    subscription.poll_interval.came(subscription.came_at)
                    self._threads.call()

    # -- what becomes of deliveries

    def ack(self, delivery: Delivery) -> None:
        """The message is done with: it will not come again.  Returns at once."""
        self._acknowledger.ack(delivery)

    def give_back(self, delivery: Delivery, delay: int = 0) -> None:
        """The message is to come again, after *delay* seconds.  Returns at once.

        Where one more retry might be one too many, a copy takes its place.
        """
        if delivery.may_be_retried:
            self._acknowledger.retry(delivery, delay)
        else:
            self._forwarder.renew(delivery, delay)

    def dead_letter(self, delivery: Delivery) -> None:
        """The message is not wanted: to the dead-letter queue with it, if its queue has one."""
        if delivery.consumer.dead_letter_queue:
            self._forwarder.dead_letter(delivery)
        else:
            _warn_of_drop(delivery.queue.name)
            self._acknowledger.ack(delivery)

    def flush(self, subscriptions: Iterable[Subscription], deadline: float) -> None:
        """Block until all that was said of deliveries is at the server, or until *deadline*.

        Args:
            subscriptions: Those, cancelled before, whose last pulls are waited for: what these
                bring is given back.
            deadline: In seconds of `time.monotonic`.
        """
        if self._acknowledger.gave_up():
            return  # another channel of the connection has just found that the server is gone
        self._acknowledger.flush(deadline)
        with self._lock:
            for subscription in subscriptions:
                while subscription.in_flight and time.monotonic() < deadline:
                    subscription.inbox.wait_for_change(deadline)
        self._forwarder.await_copies(deadline)
        if time.monotonic() >= deadline:
            self._acknowledger.give_up()
        self._acknowledger.flush(deadline)

    # -- one message at a time

    def get(self, name: str, queue: Queue, options: Options, *, deadline: float) -> Delivery | None:
        """Pull one message in the caller's thread; None if there is none.

        Raises:
            CFQueuesError: What a request raised.  HTTP 405 of a pull consumer that is new is
                waited out, until *deadline*.
        """
        while True:
            consumer = self._directory.enable_pull(queue, options, deadline=deadline)
            self._acknowledger.await_returns(queue.id, deadline)
            try:
                found = self._lease(name, queue, consumer, options, most=1, deadline=deadline)
            except PullNotEnabled:
                self._directory.forget_pull(queue.id)
                if time.monotonic() + ENABLING_INTERVAL > deadline:
                    raise
                time.sleep(ENABLING_INTERVAL)
                continue
            wanted = list(self._deliverable(found))
            if wanted or not found:
                return wanted[0] if wanted else None

    # -- pulling

    def _next_job(self) -> Job:
        """The pull that is due first.  The caller holds the lock."""
        now = time.monotonic()
        chosen: Subscription | None = None
        ready, wait = 0, LONGEST_NAP
        for subscription in self._subscriptions:
            if subscription.inbox.abandoned:
                return Job(functools.partial(self.close, subscription.inbox))
            at = self._ask_at(subscription, now)
            if at > now:
                wait = min(wait, at - now)
                continue
            ready += 1
            if chosen is None or subscription.poll_interval.due < chosen.poll_interval.due:
                chosen = subscription
        if chosen is None:
            return Job(wait=wait if self._subscriptions else None)
        most = self._share(chosen)
        chosen.window.held += most
        chosen.in_flight += 1
        # Somebody else is to wait for the other queues' time: this pull may hang.
        more = ready > 1 or wait < LONGEST_NAP or self._ask_at(chosen, now) <= now
        return Job(functools.partial(self._pull, chosen, most), more=more)

    def _ask_at(self, subscription: Subscription, now: float) -> float:
        """When the queue may be pulled next, as things stand; infinity: when something changes."""
        if not subscription.inbox.drained:
            return math.inf
        if subscription.in_flight >= (PULLS_PER_QUEUE if subscription.flowing else 1):
            return math.inf
        at = max(subscription.poll_interval.due, subscription.window.ask_at())
        if at <= now and self._acknowledger.returning(subscription.queue.id):
            return now + RETURNING_INTERVAL
        return at

    def _share(self, subscription: Subscription) -> int:
        """How many messages to ask for: with little room, one empty queue must not take it all."""
        room = subscription.window.room
        if not subscription.flowing:
            room = max(1, room // subscription.window.queues)
        return min(room, subscription.options.pull_batch_size)

    def _pull(self, subscription: Subscription, most: int) -> None:
        """Pull up to *most* messages, whose slots are taken already."""
        found: list[Delivery] = []
        arrivals: list[Arrival] = []
        error: CFQueuesError | None = None
        started = time.monotonic()
        try:
            found = self._lease(
                subscription.name,
                subscription.queue,
                subscription.consumer,
                subscription.options,
                most=most,
                deadline=started + PULL_SECONDS,
            )
            arrivals = [Arrival(subscription, one) for one in self._deliverable(found)]
        except CFQueuesError as failure:
            error = self._mend(subscription, failure)
        finally:
            # Whatever ends this thread, the slots are free again.
            with self._lock:
                late = self._hand_over(subscription, most, arrivals)
                self._set_poll_interval(subscription, started, most, len(found), error)
                story = self._story(subscription, started, error)
            for arrival in late:
                self.give_back(arrival.delivery)
            # Not before: whoever flushes looks for nothing more once no pull is in flight.
            with self._lock:
                subscription.in_flight -= 1
                subscription.inbox.changed()
        if story is not None:
            logger.log(*story)

    def _lease(
        self,
        name: str,
        queue: Queue,
        consumer: PullConsumer,
        options: Options,
        *,
        most: int,
        deadline: float,
    ) -> list[Delivery]:
        leased_until = time.monotonic() + options.visibility_timeout
        messages = self._client.pull(
            queue.id,
            batch_size=most,
            visibility_timeout_ms=int(options.visibility_timeout * 1000),
            deadline=deadline,
        )
        return [
            Delivery(queue, consumer, lease, leased_until, raw, envelope.receive(raw, name))
            for raw in messages
            if isinstance(lease := raw.get("lease_id"), str) and lease
        ]

    def _deliverable(self, deliveries: Iterable[Delivery]) -> Iterator[Delivery]:
        """Those that are to be delivered now; expired and early ones are dealt with."""
        now = time.time()
        for delivery in deliveries:
            if envelope.expired(delivery.message, now):
                logger.debug(
                    "message %s of queue %r is dropped: its expiration has passed",
                    delivery.raw.get("id"),
                    delivery.queue.name,
                )
                self._acknowledger.ack(delivery)
                continue
            early = envelope.seconds_until_due(delivery.message, now)
            if early > ETA_SECONDS:
                self.give_back(delivery, min(math.ceil(early), limits.DELAY_SECONDS))
                continue
            yield delivery

    def _hand_over(
        self, subscription: Subscription, most: int, arrivals: list[Arrival]
    ) -> list[Arrival]:
        """Return what came too late to be delivered.  The caller holds the lock."""
        late, kept = (arrivals, []) if subscription.cancelled else ([], arrivals)
        subscription.window.held -= most - len(kept)
        subscription.inbox.put(kept)
        return late

    def _set_poll_interval(
        self,
        subscription: Subscription,
        started: float,
        asked: int,
        found: int,
        error: CFQueuesError | None,
    ) -> None:
        """Say when the queue is pulled next.  The caller holds the lock."""
        now = time.monotonic()
        subscription.flowing = found == asked
        if error is not None:
            subscription.poll_interval.failed(now, error.retry_after)
            if not isinstance(error, TransientError):
                subscription.failure = error
                subscription.inbox.changed()
            return
        subscription.refused_since = subscription.failure = None
        if found:
            subscription.came_at = now
            subscription.poll_interval.came(now)
        elif subscription.came_at < started:
            # Else another pull, or a message that was given back, says that it is not empty.
            subscription.poll_interval.empty(now)
            subscription.window.ran_dry()

    def _story(
        self, subscription: Subscription, started: float, error: CFQueuesError | None
    ) -> tuple[Any, ...] | None:
        """What to log: the begin and the end of each trouble, once.  The caller holds the lock."""
        before = subscription.trouble
        if error is None:
            # What was asked before the trouble began says nothing of its end.
            if before is None or started < subscription.troubled_at:
                return None
            subscription.trouble = None
            over = not any(one.trouble for one in self._subscriptions)
            told = logging.INFO, "queue %r is pulled again", subscription.queue.name
            return told if over else None
        if not isinstance(error, TransientError):
            return None  # it is raised
        now = time.monotonic()
        refused_since = subscription.refused_since
        if (
            error.status == HTTPStatus.METHOD_NOT_ALLOWED
            and refused_since is not None
            and now - refused_since < ENABLING_QUIETLY
        ):
            # No trouble either: one that begins meanwhile is to be told.
            return logging.DEBUG, "queue %r is not pulled yet: %s", subscription.queue.name, error
        # A paused queue concerns itself; a server that is down concerns all of them.
        paused = isinstance(error, QueueDisabled)
        known = any(
            one.trouble is not None
            and isinstance(one.trouble, QueueDisabled) == paused
            and (not paused or one.queue.id == subscription.queue.id)
            for one in self._subscriptions
        )
        subscription.trouble = error
        if before is None:
            subscription.troubled_at = now
        if known:
            return None
        text = "queue %r cannot be pulled now; it is tried again until it can: %s"
        return logging.WARNING, text, subscription.queue.name, error

    def _mend(self, subscription: Subscription, error: CFQueuesError) -> CFQueuesError | None:
        """Do about a failed pull what can be done; return what is left of it."""
        deadline = time.monotonic() + PULL_SECONDS
        try:
            if isinstance(error, QueueNotFound):
                self._find_again(subscription, error, deadline)
                return None
            if isinstance(error, PullNotEnabled):
                return self._enable_again(subscription, error, deadline)
            if error.status == HTTPStatus.FORBIDDEN and error.code is None:
                # The API's refusals have a code.  This is a page of a firewall or a proxy, which
                # must not end a worker that has pulled before and will again.
                return ServerError(str(error), status=error.status, ray_id=error.ray_id)
        except CFQueuesError as worse:
            return worse
        return error

    def _find_again(
        self, subscription: Subscription, error: QueueNotFound, deadline: float
    ) -> None:
        """The queue was deleted: perhaps somebody has made it again, with another id."""
        name, options = subscription.name, subscription.options
        if not self._directory.forget(name, subscription.queue.id, options):
            raise error
        found = self._directory.find(name, options, deadline=deadline)
        if found is None:
            raise error
        subscription.consumer = self._directory.enable_pull(found, options, deadline=deadline)
        subscription.queue = found

    def _enable_again(
        self, subscription: Subscription, error: PullNotEnabled, deadline: float
    ) -> CFQueuesError | None:
        """HTTP pull is not in force: not yet, or not any more."""
        now = time.monotonic()
        first = subscription.refused_since is None
        if subscription.refused_since is None:
            subscription.refused_since = now
        late = now - subscription.refused_since > ENABLING_SECONDS
        if first or late:
            self._directory.forget_pull(subscription.queue.id)
            subscription.consumer = self._directory.enable_pull(
                subscription.queue, subscription.options, deadline=deadline
            )
        if late:
            return error
        return ServerError(
            f"{error} A pull consumer that has just been made takes some seconds to be in force.",
            status=error.status,
            retry_after=ENABLING_INTERVAL,
        )


@functools.lru_cache(maxsize=1024)
def _warn_of_drop(queue: str) -> None:
    logger.warning(
        "a rejected message of queue %r was deleted, as all further ones will be: the queue has no "
        "dead-letter queue (option dead_letter_queue, or the dashboard)",
        queue,
    )
