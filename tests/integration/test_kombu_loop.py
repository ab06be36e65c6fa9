"""Programs that consume through Kombu's own event loop, ``kombu.asynchronous``."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import PermanentError

from .workers import until

QUEUE = Queue("jobs", Exchange("jobs"), routing_key="jobs")


@pytest.fixture(scope="module")
def server():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(server):
    """The broker, with an empty queue."""
    server.faults.clear()
    with Connection(server.broker_url) as connection:
        QUEUE(connection.channel()).declare()
        QUEUE(connection.channel()).purge()
    yield server
    server.faults.clear()


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def connection(emulator):
    with Connection(emulator.broker_url) as connection:
        yield connection


def publish(emulator, *bodies) -> None:
    with Connection(emulator.broker_url) as connection:
        for body in bodies:
            connection.Producer().publish(body, exchange=QUEUE.exchange, routing_key="jobs")


def run(hub, condition, seconds: float = 30) -> None:
    """Run the loop until *condition* holds."""
    deadline = time.monotonic() + seconds
    hub.timer.call_repeatedly(0.05, lambda: None)  # to look at the time now and then
    while not condition():
        assert time.monotonic() < deadline, "the loop has delivered nothing"
        hub.run_once()


class Received(list):
    """Messages; `take` adds one, and acknowledges it."""

    def __init__(self, *, acks: bool = True) -> None:
        super().__init__()
        self.acks = acks

    def take(self, message) -> None:
        self.append(message)
        if self.acks:
            message.ack()

    @property
    def bodies(self) -> list:
        return [message.payload for message in self]


def test_kombus_own_example_of_an_event_loop_works(emulator, hub, connection):
    """examples/experimental/async_consume.py of Kombu, and it registers before it consumes."""
    received = []

    def on_message(message):
        received.append(message.decode())
        message.ack()
        hub.stop()  # exit after one message

    connection.register_with_event_loop(hub)
    with Consumer(connection, queues=[QUEUE], on_message=on_message):
        connection.Producer().publish(
            {"hello": "world"}, exchange=QUEUE.exchange, routing_key="jobs", declare=[QUEUE]
        )
        stop = threading.Timer(30, hub.stop)
        stop.start()
        hub.run_forever()
        stop.cancel()
    assert received == [{"hello": "world"}]


def test_many_messages_come_in_full_pulls(emulator, hub, connection):
    """A program without a prefetch count gets more than one message a request."""
    with Connection(emulator.broker_url) as other:
        producer = other.Producer(exchange=QUEUE.exchange, routing_key="jobs")
        for n in range(60):
            producer.publish(n)
    received = Received()
    emulator.requests.clear()
    connection.register_with_event_loop(hub)
    with Consumer(connection, queues=[QUEUE], on_message=received.take):
        run(hub, lambda: len(received) >= 60)
    assert sorted(received.bodies) == list(range(60))
    assert len(emulator.requests.of("pull")) < 40


def test_a_consumer_may_come_while_the_loop_runs(emulator, hub, connection):
    publish(emulator, 1)
    received = Received()
    connection.register_with_event_loop(hub)
    hub.run_once()
    hub.run_once()
    with Consumer(connection, queues=[QUEUE], on_message=received.take):
        run(hub, lambda: len(received) == 1)


def test_a_full_window_costs_nothing_and_goes_on_when_it_has_room(emulator, hub, connection):
    publish(emulator, 1, 2, 3)
    received, rounds = Received(acks=False), []
    hub.on_tick.add(lambda: rounds.append(1))
    connection.register_with_event_loop(hub)
    with Consumer(
        connection, queues=[QUEUE], on_message=received.take, prefetch_count=2
    ) as consumer:
        run(hub, lambda: len(received) == 2)
        consumer.qos(prefetch_count=1)  # now a message waits that may not be delivered
        received[0].ack()
        end = time.monotonic() + 0.5
        rounds.clear()
        while time.monotonic() < end:
            hub.run_once()
        assert len(rounds) < 40
        assert len(received) == 2
        received[1].ack()
        run(hub, lambda: len(received) == 3)
        received[2].ack()


def test_what_a_callback_raises_ends_the_loop_and_loses_no_message(emulator, hub, connection):
    """The loop is told of the next message before it delivers one."""
    publish(emulator, 1, 2)
    received = []

    def on_message(message):
        received.append(message.payload)
        message.ack()
        if len(received) == 1:
            raise LookupError("a bug")

    connection.register_with_event_loop(hub)
    with Consumer(connection, queues=[QUEUE], on_message=on_message, prefetch_count=10):
        with pytest.raises(LookupError):
            run(hub, lambda: False)
        hub._loop = None
        run(hub, lambda: len(received) == 2)


def test_an_error_that_another_pull_does_not_repair_is_raised(emulator, hub, connection):
    connection.register_with_event_loop(hub)
    with Consumer(connection, queues=[QUEUE], on_message=Received().take):
        emulator.faults.error("pull", status=400, code=10100, times=None)
        with pytest.raises(PermanentError):
            run(hub, lambda: False)


def test_a_loop_that_somebody_closed_is_read_again(emulator, hub, connection):
    """As when the second of two embedded workers stops."""
    received = Received()
    connection.register_with_event_loop(hub)
    with Consumer(connection, queues=[QUEUE], on_message=received.take):
        publish(emulator, 1)
        run(hub, lambda: len(received) == 1)
        hub.close()
        hub._loop = None
        publish(emulator, 2)
        run(hub, lambda: len(received) == 2)


def test_a_closed_connection_leaves_nothing_behind(emulator, hub):
    def pipes() -> list[str]:
        """The pipes of this process, once for each end.

        Threads of earlier tests may close other files meanwhile.
        """
        links = []
        for file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(str(file.readlink()))
        return [link for link in links if link.startswith("pipe:")]

    with Connection(emulator.broker_url) as connection:
        connection.connect()
        _ = hub.poller
        before, ticks = pipes(), set(hub.on_tick)
        connection.register_with_event_loop(hub)
        connection.register_with_event_loop(hub)
        assert len(hub.readers) == 1
        (one, other) = [pipe for pipe in pipes() if pipe not in before]
        assert one == other
        assert not hub.timer._queue
    assert not hub.readers
    assert hub.on_tick == ticks
    assert one not in pipes()


def test_a_forked_child_that_closes_its_copy_does_not_make_the_parent_deaf(
    emulator, hub, connection
):
    """The two share the loop's poller, in the kernel."""
    received = Received()
    connection.register_with_event_loop(hub)
    with Consumer(connection, queues=[QUEUE], on_message=received.take):
        publish(emulator, 1)
        run(hub, lambda: len(received) == 1)
        pid = os.fork()
        if pid == 0:
            try:
                connection.collect()
                connection.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        publish(emulator, 2)
        run(hub, lambda: len(received) == 2)


def test_settling_through_the_loop_happens_at_once_and_never_raises(
    emulator, hub, connection, caplog
):
    """Celery settles with ``call_soon``, from threads whose calls may not wake the loop."""
    publish(emulator, 1)
    received, other = Received(acks=False), []
    connection.register_with_event_loop(hub)
    with Consumer(connection, queues=[QUEUE], on_message=received.take):
        run(hub, lambda: len(received) == 1)
        for _ in range(2):
            thread = threading.Thread(target=hub.call_soon, args=(received[0].ack,))
            thread.start()
            thread.join()
        hub.call_soon(other.append, 1)
        assert received[0].acknowledged
        until(lambda: not emulator.messages("jobs"))  # and the loop does not run
        assert caplog.text.count("could not be settled") == 1
        assert not other
        run(hub, lambda: other)


def test_what_a_celery_worker_drops_is_given_back_and_what_an_application_drops_is_not(
    emulator, hub, connection
):
    """An application may settle by the delivery tag, and needs no message for that."""
    import celery.signals  # noqa: F401  a worker has imported it

    publish(emulator, 1)
    tags = []

    def keep_tag(message):
        tags.append(message.delivery_tag)

    def drop(message):
        tags.append(message.delivery_tag)

    drop.__module__ = "celery.worker.consumer.consumer"  # by this a worker is known
    connection.register_with_event_loop(hub)
    with Consumer(connection, queues=[QUEUE], on_message=keep_tag) as consumer:
        run(hub, lambda: tags)
        gc.collect()
        consumer.channel.qos.receiver.dropped.give_back()
        consumer.channel.basic_ack(tags.pop())
        until(lambda: not emulator.messages("jobs"))

        consumer.on_message = drop
        publish(emulator, 2)
        run(hub, lambda: len(tags) >= 2)
        consumer.on_message = lambda message: message.ack()
        until(lambda: (hub.run_once(), not emulator.messages("jobs"))[1])


def test_a_signal_ends_the_wait_for_a_message(connection):
    """As Celery's signal handler does, in pools that call ``drain_events``."""
    inbox = connection.transport.session.inbox
    before = signal.signal(signal.SIGALRM, lambda *_: inbox.interrupt())
    try:
        with Consumer(connection, queues=[QUEUE], on_message=print):
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=300)
            assert time.monotonic() - began < 60
    finally:
        signal.signal(signal.SIGALRM, before)
