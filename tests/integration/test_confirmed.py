"""Confirmed publishing from many threads: they share requests, and each gets its own answer."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

import pytest
from kombu import Connection

from kombu_cfqueues.errors import InvalidMessage, PublishTimeout

from .test_publish import pushes


@pytest.fixture
def together(emulator):
    """Run *publish* in many threads, each with a producer of its own; return what they raised."""
    connections = []

    def together(threads, publish, **options):
        start = threading.Barrier(threads)
        raised = [None] * threads

        def run(name, producer):
            start.wait(30)
            try:
                publish(name, producer)
            except Exception as error:  # noqa: BLE001  the test looks at it
                raised[name] = error

        workers = []
        for name in range(threads):
            connection = Connection(emulator.broker_url, transport_options=options)
            connections.append(connection)
            producer = connection.Producer(serializer="json", routing_key="jobs")
            workers.append(threading.Thread(target=run, args=(name, producer)))
        first = connections[0].Producer(serializer="json")
        first.publish("the queue is there", routing_key="jobs")
        emulator.requests.clear()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert not any(worker.is_alive() for worker in workers)
        return raised

    yield together
    for connection in connections:
        connection.release()


def publish_twenty(name, producer):
    for n in range(20):
        assert producer.publish([name, n]).ready


def bodies(emulator):
    """What was accepted, in the order of the requests."""
    return [json.loads(json.loads(posted["body"])["body"]) for posted in pushes(emulator)]


@pytest.mark.parametrize(("threads", "share"), [(8, 4), (64, 10)], ids=["8 threads", "64 threads"])
@pytest.mark.parametrize("in_flight", [1, 4])
def test_threads_share_requests(emulator, together, threads, share, in_flight):
    """Each publishes one message after the other; nobody had to change a line for it."""
    emulator.latency = 0.02
    if in_flight > 1:
        share /= 2
    assert together(threads, publish_twenty, max_in_flight=in_flight) == [None] * threads
    sent = Counter(map(tuple, bodies(emulator)))
    assert sent == Counter((name, n) for name in range(threads) for n in range(20))
    assert len(emulator.requests.of("push", "batch")) <= threads * 20 / share


def test_one_threads_messages_keep_their_order(emulator, together):
    emulator.latency = 0.005
    together(16, publish_twenty, max_in_flight=4)
    arrived = bodies(emulator)
    for name in range(16):
        assert [n for who, n in arrived if who == name] == list(range(20))


def test_one_thread_waits_for_nobody(emulator, together):
    """Alone, each publish is a request, and goes the way of a single message."""
    together(1, publish_twenty)
    assert len(emulator.requests.of("push")) == 20
    assert not emulator.requests.of("batch")


def test_a_message_that_is_refused_is_an_error_for_its_publisher_alone(emulator, together):
    emulator.latency = 0.02
    emulator.faults.refuse_messages(lambda body: json.loads(body)["body"] == "[7, 3]")
    raised = together(32, publish_twenty, max_in_flight=1)
    (error,) = [error for error in raised if error]
    assert isinstance(error, InvalidMessage)
    assert raised.index(error) == 7
    # Its thread stopped at the error; all others went on.
    assert len(bodies(emulator)) == 31 * 20 + 3


def test_each_caller_waits_no_longer_than_it_said(emulator, together):
    emulator.faults.latency("push", "batch", seconds=2)
    ended = {}

    def publish(name, producer):
        try:
            producer.publish(name, timeout=0.25 if name % 2 else 30)
        finally:
            ended[name] = time.monotonic()

    raised = together(8, publish, max_in_flight=1)
    assert all(isinstance(raised[name], PublishTimeout) for name in range(1, 8, 2))
    assert [raised[name] for name in range(0, 8, 2)] == [None] * 4
    assert max(ended[name] for name in range(1, 8, 2)) < min(ended[name] for name in range(0, 8, 2))


def test_what_was_told_to_have_failed_for_sure_never_arrives(emulator, together):
    """`delivered` is what a caller decides by whether to publish again."""
    emulator.faults.latency("push", "batch", seconds=0.3)

    def publish(name, producer):
        producer.publish(name, timeout=0.05 * (name + 1))

    raised = together(16, publish, max_in_flight=1)
    time.sleep(0.5)
    surely_not = {name for name, error in enumerate(raised) if error and error.delivered == "no"}
    accepted = {name for name, error in enumerate(raised) if error is None}
    arrived = set(bodies(emulator))
    assert not arrived & surely_not
    assert accepted <= arrived
