"""Consumers that come, go, change and stand beside each other while messages flow."""

from __future__ import annotations

import _thread
import base64
import contextlib
import logging
import os
import threading
import time
from queue import Empty

import pytest
from kombu import Connection, Queue
from kombu.mixins import ConsumerMixin

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator.store import Draft
from kombu_cfqueues.runtime.thread_pool import ThreadPool

from .consuming import (
    FAST,
    PULL,
    Collector,
    consume,
    drain,
    drain_until_it_fails,
    nothing_comes,
    publish,
    settled,
)
from .workers import until


@pytest.fixture
def connection(emulator):
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        yield connection


def pulls(emulator, queue="jobs"):
    path = f"/queues/{emulator.queue_id(queue)}/"
    return [request for request in emulator.requests.of("pull") if path in request.path]


def window_of(message):
    return message.channel.qos.window


# --- Prefetch


def test_whoever_waits_hears_of_room_below_a_lowered_prefetch_count(connection):
    """Celery's autoscaling lowers it, and its tasks acknowledge in other threads."""
    publish(connection, *range(6))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=6) as consumer:
        drain(connection, 2)
        consumer.qos(prefetch_count=2)
        threading.Timer(0.3, got.messages[0].ack).start()
        drain(connection, 1)
    assert len(got.bodies) == 3


def test_a_raised_prefetch_count_holds_at_once(connection):
    publish(connection, *range(6))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=1) as consumer:
        drain(connection, 1)
        threading.Timer(0.3, consumer.qos, kwargs={"prefetch_count": 6}).start()
        drain(connection, 5)
    assert sorted(got.bodies) == list(range(6))


def test_without_a_prefetch_count_any_number_may_be_unsettled(connection):
    publish(connection, *range(120))
    got = Collector(ack=False)
    with consume(connection, got):
        drain(connection, 120)
    assert sorted(got.bodies) == list(range(120))


@pytest.mark.parametrize("way", ["ack", "reject", "requeue", "no_ack", "cancel", "recover", "get"])
def test_no_slot_leaks(connection, emulator, way):
    """SQS: a slot that is not freed stops a worker after some days."""
    publish(connection, *range(40))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=4, no_ack=way == "no_ack") as consumer:
        for _ in range(10):
            drain(connection, 1)
            message = got.messages[-1]
            if way in ("ack", "reject", "requeue"):
                getattr(message, way)()
            elif way == "cancel":
                consumer.cancel()
                consumer.consume()
                message.ack()
            elif way == "recover":
                consumer.recover(requeue=True)
            elif way == "get":
                message.ack()
                another = message.channel.basic_get("jobs")
                assert another is not None
                another.ack()
        channel = got.messages[0].channel
        window = window_of(got.messages[0])
        consumer.cancel()
        until(lambda: not any(cancelled.in_flight for cancelled in channel._cancelled))
        assert (window.held, window.unsettled, window.queue_count) == (0, 0, 0)


# --- Consumers beside each other


def test_two_connections_of_a_process_share_a_queue(emulator):
    first, second = Collector(), Collector()
    with (
        Connection(emulator.broker_url, transport_options=FAST) as one,
        Connection(emulator.broker_url, transport_options=FAST) as other,
        consume(one, first, prefetch_count=5),
    ):
        publish(one, *range(60))
        with consume(other, second, prefetch_count=5):
            drain(one, 10)
            drain(other, 10)
        # What the other had pulled ahead comes here.
        drain(one, 40)
        settled(emulator)
    assert sorted(first.bodies + second.bodies) == list(range(60))


def test_a_consumer_takes_the_place_of_one_with_its_tag(connection, emulator):
    """Nobody could cancel the first, which would be pulled for until its channel closes."""
    channel = connection.channel()
    old, new = Collector(), Collector()
    for name, callback in (("old", old), ("jobs", new)):
        queue = Queue(name, channel=channel)
        queue.declare()
        queue.consume(consumer_tag="same", callback=lambda m, c=callback: c(m.body, m))
    publish(connection, 1, queue="old")
    publish(connection, 2)
    drain(connection, 1)
    nothing_comes(connection, 0.3)
    assert (len(old.bodies), len(new.bodies)) == (0, 1)
    channel.basic_cancel("same")
    nothing_comes(connection, 0.1)
    emulator.requests.clear()
    nothing_comes(connection, 0.3)
    assert not emulator.requests.of("pull")


def test_consumers_without_a_tag_get_one_each(connection, emulator):
    """`Queue.consume()` states none; each is delivered to, and none outlives its channel."""
    channel, got, tags = connection.channel(), Collector(), []
    for name in ("a", "b"):
        queue = Queue(name, channel=channel)
        queue.declare()
        tags.append(queue.consume(callback=lambda m: got(m.body, m)))
        publish(connection, name, queue=name)
    drain(connection, 2)
    assert len(set(tags)) == 2
    channel.close()
    emulator.requests.clear()
    nothing_comes(connection, 0.3)
    assert not emulator.requests.of("pull")


def test_what_a_cancelled_consumer_holds_another_connection_gets_at_once(emulator):
    with (
        Connection(emulator.broker_url, transport_options=FAST) as one,
        Connection(emulator.broker_url, transport_options=FAST) as other,
    ):
        publish(one, *range(6))
        held, got = Collector(ack=False), Collector()
        with consume(one, held, prefetch_count=6) as consumer:
            drain(one, 2)
            consumer.cancel()
            with consume(other, got, prefetch_count=6):
                drain(other, 4)
                # What was delivered before the cancel is still the first one's to settle.
                for message in held.messages:
                    message.ack()
                settled(emulator)
    assert sorted(held.bodies + got.bodies) == list(range(6))


def test_a_message_for_a_consumer_that_another_thread_cancels_is_given_back(
    connection, emulator, monkeypatch
):
    publish(connection, 1)
    got = Collector()
    consumer = consume(connection, got, prefetch_count=1)
    consumer.consume()
    inbox = consumer.channel.connection.session.inbox
    take = inbox.take

    def take_and_cancel(deadline):
        arrival = take(deadline)
        consumer.cancel()
        return arrival

    monkeypatch.setattr(inbox, "take", take_and_cancel)
    connection.drain_events(timeout=30)
    monkeypatch.undo()
    assert not got.bodies
    assert consumer.channel.qos.window.unsettled == 0
    consumer.consume()
    drain(connection, 1)
    assert got.bodies == [1]


def test_a_consumer_that_comes_while_another_thread_waits_is_served(connection):
    publish(connection, 1)
    got = Collector()
    with consume(connection, Collector(), queue="other"):
        late = connection.Consumer(
            Queue("jobs"), channel=connection.channel(), callbacks=[got], auto_declare=False
        )
        threading.Timer(0.3, late.consume).start()
        drain(connection, 1)
    assert got.bodies == [1]


def test_draining_without_consumers_ends_at_its_timeout(connection, emulator):
    connection.channel()
    nothing_comes(connection, 0.1)
    assert not emulator.requests.of("pull")


# --- Queues that go


def test_the_end_of_a_queue_is_no_concern_of_consumers_of_others(connection, emulator):
    got = Collector()
    with consume(connection, got, queue="stays"), consume(connection, got, queue="goes") as going:
        nothing_comes(connection, 0.1)
        with Connection(emulator.broker_url) as other:
            other.channel().queue_delete("goes")
        with pytest.raises(Exception, match="goes"):
            drain_until_it_fails(connection)
        # Each further pull fails as well, until the consumer is cancelled.
        time.sleep(1)
        going.cancel()
        publish(connection, 1, queue="stays")
        drain(connection, 1)
    assert got.bodies == [1]


def test_a_queue_that_is_deleted_with_its_consumers_is_not_missed(connection, emulator):
    publish(connection, *range(6))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=3) as consumer:
        drain(connection, 1)
        consumer.queues[0](consumer.channel).delete()
        got.messages[0].ack()
        nothing_comes(connection, 0.5)
    assert emulator.queue_names() == []


def test_trouble_of_a_consumer_that_is_gone_does_not_hide_the_next(connection, emulator, caplog):
    caplog.set_level(logging.INFO, "kombu_cfqueues")

    def told():
        return sum("cannot be pulled" in record.getMessage() for record in caplog.records)

    for times in (1, 2):
        fault = emulator.faults.error("pull", status=503, times=None)
        with consume(connection, Collector()):
            nothing_comes(connection, 0.1)
            until(lambda fault=fault: fault.hits >= 2)
            until(lambda times=times: told() >= times)
        emulator.faults.clear()


def test_trouble_is_told_once_although_answers_to_earlier_pulls_still_come(emulator, caplog):
    """A pull that left before the server failed is answered after the first failure."""
    emulator.create_queue("jobs", consumer=PULL)
    with (
        Connection(emulator.broker_url, transport_options=FAST) as one,
        Connection(emulator.broker_url, transport_options=FAST) as other,
        consume(one, Collector()),
        consume(other, Collector()),
    ):
        slow = emulator.faults.latency("pull", seconds=0.5, times=1)
        nothing_comes(one, 0.1)
        until(lambda: slow.hits)
        fault = emulator.faults.error("pull", status=503, times=None)
        nothing_comes(other, 1)
        until(lambda: fault.hits >= 4)
        # Before the server is well: the last failure may be answered after the first success.
        told = [r for r in caplog.records if "cannot be pulled" in r.getMessage()]
        emulator.faults.clear()
    assert len(told) == 1


def test_a_machine_without_room_for_threads_is_told_of_and_waited_for(
    connection, emulator, caplog, monkeypatch
):
    publish(connection, *range(3))
    start, refused = _thread.start_new_thread, []

    def refuse_some(function, args):
        pool = getattr(function, "__self__", None)
        if isinstance(pool, ThreadPool) and refused.count(pool) < 2:
            refused.append(pool)
            raise RuntimeError("can't start new thread")
        return start(function, args)

    monkeypatch.setattr(_thread, "start_new_thread", refuse_some)
    got = Collector()
    with consume(connection, got, prefetch_count=3):
        while len(got.bodies) < 3:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
        settled(emulator)
    assert {"cfqueues-pull", "cfqueues-ack"} <= {pool._name for pool in refused}
    assert "no thread cfqueues-pull could be started: can't start new thread" in caplog.text


# --- Forks


def test_a_child_does_not_wait_for_the_pulls_of_its_parent(emulator):
    """A consumer is cancelled, its last pull is on its way, and the process forks."""
    connection = Connection(emulator.broker_url, transport_options={**FAST, "read_timeout": 1.5})
    with connection, consume(connection, Collector()) as consumer:
        fault = emulator.faults.hang("pull", times=None)
        nothing_comes(connection, 0.1)
        until(lambda: fault.hits)
        consumer.cancel()
        assert consumer.channel._cancelled[-1].in_flight
        child = os.fork()
        if child == 0:
            started = time.monotonic()
            with contextlib.suppress(BaseException):
                consumer.channel.close()
            os._exit(int(time.monotonic() - started > 3))
        _, status = os.waitpid(child, 0)
        emulator.faults.clear()
    assert os.waitstatus_to_exitcode(status) == 0


# --- Kombu's own ways to consume


class Service(ConsumerMixin):
    """As Kombu's guide has it."""

    def __init__(self, connection, count) -> None:
        self.connection = connection
        self.got = []
        self._count = count

    def get_consumers(self, Consumer, channel):  # noqa: N803  Kombu's name for it
        return [Consumer([Queue("jobs")], callbacks=[self.handle], prefetch_count=2)]

    def handle(self, body, message) -> None:
        self.got.append(body)
        message.ack()
        self.should_stop = len(self.got) >= self._count


def test_consumer_mixin(connection, emulator):
    publish(connection, *range(10))
    service = Service(connection, 10)
    service.run()
    assert sorted(service.got) == list(range(10))
    settled(emulator)


def test_consumer_mixin_goes_on_through_an_outage(connection, emulator):
    publish(connection, 1)
    service = Service(connection, 2)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        until(lambda: service.got == [1])
        with emulator.outage():
            time.sleep(0.5)
        with Connection(emulator.broker_url) as other:
            publish(other, 2)
        until(lambda: service.got == [1, 2])
    finally:
        service.should_stop = True
        thread.join(30)


def test_simple_queue_waits_for_its_timeout_and_no_longer(connection):
    queue = connection.SimpleQueue("jobs")
    with pytest.raises(Empty):
        queue.get(timeout=0.2)
    with pytest.raises(Empty):
        queue.get(block=False)
    queue.put("x")
    message = queue.get(timeout=30)
    assert message.payload == "x"
    message.ack()
    queue.close()


def test_simple_queue_without_acks(connection, emulator):
    publish(connection, 1, 2, 3)
    queue = connection.SimpleQueue("jobs", no_ack=True)
    assert sorted(queue.get(timeout=30).payload for _ in range(3)) == [1, 2, 3]
    settled(emulator)
    queue.close()


def test_a_queue_that_needs_no_acks_is_acked_on_receipt(connection, emulator):
    publish(connection, 1)
    got = Collector(ack=False)
    with connection.Consumer(Queue("jobs", no_ack=True), callbacks=[got], no_ack=None):
        drain(connection, 1)
        settled(emulator)
    assert got.bodies == [1]


# --- Messages from elsewhere


@pytest.mark.parametrize("encoding", ["plain", "base64"])
@pytest.mark.parametrize("attempt", [0, 1])
def test_messages_of_a_worker_are_delivered_as_what_they_are(encoding, attempt):
    sent = [
        (b'{"a":1}', "json", {"a": 1}, "application/json"),
        (b'"text"', "json", "text", "application/json"),
        (b"42", "json", 42, "application/json"),
        ("Grüße".encode(), "text", "Grüße", "text/plain"),
        (base64.b64encode(b"\xff\x00"), "bytes", b"\xff\x00", "application/data"),
    ]
    with (
        Emulator(json_pull_encoding=encoding, first_attempt=attempt) as emulator,
        Connection(emulator.broker_url, transport_options=FAST) as connection,
    ):
        emulator.create_queue("jobs", consumer=PULL)
        for content, kind, _, _ in sent:
            emulator._service.store.add(emulator._queue("jobs"), [Draft(content, kind, 0)])
        got = Collector()
        accept = ["json", "text/plain", "application/data"]
        with consume(connection, got, accept=accept, prefetch_count=5):
            drain(connection, len(sent))
            settled(emulator)
    told = [
        (body, message.content_type, message.delivery_info["cloudflare"])
        for body, message in zip(got.bodies, got.messages, strict=True)
    ]
    for _, kind, body, content_type in sent:
        (info,) = [i for b, c, i in told if (b, c) == (body, content_type)]
        assert (info["content_type"], info["envelope"], info["attempts"]) == (kind, False, attempt)
    assert not any(message.delivery_info["redelivered"] for message in got.messages)
