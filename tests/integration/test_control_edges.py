"""Edges of a control broker: renamed exchanges, single reads, refusals, lists of URLs, TLS."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.exceptions import ChannelError
from support.forms import long
from support.processes import Script
from support.rabbitmq_server import RabbitServer, needs_rabbitmq
from support.redis_server import RedisServer, free_port, needs_redis
from support.scripted import CA_BUNDLE

from kombu_cfqueues.errors import ConfigurationError, ControlUnavailable
from kombu_cfqueues.side import forget_control_brokers

NEWS = Exchange("news", type="fanout", durable=False)


@pytest.fixture
def redis(redis_server):
    """A Redis server that still runs when its connections are closed."""
    yield redis_server
    forget_control_brokers()


@pytest.fixture
def tls_redis(tmp_path):
    """A Redis server that speaks TLS only, with a certificate that no system trusts."""
    needs_redis()
    server = RedisServer(free_port(), tmp_path, tls=True)
    server.start()
    yield server
    forget_control_brokers()
    server.kill()


@pytest.fixture
def tls_rabbit(tmp_path):
    """The same as a RabbitMQ server."""
    needs_rabbitmq()
    server = RabbitServer(tmp_path, tls=True)
    server.start()
    yield server
    forget_control_brokers()
    server.kill()


@pytest.fixture(params=["redis", long("rabbit")])
def control_server(request):
    """A real control broker of each kind."""
    yield request.getfixturevalue(request.param)
    forget_control_brokers()


def listener(connection, queue, got):
    """Consumes *queue*, whose messages it adds to *got*."""

    def note(body, message):
        got.append(body)
        message.ack()

    return Consumer(connection, [queue], callbacks=[note])


def private(name):
    """A queue that ends with its consumer."""
    return Queue(name, NEWS, auto_delete=True, durable=False)


SEND = """
from celery import Celery
app = Celery(broker=URL, set_as_current=False)
app.conf.update(json.loads(sys.stdin.readline()), broker_transport_options=OPTIONS)
with app.connection_for_write() as connection:
    with app.events.Dispatcher(connection, hostname="h") as events:
        events.send("task-custom", uuid="1")
"""

RENAMED = [
    {},
    {"event_exchange": "watching"},
    {"event_exchange": "watching", "event_queue_prefix": "watcher"},
]
"""How applications that share a control broker keep their events apart."""


@pytest.mark.parametrize("renamed", [RENAMED[0], RENAMED[2], long(RENAMED[1])], ids=len)
def test_events_travel_under_other_names(renamed, emulator, control_server, control_app):
    app = control_app(control_server.url)
    app.conf.update(renamed)
    seen = []
    options = {"control_url": control_server.url}
    with (
        app.connection_for_read() as reading,
        Script(SEND, emulator.broker_url, options) as sender,
    ):
        receiver = app.events.Receiver(reading, handlers={"task-custom": seen.append})
        with receiver.consumer_context() as (connection, *_):
            sender.process.stdin.write(json.dumps(renamed) + "\n")
            sender.process.stdin.flush()
            connection.drain_events(timeout=60)
        sender.wait()
    assert len(seen) == 1
    assert {request.route for request in emulator.requests} == {"list"}  # of each connect


def test_a_watcher_of_renamed_events_leaves_nothing_that_grows(redis, control_app):
    """A topic in Redis would keep a list for it, for ever if it is killed: this is a fanout."""
    app = control_app(redis.url)
    app.conf.event_exchange = "watching"
    with app.connection_for_read() as reading, app.connection_for_write() as writing:
        receiver = app.events.Receiver(reading)
        with (
            receiver.consumer_context() as (connection, *_),
            app.events.Dispatcher(writing, hostname="h") as sending,
            redis.client() as client,
        ):
            sending.send("task-custom", uuid="1")
            connection.drain_events(timeout=20)
            assert client.pubsub_numpat() == 1


@pytest.mark.long
def test_single_messages_are_read_from_a_queue_of_the_control_broker(connect, rabbit):
    """Redis keeps none for those who do not listen."""
    connection = connect(control_url=rabbit.url)
    queue = Queue("kept-news", NEWS, durable=False)(connection.default_channel)
    queue.declare()
    for number in range(2):
        connection.Producer().publish(number, exchange=NEWS)

    assert queue.queue_declare(passive=True).message_count == 2
    message = queue.get()
    assert message.payload == 0
    message.requeue()
    message = queue.get(no_ack=True)
    assert message.payload == 0
    assert queue.purge() == 1
    assert queue.get() is None
    queue.delete()
    forget_control_brokers()


@pytest.mark.long
def test_a_single_read_works_after_the_connection_was_lost(connect, rabbit):
    """Also on a channel that has declared nothing."""
    connection = connect(control_url=rabbit.url)
    Queue("kept-news", NEWS, durable=False)(connection.default_channel).declare()
    queue = Queue("kept-news", NEWS, durable=False)(connection.channel())
    assert queue.get() is None

    connection.transport.session.control._link._connection.connection.transport.sock.shutdown(2)
    while True:
        with contextlib.suppress(ControlUnavailable):  # the request that has met the failure
            connection.Producer().publish("x", exchange=NEWS)
            break
    assert queue.get(no_ack=True).payload == "x"
    queue.delete()
    forget_control_brokers()


def test_a_queue_that_is_gone_is_told_as_by_any_broker(connect, control_server):
    """A 404 of the channel, as plain Kombu has it; and what the channel consumes goes on."""
    connection = connect(control_url=control_server.url)
    channel = connection.default_channel
    gone = Queue("gone", NEWS, durable=False)(channel)
    gone.declare()
    channel.control.await_steps()
    with Connection(control_server.url) as direct:
        direct.default_channel.queue_delete("gone")
    got = []
    with listener(channel, private("alive"), got):
        with pytest.raises(ChannelError, match="404"):
            gone.queue_declare(passive=True)
        for ask in (lambda: gone.get(no_ack=True), gone.purge):
            # To Kombu's Redis transport, a queue that is gone is an empty one.
            with contextlib.suppress(ChannelError):
                assert not ask()
                assert control_server.url.startswith("redis")
        connection.Producer().publish("x", exchange=NEWS)
        connection.drain_events(timeout=20)
    assert got == ["x"]


@pytest.mark.long
def test_a_refused_declaration_ends_no_other_consumer(connect, rabbit, caplog):
    """RabbitMQ closes the whole channel over it."""
    with Connection(rabbit.url) as direct:
        rigid = Queue("rigid", durable=True)(direct.default_channel)
        rigid.declare()
        connection = connect(control_url=rabbit.url)
        got = []
        with listener(connection, private("before"), got):
            Queue("rigid", NEWS, durable=False)(connection.default_channel).declare()
            with listener(connection, private("after"), got):
                connection.Producer().publish("x", exchange=NEWS)
                while len(got) < 2:
                    connection.drain_events(timeout=20)
        forget_control_brokers()
        rigid.delete()
    assert caplog.text.count("refused to declare queue 'rigid'") == 1
    assert "does not work" not in caplog.text


@pytest.mark.long
def test_a_channel_consumes_what_another_one_has_declared(connect, rabbit, caplog):
    """It declares the same queue, as a different declaration would be refused."""
    connection = connect(control_url=rabbit.url)
    queue = Queue("shared-news", NEWS, durable=True, expires=60)
    queue(connection.default_channel).declare()
    got = []
    channel = connection.channel()
    channel.basic_consume(queue.name, True, lambda message: got.append(message.payload), "tag")
    connection.Producer().publish("x", exchange=NEWS)
    connection.drain_events(timeout=20)
    channel.basic_cancel("tag")
    queue(channel).delete()
    forget_control_brokers()
    assert got == ["x"]
    assert "refused" not in caplog.text


def test_events_that_wait_leave_together(redis, control_app):
    """With a request for each, a busy worker would have more events than can leave."""
    app, count = control_app(redis.url), 900
    with app.connection_for_write() as connection, redis.client() as client:
        listening = client.pubsub()
        listening.psubscribe("/0.celeryev/*")
        assert listening.get_message(timeout=10)["type"] == "psubscribe"
        with app.events.Dispatcher(connection, hostname="h") as events:
            events.send("task-first", uuid="first")
            assert b"first" in listening.get_message(timeout=20)["data"]
            before = client.info("stats")["total_reads_processed"]
            redis.hang()
            for number in range(count):
                events.send("task-custom", number=number)
            redis.go_on()
            for _ in range(count):
                assert b"custom" in listening.get_message(timeout=20)["data"]
        assert client.info("stats")["total_reads_processed"] - before < count / 5
        listening.close()


def test_a_process_that_has_asked_workers_uses_no_processor_afterwards(redis, control_app):
    """Kombu's poller keeps the sockets that are closed, and those look readable for ever."""
    app = control_app(redis.url)
    with app.connection_for_read() as connection, app.connection_for_write() as other:
        with listener(connection, private("stays"), []):  # something to wait for
            for _ in range(3):
                assert app.control.ping(timeout=0.1, connection=other) == []
            before = time.process_time()
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=2)
            used = time.process_time() - before
        print(f"used {used:.3f} s of processor time in 2 s")
        assert used < 0.2


def carries_a_message(connection):
    """What is published to a fanout exchange comes back through the control broker."""
    got = []
    with listener(connection, private("listens"), got):
        connection.Producer().publish("x", exchange=NEWS, timeout=20)
        connection.drain_events(timeout=20)
    assert got == ["x"]


def test_a_list_of_control_brokers_is_tried_one_after_the_other(connect, redis):
    """The first one does not answer."""
    connection = connect(control_url=f"redis://127.0.0.1:{free_port()}/0;{redis.url}")
    carries_a_message(connection)


def test_each_url_of_a_list_is_checked_at_the_connect(connect):
    connection = connect(control_url="redis://127.0.0.1/0;sqs://a:hidden@")
    with pytest.raises(ConfigurationError, match="control_url") as refused:
        connection.connect()
    assert "hidden" not in str(refused.value)


# py-amqp leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.long
def test_tls_of_rabbitmq(connect, tls_rabbit, monkeypatch):
    """A certificate of another host is refused, and what TLS has read ahead is delivered."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CA_BUNDLE))
    elsewhere = connect(control_url=tls_rabbit.tls_url.replace("127.0.0.1", "127.0.0.2"))
    with pytest.raises(ControlUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        elsewhere.Producer().publish("x", exchange=NEWS, declare=[NEWS])

    connection = connect(control_url=tls_rabbit.tls_url)
    got = []
    with listener(connection, private("sealed"), got), Connection(tls_rabbit.url) as direct:
        producer = direct.Producer()
        for number in range(3000):
            producer.publish(number, exchange=NEWS)
        while len(got) < 3000:
            connection.drain_events(timeout=20)
    assert got == list(range(3000))


def test_tls_with_an_authority_of_its_own(connect, tls_redis):
    connection = connect(control_url=tls_redis.url)
    carries_a_message(connection)


def test_a_certificate_that_nobody_trusts_is_refused(connect, tls_redis):
    """Kombu by itself would send the password to anybody."""
    connection = connect(control_url=tls_redis.url.partition("?")[0])
    with pytest.raises(ControlUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        connection.Producer().publish("x", exchange=NEWS, declare=[NEWS])


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("other", ["redis://127.0.0.1:{}/0", "rediss://127.0.0.1:{}/0?{}"])
def test_a_certificate_is_checked_whatever_the_list_says_of_others(
    connect, tls_redis, other, place
):
    """The other broker does not answer, so the encrypted one is tried."""
    urls = [tls_redis.url.partition("?")[0], other.format(free_port(), "ssl_cert_reqs=none")]
    connection = connect(control_url=";".join(urls if place == "first" else urls[::-1]))
    with pytest.raises(ControlUnavailable):
        connection.Producer().publish("x", exchange=NEWS, declare=[NEWS])


def test_a_list_of_mixed_schemes_reaches_a_broker_that_is_trusted(connect, tls_redis):
    connection = connect(control_url=f"redis://127.0.0.1:{free_port()}/0;{tls_redis.url}")
    carries_a_message(connection)
