"""Messages that Celery cannot decode are dead-lettered, as the rest that it cannot use."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
from kombu import Connection, Consumer, Queue

from .consuming import FAST, settled
from .test_hostile_messages import publish, task
from .workers import Worker, until

PICKLE = {"content-type": "application/x-python-serialize", "content-encoding": "binary"}
BASE64 = {"body_encoding": "base64"}
BOMB = base64.b64encode(zlib.compress(bytes(65 << 20), 9)).decode()

UNDECODABLE = {
    "text": "some text",
    "number": "42",
    "damaged JSON": json.dumps(task(body="[[1], {")),
    "not compressed": json.dumps(task({"compression": "zlib"}, BASE64, body="AAAA")),
    "unknown compression": json.dumps(task({"compression": "none such"}, body="x")),
    "bomb": json.dumps(task({"compression": "zlib"}, BASE64, body=BOMB)),
    "type that is not accepted": json.dumps(task(properties=BASE64, body="gARLAS4=", **PICKLE)),
    "no task and damaged": json.dumps({"headers": {}, "properties": {}, "body": "{"}),
    "unknown type": json.dumps(task(**{"content-type": "application/none-such"})),
}


def test_what_a_worker_cannot_decode_is_dead_lettered(emulator, tasks, tmp_path):
    """Celery acknowledges it in `on_decode_error`, which alone would delete it."""
    publish(emulator, *UNDECODABLE.values())
    options = {**FAST, "dead_letter_queue": "graves"}
    with Worker(emulator, tmp_path, pool="solo", concurrency=1, options=options) as worker:
        settled(emulator, "celery")
        tasks.note.delay("alive")
        until(lambda: worker.values("note") == ["alive"])
    dead = [without_death(message.body) for message in emulator.messages("graves")]
    assert [name for name, body in UNDECODABLE.items() if content(body) not in dead] == []
    assert len(dead) == len(UNDECODABLE)


def content(body):
    """The JSON value of a body, or its text."""
    try:
        return json.loads(body)
    except ValueError:
        return body


def without_death(body):
    """What was published: an envelope says why it died, and other messages have no headers."""
    value = content(body)
    if isinstance(value, dict):
        (death,) = value["headers"].pop("x-death")
        assert death["reason"] in ("undecodable", "rejected")
    return value


def test_without_a_dead_letter_queue_it_is_deleted_with_one_warning(emulator, tmp_path):
    publish(emulator, "some text", "42")
    with Worker(emulator, tmp_path, pool="solo", concurrency=1, options=FAST) as worker:
        settled(emulator, "celery")
        assert worker.log.count("has no dead-letter queue") == 1
        assert worker.log.count("Can't decode message body") == 2


@pytest.mark.parametrize("verdict", ["ack", "reject"])
def test_a_kombu_consumer_decides_in_its_own_on_decode_error(emulator, verdict):
    """An application may have stored the message elsewhere before it acknowledges."""
    options = {**FAST, "dead_letter_queue": "graves"}
    publish(emulator, "some text", queue="jobs")
    errors = []

    def on_decode_error(message, error):
        errors.append(error)
        getattr(message, verdict)()

    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        Consumer(connection, [Queue("jobs")], accept=["json"], on_decode_error=on_decode_error),
    ):
        connection.drain_events(timeout=20)
        settled(emulator, "jobs")

    assert len(errors) == 1
    assert ("graves" in emulator.queue_names()) == (verdict == "reject")
