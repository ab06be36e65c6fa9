"""A message whose lease is over is not delivered: another consumer has it by then."""

from __future__ import annotations

import pytest
from kombu import Connection, Queue

from kombu_cfqueues.emulator import Emulator

from .workers import until

# An empty pull is the last one.
OPTIONS = {"visibility_timeout": 1, "polling_interval": 300, "max_polling_interval": 300}


@pytest.fixture
def emulator():
    with Emulator(order="fifo") as running:
        running.create_queue("jobs")
        yield running


def publish(emulator, count):
    with Connection(emulator.broker_url) as connection, connection.Producer() as producer:
        for number in range(count):
            producer.publish(number, routing_key="jobs")


@pytest.fixture
def holding(emulator):
    """A channel that has been given a few messages, and has pulled more than these."""
    publish(emulator, 40)
    with Connection(emulator.broker_url, transport_options=OPTIONS) as connection:
        got = []

        def take(message):
            got.append(message)
            message.ack()

        consumer = connection.Consumer([Queue("jobs")], on_message=take)
        consumer.consume()
        for _ in range(5):
            connection.drain_events(timeout=5)
        assert any(m.state == "leased" for m in emulator.messages("jobs"))
        # No more is pulled from now on: what is here is what its lease holds.
        emulator.faults.short_batch(most=0, times=None)
        yield connection, consumer, got


def taken_by_another(emulator):
    """Wait until the leases are over, and let another application take all there is."""
    until(lambda: all(message.state == "ready" for message in emulator.messages("jobs")))
    emulator.faults.clear()
    options = {**OPTIONS, "visibility_timeout": 60}
    connection = Connection(emulator.broker_url, transport_options=options)
    found = []
    while (message := connection.default_channel.basic_get("jobs")) is not None:
        found.append(message.payload)
    emulator.faults.short_batch(most=0, times=None)
    return connection, found


def test_getting_one_message_gives_none_whose_lease_is_over(emulator, holding):
    """`basic_get` looks at what its channel's consumer has pulled."""
    _, consumer, _ = holding
    other, found = taken_by_another(emulator)
    assert found  # ready again, and elsewhere now

    message = consumer.channel.basic_get("jobs")
    other.release()

    assert message is None, message.payload


def test_a_consumer_gets_none_whose_lease_is_over(emulator, holding):
    """It is so today."""
    connection, _, got = holding
    other, found = taken_by_another(emulator)
    assert found
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.5)
    other.release()
    assert len(got) == 5


def test_a_newer_consumer_gets_none_whose_lease_is_over(emulator, holding):
    """What an earlier consumer has not been given goes over to it; with its lease."""
    connection, _, _ = holding
    other, found = taken_by_another(emulator)
    assert found
    later = connection.SimpleQueue("jobs")
    with pytest.raises(later.Empty):
        later.get(timeout=0.5)
    other.release()
