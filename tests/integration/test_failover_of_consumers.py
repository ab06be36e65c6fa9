"""With several broker URLs, a consumer leaves a broker that could not be pulled for too long."""

from __future__ import annotations

import contextlib
import time

import pytest
from kombu import Connection, Queue
from kombu.mixins import ConsumerMixin

from kombu_cfqueues.emulator import Emulator

from .consuming import FAST, PULL, Collector, consume, nothing_comes, publish
from .workers import Worker, until

OPTIONS = {**FAST, "failover_after": 0.5, "read_timeout": 2}


@pytest.fixture
def brokers(emulator):
    with Emulator() as second:
        for broker in (emulator, second):
            broker.create_queue("jobs", consumer=PULL)
        yield emulator, second


@pytest.fixture
def url(brokers):
    return ";".join(broker.broker_url for broker in brokers)


def drain_until_it_fails(connection, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)


def test_a_consumer_leaves_a_broker_that_is_gone(brokers, url):
    """The error says why, and Kombu takes it for a connection that is lost."""
    first, second = brokers
    got = Collector()
    with Connection(url, transport_options=OPTIONS) as connection:
        consume(connection, got).consume()
        nothing_comes(connection, 0.1)
        with first.outage():
            with pytest.raises(connection.recoverable_connection_errors, match="failover_after"):
                drain_until_it_fails(connection)
            connection.collect()
            connection.ensure_connection(max_retries=3)
            consume(connection, got).consume()
            with Connection(second.broker_url) as other:
                publish(other, "there")
            connection.drain_events(timeout=60)
    assert got.bodies == ["there"]


class Program(ConsumerMixin):
    """A consumer as Kombu's documentation has it."""

    def __init__(self, connection):
        self.connection = connection
        self.bodies = []

    def get_consumers(self, consumer, channel):
        return [consumer([Queue("jobs")], callbacks=[self.receive])]

    def receive(self, body, message):
        self.bodies.append(body)
        message.ack()
        self.should_stop = True


def test_a_consumer_mixin_leaves_a_broker_that_answers_and_cannot_be_pulled(brokers, url):
    """Connecting to it would succeed, so that it would be tried for ever."""
    first, second = brokers
    first.faults.error("pull", status=503, times=None)
    with Connection(second.broker_url) as other:
        publish(other, "there")
    with Connection(url, transport_options=OPTIONS) as connection:
        program = Program(connection)
        program.run()
    assert program.bodies == ["there"]


def test_with_one_url_an_outage_is_only_waited_for(brokers):
    """There is nothing better to do."""
    first, _ = brokers
    with Connection(first.broker_url, transport_options=OPTIONS) as connection:
        consume(connection, Collector()).consume()
        with first.outage():
            nothing_comes(connection, 3)


def test_a_paused_queue_is_no_reason(brokers):
    """The broker serves, and the pause is meant."""
    _, second = brokers
    with Emulator(paused_pull="429/10252") as first:
        first.create_queue("jobs", consumer=PULL, delivery_paused=True)
        url = f"{first.broker_url};{second.broker_url}"
        with Connection(url, transport_options=OPTIONS) as connection:
            consume(connection, Collector()).consume()
            nothing_comes(connection, 3)


def test_a_worker_goes_on_with_the_next_broker(brokers, url, tmp_path):
    """It stood still for ever, while publishers had gone on."""
    first, second = brokers
    options = {**OPTIONS, "failover_after": 1}
    with (
        Worker(first, tmp_path, pool="threads", url=url, options=options) as worker,
        first.outage(),
    ):
        with Connection(second.broker_url) as connection:
            headers = {"task": "tasks.note", "id": "1", "lang": "py"}
            publish(connection, [["there"], {}, {}], queue="celery", headers=headers)
        until(lambda: worker.values("note") == ["there"])
