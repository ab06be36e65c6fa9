"""Copies of messages: published where they are to go, then acknowledged where they were."""

from __future__ import annotations

import json
import threading
import time

import pytest

from kombu_cfqueues.api.models import PullConsumer, Queue
from kombu_cfqueues.consume import dead_letters as module
from kombu_cfqueues.consume.dead_letters import COPY_SECONDS, Forwarder
from kombu_cfqueues.consume.delivery import Delivery
from kombu_cfqueues.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    MessageTooLarge,
    PublishTimeout,
)

JOBS = Queue("1" * 32, "jobs", None)
GRAVE = Queue("2" * 32, "grave", None)


class Copies:
    """A forwarder, and in their order the things that it has done."""

    def __init__(self) -> None:
        self.done = []
        self.failures = []
        self.deadlines = []
        self.held = threading.Event()
        self.held.set()
        self.forwarder = Forwarder(
            self.publish,
            self.find,
            lambda delivery: self.done.append(("ack", delivery.lease_id)),
            lambda queue_id: self.done.append(("returned", queue_id)),
        )

    def find(self, title, deadline):
        self.deadlines.append(deadline)
        assert title == GRAVE.name
        return GRAVE.id

    def publish(self, queue_id, packed, *, deadline):
        self.deadlines.append(deadline)
        self.held.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        posted = json.loads(packed.encode())
        self.done.append(("publish", queue_id, posted["body"], posted.get("delay_seconds")))

    def wait(self, seconds=30.0):
        self.forwarder.await_copies(time.monotonic() + seconds)


@pytest.fixture
def copies(monkeypatch):
    monkeypatch.setattr(module, "COPY_RETRY_SECONDS", 0.01)
    return Copies()


def delivery(lease="L", body="x", lasts=60.0):
    raw = {"id": f"id-of-{lease}", "body": body, "attempts": 99}
    until = time.monotonic() + lasts
    return Delivery(JOBS, PullConsumer(100, GRAVE.name), lease, until, raw, {})


def test_a_dead_letter_is_acknowledged_once_it_is_in_its_grave(copies):
    copies.forwarder.dead_letter(delivery(), "rejected")
    copies.wait()

    assert copies.done == [("publish", GRAVE.id, "x", None), ("ack", "L")]
    assert len(copies.deadlines) == 2
    assert all(0 < at - time.monotonic() <= COPY_SECONDS for at in copies.deadlines)


def test_a_renewed_message_takes_its_own_place(copies, caplog):
    copies.forwarder.replace(delivery(), 7)
    copies.wait()

    assert copies.done == [("publish", JOBS.id, "x", 7), ("returned", JOBS.id), ("ack", "L")]
    assert "message id-of-L of queue 'jobs' was delivered 99 times" in caplog.text
    assert "max_retries is 100" in caplog.text


def test_copies_are_made_in_the_order_in_which_they_were_asked_for(copies):
    for n in range(5):
        copies.forwarder.dead_letter(delivery(f"L{n}", body=str(n)), "rejected")
    copies.wait()

    assert [done[2] for done in copies.done if done[0] == "publish"] == list("01234")
    assert [done[1] for done in copies.done if done[0] == "ack"] == [f"L{n}" for n in range(5)]


@pytest.mark.parametrize("error", [ConnectionFailed("gone"), PublishTimeout("no permit")])
def test_a_copy_that_fails_for_a_while_is_made_later(copies, caplog, error):
    copies.failures = [error] * 3
    copies.forwarder.dead_letter(delivery(), "rejected")
    copies.wait()

    assert copies.done == [("publish", GRAVE.id, "x", None), ("ack", "L")]
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "lasts"),
    [(AuthenticationFailed("revoked"), 60.0), (MessageTooLarge("big"), 60.0),
     (ConnectionFailed("gone"), 0.0)],
    ids=["refused", "too large", "its lease is over"],
)  # fmt: skip
def test_what_cannot_be_copied_stays_where_it_is(copies, caplog, error, lasts):
    """Not acknowledged: it comes again when its lease is over."""
    copies.failures = [error]
    copies.forwarder.dead_letter(delivery("hopeless", lasts=lasts), "rejected")
    copies.forwarder.dead_letter(delivery("fine"), "rejected")
    copies.wait()

    assert [done[1] for done in copies.done if done[0] == "ack"] == ["fine"]
    (told,) = caplog.records
    assert told.levelname == "ERROR"
    assert "message id-of-hopeless of queue 'jobs' could not be copied" in told.getMessage()
    assert str(error) in told.getMessage()


def test_whoever_waits_for_the_copies_waits_until_the_last_is_acknowledged(copies):
    copies.held.clear()
    copies.forwarder.dead_letter(delivery("1"), "rejected")
    copies.forwarder.dead_letter(delivery("2"), "rejected")
    threading.Timer(0.1, copies.held.set).start()

    copies.wait()

    assert copies.done[-1] == ("ack", "2")


def test_a_copy_that_hangs_is_not_waited_for_beyond_the_deadline(copies):
    copies.held.clear()
    copies.forwarder.dead_letter(delivery(), "rejected")
    started = time.monotonic()

    copies.wait(0.2)

    assert 0.2 <= time.monotonic() - started < 20
    assert not copies.done
    copies.held.set()
    copies.wait()
