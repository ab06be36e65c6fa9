"""Exchanges and bindings belong to the process and the account, and nothing is dropped unsaid.

Kombu keeps them in the transport, one for each connection.  An application that declares its queues
on one connection publishes through another one: Celery's pool has ten.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue

import kombu_cfqueues
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import InvalidMessage

ORDERS = Exchange("orders", type="direct")
NEW_ORDERS = Queue("new-orders", ORDERS, routing_key="new")


def declare(url, *queues, **given):
    """Declare queues as an application does at its start; the connection stays open."""
    connection = Connection(url, **given)
    for queue in queues:
        queue(connection.default_channel).declare()
    return connection


@pytest.fixture
def declared(emulator):
    with declare(emulator.broker_url, NEW_ORDERS) as connection:
        yield connection


def count(emulator, queue="new-orders"):
    return len(emulator.messages(queue)) if queue in emulator.queue_names() else 0


def test_another_connection_publishes_to_what_one_has_bound(emulator, declared):
    with Connection(emulator.broker_url) as other:
        other.Producer().publish({}, exchange="orders", routing_key="new")
    assert count(emulator) == 1


def test_every_task_of_a_pool_arrives(emulator):
    """Each thread holds a connection of its own; the queue was declared on one of them."""
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.update(
        broker_transport="kombu_cfqueues:Transport",
        broker_pool_limit=4,
        task_queues=[NEW_ORDERS],
    )
    all_have_one = threading.Barrier(4)

    def send(number):
        with app.producer_pool.acquire(block=True) as producer:
            all_have_one.wait(20)
            app.send_task("add", exchange="orders", routing_key="new", producer=producer)

    with app:
        app.send_task("add", queue="new-orders")  # which declares it, on one connection
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(send, range(4)))

    assert count(emulator) == 5


def test_the_type_of_an_exchange_is_known_to_all(emulator):
    topic = Queue("eu", Exchange("events", type="topic"), routing_key="order.*.eu")
    with declare(emulator.broker_url, topic), Connection(emulator.broker_url) as other:
        other.Producer().publish({}, exchange="events", routing_key="order.new.eu")
    assert count(emulator, "eu") == 1


def test_bindings_outlive_the_connection_that_made_them(emulator):
    declare(emulator.broker_url, NEW_ORDERS).release()
    with Connection(emulator.broker_url) as later:
        later.Producer().publish({}, exchange="orders", routing_key="new")
    assert count(emulator) == 1


def test_bindings_outlive_a_reconnect(emulator, declared):
    """Kombu makes a new transport after a failure; the application declares nothing again."""
    producer = declared.Producer()
    producer.publish({}, exchange="orders", routing_key="new")
    declared.collect()  # as Kombu does it before it connects again
    declared.ensure_connection(max_retries=1)
    declared.Producer().publish({}, exchange="orders", routing_key="new")
    assert count(emulator) == 2


def test_a_queue_that_one_connection_has_bound_twice_gets_one_message(emulator, declared):
    with declare(emulator.broker_url, NEW_ORDERS) as other:
        other.Producer().publish({}, exchange="orders", routing_key="new")
    assert count(emulator) == 1


def test_what_one_connection_unbinds_is_unbound_for_all(emulator, declared):
    with Connection(emulator.broker_url) as other:
        other.Producer().publish({}, exchange="orders", routing_key="new")
        bound = NEW_ORDERS(declared.default_channel)
        bound.delete()
        with pytest.raises(InvalidMessage, match="no queue is bound"):
            other.Producer().publish({}, exchange="orders", routing_key="new")


def test_another_account_has_exchanges_of_its_own(emulator, declared):
    with (
        Emulator(account_id="f" * 32) as elsewhere,
        Connection(elsewhere.broker_url) as other,
        pytest.raises(InvalidMessage, match="no queue is bound"),
    ):
        other.Producer().publish({}, exchange="orders", routing_key="new")


# -- a message that no queue is bound for


@pytest.mark.parametrize("kind", ["direct", "topic"])
@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_a_message_that_no_queue_is_bound_for_raises(emulator, tmp_path, kind, mode):
    """AMQP drops it in silence; here a typing error would be a loss."""
    exchange = Exchange("lonely", type=kind)
    options = {"publish_mode": mode, "spool_dir": str(tmp_path / "spool")}
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        pytest.raises(InvalidMessage, match="no queue is bound to exchange 'lonely'"),
    ):
        connection.Producer().publish(
            {}, exchange=exchange, routing_key="nobody", declare=[exchange]
        )


def test_an_exchange_that_nobody_declared_raises(emulator):
    with (
        Connection(emulator.broker_url) as connection,
        pytest.raises(InvalidMessage, match="'undeclared'"),
    ):
        connection.Producer().publish({}, exchange="undeclared", routing_key="new")


def test_it_raises_in_a_batch_at_its_own_publish(emulator):
    with Connection(emulator.broker_url) as connection:
        producer = connection.Producer()
        with kombu_cfqueues.batch(producer.connection):
            producer.publish({}, routing_key="jobs")
            with pytest.raises(InvalidMessage, match="no queue is bound"):
                producer.publish({}, exchange="undeclared", routing_key="new")
    assert count(emulator, "jobs") == 1


def test_it_raises_through_celery(emulator):
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    with app, pytest.raises(InvalidMessage, match="'undeclared'"):
        app.send_task("add", exchange="undeclared", routing_key="new")


@pytest.mark.parametrize("exchange", [None, ""])
def test_no_exchange_and_no_routing_key_raises(emulator, exchange):
    with (
        Connection(emulator.broker_url) as connection,
        pytest.raises(InvalidMessage, match="routing key"),
    ):
        connection.Producer().publish({}, exchange=exchange, routing_key="")


@pytest.mark.parametrize("exchange", ["orders", "undeclared"])
def test_the_option_unroutable_brings_the_silence_back_and_counts(emulator, exchange):
    """As with AMQP: for applications that publish events which perhaps nobody wants."""
    before = kombu_cfqueues.stats().get("unroutable", 0)
    options = {"unroutable": "drop"}
    with declare(emulator.broker_url, NEW_ORDERS, transport_options=options) as connection:
        for _ in range(3):
            connection.Producer().publish({}, exchange=exchange, routing_key="nobody")
    assert kombu_cfqueues.stats()["unroutable"] - before == 3


def test_mandatory_raises_whatever_the_option_says(emulator):
    """It does so today; the option must not take it away."""
    options = {"unroutable": "drop"}
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        pytest.raises(InvalidMessage, match="no queue is bound"),
    ):
        connection.Producer().publish(
            {}, exchange="undeclared", routing_key="nobody", mandatory=True
        )


def test_a_fanout_exchange_and_events_may_have_no_listeners(emulator):
    """Nobody has to listen to them, so silence is right; it is so today."""
    fanout = Exchange("news", type="fanout")
    with Connection(emulator.broker_url) as connection:
        producer = connection.Producer()
        producer.publish({}, exchange=fanout, routing_key="", declare=[fanout])
        producer.publish({}, exchange=Exchange("celeryev", type="topic"), routing_key="task.sent")
        producer.publish({}, exchange="celery.pidbox", routing_key="")
    assert emulator.queue_names() == []


def test_events_under_another_name_may_have_no_listeners(emulator):
    """Celery's setting `event_exchange` renames their exchange; a worker must not stop for it."""
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.update(broker_transport="kombu_cfqueues:Transport", event_exchange="diary")
    with (
        app,
        app.connection_for_write() as connection,
        app.events.Dispatcher(connection, hostname="here") as dispatcher,
    ):
        dispatcher.send("worker-online")
    assert emulator.queue_names() == []


# -- what a process that lives long does to its bindings


def test_reply_queues_leave_no_bindings(emulator):
    """Each has a new name, so that bindings which stay would fill the memory."""
    with Connection(emulator.broker_url) as connection:
        for number in range(3):
            with connection.channel() as channel:
                reply = Queue(f"reply-{number}", Exchange("replies"), f"{number}", auto_delete=True)
                with connection.Consumer(reply, channel=channel):
                    pass
        assert list(connection.default_channel.list_bindings()) == []
        assert connection.default_channel.get_table("replies") == []


def test_an_exchange_is_deleted_and_its_queues_stay(emulator, declared):
    """As in AMQP: what another connection has published is not to be deleted with it."""
    with Connection(emulator.broker_url) as other:
        other.Producer().publish({}, exchange="orders", routing_key="new")
        ORDERS(other.default_channel).delete(if_unused=True)
        other.Producer().publish({}, exchange="orders", routing_key="new")
        ORDERS(other.default_channel).delete()
        with pytest.raises(InvalidMessage, match="no queue is bound"):
            declared.Producer().publish({}, exchange="orders", routing_key="new")
    assert count(emulator) == 2


def test_threads_that_declare_at_once_lose_no_binding(emulator):
    """Each has a connection of its own, and all of them start with the same exchange."""
    start = threading.Barrier(8)

    def declare_many(thread):
        with Connection(emulator.broker_url) as connection:
            channel = connection.default_channel
            start.wait(20)
            for number in range(50):
                exchange = Exchange(f"many-{number}", type="topic")
                Queue(f"queue-{thread}", exchange, f"{thread}.#")(channel).declare()
                assert f"queue-{thread}" in channel._lookup(f"many-{number}", f"{thread}.x")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(declare_many, range(8)))

    with Connection(emulator.broker_url) as connection:
        for number in range(50):
            assert len(connection.default_channel.get_table(f"many-{number}")) == 8
