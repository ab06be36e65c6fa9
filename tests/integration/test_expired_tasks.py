"""Celery tasks that have expired: their worker revokes them, so that whoever waits is told."""

from __future__ import annotations

import time

import pytest
from celery import chord
from celery.exceptions import ChordError, TaskRevokedError
from kombu import Connection
from support.forms import long

from .consuming import FAST, Collector, consume, drain, publish, settled
from .workers import Worker, until

EXPIRES = {"lang": "py", "task": "t", "id": "i", "expires": "2020-01-01T00:00:00+00:00"}


@pytest.mark.parametrize("pool", ["prefork", long("solo")])
def test_an_expired_task_is_revoked(emulator, tasks, tmp_path, pool):
    """Without a worker that says so, its result would stay PENDING for ever."""
    result = tasks.note.apply_async(("stale",), expires=0.2)
    time.sleep(0.3)
    with Worker(emulator, tmp_path, pool=pool, concurrency=1, options=FAST) as worker:
        with pytest.raises(TaskRevokedError):
            result.get(timeout=60)
        until(lambda: worker.runs("task_revoked"))
        settled(emulator, "celery")
    assert result.state == "REVOKED"
    assert worker.values("task_revoked") == [[result.id, True]]
    assert not worker.runs("note")


def test_a_chord_with_an_expired_task_fails(emulator, tasks, tmp_path):
    """It would wait for that task for ever."""
    header = [tasks.note.s(1), tasks.note.s(2).set(expires=0.2)]
    total = chord(header)(tasks.add.s())
    time.sleep(0.3)
    with (
        Worker(emulator, tmp_path, pool="solo", concurrency=1, options=FAST),
        pytest.raises((ChordError, TaskRevokedError)),  # which one depends on who is first
    ):
        total.get(timeout=60)


def test_a_task_that_expired_in_the_spool_is_revoked(emulator, tasks, tmp_path):
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path / "spool"), "request_rate": 50.0}
    tasks.app.conf.broker_transport_options = options
    with emulator.outage():
        result = tasks.note.apply_async(("stale",), expires=0.2)
        time.sleep(0.3)
    with (
        Worker(emulator, tmp_path, pool="solo", concurrency=1, options=FAST) as worker,
        pytest.raises(TaskRevokedError),
    ):
        result.get(timeout=60)
    assert not worker.runs("note")


def test_a_task_that_expired_in_the_spool_is_dropped_if_its_consumer_cannot_know(
    emulator, tmp_path, caplog
):
    """A plain body says nothing of when the task expires."""
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path / "spool"), "request_rate": 50.0}
    options["body_format"] = "plain"
    emulator.create_queue("jobs")
    with Connection(emulator.broker_url, transport_options=options) as connection:
        with emulator.outage():
            publish(connection, "stale", expiration=0.1, headers=EXPIRES)
            time.sleep(0.2)
        publish(connection, "fresh")
        until(lambda: "fresh" in [message.body for message in emulator.messages("jobs")])
    assert len(emulator.messages("jobs")) == 1
    assert "expired before delivery" in caplog.text


def test_other_messages_that_have_expired_are_dropped_as_before(emulator):
    """No worker looks at the expiration of these."""
    unmarked = {name: value for name, value in EXPIRES.items() if name != "lang"}
    without_time = {**EXPIRES, "expires": "soon"}
    got = Collector()
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        for headers in ({}, unmarked, without_time):
            publish(connection, "stale", expiration=0.05, headers=headers)
        publish(connection, "expired task", expiration=0.05, headers=EXPIRES)
        time.sleep(0.1)
        with consume(connection, got, prefetch_count=5):
            drain(connection, 1)
            settled(emulator)
    assert got.bodies == ["expired task"]
