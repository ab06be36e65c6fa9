"""Messages that somebody wrote to do harm: none stops a worker, or keeps the rest from it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import pickle

import pytest
from kombu import Connection, Consumer, Queue

from .workers import Worker, until

WRONG = [
    None, True, -1, 10**400, 1e300, float("nan"), "", "x", "../x", [], [1], [[[]]], {}, {"a": 1},
    "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "\ud800",
]  # fmt: skip
HEADERS = [
    "compression", "delivery_info", "eta", "expires", "group", "group_index", "hostname", "id",
    "ignore_result", "kwargsrepr", "lang", "origin", "parent_id", "replaced_task_nesting",
    "retries", "root_id", "shadow", "stamped_headers", "stamps", "task", "timelimit",
]  # fmt: skip
PROPERTIES = [
    "body_encoding", "correlation_id", "delay_seconds", "delivery_info", "delivery_mode",
    "delivery_tag", "expiration", "message_id", "priority", "reply_to",
]  # fmt: skip
BODIES = [
    "", "[]", "{}", "null", "5", "[1]", "[1,2]", "[1,2,3]", "[[],{},[]]", "[[],[],{}]",
    '[[1],{},{"callbacks":5,"errbacks":5,"chain":5,"chord":5}]', "[" * 100_000,
    "[" * 2000 + "]" * 2000, "1" * 6000, "NaN", "1e999", '{"args":5}', '{"args":[],"kwargs":5}',
    '{"__type__":"datetime","__value__":"x"}', "\ud800", '"\\ud800"', None, 5, {}, [],
]  # fmt: skip
ENCODINGS = ["zlib", "bz2", "hex", "rot13", "utf-16", "undefined", "nope", 5]

ids = itertools.count()


class Harm:
    """What a pickle may do to its reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def task(headers=None, properties=None, **fields):
    """A task as Celery writes it, but for what is given."""
    headers = {
        "lang": "py",
        "task": "tasks.note",
        "id": f"hostile-{next(ids)}",
        "retries": 0,
        "timelimit": [None, None],
        **(headers or {}),
    }
    properties = {"body_encoding": "utf-8", "delivery_tag": "t", **(properties or {})}
    return {
        "body": '[["ran"], {}, {}]',
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": properties,
        **fields,
    }


def hostile(harm):
    yield from (task({name: value}) for name in HEADERS for value in WRONG)
    yield from (task(properties={name: value}) for name in PROPERTIES for value in WRONG)
    yield from (task(body=body) for body in BODIES)
    yield from (task(**{"content-encoding": encoding}) for encoding in ENCODINGS)
    yield from (task(**{"content-type": kind}) for kind in ["x", "application/data", 5, []])
    pickled = pickle.dumps(((Harm(str(harm)),), {}, {}))
    for properties, body in (
        ({"body_encoding": "base64"}, base64.b64encode(pickled).decode()),
        ({}, pickle.dumps(Harm(str(harm)), protocol=0).decode()),
    ):
        yield task(
            properties=properties,
            body=body,
            **{"content-type": "application/x-python-serialize", "content-encoding": "binary"},
        )


def publish(emulator, *bodies, queue="celery"):
    """Put them into the queue as they are."""
    options = {"body_format": "plain"}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        producer = connection.Producer(auto_declare=False)
        for body in bodies:
            producer.publish(
                body, routing_key=queue, content_type="text/plain", content_encoding="utf-8"
            )


@pytest.mark.long
def test_a_worker_outlives_all_that_a_queue_may_hold(emulator, tmp_path):
    """A worker that ends gets the message again when it comes back, and ends again."""
    harm = tmp_path / "harm"
    messages = [*hostile(harm), task(body='[["last"], {}, {}]')]
    publish(emulator, *map(json.dumps, messages))
    options = {"dead_letter_queue": "dead"}
    with Worker(emulator, tmp_path, pool="threads", options=options) as worker:

        def nearly_all_is_settled():
            assert not worker.ended, worker.log[-3000:]
            # What is due in the year 9999 stays, and what Celery has taken for a task and lost.
            return len(emulator.messages("celery")) < 10

        until(nearly_all_is_settled, 120)
        until(lambda: "last" in worker.values("note"))
        until(lambda: emulator.messages("dead"), what="dead letters")
        assert worker.stop() == 0
    assert "a bug in kombu_cfqueues" not in worker.log
    assert worker.log.count("Celery cannot process message") > 20
    assert not harm.exists()


@pytest.mark.parametrize("accept", [["json"], ["json", "pickle"]])
def test_a_pickle_is_read_only_where_the_application_accepts_it(emulator, tmp_path, accept):
    harm = tmp_path / "harm"
    body = base64.b64encode(pickle.dumps(Harm(str(harm)))).decode()
    kind = {"content-type": "application/x-python-serialize", "content-encoding": "binary"}
    publish(emulator, json.dumps(task(properties={"body_encoding": "base64"}, body=body, **kind)))
    refused, read = [], []

    def on_decode_error(message, error):
        refused.append(type(error).__name__)
        message.ack()

    with (
        Connection(emulator.broker_url) as connection,
        Consumer(
            connection,
            [Queue("celery")],
            accept=accept,
            callbacks=[lambda body, message: (read.append(body), message.ack())],
            on_decode_error=on_decode_error,
        ),
    ):
        connection.drain_events(timeout=20)

    assert harm.exists() == ("pickle" in accept)
    assert refused == ([] if "pickle" in accept else ["ContentDisallowed"])
    assert len(read) == len(accept) - 1


def test_an_envelope_that_names_another_queue_is_a_message_of_its_own_queue(emulator):
    emulator.create_queue("other")
    info = {"exchange": "", "routing_key": "other"}
    publish(emulator, json.dumps(task(properties={"delivery_info": info, "delivery_tag": "other"})))
    with Connection(emulator.broker_url) as connection:
        message = connection.default_channel.basic_get("celery")
        message.requeue()
        message = connection.default_channel.basic_get("celery")
        message.ack()

    assert not emulator.messages("celery")
    assert not emulator.messages("other")


def test_one_message_that_cannot_be_counted_does_not_hold_up_its_pull(emulator):
    """What came with it would be leased to nobody for half an hour."""
    bad = [task(properties={"expiration": 10**400}), task({"eta": 10**400})]
    publish(emulator, *(json.dumps(message) for message in [*bad, task(), task()]))
    got = []
    with Connection(emulator.broker_url) as connection, connection.SimpleQueue("celery") as queue:
        for _ in range(4):
            message = queue.get(timeout=20)
            got.append(message.headers["id"])
            message.ack()

    assert len(set(got)) == 4
