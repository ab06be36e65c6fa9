"""Pulls messages for all channels of a process, ahead of their delivery, in background threads.

The application's threads wait for messages until their own timeout, and never for a pull, which a
server may leave hanging.  A temporary failure is logged once and never raised: a Celery worker
would close its connection while its tasks still run.
"""

from __future__ import annotations

import functools
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Final

from ..api.client import Client
from ..api.directory import Directory
from ..envelope import Address
from ..errors import CFQueuesError
from ..options import Options
from ..runtime.fork import living, renew_in_child
from ..runtime.locks import new_lock
from ..runtime.thread_pool import Job, ThreadPool
from .acknowledger import Acknowledger
from .dead_letters import Forwarder, Publish
from .delivery import Delivery
from .doorbell import Doorbell
from .dropped import DroppedMessages, Holder
from .flow import FLOWING_PULLS
from .inbox import Arrival, Inbox, Subscription
from .lease import deliverable, lease
from .prefetch_window import PrefetchWindow
from .pull_failures import conclude, repair
from .settlement import Settlement
from .source import Source, find_source, use_source
from .vitals import Vitals, take_vitals

logger = logging.getLogger(__name__)

MAX_PULLS: Final = FLOWING_PULLS
"""Maximum number of pulls in flight, of all queues together."""

SUBSCRIBE_SECONDS: Final = 1.0
"""How long a call that starts to consume waits for its queue to be found.  Short, because a caller
such as ``SimpleQueue.get(timeout=1)`` counts its own timeout from then on.  Long enough for several
requests, so that a mistake is usually raised where it was made."""

PULL_SECONDS: Final = 15.0
"""Maximum duration of one pull, and of the requests that find its queue, or repair a pull that
failed; these two may also wait for permits."""

MAX_IDLE_SECONDS: Final = 5.0
"""A waiting thread looks at the subscriptions at least this often, to find connections that were
garbage-collected and never closed, and messages that were garbage-collected and never settled."""

RETURNING_INTERVAL_SECONDS: Final = 0.02
"""How often to look at a queue whose pull waits for messages that are being given back, or for
acknowledgements."""


class Receiver:
    """Pulls messages for the connections of a process to one account.

    Args:
        client: Pulls messages and settles leases.
        directory: Finds queues and creates pull consumers.
        publish: Publishes copies of messages that cannot be moved otherwise.
        doorbell: Tells when another process of this machine has published.

    Attributes:
        settlement: Ends deliveries.
        dropped: Gives back messages that the application has dropped.
        holders: The channels that may hold messages, which are given back when the process ends.
    """

    def __init__(
        self, client: Client, directory: Directory, publish: Publish, doorbell: Doorbell
    ) -> None:
        self._doorbell = doorbell
        doorbell.answer_with(self._answer, self._is_consumed)
        self._client = client
        self._directory = directory
        self._acknowledger = Acknowledger(client, self.pull_now)
        self._forwarder = Forwarder(
            publish,
            lambda name, deadline: directory.resolve(
                Address(name, creates=True), deadline=deadline
            ),
            self._acknowledger.ack,
            self.pull_now,
        )
        self.settlement = Settlement(self._acknowledger, self._forwarder)
        self.dropped = DroppedMessages()
        self._inboxes: weakref.WeakSet[Inbox] = weakref.WeakSet()
        self._subscriptions: list[Subscription] = []
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Pull nothing until the application asks for messages in this process."""
        self.dropped.renew_after_fork()
        # Guards the windows, inboxes and subscriptions of all connections, and the threads.
        # Never held during a request.
        self._lock = new_lock()
        self._threads = ThreadPool("cfqueues-pull", MAX_PULLS, self._lock, self._next_job)
        for inbox in self._inboxes:
            inbox.renew(self._lock)

    # -- subscriptions

    def open_inbox(self, owner: object) -> Inbox:
        """Return a new inbox for the connection *owner*.

        Its subscriptions are cancelled if *owner* is garbage-collected and was never closed.
        """
        inbox = Inbox(self._lock, self._wake_threads, self._directory.require_probe)
        with self._lock:
            self._inboxes.add(inbox)
        # This sets a flag and takes no lock: garbage may be collected in a thread that has it.
        weakref.finalize(owner, inbox.abandon).atexit = False
        return inbox

    def subscribe(self, subscription: Subscription) -> None:
        """Pull a queue once a message is asked of the inbox; create the queue if it is missing.

        Blocks for `SUBSCRIBE_SECONDS` at most, and returns early if the server fails.  The search
        then goes on in the background, and the inbox raises its errors.

        Call `cancel` if this raises.

        Raises:
            PullNotEnabled: A Worker consumes the queue.
            ConnectionFailed: The server is down, and Kombu has another URL.
            CFQueuesError: A request failed.
        """
        inbox = subscription.inbox
        with self._lock:
            self._subscriptions.append(subscription)
            subscription.window.queue_count += 1
            inbox.subscriptions.append(subscription)
            inbox.is_open = True
            self._threads.call()
            inbox.await_search(subscription, deadline=time.monotonic() + SUBSCRIBE_SECONDS)

    def cancel(self, subscription: Subscription) -> None:
        """Start no further pull, and give back what was not delivered.  Returns at once."""
        with self._lock:
            if subscription.cancelled:
                return
            subscription.cancelled = True
            self._subscriptions.remove(subscription)
            subscription.window.queue_count -= 1
            subscription.inbox.subscriptions.remove(subscription)
            undelivered = subscription.inbox.withdraw(subscription)
            self._threads.call_idle()
        for delivery in undelivered:
            self.settlement.give_back(delivery)

    def discard(self, inbox: Inbox, name: str) -> None:
        """Acknowledge what was not delivered of a queue, which was purged.  Returns at once.

        Args:
            inbox: Of the connection that has purged it.
            name: Kombu's name of the queue.
        """
        with self._lock:
            ids = inbox.ids_of(name)
            subscriptions = [one for one in inbox.subscriptions if one.queue.id in ids]
            undelivered = [one for each in subscriptions for one in inbox.withdraw(each)]
            self._threads.call()
        for delivery in undelivered:
            self.settlement.ack(delivery)

    def pull_now(self, queue_id: str) -> None:
        """Pull a queue at once if it is consumed: there certainly is a message in it."""
        self._hasten(lambda one: one.queue.id == queue_id, Subscription.has_messages)

    def expect(self, name: str) -> None:
        """Pull Kombu's queue *name* soon if it is consumed: a result will come to it."""
        self._hasten(
            lambda one: one.name == name, lambda one: one.poll_interval.expect(time.monotonic())
        )

    def _answer(self, queue_id: str) -> None:
        """Pull a queue soon: a process of this machine has published to it."""
        self._hasten(
            lambda one: one.queue.id == queue_id,
            lambda one: one.poll_interval.ring(time.monotonic()),
        )

    def _hasten(
        self, is_meant: Callable[[Subscription], bool], act: Callable[[Subscription], None]
    ) -> None:
        if not self._subscriptions:  # a process that only publishes needs no lock for this
            return
        with self._lock:
            for subscription in filter(is_meant, self._subscriptions):
                act(subscription)
                # Without this, each bell of a busy queue would start another thread.
                if self._due_at(subscription, time.monotonic()) < math.inf:
                    self._threads.call()

    def _is_consumed(self, queue_id: str) -> bool:
        return any(one.queue.id == queue_id for one in list(self._subscriptions))

    def _is_alone(self, subscription: Subscription) -> bool:
        """Whether *subscription* is the only one of this machine to its queue."""
        queue_id = subscription.queue.id
        here = [one for one in list(self._subscriptions) if one.queue.id == queue_id]
        return here == [subscription] and self._doorbell.is_alone(queue_id)

    def flush(self, subscriptions: Iterable[Subscription], deadline: float) -> None:
        """Block until the server knows how every delivery ended, or until *deadline*.

        Args:
            subscriptions: Cancelled subscriptions.  Their last pulls are awaited, and the messages
                of these are given back.
            deadline: When to stop, in seconds of `time.monotonic`.
        """
        if self._acknowledger.gave_up():
            return  # another channel has just found that the server is unreachable
        self._acknowledger.flush(deadline)
        with self._lock:
            for subscription in subscriptions:
                while subscription.in_flight and time.monotonic() < deadline:
                    subscription.inbox.wait_for_change(deadline)
        self._forwarder.await_copies(deadline)
        if time.monotonic() >= deadline:
            self._acknowledger.give_up()
        self._acknowledger.flush(deadline)

    def finish(self, deadline: float) -> None:
        """Settle everything, because this process ends; blocks until *deadline* at most.

        What is acknowledged is sent first.  Then what was delivered or pulled ahead is given back.
        """
        self._acknowledger.flush(deadline)
        with self._lock:
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            self.cancel(subscription)
        for holder in living(self.holders):
            holder.restore_unacked()
        self.dropped.give_back()
        self.flush(subscriptions, deadline)

    def _cancel_all(self, inbox: Inbox) -> None:
        for subscription in list(inbox.subscriptions):
            self.cancel(subscription)

    def vitals(self) -> Vitals:
        """Return what a health check asks for.  Makes no request."""
        unsettled = [one for holder in living(self.holders) for one in holder.deliveries()]
        settling = self._acknowledger.settling()
        with self._lock:
            return take_vitals(self._subscriptions, living(self._inboxes), unsettled, settling)

    # -- prefetch windows

    def set_prefetch(self, window: PrefetchWindow, count: int) -> None:
        """Let a channel have at most *count* unsettled messages; 0 means no limit."""
        with self._lock:
            window.prefetch = count
            self._threads.call()
            self._notify_inboxes()

    def take_slot(self, window: PrefetchWindow) -> None:
        """Count a message as unsettled that did not come through an inbox."""
        with self._lock:
            window.unsettled += 1

    def free_slots(self, window: PrefetchWindow, count: int = 1) -> None:
        """Free the slots of *count* delivered messages, which are settled."""
        with self._lock:
            was_full = not window.may_deliver
            window.unsettled = max(0, window.unsettled - count)
            if window.freed(time.monotonic()) or count > 1:
                self._threads.call()
            # Messages may wait that the window had no room for: its prefetch count was lowered.
            if was_full and window.held:
                self._notify_inboxes()

    def _notify_inboxes(self) -> None:
        """Let the threads that wait for a message look again.  The caller holds the lock."""
        for inbox in self._inboxes:
            inbox.notify()

    # -- pulling

    def get(self, name: str, options: Options, *, deadline: float) -> Delivery | None:
        """Pull one message in the caller's thread; return None if the queue is empty.

        HTTP 405 of a new pull consumer is retried until *deadline* (seconds of `time.monotonic`).

        Raises:
            CFQueuesError: A request failed.
        """

        def pull(source: Source) -> Delivery | None:
            while True:
                self._acknowledger.await_returns(source.queue.id, deadline)
                found = lease(self._client, name, source, options, count=1, deadline=deadline)
                deliverables = list(deliverable(found, self.settlement))
                if deliverables or not found:
                    return deliverables[0] if deliverables else None

        return use_source(name, self._directory, options, pull, deadline=deadline)

    def _wake_threads(self) -> None:
        self._threads.call()

    def _next_job(self) -> Job:
        """Return the pull that is due first, and take its slots.  The caller holds the lock."""
        if self.dropped:
            return Job(self.dropped.give_back)
        now = time.monotonic()
        chosen: Subscription | None = None
        ready, wait = 0, MAX_IDLE_SECONDS
        for subscription in self._subscriptions:
            if subscription.inbox.abandoned:
                return Job(functools.partial(self._cancel_all, subscription.inbox))
            at = self._due_at(subscription, now)
            if at > now:
                wait = min(wait, at - now)
                continue
            ready += 1
            if chosen is None or subscription.poll_interval.due < chosen.poll_interval.due:
                chosen = subscription
        if chosen is None:
            return Job(wait=wait if self._subscriptions else None)
        chosen.pulse.asked()
        if not chosen.found:
            chosen.searching = True
            return Job(functools.partial(self._search, chosen), more=True)
        count = self._batch_size(chosen)
        chosen.window.held += count
        chosen.in_flight += 1
        # This pull may hang, so another thread should wait for the other queues.
        more = ready > 1 or wait < MAX_IDLE_SECONDS or self._pull_at(chosen, now) <= now
        return Job(functools.partial(self._pull, chosen, count), more=more)

    def _due_at(self, subscription: Subscription, now: float) -> float:
        """When to search for the queue or to pull it; infinity until something changes."""
        if subscription.found:
            return self._pull_at(subscription, now)
        return math.inf if subscription.searching else subscription.poll_interval.due

    def _pull_at(self, subscription: Subscription, now: float) -> float:
        """When the queue may be pulled next; infinity until something changes."""
        inbox = subscription.inbox
        if not inbox.asked or inbox.newest(subscription) is not subscription:
            return math.inf
        flow = subscription.flow
        of_all = (one.in_flight for one in self._subscriptions)
        if not flow.allows(subscription.in_flight, of_all):
            return math.inf
        at = max(subscription.poll_interval.due, subscription.window.pull_at(flows=flow.is_steady))
        if at <= now and self._acknowledger.delays_pull(subscription.queue.id):
            return now + RETURNING_INTERVAL_SECONDS
        return at

    def _batch_size(self, subscription: Subscription) -> int:
        """How many messages to request: only a share of the room if the queue may be empty."""
        room = subscription.window.room
        if not subscription.flow.may_go_on:
            room = max(1, room // subscription.window.queue_count)
        return min(room, subscription.options.pull_batch_size)

    def _search(self, subscription: Subscription) -> None:
        """Look for what *subscription* pulls."""
        source: Source | None = None
        error: CFQueuesError | None = None
        started = time.monotonic()
        name, options = subscription.name, subscription.options
        deadline = started + PULL_SECONDS + options.lookup_seconds
        try:
            source = find_source(name, self._directory, options, deadline=deadline)
        except CFQueuesError as failure:
            error = failure
        finally:
            # Also if anything else ends this thread: another one must search.
            with self._lock:
                if source is not None:
                    subscription.inbox.found(subscription, source)
                    subscription.poll_interval.reset(time.monotonic())
                line = conclude(subscription, self._subscriptions, started, error)
                subscription.searching = False
                subscription.inbox.notify()
        if line is not None:
            line.write()

    def _pull(self, subscription: Subscription, count: int) -> None:
        """Pull up to *count* messages, whose slots are taken already."""
        found: list[Delivery] = []
        arrivals: list[Arrival] = []
        error: CFQueuesError | None = None
        is_alone = False
        started = time.monotonic()
        try:
            found = self._take(subscription, count, started + PULL_SECONDS)
            arrivals = [Arrival(subscription, one) for one in deliverable(found, self.settlement)]
            if not found and subscription.poll_interval.was_rung():
                is_alone = self._is_alone(subscription)
        except CFQueuesError as failure:
            deadline = time.monotonic() + PULL_SECONDS + subscription.options.lookup_seconds
            error = repair(failure, subscription, self._directory, deadline=deadline)
        finally:
            # Also if anything else ends this thread: the slots must be freed.
            with self._lock:
                late = self._hand_over(subscription, count, arrivals)
                if error is None:
                    subscription.pulled(started, found=len(found), asked=count, is_alone=is_alone)
                line = conclude(subscription, self._subscriptions, started, error)
            for arrival in late:
                self.settlement.give_back(arrival.delivery)
            # Last, because `flush` considers a pull that is not in flight as settled.
            with self._lock:
                subscription.in_flight -= 1
                subscription.inbox.notify()
        if line is not None:
            line.write()
        subscription.hint.give(subscription.name, subscription.window.prefetch)

    def _take(self, subscription: Subscription, count: int, deadline: float) -> list[Delivery]:
        # Listen first: the pull then finds what was published before.
        self._doorbell.listen_for(subscription.queue.id, subscription.publishers_names)
        name, options = subscription.name, subscription.options
        source = Source(subscription.queue, subscription.consumer)
        return lease(self._client, name, source, options, count=count, deadline=deadline)

    def _hand_over(
        self, subscription: Subscription, count: int, arrivals: list[Arrival]
    ) -> list[Arrival]:
        """Free the slots that were not needed; return what came too late to be delivered.

        The caller holds the lock.
        """
        subscription.window.held -= count
        if subscription.cancelled:
            return arrivals
        newest = subscription.inbox.newest(subscription)
        newest.window.held += len(arrivals)
        subscription.inbox.put([Arrival(newest, arrival.delivery) for arrival in arrivals])
        return []
