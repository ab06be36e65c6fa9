"""A message over Cloudflare's limit is compressed before it is refused, and read by everybody."""

from __future__ import annotations

import json
import os
import random

import pytest
from celery import Celery

import kombu_cfqueues
from kombu_cfqueues.errors import ConfigurationError, MessageTooLarge

from .workers import Worker, until

WORDS = random.Random(20).sample(
    [a + b for a in "bdfgklmnprst" for b in ("ad", "ein", "ier", "ost", "ung", "äge")], 24
)


def text(size):
    """Text that is a little less regular than nothing but a single letter."""
    rng = random.Random(size)
    words = " ".join(rng.choice(WORDS) for _ in range(200))
    return (words * (size // len(words) + 1))[:size]


RECORDS = [{"id": n, "name": f"Müller {n}", "state": "shipped"} for n in range(18_000)]


def received(connection, queue="jobs"):
    simple = connection.SimpleQueue(queue)
    message = simple.get(timeout=30)
    message.ack()
    simple.close()
    return message


@pytest.mark.parametrize("content_type", ["text", "json"])
def test_a_json_body_of_a_megabyte_comes_back(connect, content_type):
    connection = connect(content_type=content_type)
    assert len(json.dumps(RECORDS)) > 1_000_000
    connection.Producer().publish(RECORDS, routing_key="jobs", serializer="json")
    message = received(connection)
    assert message.payload == RECORDS
    assert message.headers["compression"] == "application/x-gzip"


@pytest.mark.parametrize("body", [b"\x00\xff" * 300_000, text(600_000)], ids=["bytes", "text"])
def test_bytes_and_text_come_back(connect, body):
    connection = connect()
    connection.Producer().publish(body, routing_key="jobs")
    assert received(connection).payload == body


def test_a_task_with_600_kb_of_arguments_runs(emulator, tmp_path):
    with Worker(emulator, tmp_path, pool="solo") as worker:
        app = Celery("tests", broker=emulator.broker_url, set_as_current=False)
        value = text(600_000)
        app.send_task("tasks.note", [value])
        until(lambda: worker.runs("note"), 60, "the task runs")
        assert worker.values("note") == [value]
        app.close()


def test_in_a_batch_and_from_the_spool(connect, tmp_path):
    spooling = connect(publish_mode="spool", spool_dir=str(tmp_path))
    spooling.Producer().publish(RECORDS, routing_key="spooled", serializer="json")
    assert received(spooling, "spooled").payload == RECORDS
    connection = connect()
    with kombu_cfqueues.batch(connection):
        connection.Producer().publish(RECORDS, routing_key="batched", serializer="json")
    assert received(connection, "batched").payload == RECORDS


def test_random_bytes_are_refused_with_both_sizes(connect, emulator):
    with pytest.raises(MessageTooLarge, match=r"26\d,\d{3} bytes .*26\d,\d{3} bytes .*127,900"):
        connect().Producer().publish(os.urandom(200_000), routing_key="jobs")
    assert not emulator.requests.of("push", "batch")


def test_it_can_be_turned_off(connect):
    with pytest.raises(MessageTooLarge, match="compress_large"):
        connect(compress_large=False).Producer().publish(RECORDS, routing_key="jobs")
    with pytest.raises(ConfigurationError, match="compress_large must be true or false"):
        connect(compress_large="zstd").Producer().publish(1, routing_key="jobs")
