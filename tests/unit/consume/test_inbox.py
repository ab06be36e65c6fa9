"""What was pulled and waits to be delivered."""

from __future__ import annotations

import threading
import time

import pytest

from kombu_cfqueues.api.models import PullConsumer, Queue
from kombu_cfqueues.consume.delivery import Delivery
from kombu_cfqueues.consume.inbox import Arrival, Inbox, Subscription
from kombu_cfqueues.consume.prefetch_window import PrefetchWindow
from kombu_cfqueues.consume.source import Source
from kombu_cfqueues.errors import AuthenticationFailed
from kombu_cfqueues.options import Options, Secret
from kombu_cfqueues.runtime.locks import new_lock

OPTIONS = Options(account_id="a", api_token=Secret("t"))


class Mail:
    """An inbox with one subscription, and what the receiver would do with it."""

    def __init__(self, prefetch: int = 10) -> None:
        self.lock = new_lock()
        self.wanted = 0
        self.inbox = Inbox(self.lock, self.want, lambda failure: None)
        self.window = PrefetchWindow(100)
        self.window.prefetch = prefetch
        self.subscription = Subscription(
            "jobs",
            options=OPTIONS,
            window=self.window,
            inbox=self.inbox,
            fails_over=False,
            is_reply=False,
        )
        self.inbox.subscriptions.append(self.subscription)
        source = Source(Queue("1" * 32, "jobs", None), PullConsumer(100, ""))
        with self.lock:
            self.inbox.found(self.subscription, source)

    def want(self) -> None:
        assert self.lock.locked()
        self.wanted += 1

    def put(self, *leases: str, lasts: float = 60) -> None:
        until = time.monotonic() + lasts
        with self.lock:
            self.window.held += len(leases)
            self.inbox.put(
                [
                    Arrival(
                        self.subscription,
                        Delivery(
                            self.subscription.queue,
                            self.subscription.consumer,
                            lease,
                            until,
                            {},
                            {},
                        ),
                    )
                    for lease in leases
                ]
            )

    def take(self, seconds: float = 0) -> str | None:
        arrival = self.inbox.take(time.monotonic() + seconds)
        return arrival and arrival.delivery.lease_id


def test_messages_are_taken_in_the_order_in_which_they_came():
    mail = Mail()
    mail.put("a", "b")
    mail.put("c")

    assert [mail.take(), mail.take(), mail.take(), mail.take()] == ["a", "b", "c", None]
    assert (mail.window.held, mail.window.unsettled) == (0, 3)


def test_what_outlived_its_lease_is_not_delivered():
    """Somebody else has it by then, so it would be done twice."""
    mail = Mail()
    mail.put("old", lasts=0)
    mail.put("new")

    assert mail.take() == "new"
    assert (mail.window.held, mail.window.unsettled) == (0, 1)


def test_no_more_is_delivered_than_the_prefetch_count():
    mail = Mail(prefetch=2)
    mail.put("a", "b", "c")

    assert [mail.take(), mail.take(), mail.take()] == ["a", "b", None]


def test_what_is_acknowledged_on_receipt_needs_no_slot():
    mail = Mail(prefetch=1)
    mail.subscription.counts = False
    mail.put("a", "b")

    assert [mail.take(), mail.take()] == ["a", "b"]


def test_whoever_waits_is_woken():
    mail = Mail()
    threading.Timer(0.1, mail.put, ["a"]).start()
    started = time.monotonic()

    assert mail.take(5) == "a"

    assert time.monotonic() - started < 2


def test_who_waits_without_end_is_woken():
    mail = Mail()
    threading.Timer(0.1, mail.put, ["a"]).start()

    assert mail.inbox.take(None).delivery.lease_id == "a"


@pytest.mark.parametrize("deadline", [-1.0, 0.1])
def test_waiting_for_a_pull_ends_at_its_deadline(deadline):
    mail = Mail()
    started = time.monotonic()

    with mail.lock:
        mail.inbox.wait_for_change(started + deadline)

    assert max(0.0, deadline) <= time.monotonic() - started < 10


def test_a_miss_wants_a_pull():
    mail = Mail()

    mail.take()

    assert mail.wanted
    assert mail.inbox.asked


def test_a_failure_is_raised_once_and_after_what_is_here():
    mail = Mail()
    mail.put("a")
    mail.subscription.failure = AuthenticationFailed("revoked")

    assert mail.take() == "a"
    with pytest.raises(AuthenticationFailed):
        mail.take()
    assert mail.take() is None


def test_what_is_withdrawn_is_not_delivered_and_takes_no_room():
    mail = Mail()
    mail.put("a", "b")

    with mail.lock:
        out = mail.inbox.withdraw(mail.subscription)

    assert [one.lease_id for one in out] == ["a", "b"]
    assert mail.take() is None
    assert mail.window.held == 0


def test_one_queue_can_be_taken_from_alone_and_waits_for_its_pull_only():
    mail = Mail()
    assert mail.inbox.take_from("jobs", mail.window, time.monotonic() + 5) is None

    mail.subscription.in_flight = 1
    threading.Timer(0.1, mail.put, ["a"]).start()

    arrival = mail.inbox.take_from("jobs", mail.window, time.monotonic() + 5)
    assert arrival.delivery.lease_id == "a"


def test_a_forked_child_has_none_of_its_parents_messages():
    mail = Mail()
    mail.put("a", "b")
    mail.take()

    mail.subscription.in_flight = 1

    mail.inbox.renew(mail.lock)
    mail.subscription.renew_after_fork()

    assert mail.take() is None
    assert mail.inbox.take_from("jobs", mail.window, time.monotonic() + 60) is None
