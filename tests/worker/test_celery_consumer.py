"""What Kombu and Celery publish through the gateway, and what a Worker makes of it.

The publishing side is the real transport, pointed at the gateway by its URL alone.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import itertools
import json
import os
import threading
import uuid
import zlib

import pytest
import requests
from celery import Celery, chain
from celery.contrib.testing.worker import start_worker
from kombu import Connection, Producer

import kombu_cfqueues  # noqa: F401  registers cfqueues://
from kombu_cfqueues.errors import MessageTooLarge, PermissionDenied


@pytest.fixture
def publish(edge):
    """Publishes with Kombu: ``publish(body, queue="jobs", options={}, …)``."""

    def publish(body, queue="jobs", options=None, **properties):
        with Connection(edge.broker_url, transport_options=options or {}) as connection:
            Producer(connection).publish(body, routing_key=queue, **properties)

    return publish


@pytest.fixture
def app(edge):
    app = Celery("shop", broker=edge.broker_url, set_as_current=False)
    app.conf.task_default_queue = "jobs"
    with app:
        yield app


def compressed(body, compression):
    """A Kombu envelope around *body*, base64 of compressed JSON."""
    return {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"compression": compression},
        "properties": {"body_encoding": "base64"},
    }


RICH = {
    "text": "Grüße \U0001f600",
    "bytes": b"plain",
    "binary": b"\x00\xff",
    "datetime": dt.datetime(2026, 5, 4, 9, 30, 0, 123456, tzinfo=dt.timezone.utc),
    "date": dt.date(2026, 5, 4),
    "time": dt.time(9, 30),
    "decimal": decimal.Decimal("0.10"),
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "id": 2**63 - 1,
    "big": 1e300,
    "nested": [None, True, 1.5, {"a": []}],
}
RICH_DECODED = {
    **RICH,
    "bytes": {"bytes": base64.b64encode(b"plain").decode()},
    "binary": {"bytes": "AP8="},
    "datetime": "2026-05-04T09:30:00.123456+00:00",
    "date": "2026-05-04",
    "time": "09:30:00",
    "decimal": "0.10",
    "uuid": "12345678-1234-5678-1234-567812345678",
    "id": {"bigint": str(2**63 - 1)},
}


# ---------------------------------------------------------------------------------- Kombu


@pytest.mark.parametrize("content_type", ["text", "json"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_json_arrives_with_what_json_lacks(edge, publish, content_type, compression):
    publish(RICH, options={"content_type": content_type}, compression=compression)
    [record] = edge.wait_for("jobs")
    assert record["body"] == RICH_DECODED
    assert record["contentType"] == "application/json"


@pytest.mark.parametrize(
    ("body", "serializer", "expected"),
    [
        ("Grüße", None, "Grüße"),
        (b"\x00\xff", None, {"bytes": "AP8="}),
        ("raw", "raw", "raw"),
        ({"a": 1}, "yaml", "a: 1\n"),
        ({"a": 1}, "pickle", None),
    ],
)
def test_what_is_not_json_arrives_as_text_or_bytes(edge, publish, body, serializer, expected):
    publish(body, serializer=serializer)
    [record] = edge.wait_for("jobs")
    if expected is None:
        assert record["body"].keys() == {"bytes"}
    else:
        assert record["body"] == expected


@pytest.mark.parametrize(
    ("compression", "body"),
    [
        ("application/x-brotli", "iwSAeyJhIjoiw7wifQM="),
        ("application/zstd", "KLUv/SAKUQAAeyJhIjoiw7wifQ=="),
    ],
)
def test_brotli_and_zstd_are_decompressed(edge, compression, body):
    """Kombu has them only with packages that not everybody installs, hence the finished bodies."""
    edge.publish("jobs", json.dumps(compressed(body, compression)))
    [record] = edge.wait_for("jobs")
    assert record["body"] == {"a": "ü"}


@pytest.mark.parametrize("compression", ["bzip2", "lzma"])
def test_a_compression_that_workers_lack_goes_to_the_dead_letters(edge, publish, compression):
    publish({"a": 1}, compression=compression)
    [record] = edge.wait_for("buried")
    assert json.loads(record["body"])["headers"]["compression"].startswith("application/x-")
    assert "does not exist in Workers" in edge.log()


def test_headers_and_properties_arrive(edge, publish):
    publish({}, headers={"tenant": "a"}, correlation_id="c", reply_to="r", priority=3)
    [record] = edge.wait_for("jobs")
    assert record["headers"]["tenant"] == "a"
    properties = record["properties"]
    assert (properties["correlation_id"], properties["reply_to"]) == ("c", "r")
    assert properties["delivery_info"]["routing_key"] == "jobs"
    assert properties["message_id"]


@pytest.mark.parametrize(("content_type", "expected"), [("text", '{"a": 1}'), ("json", {"a": 1})])
def test_a_plain_body_arrives_without_an_envelope(edge, publish, content_type, expected):
    publish({"a": 1}, options={"body_format": "plain", "content_type": content_type})
    [record] = edge.wait_for("jobs")
    assert record["body"] == expected
    assert record["properties"] == {}


@pytest.mark.parametrize("body", ["", "{not json", "[1]", '{"body": 1}'])
def test_text_from_elsewhere_is_left_alone(edge, body):
    edge.publish("jobs", body)
    [record] = edge.wait_for("jobs")
    assert record["body"] == body


def test_a_body_of_128_kb_arrives_and_a_larger_one_is_refused(edge, publish):
    publish("x" * 127_000)
    [record] = edge.wait_for("jobs")
    assert record["body"] == "x" * 127_000
    with pytest.raises(MessageTooLarge):
        publish(os.urandom(128_000).hex())


@pytest.mark.parametrize("content_type", ["text", "json"])
def test_a_body_of_a_megabyte_arrives(edge, publish, content_type):
    """The publisher has compressed it, because it was too large."""
    body = [{"id": n, "name": f"Müller {n}", "state": "shipped"} for n in range(18_000)]
    assert len(json.dumps(body)) > 1_000_000
    publish(body, options={"content_type": content_type})
    [record] = edge.wait_for("jobs")
    assert record["body"] == body


def test_a_compressed_body_that_would_fill_the_memory_is_a_dead_letter(edge):
    """17 MB of zeros are a message of 17 KB."""
    bomb = base64.b64encode(zlib.compress(b'"%b"' % (b"0" * (17 << 20)))).decode()
    envelope = compressed(bomb, "application/x-gzip")
    edge.publish("jobs", json.dumps(envelope))
    [record] = edge.wait_for("buried")
    assert json.loads(record["body"]) == envelope


def test_an_expired_message_is_dropped(edge, publish):
    publish("too late", expiration=0.001)
    publish("in time", expiration=60)
    assert [record["body"] for record in edge.wait_for("jobs")] == ["in time"]


def test_a_queue_that_the_gateway_does_not_bind_is_named_in_the_error(publish):
    with pytest.raises(PermissionDenied, match=r"wrangler\.jsonc"):
        publish("x", queue="unbound")


# ---------------------------------------------------------------------------------- Celery


def test_a_task_arrives_with_its_arguments_and_headers(edge, app):
    result = app.send_task(
        "shop.pay",
        args=[17, RICH],
        kwargs={"currency": "EUR"},
        expires=dt.datetime(2100, 1, 1, tzinfo=dt.timezone.utc),
        time_limit=30,
        soft_time_limit=20,
        ignore_result=True,
        link=app.signature("shop.thank", args=[17]),
    )
    [record] = edge.wait_for("jobs")
    task = record["task"]
    assert (task["name"], task["id"], task["rootId"]) == ("shop.pay", result.id, result.id)
    assert task["args"] == [17, RICH_DECODED]
    assert task["kwargs"] == {"currency": "EUR"}
    assert task["expires"] == {"date": "2100-01-01T00:00:00.000Z"}
    assert (task["timeLimit"], task["softTimeLimit"]) == (30, 20)
    assert task["ignoreResult"] is True
    assert task["retries"] == 0
    assert [callback["task"] for callback in task["callbacks"]] == ["shop.thank"]
    assert task["eta"] is task["parentId"] is task["groupId"] is task["chord"] is None


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"queue": "emails-eu"}])
def test_a_task_arrives_compressed_and_on_other_queues(edge, app, options):
    app.send_task("shop.pay", args=["x" * 1000], **options)
    [record] = edge.wait_for(options.get("queue", "jobs"))
    assert record["task"]["args"] == ["x" * 1000]


def test_a_chain_arrives_with_its_rest(edge, app):
    chain(app.signature("shop.one", args=[1]), app.signature("shop.two"))()
    [record] = edge.wait_for("jobs")
    assert record["task"]["name"] == "shop.one"
    assert [step["task"] for step in record["task"]["chain"]] == ["shop.two"]


def test_a_pickled_task_is_a_dead_letter_that_says_why(edge, app):
    app.send_task("shop.pay", serializer="pickle")
    edge.wait_for("buried")
    assert "task_serializer" in edge.log()


def test_a_countdown_is_kept(edge, app):
    app.send_task("shop.pay", countdown=2)
    [record] = edge.wait_for("jobs")
    eta = dt.datetime.fromisoformat(record["task"]["eta"]["date"].replace("Z", "+00:00"))
    late = record["at"] / 1000 - eta.timestamp()
    assert -1 <= late < 3
    assert record["attempts"] == 1


def test_an_eta_that_the_queue_did_not_wait_for_is_waited_for(edge, app):
    """As when it is further off than the longest delay of a queue."""
    eta = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=3)
    task = edge.encode("shop.pay", options={"headers": {"eta": eta.isoformat()}})
    assert "delaySeconds" not in task["options"]
    edge.publish("jobs", task["body"])
    [record] = edge.wait_for("jobs")
    assert record["attempts"] == 2
    assert record["at"] / 1000 - eta.timestamp() > -1


def test_an_expired_task_is_dropped(edge, app):
    app.send_task("shop.late", expires=dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc))
    app.send_task("shop.pay")
    assert [record["task"]["name"] for record in edge.wait_for("jobs")] == ["shop.pay"]
    assert "dropped task shop.late" in edge.log()


def test_an_expired_task_of_a_worker_is_dropped(edge):
    """Celery says it in a property too; celery.js has the header only."""
    for name, expires in (("shop.late", -60), ("shop.pay", 60)):
        edge.publish("jobs", edge.encode(name, options={"expires": expires})["body"])
    assert [record["task"]["name"] for record in edge.wait_for("jobs")] == ["shop.pay"]


def test_a_task_that_fails_is_retried_with_a_delay(edge, app):
    app.send_task("test.flaky", kwargs={"failures": 2, "delay": 1})
    records = edge.wait_for("jobs", 3)
    assert [record["attempts"] for record in records] == [1, 2, 3]
    assert len({record["id"] for record in records}) == 1
    pauses = [after["at"] - before["at"] for before, after in itertools.pairwise(records)]
    assert all(pause >= 900 for pause in pauses)


def test_a_task_that_fails_too_often_is_moved_to_the_dead_letters(edge, app):
    app.send_task("test.flaky", kwargs={"failures": 99}, queue="flaky")
    [dead] = edge.wait_for("dead")
    assert json.loads(dead["body"])["headers"]["task"] == "test.flaky"
    assert len(edge.records("flaky")) == 3


@pytest.mark.parametrize("content_type", ["text", "json"])
@pytest.mark.parametrize("name", ["test.unknown", "test.rejected", "toString", "__proto__"])
def test_a_task_that_no_try_could_help_goes_to_the_dead_letters_at_once(
    edge, app, name, content_type
):
    app.conf.broker_transport_options = {"content_type": content_type}
    app.send_task(name, args=[1])
    [dead] = edge.wait_for("buried")
    body = dead["body"] if content_type == "json" else json.loads(dead["body"])
    assert body["headers"]["task"] == name
    assert json.loads(body["body"])[0] == [1]


def test_one_failure_does_not_repeat_the_others_of_its_batch(edge, app):
    with app.connection_for_write() as connection:
        for number in range(10):
            name = "test.flaky" if number == 5 else "shop.pay"
            app.send_task(name, args=[number], kwargs={"failures": 1}, connection=connection)
    records = edge.wait_for("jobs", 11)
    numbers = [record["task"]["args"][0] for record in records]
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]


def test_a_delay_that_the_runtime_does_not_take_repeats_nothing(edge):
    """It may come from elsewhere, as from a web hook's ``Retry-After``."""
    tasks = [
        edge.encode("test.flaky", kwargs={"failures": 1, "delay": 1e12}),
        edge.encode("shop.pay"),
    ]
    messages = [{"body": task["body"], "content_type": "text"} for task in tasks]
    assert edge.publish_batch("jobs", messages).ok
    assert [record["attempts"] for record in edge.wait_for("jobs", 2)] == [1, 1]


def test_the_example_calls_python_back(edge, app):
    result = app.send_task(
        "shop.tasks.render_receipt", args=[17], kwargs={"currency": "EUR"}, queue="edge"
    )
    [record] = edge.wait_for("python")
    task = record["task"]
    assert task["name"] == "shop.tasks.receipt_rendered"
    assert task["args"] == [17, "Order 17, to be paid in EUR"]
    assert (task["rootId"], task["parentId"]) == (result.id, result.id)


# ---------------------------------------------------------------------------------- encoding


def test_a_task_from_a_worker_runs_in_celery(edge, emulator):
    """Arguments that JSON lacks arrive as Python's own types."""
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.update(task_default_queue="python", worker_enable_remote_control=False)
    ran, done = [], threading.Event()

    @app.task(name="shop.add", bind=True)
    def add(self, *args, **kwargs):
        ran.append((args, kwargs, self.request.id, self.request.origin))
        done.set()

    sent = edge.encode("shop.add", 1, kwargs={"b": "ü"}, rich=True, options={"origin": "edge"})
    emulator.create_queue("python")
    queues = f"{emulator.base_url}/accounts/{emulator.account_id}/queues"
    requests.post(
        f"{queues}/{emulator.queue_id('python')}/messages",
        json={"body": sent["body"], "content_type": "text"},
        headers={"Authorization": f"Bearer {emulator.token}"},
    ).raise_for_status()
    with start_worker(app, pool="solo", perform_ping_check=False):
        assert done.wait(10)
    moment = dt.datetime(2026, 5, 4, 9, 30, 0, 250_000, tzinfo=dt.timezone.utc)
    assert ran == [((1, b"\x00\xff", moment, 2**63 - 1), {"b": "ü"}, sent["id"], "edge")]


def test_what_a_worker_encodes_it_decodes(edge):
    sent = edge.encode("shop.pay", 1, kwargs={"b": None}, rich=True, options={"timeLimit": 30})
    edge.publish("jobs", sent["body"])
    [record] = edge.wait_for("jobs")
    task = record["task"]
    assert (task["id"], task["name"], task["timeLimit"]) == (sent["id"], "shop.pay", 30)
    assert task["args"] == [
        1,
        {"bytes": "AP8="},
        "2026-05-04T09:30:00.250+00:00",
        {"bigint": str(2**63 - 1)},
    ]
    assert task["kwargs"] == {"b": None}


@pytest.mark.parametrize(
    ("options", "delay"),
    [
        ({}, None),
        ({"countdown": 1.5}, 2),
        ({"countdown": 200_000}, 86_400),
    ],
)
def test_a_countdown_becomes_the_delay_of_the_queue(edge, options, delay):
    sent = edge.encode("shop.pay", options=options)
    assert sent["options"].get("delaySeconds") == delay
    assert (json.loads(sent["body"])["headers"]["eta"] is None) == (delay is None)


def test_a_dead_letter_says_in_javascript_why_it_died(edge, publish):
    """What this library writes when it dead-letters a message; a forged header is left out."""
    death = {
        "queue": "jobs",
        "reason": "rejected",
        "count": 1,
        "exception": "ValueError",
        "text": "no such customer",
        "hostname": "celery@host",
        "attempts": 3,
        "time": "2026-05-04T09:30:00+00:00",
    }
    publish({"customer": 7}, headers={"x-death": [death, "forged"]})
    publish({"customer": 8})
    found = {record["body"]["customer"]: record["deaths"] for record in edge.wait_for("jobs", 2)}
    assert found == {7: [death], 8: []}
