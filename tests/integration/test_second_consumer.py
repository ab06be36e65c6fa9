"""The newest consumer of a queue on a connection gets what comes.

Applications open a `SimpleQueue`, take from it, and forget it unclosed.  In Kombu's other
transports the next consumer of the queue on that connection takes the place of the last one; the
abandoned one must not get every other message, which then stays leased for half an hour.
"""

from __future__ import annotations

import gc
import queue as queues

import pytest
from kombu import Connection, Queue

from kombu_cfqueues.emulator import Emulator

FAST = {"polling_interval": 0.05, "max_polling_interval": 0.1}


@pytest.fixture
def connection():
    with (
        Emulator(order="fifo") as emulator,
        Connection(emulator.broker_url, transport_options=FAST) as connection,
    ):
        emulator.create_queue("jobs")
        yield connection


def publish(connection, *bodies):
    for body in bodies:
        connection.Producer().publish(body, routing_key="jobs")


def take_all(simple, at_most=4):
    """The bodies that a `SimpleQueue` gives before it has been empty for a moment."""
    found = []
    for _ in range(at_most):
        try:
            message = simple.get(timeout=0.7)
        except queues.Empty:
            break
        found.append(message.payload)
        message.ack()
    return sorted(found)


def test_a_second_simple_queue_gets_all_while_an_abandoned_one_lives(connection):
    abandoned = connection.SimpleQueue("jobs")
    assert take_all(abandoned, 1) == []
    second = connection.SimpleQueue("jobs")
    found = []
    for number in range(6):
        publish(connection, number)
        found += take_all(second, 1)

    assert found == list(range(6))
    assert abandoned  # it lives


def test_it_gets_what_an_earlier_one_has_not_been_given(connection):
    """The first has taken one; the rest was pulled for it, and waits in its channel."""
    first = connection.SimpleQueue("jobs")
    publish(connection, 1, 2, 3, 4)
    message = first.get(timeout=5)
    message.ack()
    second = connection.SimpleQueue("jobs")

    assert sorted([message.payload, *take_all(second, 3)]) == [1, 2, 3, 4]
    assert first


def test_every_further_one_takes_over(connection):
    kept = []
    for number in range(4):
        publish(connection, number)
        kept.append(connection.SimpleQueue("jobs"))
        assert take_all(kept[-1], 1) == [number]


def test_one_that_was_dropped_by_the_garbage_collector_leaves_no_message_leased(connection):
    first = connection.SimpleQueue("jobs")
    publish(connection, 1, 2, 3, 4)
    first.get(timeout=5).ack()
    del first
    gc.collect()

    assert len(take_all(connection.SimpleQueue("jobs"), 3)) == 3


def test_a_second_consumer_on_another_channel_gets_what_comes(connection):
    """`Consumer` objects of an application's threads, each with a channel of its own."""
    got = {"old": [], "new": []}

    def consumer(name):
        def callback(body, message):
            got[name].append(body)
            message.ack()

        return connection.Consumer(
            [Queue("jobs")], callbacks=[callback], channel=connection.channel()
        )

    with consumer("old"), consumer("new"):
        publish(connection, 1, 2, 3, 4)
        for _ in range(4):
            connection.drain_events(timeout=5)

    assert got["old"] == []
    assert sorted(got["new"]) == [1, 2, 3, 4]


def test_one_on_another_channel_takes_over_what_was_pulled_ahead(connection):
    """40 messages: some are delivered to the first, and some wait for it when the second comes."""
    got = {"old": [], "new": []}

    def consume(name):
        def callback(body, message):
            got[name].append(body)
            message.ack()

        channel = connection.channel()
        connection.Consumer([Queue("jobs")], callbacks=[callback], channel=channel).consume()

    publish(connection, *range(40))
    consume("old")
    for _ in range(20):
        connection.drain_events(timeout=5)
    consume("new")
    for _ in range(20):
        connection.drain_events(timeout=5)

    assert len(got["old"]) == len(got["new"]) == 20
    assert sorted(got["old"] + got["new"]) == list(range(40))


def test_a_second_consumer_on_the_same_channel_gets_what_comes(connection):
    got = {"old": [], "new": []}

    def consumer(name):
        def callback(body, message):
            got[name].append(body)
            message.ack()

        return connection.Consumer([Queue("jobs")], callbacks=[callback])

    with consumer("old"), consumer("new"):
        publish(connection, 1, 2, 3, 4)
        for _ in range(4):
            connection.drain_events(timeout=5)

    assert got["old"] == []
    assert sorted(got["new"]) == [1, 2, 3, 4]


def test_when_the_newest_is_cancelled_the_one_before_gets_what_comes(connection):
    """Nothing stays behind with the one that is gone."""
    first = connection.SimpleQueue("jobs")
    second = connection.SimpleQueue("jobs")
    publish(connection, 1, 2)
    assert take_all(second, 1)
    second.close()

    assert len(take_all(first, 1)) == 1


def test_consumers_of_other_queues_are_left_alone(connection):
    """It is so today."""
    other = connection.SimpleQueue("others")
    second = connection.SimpleQueue("jobs")
    connection.Producer().publish(9, routing_key="others")
    publish(connection, 1)

    assert take_all(second, 1) == [1]
    assert take_all(other, 1) == [9]


def test_two_connections_share_a_queue(connection):
    """It is so today, and right: they may be two workers."""
    with Connection(connection.as_uri(include_password=True), transport_options=FAST) as other:
        one, two = connection.SimpleQueue("jobs"), other.SimpleQueue("jobs")
        publish(connection, 1)
        found = take_all(one, 1) + take_all(two, 1)
        publish(connection, 2)
        found += take_all(two, 1) + take_all(one, 1)
    assert sorted(found) == [1, 2]
