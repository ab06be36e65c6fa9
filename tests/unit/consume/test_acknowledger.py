"""Acknowledgements and retries: what leaves, with what, and when."""

from __future__ import annotations

import threading
import time

import pytest

from kombu_cfqueues.api.models import PullConsumer, Queue
from kombu_cfqueues.consume.acknowledger import ACK_HOLD_SECONDS, Acknowledger
from kombu_cfqueues.consume.delivery import Delivery
from kombu_cfqueues.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    PermanentError,
    QueueNotFound,
)
from kombu_cfqueues.metrics import stats

JOBS = Queue("1" * 32, "jobs", None)
MORE = Queue("2" * 32, "more", None)


class Server:
    """What the acknowledger needs of a client; keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, list[str], dict[str, int]]] = []
        self.failures: list[Exception] = []
        self.bad: set[str] = set()
        self.down: set[str] = set()  # ids of queues
        self.warnings: dict[str, str] = {}
        self.hanging: set[str] = set()  # ids of queues, until `held` is set
        self.held = threading.Event()
        self.held.set()
        self.here = 0  # requests that have no answer yet

    def ack(self, queue_id, *, acks, retries, deadline):
        self.here += 1
        if not self.hanging or queue_id in self.hanging:
            self.held.wait(30)
        self.here -= 1
        self.sent.append((time.monotonic(), list(acks), dict(retries)))
        if queue_id in self.down:
            raise ConnectionFailed("gone")
        if self.failures:
            raise self.failures.pop(0)
        if self.bad & {*acks, *retries}:
            raise PermanentError("a lease_id is unknown", code=10026)
        return self.warnings

    @property
    def leases(self) -> list[str]:
        return [lease for _, acks, retries in self.sent for lease in [*acks, *retries]]


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def returned():
    return []


@pytest.fixture
def acknowledger(server, returned):
    yield Acknowledger(server, returned.append)
    server.failures.clear()  # what is left is sent by and by, or when the interpreter ends


def delivery(lease, lasts=60.0, attempts=1, max_retries=100, queue=JOBS):
    raw = {"attempts": attempts}
    until = time.monotonic() + lasts
    return Delivery(queue, PullConsumer(max_retries, ""), lease, until, raw, {})


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_acks_of_one_moment_share_a_request(acknowledger, server):
    started = time.monotonic()
    for n in range(50):
        acknowledger.ack(delivery(f"L{n}"))
    took = time.monotonic() - started

    wait_for(lambda: len(server.leases) == 50)

    assert len(server.sent) <= 1 + took / ACK_HOLD_SECONDS


def test_acks_that_follow_each_other_share_a_request(acknowledger, server):
    started = time.monotonic()
    for n in range(4):
        acknowledger.ack(delivery(f"L{n}"))
        time.sleep(0.005)
    took = time.monotonic() - started

    wait_for(lambda: len(server.leases) == 4)

    assert len(server.sent) <= 1 + took / ACK_HOLD_SECONDS


def test_a_hundred_acks_do_not_wait(acknowledger, server, monkeypatch):
    monkeypatch.setattr("kombu_cfqueues.consume.acknowledger.ACK_HOLD_SECONDS", 300.0)
    for n in range(100):
        acknowledger.ack(delivery(f"L{n}"))

    wait_for(lambda: server.sent)

    assert len(server.sent[0][1]) == 100


def test_a_retry_leaves_at_once_and_takes_what_waits_along(
    acknowledger, server, returned, monkeypatch
):
    monkeypatch.setattr("kombu_cfqueues.consume.acknowledger.ACK_HOLD_SECONDS", 300.0)
    acknowledger.ack(delivery("L1"))
    acknowledger.retry(delivery("L2"), 0)

    acknowledger.await_returns(JOBS.id, time.monotonic() + 5)

    assert server.sent[0][1:] == (["L1"], {"L2": 0})
    wait_for(lambda: returned == [JOBS.id])


def test_a_retry_that_is_delayed_tells_nobody_to_pull(acknowledger, server, returned):
    acknowledger.retry(delivery("L1"), 60)

    acknowledger.flush(time.monotonic() + 5)

    assert server.sent[0][2] == {"L1": 60}
    assert not acknowledger.returning(JOBS.id)
    assert not returned


def test_whoever_settles_does_not_wait_for_the_request(acknowledger, server):
    server.held.clear()
    acknowledger.retry(delivery("L1"), 0)
    started = time.monotonic()
    for n in range(300):
        acknowledger.ack(delivery(f"A{n}"))
    assert time.monotonic() - started < 10
    server.held.set()
    acknowledger.flush(time.monotonic() + 5)
    assert len(server.leases) == 301


def test_what_failed_is_sent_again(acknowledger, server):
    server.failures = [ConnectionFailed("lost")]
    acknowledger.ack(delivery("L1"))

    wait_for(lambda: len(server.sent) == 2)

    assert server.sent[1][1] == ["L1"]


def test_trouble_of_one_queue_is_told_once_whatever_others_do(acknowledger, server, caplog):
    caplog.set_level("INFO")
    server.down = {JOBS.id}
    acknowledger.ack(delivery("L"))
    for n in range(2):
        acknowledger.ack(delivery(f"M{n}", queue=MORE))
        wait_for(lambda n=n: f"M{n}" in server.leases)
        wait_for(lambda n=n: server.leases.count("L") > n)
    server.down = set()
    wait_for(lambda: "settled again" in caplog.text)

    assert caplog.text.count("cannot be settled now") == 1
    assert caplog.text.count("settled again") == 1


def test_a_queue_whose_leases_have_ended_hides_no_outage_of_others(acknowledger, server, caplog):
    """Nothing of that queue is left to settle, so nothing would ever end its outage."""
    caplog.set_level("INFO")
    server.down = {JOBS.id, MORE.id}
    acknowledger.ack(delivery("L", lasts=0.0))
    wait_for(lambda: "1 messages of queue 'jobs' could not be settled" in caplog.text)
    acknowledger.ack(delivery("M", queue=MORE))
    wait_for(lambda: "messages of queue 'more' cannot be settled now" in caplog.text)
    server.down = set()
    wait_for(lambda: "messages of queue 'more' are settled again" in caplog.text)


def test_what_cannot_be_given_back_now_holds_up_no_pull(acknowledger, server, caplog):
    server.failures = [ConnectionFailed("gone")]
    acknowledger.ack(delivery("L1"))
    wait_for(lambda: "cannot be settled now" in caplog.text)

    acknowledger.retry(delivery("L2"), 0)

    assert not acknowledger.returning(JOBS.id)
    wait_for(lambda: "L2" in server.leases)


def test_a_request_that_hangs_holds_up_no_other_queue(acknowledger, server):
    server.hanging = {JOBS.id}
    server.held.clear()
    acknowledger.ack(delivery("L1"))
    time.sleep(ACK_HOLD_SECONDS / 2)  # its time comes when the first request hangs already
    acknowledger.ack(delivery("M1", queue=MORE))

    wait_for(lambda: server.leases == ["M1"], seconds=20)

    server.held.set()
    acknowledger.flush(time.monotonic() + 30)
    assert server.leases == ["M1", "L1"]


def test_more_than_a_request_holds_is_sent_by_two_at_once(acknowledger, server):
    server.hanging = {JOBS.id}
    server.held.clear()
    acknowledger.retry(delivery("first"), 0)
    wait_for(lambda: server.here == 1)
    for n in range(150):
        acknowledger.ack(delivery(f"L{n}"))
    acknowledger.retry(delivery("last"), 0)

    wait_for(lambda: server.here == 2)
    assert acknowledger.returning(JOBS.id)
    assert not acknowledger.returning(MORE.id)
    server.held.set()
    acknowledger.await_returns(JOBS.id, time.monotonic() + 30)
    acknowledger.flush(time.monotonic() + 30)

    assert max(len(acks) + len(retries) for _, acks, retries in server.sent) <= 100
    assert len(server.leases) == 152


def test_what_the_token_may_not_is_sent_again_as_well(acknowledger, server, caplog):
    """A 403 may come from a proxy, and giving up would deliver the message once more."""
    caplog.set_level("DEBUG")
    server.failures = [AuthenticationFailed("403")]
    acknowledger.ack(delivery("L1"))

    wait_for(lambda: len(server.sent) == 2)
    assert "messages of queue 'jobs' cannot be settled: 403" in caplog.text


def test_what_outlived_its_lease_is_not_sent_again(acknowledger, server, caplog):
    server.failures = [ConnectionFailed("lost")]
    acknowledger.ack(delivery("L1", lasts=0.0))
    wait_for(lambda: server.sent)
    wait_for(lambda: "within their lease" in caplog.text)

    acknowledger.flush(time.monotonic() + 1)

    assert len(server.sent) == 1


def test_leases_that_ended_are_counted(acknowledger, server, caplog):
    """By `stats()`, as messages that come again; also of requests that succeeded too late."""
    queue = Queue("3" * 32, "counted", None)
    acknowledger.ack(delivery("late", lasts=0.0, queue=queue))
    acknowledger.ack(delivery("fine", queue=queue))
    acknowledger.flush(time.monotonic() + 5)
    assert stats()["queues"]["counted"]["leases_expired"] == 1

    server.failures = [ConnectionFailed("lost")]
    for n in range(5):
        acknowledger.ack(delivery(f"L{n}", lasts=0.0 if n < 3 else 60.0, queue=queue))
    wait_for(lambda: "L4" in server.leases[7:])

    assert stats()["queues"]["counted"]["leases_expired"] == 4
    assert "3 messages of queue 'counted' could not be settled within their lease" in caplog.text
    assert sorted(server.leases[7:]) == ["L3", "L4"]


def test_a_lease_that_the_server_dislikes_is_found_and_the_others_settled(
    acknowledger, server, caplog
):
    server.bad = {"L3"}
    for n in range(8):
        acknowledger.ack(delivery(f"L{n}"))

    wait_for(lambda: "could not be settled" in caplog.text)
    acknowledger.flush(time.monotonic() + 1)

    settled = [lease for _, leases, _ in server.sent if "L3" not in leases for lease in leases]
    assert sorted(settled) == [f"L{n}" for n in range(8) if n != 3]


def test_a_queue_that_is_gone_has_taken_its_messages_along(acknowledger, server):
    server.failures = [QueueNotFound("gone")]
    acknowledger.ack(delivery("L1"))
    wait_for(lambda: server.sent)

    acknowledger.flush(time.monotonic() + 1)

    assert len(server.sent) == 1


def test_a_warning_of_the_server_is_told_unless_it_is_of_a_second_try(acknowledger, server, caplog):
    server.warnings = {"L1": "the lease is unknown"}
    acknowledger.ack(delivery("L1"))
    wait_for(lambda: "did not settle 1 of 1" in caplog.text)
    caplog.clear()

    server.failures = [ConnectionFailed("lost")]
    acknowledger.ack(delivery("L1"))
    wait_for(lambda: len(server.sent) == 3)

    assert "did not settle" not in caplog.text


def test_a_flush_sends_all_in_this_thread(acknowledger, server):
    for n in range(250):
        acknowledger.ack(delivery(f"L{n}"))

    acknowledger.flush(time.monotonic() + 5)

    assert len(server.leases) == 250


def test_a_flush_that_fails_stops_and_so_does_the_next(acknowledger, server):
    """A connection that closes many channels does not wait for each."""
    server.failures = [ConnectionFailed("gone")] * 100
    for n in range(250):
        acknowledger.ack(delivery(f"L{n}"))
    started = time.monotonic()

    acknowledger.flush(started + 60)
    sent = len(server.sent)
    acknowledger.flush(started + 60)

    assert time.monotonic() - started < 30
    assert sent <= 4


def test_a_flush_ends_at_its_deadline(acknowledger, server):
    server.held.clear()
    acknowledger.retry(delivery("L1"), 0)
    time.sleep(0.05)
    started = time.monotonic()

    acknowledger.flush(started + 0.3)

    assert 0.2 < time.monotonic() - started < 10
    server.held.set()


@pytest.mark.parametrize(
    ("attempts", "max_retries", "may"),
    [(1, 100, True), (98, 100, True), (99, 100, False), (0, 3, True), (1, 3, True), (2, 3, False),
     (1, 1, False), (None, 3, True)],
)  # fmt: skip
def test_the_last_retries_are_not_risked(attempts, max_retries, may):
    """Past max_retries the message is deleted, and from where it counts is not certain."""
    assert delivery("L", attempts=attempts, max_retries=max_retries).may_be_retried == may


@pytest.mark.parametrize(
    ("attempts", "max_retries", "is_last"),
    [(1, 100, False), (99, 100, False), (100, 100, True), (101, 100, True), (0, 1, False),
     (1, 1, True), (0, 0, True), (None, 3, False), ("3", 3, False)],
)  # fmt: skip
def test_the_last_delivery_is_number_max_retries(attempts, max_retries, is_last):
    """Then what is requeued goes to the dead-letter queue."""
    assert delivery("L", attempts=attempts, max_retries=max_retries).is_last == is_last
