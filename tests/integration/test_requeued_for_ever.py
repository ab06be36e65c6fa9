"""Messages that the application gives back again and again end in the dead-letter queue."""

from __future__ import annotations

import contextlib

import pytest
from kombu import Connection

from kombu_cfqueues.emulator import Emulator

from .consuming import FAST, Collector, consume, drain, nothing_comes, publish, settled
from .workers import Worker, until

POSITIONS = [("one_more", 1), ("one_more", 0), ("max_retries", 1), ("max_retries", 0)]


def consumer_with(max_retries, dead_letter_queue="graves"):
    settings = {"max_retries": max_retries}
    return {"type": "http_pull", "settings": settings, "dead_letter_queue": dead_letter_queue}


@pytest.fixture
def emulator():
    with Emulator() as emulator:
        emulator.create_queue("graves")
        emulator.create_queue("jobs", consumer=consumer_with(5))
        yield emulator


@pytest.fixture
def connection(emulator):
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        yield connection


@pytest.mark.parametrize(("deliveries", "first_attempt"), POSITIONS)
def test_what_is_requeued_each_time_is_dead_lettered_after_max_retries(deliveries, first_attempt):
    """By this library, which can say why, where the positions leave it the last delivery."""
    with Emulator(deliveries=deliveries, first_attempt=first_attempt) as emulator:
        emulator.create_queue("graves")
        emulator.create_queue("jobs", consumer=consumer_with(5))
        with Connection(emulator.broker_url, transport_options=FAST) as connection:
            publish(connection, "poison")
            times = []

            def requeue(_, message):
                times.append(message)
                message.requeue()

            with consume(connection, requeue, prefetch_count=1):
                until(lambda: drained(connection) or emulator.messages("graves"))
                settled(emulator)
        assert 5 <= len(times) <= 6
        assert len(emulator.messages("graves")) == 1
        assert len(emulator.requests.of("push")) <= 2


def drained(connection):
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=0.1)


def test_a_log_line_names_the_message_and_where_it_went(connection, emulator, caplog):
    publish(connection, "poison")

    with consume(connection, lambda _, message: message.requeue(), prefetch_count=1):
        until(lambda: drained(connection) or emulator.messages("graves"))
        settled(emulator)

    (line,) = [r.getMessage() for r in caplog.records if "'graves'" in r.getMessage()]
    assert "queue 'jobs'" in line
    assert "max_retries is 5" in line
    (dead,) = emulator.messages("graves")
    assert "poison" in dead.body


def test_what_recover_gives_back_each_time_is_dead_lettered(connection, emulator):
    publish(connection, "poison")
    times = []
    with consume(connection, lambda _, message: times.append(message)) as consumer:
        while len(times) < 20 and not emulator.messages("graves"):
            drained(connection)
            consumer.recover(requeue=True)
        settled(emulator)
    assert 5 <= len(times) <= 6
    assert len(emulator.messages("graves")) == 1


def test_what_makes_a_callback_raise_each_time_is_dead_lettered(emulator):
    """A supervisor starts the consumer again, which gets the message again."""
    times = []

    def fail(_, message):
        times.append(message)
        raise ZeroDivisionError

    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        publish(connection, "poison")
    while len(times) < 20 and not emulator.messages("graves"):
        with (
            Connection(emulator.broker_url, transport_options=FAST) as connection,
            contextlib.suppress(ZeroDivisionError),
            consume(connection, fail),
        ):
            drained(connection)
    # On a busy machine, a consumer may end before it has handed the message over: then the pull
    # counts and the callback does not, or a copy replaces the message.
    assert 3 <= len(times) <= 8
    settled(emulator)


def test_what_was_never_handled_is_not_dead_lettered(emulator):
    """Consumers that stop with messages at hand give them back for as long as it takes."""
    got = Collector(ack=False)
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        publish(connection, "precious")
    for _ in range(12):
        with (
            Connection(emulator.broker_url, transport_options=FAST) as connection,
            consume(connection, got),
        ):
            drain(connection, 1)
    assert not emulator.messages("graves")
    assert len(emulator.messages("jobs")) == 1


def test_without_a_dead_letter_queue_it_is_not_lost(emulator):
    emulator.create_queue("safe", consumer={"type": "http_pull", "settings": {"max_retries": 5}})
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        publish(connection, "precious", queue="safe")
        times = []

        def requeue(_, message):
            times.append(message)
            message.requeue() if len(times) < 20 else message.ack()

        with consume(connection, requeue, queue="safe", prefetch_count=1):
            drain(connection, 20)
            nothing_comes(connection, 0.1)
        settled(emulator, "safe")


def test_a_task_that_always_kills_its_child_is_dead_lettered(emulator, tasks, tmp_path):
    """With `task_reject_on_worker_lost`, Celery gives it back, and it kills the next child."""
    options = {**FAST, "dead_letter_queue": "graves", "consumer_max_retries": 3}
    with Worker(emulator, tmp_path, worker_lost_wait=0.1, options=options) as worker:
        tasks.die.delay("poison")
        until(lambda: emulator.messages("graves"))
        tasks.note.delay("alive")
        until(lambda: worker.values("note") == ["alive"])
        settled(emulator, "celery")
    assert 3 <= len(worker.runs("die")) <= 4


def test_a_task_that_is_always_requeued_is_dead_lettered(emulator, tasks, tmp_path):
    options = {**FAST, "dead_letter_queue": "graves", "consumer_max_retries": 5}
    with Worker(emulator, tmp_path, pool="solo", concurrency=1, options=options) as worker:
        tasks.requeue.delay("poison")
        until(lambda: emulator.messages("graves"))
        settled(emulator, "celery")
    assert 5 <= len(worker.runs("requeue")) <= 6
