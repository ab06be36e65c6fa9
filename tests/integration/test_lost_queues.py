"""A Celery worker of several queues goes on with the others when one of them is deleted."""

from __future__ import annotations

import time

import pytest
from kombu import Connection, Consumer, Queue

from kombu_cfqueues.consume import pull_failures
from kombu_cfqueues.errors import PullNotEnabled, QueueNotFound

from .consuming import FAST, PULL, drain, drain_until_it_fails, nothing_comes, publish
from .workers import Worker, until


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(pull_failures, "LOST_SECONDS", 0.1)


@pytest.fixture
def emulator(emulator):
    for queue in ("mails", "reports"):
        emulator.create_queue(queue, consumer=PULL)
    return emulator


@pytest.fixture
def connection(emulator):
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        yield connection


def delete(emulator, queue):
    with Connection(emulator.broker_url) as connection:
        connection.channel().queue_delete(queue)


def work(connection, queue):
    """A consumer that looks like that of a Celery worker, and what it gets."""
    got = []

    def on_message(message):
        got.append(message.payload)
        message.ack()

    on_message.__module__ = "celery.worker.consumer.consumer"
    return Consumer(connection, [Queue(queue)], on_message=on_message), got


def lines(caplog, level):
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelname == level and "pull" in record.name + record.getMessage()
    ]


def test_a_worker_goes_on_with_its_other_queue(emulator, tasks, tmp_path):
    with Worker(
        emulator, tmp_path, pool="solo", concurrency=1, queues="mails,reports", options=FAST
    ) as worker:
        delete(emulator, "mails")
        until(lambda: worker.ended or "ERROR" in worker.log)
        tasks.note.apply_async(("alive",), queue="reports")
        until(lambda: worker.ended or worker.values("note") == ["alive"])
        assert not worker.ended
        (line,) = [line for line in worker.log.splitlines() if "ERROR" in line]
    assert "queue 'mails' cannot be pulled any more" in line


def test_a_queue_that_is_made_again_is_found(connection, emulator, caplog):
    caplog.set_level("INFO")
    mails, got = work(connection, "mails")
    with mails, work(connection, "reports")[0]:
        delete(emulator, "mails")
        until(lambda: lines(caplog, "ERROR") or nothing_comes(connection, 0.1))
        nothing_comes(connection, 0.5)
        assert len(lines(caplog, "ERROR")) == 1
        emulator.create_queue("mails")
        publish(connection, "again", queue="mails")
        drain(connection, 1)
    assert got == ["again"]
    assert "queue 'mails' is pulled again" in lines(caplog, "INFO")


def test_the_last_queue_is_raised(connection, emulator):
    """Nothing is left to go on with."""
    with work(connection, "mails")[0], work(connection, "reports")[0]:
        delete(emulator, "mails")
        nothing_comes(connection, 0.3)
        delete(emulator, "reports")
        with pytest.raises(QueueNotFound):
            drain_until_it_fails(connection)


def test_a_queue_that_a_worker_has_come_to_consume_is_one_too(connection, emulator, caplog):
    with work(connection, "mails")[0], work(connection, "reports")[0]:
        worker = {"type": "worker", "script_name": "w"}
        delete(emulator, "mails")
        emulator.create_queue("mails", consumer=worker)
        until(lambda: lines(caplog, "ERROR") or nothing_comes(connection, 0.1))
        publish(connection, "report", queue="reports")
        drain(connection, 1)
        assert "is consumed by a Worker" in lines(caplog, "ERROR")[0]
        delete(emulator, "reports")
        with pytest.raises((QueueNotFound, PullNotEnabled)):
            drain_until_it_fails(connection)


def test_a_lost_queue_costs_few_requests(connection, emulator, monkeypatch):
    """Each look-up counts towards the allowance that publishing needs."""
    monkeypatch.setattr(pull_failures, "LOST_SECONDS", 60)
    with work(connection, "mails")[0], work(connection, "reports")[0]:
        nothing_comes(connection, 0.1)
        delete(emulator, "mails")
        emulator.requests.clear()
        until(lambda: emulator.requests.of("list") or nothing_comes(connection, 0.1))
        began = time.monotonic()
        while time.monotonic() < began + 1.5:
            nothing_comes(connection, 0.1)
        assert len(emulator.requests.of("list")) == 1
