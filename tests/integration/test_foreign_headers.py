"""An application's own headers come out as they went in, whatever they are called.

Celery's tasks have headers named ``eta``, ``task`` and ``id``; so have messages of applications
that know nothing of Celery.  Only what is a task as Celery writes it is treated as one.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from kombu import Connection

import kombu_cfqueues


def later(days=0, **given):
    return (datetime.now(timezone.utc) + timedelta(days=days, **given)).isoformat()


#: Headers of messages that are no tasks.
FOREIGN = {
    "a ship's eta": {"eta": later(days=3), "ship": "Ever Given"},
    "an eta in the far future": {"eta": "2099-01-01T00:00:00+00:00"},
    "an eta, and another language's task": {"eta": later(hours=2), "task": "x", "lang": "php"},
    "a task that is a number": {"task": 7},
    "a task that is an object": {"task": {"name": "clean"}, "priority": 1},
    "a task and a numeric id": {"task": "clean", "id": 12},
    "a task without an id": {"task": "clean the house"},
    "a task, an id and an eta, not Celery's": {"task": "a", "id": "b", "eta": later(days=2)},
    "an id alone": {"id": 7},
    "retries and expires": {"retries": "many", "expires": "never"},
}


def posted(emulator):
    """The JSON of each message as it left."""
    return [json.loads(r.body) for r in emulator.requests if r.route == "push"]


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_headers_of_an_application_are_its_own(emulator, tmp_path, headers, mode):
    """Delivered at once, and as they were."""
    options = {
        "publish_mode": mode, "spool_dir": str(tmp_path / "spool"), "polling_interval": 0.05,
        "request_rate": 100.0, "max_polling_interval": 0.1,
    }  # fmt: skip
    emulator.create_queue("jobs")
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.Producer().publish({"a": 1}, routing_key="jobs", headers=headers)
        queue = connection.SimpleQueue("jobs")
        message = queue.get(timeout=3)
        message.ack()
        queue.close()

    assert dict(message.headers) == headers
    assert "delay_seconds" not in posted(emulator)[0]


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_headers_of_an_application_are_its_own_in_a_batch(emulator, headers):
    emulator.create_queue("jobs")
    with Connection(emulator.broker_url) as connection:
        producer = connection.Producer()
        with kombu_cfqueues.batch(producer.connection):
            producer.publish({"a": 1}, routing_key="jobs", headers=headers)
            producer.publish({"a": 2}, routing_key="jobs", headers=headers)
    (batch,) = [json.loads(r.body) for r in emulator.requests if r.route == "batch"]

    assert not [one for one in batch["messages"] if "delay_seconds" in one]


def test_a_message_of_another_writer_keeps_its_headers(emulator):
    """A Worker writes Kombu's envelope with headers of its own."""
    emulator.create_queue("jobs")
    headers = {"task": 7, "id": 8, "eta": later(days=1)}
    envelope = {"body": "[]", "headers": headers, "properties": {}, "content-type": "text/plain"}
    options = {"polling_interval": 0.05, "max_polling_interval": 0.1, "body_format": "plain"}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.Producer().publish(
            json.dumps(envelope), routing_key="jobs", content_type="text/plain"
        )
        queue = connection.SimpleQueue("jobs")
        message = queue.get(timeout=3)
        message.ack()
        queue.close()

    assert message.headers == headers


# -- what is Celery's stays Celery's: so it is today


@pytest.mark.parametrize("protocol", [1, 2])
def test_an_eta_of_celery_is_a_delay(emulator, protocol):
    """Version 1 of Celery's messages has all of it in the body, and is not delayed by the queue."""
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.update(broker_transport="kombu_cfqueues:Transport", task_protocol=protocol)
    with app:
        app.send_task("add", (1,), countdown=300, queue="jobs")
    (message,) = posted(emulator)

    if protocol == 2:
        assert 290 < message["delay_seconds"] <= 300
    else:
        assert "delay_seconds" not in message


def test_a_task_keeps_its_id(emulator):
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.update(
        broker_transport="kombu_cfqueues:Transport",
        broker_transport_options={"polling_interval": 0.05},
    )
    with app, app.connection_for_read() as connection:
        result = app.send_task("add", (1,), queue="jobs")
        queue = connection.SimpleQueue("jobs")
        message = queue.get(timeout=3)
        message.ack()
        queue.close()
    assert message.headers["id"] == result.id
    assert message.headers["task"] == "add"
