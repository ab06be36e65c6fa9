"""``doorbell="everywhere"``: a publisher wakes the consumers of other machines.

A machine is a folder here: processes with different ``spool_dir`` do not meet but at the control
broker.  The consumers poll every five minutes.
"""

from __future__ import annotations

import time

import pytest
from kombu import Connection
from support.forms import first_of

from kombu_cfqueues.side import forget_control_brokers

from .consuming import at_rest, publish, settled
from .test_doorbell import SOON, consumer, pulls


@pytest.fixture
def machine(tmp_path):
    def options(name, url):
        return {
            "spool_dir": str(tmp_path / name),
            "control_url": url,
            "doorbell": "everywhere",
            "polling_interval": 300,
            "max_polling_interval": 300,
        }

    yield options
    forget_control_brokers()


@pytest.mark.parametrize("kind", first_of(["redis_server", "rabbit"]))
def test_a_publisher_wakes_a_consumer_of_another_machine(kind, request, server, machine):
    url = request.getfixturevalue(kind).url
    with (
        consumer(server, machine("one", url)) as waiting,
        Connection(server.broker_url, transport_options=machine("two", url)) as connection,
    ):
        seconds = []
        for number in range(4):
            at_rest(server)
            publish(connection, number)
            began = time.time()
            body, at = waiting.line()
            assert body == number
            seconds.append(round(at - began, 3))
        print("idle to start:", seconds)
        assert max(seconds) < SOON


def test_what_was_published_while_no_bell_could_be_heard_is_found(server, machine, redis_server):
    """The control broker is away when the consumer starts, and again later."""
    redis_server.kill()
    with (
        consumer(server, machine("one", redis_server.url)) as waiting,
        Connection(server.broker_url, transport_options={"doorbell": "off"}) as connection,
    ):
        for number in range(2):
            publish(connection, number)
            redis_server.start()
            assert waiting.line()[0] == number
            redis_server.kill()


def test_bells_cost_idle_consumers_a_bounded_number_of_pulls(server, machine, redis_server):
    """One of several gets the message, and the bells of the others are vain."""

    def options(name):
        return machine(name, redis_server.url) | {"polling_interval": 5}

    with (
        consumer(server, options("one")),
        consumer(server, options("two")),
        consumer(server, options("three")),
        Connection(server.broker_url, transport_options=options("four")) as connection,
    ):
        before, count = pulls(server), 20
        for number in range(count):
            publish(connection, number)
            settled(server)
        # Two for each message, and for each consumer one bell and one poll in five seconds.
        assert pulls(server) - before < 2 * count + 3 * 2 * 3


def test_a_control_broker_that_is_gone_does_not_delay_a_publish(server, machine, redis_server):
    options = machine("one", redis_server.url)
    with Connection(server.broker_url, transport_options=options) as connection:
        publish(connection, 0)
        redis_server.kill()
        began = time.monotonic()
        for number in range(20):
            publish(connection, number)
        assert time.monotonic() - began < SOON
