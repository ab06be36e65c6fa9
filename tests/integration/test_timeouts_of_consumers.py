"""A consumer waits for as long as it says, while the API is down or silent.

The connection was open before, so nothing of this is Kombu's own way to connect.
"""

from __future__ import annotations

import contextlib
import queue
import time

import pytest
from kombu import Connection

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import ConnectionFailed, PullNotEnabled, TransientError

from .consuming import FAST, PULL, Collector, consume, nothing_comes, publish, settled
from .workers import until


@pytest.fixture
def connection(emulator):
    options = {**FAST, "read_timeout": 2}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.connect()
        # After the connection, which knows the queues that there were.
        emulator.create_queue("jobs", consumer=PULL)
        yield connection


@contextlib.contextmanager
def silence(emulator):
    """The API accepts requests and answers none of them."""
    emulator.latency = 60
    try:
        yield
    finally:
        emulator.latency = 0


DOWN = {"down": Emulator.outage, "silent": silence}


@contextlib.contextmanager
def at_most(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize("kind", DOWN)
def test_a_simple_queue_keeps_its_timeout_while_the_api_cannot_be_reached(
    emulator, connection, kind
):
    """It took 25 to 30 s.  Then messages come, although the queue was never found before."""
    simple = connection.SimpleQueue("jobs")
    with DOWN[kind](emulator), at_most(10), pytest.raises(queue.Empty):
        simple.get(timeout=0.5)
    publish(connection, "late")
    message = simple.get(timeout=60)
    assert message.payload == "late"
    message.ack()
    settled(emulator)


@pytest.mark.parametrize("kind", DOWN)
def test_a_consumer_keeps_its_timeout_while_the_api_cannot_be_reached(emulator, connection, kind):
    """It drains as if the queue were empty."""
    with DOWN[kind](emulator), at_most(10), consume(connection, Collector()):
        nothing_comes(connection, 0.2)
        nothing_comes(connection, 0.2)


def test_the_outage_is_logged_once_and_so_is_its_end(emulator, connection, caplog):
    """Nobody else says why nothing comes."""
    with emulator.outage(), consume(connection, Collector()) as consumer:
        for _ in range(3):
            nothing_comes(connection, 0.3)
        consumer.cancel()
        assert sum("cannot be pulled now" in line for line in caplog.messages) == 1
    caplog.set_level("INFO", "kombu_cfqueues")
    with emulator.outage():
        consumer = consume(connection, Collector())
        consumer.consume()
    until(lambda: [line for line in caplog.messages if "is pulled again" in line])
    consumer.cancel()


def test_getting_what_is_there_now_fails_soon_while_the_api_is_down(emulator, connection):
    """It took 15 s."""
    simple = connection.SimpleQueue("jobs")
    with emulator.outage(), at_most(10), pytest.raises(TransientError):
        simple.get_nowait()


def test_a_mistake_is_raised_by_the_call_that_makes_it(emulator, connection):
    """A queue that a Worker consumes, for instance."""
    emulator.create_queue("theirs", consumer={"type": "worker", "script": "edge"})
    with pytest.raises(PullNotEnabled):
        consume(connection, Collector(), queue="theirs").consume()
    nothing_comes(connection, 0.05)


def test_a_mistake_that_is_found_late_is_raised_by_the_next_call(emulator, connection):
    """While the API is slow, or down."""
    emulator.create_queue("theirs", consumer={"type": "worker", "script": "edge"})
    with emulator.outage():
        consume(connection, Collector(), queue="theirs").consume()
    with pytest.raises(PullNotEnabled):
        connection.drain_events(timeout=60)


def test_two_consumers_of_queues_that_are_found_late_get_their_messages(emulator, connection):
    """Also two of the same queue: the newest gets all, as ever."""
    emulator.create_queue("more", consumer=PULL)
    first, second, third = Collector(), Collector(), Collector()
    with emulator.outage():
        for collector, name in ((first, "jobs"), (second, "more"), (third, "jobs")):
            consumer = consume(connection, collector, queue=name, channel=connection.channel())
            consumer.consume()
    publish(connection, 1)
    publish(connection, 2, queue="more")
    for _ in range(2):
        connection.drain_events(timeout=60)
    assert (first.bodies, second.bodies, third.bodies) == ([], [2], [1])


def test_a_queue_that_is_missing_is_created_after_the_outage(emulator, connection):
    """As it would be by a call that waits for it."""
    with emulator.outage():
        consume(connection, Collector(), queue="new").consume()
    until(lambda: "new" in emulator.queue_names())


def test_with_another_url_consuming_fails_at_once(emulator):
    """So that Kombu goes on to it."""
    with Emulator() as other:
        urls = f"{emulator.broker_url};{other.broker_url}"
        with Connection(urls) as connection:
            connection.connect()
            with emulator.outage(), at_most(10), pytest.raises(ConnectionFailed):
                consume(connection, Collector()).consume()
