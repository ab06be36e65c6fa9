"""A message that its queue would delete before it is due is refused, whichever way it goes.

Cloudflare deletes a message when its queue's retention is over, also while it waits for its eta.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from kombu import Connection
from support.processes import eventually

import kombu_cfqueues
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import CFQueuesError, InvalidMessage

DAY = 86_400
LONGEST_RETENTION = 14 * DAY


@pytest.fixture
def emulator():
    with Emulator() as running:
        running.create_queue("jobs", message_retention_period=DAY)
        yield running


@pytest.fixture
def send(emulator, tmp_path):
    """Send a task to the queue that keeps messages for a day."""

    def send(options, **how):
        if options.get("queues"):
            options = {**options, "queues": {"jobs": emulator.queue_id("jobs")}}
        app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
        app.conf.update(
            broker_transport="kombu_cfqueues:Transport",
            broker_transport_options={
                "spool_dir": str(tmp_path / "spool"), "request_rate": 50.0, **options,
            },
        )  # fmt: skip
        with app:
            return app.send_task("add", queue="jobs", **how)

    return send


#: Ways in which a message goes, and whether the retention is known when it is published.
WAYS = {
    "looked up": ({}, True),
    "the id is given": ({"queues": True}, False),
    "the eta is not turned into a delay": ({"native_delay": False}, True),
    "both": ({"queues": True, "native_delay": False}, False),
    "spooled": ({"publish_mode": "spool"}, False),
    "spooled, the id is given": ({"publish_mode": "spool", "queues": True}, False),
    "spooled, without a delay": ({"publish_mode": "spool", "native_delay": False}, False),
}


@pytest.mark.parametrize(("options", "_"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("days", [15, 400])
def test_an_eta_past_the_longest_retention_is_refused_at_once(send, emulator, options, _, days):
    """Cloudflare keeps nothing for more than 14 days, so nothing need be known of the queue."""
    with pytest.raises(InvalidMessage, match="retention"):
        send(options, countdown=days * DAY)
    assert not emulator.messages("jobs")


@pytest.mark.parametrize(
    "options", [options for options, known in WAYS.values() if known], ids=["delay", "header"]
)
def test_an_eta_past_the_queues_retention_is_refused_where_it_is_known(send, emulator, options):
    """The eta is what counts, and not only the delay that is made of it: the worker waits too."""
    with pytest.raises(InvalidMessage, match="retention"):
        send(options, countdown=2 * DAY)
    assert not emulator.messages("jobs")


def test_the_same_in_a_batch(emulator):
    eta = (datetime.now(timezone.utc) + timedelta(days=2)).isoformat()
    headers = {"task": "add", "id": "1", "lang": "py", "eta": eta}
    options = {"native_delay": False}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        producer.publish("", routing_key="jobs")  # which looks the queue up
        with pytest.raises(Exception, match="retention"), kombu_cfqueues.batch(producer.connection):
            producer.publish([[], {}, {}], routing_key="jobs", headers=headers)
    assert len(emulator.messages("jobs")) == 1


@pytest.mark.parametrize("native", [True, False])
def test_the_relay_judges_when_it_knows_the_queue(emulator, tmp_path, native):
    """What was spooled for a queue of which nothing was known is refused, and kept to be seen."""
    eta = (datetime.now(timezone.utc) + timedelta(days=2)).isoformat()
    headers = {"task": "add", "id": "1", "lang": "py", "eta": eta}
    options = {
        "publish_mode": "spool", "spool_dir": str(tmp_path / "spool"), "request_rate": 50.0,
        "native_delay": native,
    }  # fmt: skip
    with Connection(emulator.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        promise = producer.publish([[], {}, {}], routing_key="jobs", headers=headers)
        good = producer.publish([[], {}, {}], routing_key="jobs")
        assert eventually(lambda: good.ready, 10)
        assert eventually(lambda: promise.failed or promise.ready, 3)

    assert promise.failed
    assert isinstance(promise.reason, InvalidMessage)
    assert "retention" in str(promise.reason)
    assert len(emulator.messages("jobs")) == 1


def test_a_waiting_time_in_the_spool_does_not_count_twice(send, emulator):
    """An eta within the retention passes: so it is today."""
    send({"native_delay": False}, countdown=DAY // 2)
    send({}, countdown=DAY // 2)
    assert len(emulator.messages("jobs")) == 2


# -- a delay by the name that the SQS transport takes


def posted(emulator):
    return [json.loads(r.body) for r in emulator.requests if r.route == "push"]


@pytest.mark.parametrize("seconds", [60, "60", 60.0])
@pytest.mark.parametrize("name", ["DelaySeconds", "delay_seconds"])
def test_delay_seconds_in_either_spelling_is_a_delay(emulator, name, seconds):
    """``apply_async(DelaySeconds=60)`` came along from SQS; ignored, the task runs at once."""
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    with app:
        app.send_task("add", queue="jobs", **{name: seconds})

    assert 55 <= posted(emulator)[0].get("delay_seconds", 0) <= 60


@pytest.mark.parametrize("seconds", [-1, "soon", 86_401, "86401", float("nan"), True])
def test_delay_seconds_that_is_none_is_refused(emulator, seconds):
    with (
        Connection(emulator.broker_url) as connection,
        pytest.raises(InvalidMessage, match="DelaySeconds"),
    ):
        connection.Producer().publish({}, routing_key="jobs", DelaySeconds=seconds)
    assert not emulator.messages("jobs")


@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_delay_seconds_past_the_retention_is_refused(emulator, tmp_path, mode):
    emulator.create_queue("brief", message_retention_period=60)
    options = {"publish_mode": mode, "spool_dir": str(tmp_path / "spool")}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        connection.default_channel.queue_declare("brief", passive=True)  # which looks it up
        with pytest.raises(CFQueuesError, match="retention"):
            producer.publish({}, routing_key="brief", DelaySeconds=600)
