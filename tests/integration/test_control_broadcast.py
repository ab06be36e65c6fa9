"""Fanout exchanges and Celery's ``Broadcast`` queues through a control broker."""

from __future__ import annotations

import contextlib

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from support.forms import first_of
from support.processes import Script, eventually

from kombu_cfqueues.errors import ConfigurationError, ControlUnavailable, InvalidMessage
from kombu_cfqueues.side import forget_control_brokers

from .workers import Worker


@pytest.fixture(params=first_of(["redis", "rabbit"]))
def control_url(request):
    """The URL of a real control broker of each kind."""
    name = {"redis": "redis_server", "rabbit": "rabbit"}[request.param]
    yield request.getfixturevalue(name).url
    forget_control_brokers()


@pytest.fixture
def memory_url():
    """A control broker inside this process."""
    yield "memory://"
    forget_control_brokers()


def listen(connection, exchange, name, got, **given):
    """Consume a queue that is bound to *exchange*."""
    queue = Queue(name, exchange, auto_delete=True, **given)

    def callback(body, message):
        got.append((name, body))
        message.ack()

    consumer = Consumer(connection, [queue], callbacks=[callback])
    consumer.consume()
    return consumer


def drain_until(connection, condition):
    for _ in range(60):
        if condition():
            return
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=1)
    raise AssertionError("nothing came")


def test_a_fanout_exchange_reaches_every_queue(emulator, connect, control_url):
    """Also over connections of their own, and after the consumer is gone nothing is left."""
    one, two = connect(control_url=control_url), connect(control_url=control_url)
    exchange = Exchange("news", type="fanout", durable=False)
    got = []
    consumers = [listen(one, exchange, "a", got), listen(two, exchange, "b", got)]

    one.Producer().publish({"number": 1}, exchange=exchange, declare=[exchange])
    drain_until(one, lambda: ("a", {"number": 1}) in got)
    drain_until(two, lambda: ("b", {"number": 1}) in got)

    for consumer in consumers:
        consumer.cancel()
    assert emulator.queue_names() == []  # nothing of it is at Cloudflare


PUBLISH = """
with connect() as connection:
    connection.Producer().publish(
        [["from afar"], {}, {}], exchange="everybody", routing_key="celery",
        headers={"task": "tasks.note", "id": os.urandom(8).hex(), "lang": "py"},
    )
"""


def test_a_broadcast_task_of_a_fresh_process_reaches_two_workers(emulator, control_url, tmp_path):
    """The process has declared nothing, as Celery does not for a `Broadcast` queue."""
    given = {
        "app": "broadcasting",
        "pool": "solo",
        "queues": "celery,everybody",
        "options": {"control_url": control_url},
    }
    with (
        Worker(emulator, tmp_path, arguments=("-n", "one@h"), **given) as one,
        Worker(emulator, tmp_path, arguments=("-n", "two@h"), **given),
    ):
        options = {"control_url": control_url}
        with Script(PUBLISH, emulator.broker_url, options) as script:
            script.wait()
        assert eventually(lambda: len(one.values("note")) == 2), one.log
        assert len({run["pid"] for run in one.runs("note")}) == 2


def test_an_exchange_that_exists_nowhere_is_an_error(connect, control_url):
    """As without a control broker: the message would be lost."""
    connection = connect(control_url=control_url)
    with pytest.raises(InvalidMessage):
        connection.Producer().publish("x", exchange="nowhere", routing_key="x")


def test_a_queue_lives_in_one_world(connect, memory_url):
    """A queue that is bound to a fanout exchange and to another one would need both brokers."""
    connection = connect(control_url=memory_url)
    fanout = Exchange("all", type="fanout")
    direct = Exchange("one", type="direct")
    channel = connection.channel()

    Queue("first", direct)(channel).declare()
    with pytest.raises(ConfigurationError, match="first"):
        Queue("first", fanout)(channel).declare()

    Queue("second", fanout)(channel).declare()
    with pytest.raises(ConfigurationError, match="second"):
        Queue("second", direct)(channel).declare()


def test_tasks_stay_at_cloudflare(emulator, connect, memory_url):
    connection = connect(control_url=memory_url)
    queue = Queue("jobs", Exchange("jobs", type="topic"), routing_key="jobs.#")
    connection.Producer().publish(
        "work", exchange=queue.exchange, routing_key="jobs.x", declare=[queue]
    )
    assert len(emulator.messages("jobs")) == 1


@pytest.mark.long
def test_a_message_that_is_not_settled_comes_again(connect, rabbit):
    """Settling is done by the thread that owns the connection, whichever thread asks for it."""
    connection = connect(control_url=rabbit.url)
    exchange = Exchange("kept", type="fanout")
    got = []

    def callback(body, message):
        got.append(body)
        message.requeue() if len(got) == 1 else message.ack()

    queue = Queue("kept-queue", exchange, auto_delete=True)
    with Consumer(connection, [queue], callbacks=[callback]):
        connection.Producer().publish("x", exchange=exchange, declare=[exchange])
        drain_until(connection, lambda: len(got) == 2)
    forget_control_brokers()
    assert got == ["x", "x"]


@pytest.mark.long
def test_a_refused_declaration_is_told_and_nothing_else_is_lost(connect, rabbit, caplog):
    """RabbitMQ closes the channel then; its other consumers go on."""
    with Connection(rabbit.url) as direct:
        Exchange("rigid", type="fanout", durable=True)(direct).declare()
    connection = connect(control_url=rabbit.url)
    got = []
    fine = Exchange("fine", type="fanout")
    listen(connection, fine, "fine-queue", got)
    listen(connection, Exchange("rigid", type="fanout", durable=False), "rigid-queue", got)

    connection.Producer().publish("x", exchange=fine, declare=[fine])
    drain_until(connection, lambda: ("fine-queue", "x") in got)
    forget_control_brokers()
    assert "refused to declare exchange 'rigid'" in caplog.text


def test_a_broadcast_without_its_broker_is_an_error(connect, redis_server):
    """It is not lost without a word."""
    connection = connect(control_url=redis_server.url)
    exchange = Exchange("news", type="fanout")
    producer = connection.Producer()
    redis_server.hang()
    try:
        with pytest.raises(ControlUnavailable, match="'news'"):
            producer.publish("x", exchange=exchange, declare=[exchange], timeout=0.5)
    finally:
        redis_server.go_on()
    forget_control_brokers()
