"""What an operator sees: counts, OpenTelemetry's metrics, log lines, and one trace through all."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import time

import pytest
from kombu import Connection

import kombu_cfqueues
from kombu_cfqueues.envelope import Address
from kombu_cfqueues.errors import (
    BatchPublishError,
    InvalidMessage,
    MessageTooLarge,
    PublishTimeout,
)
from kombu_cfqueues.metrics import metrics
from kombu_cfqueues.spool import Spool

from .workers import ROOT, Worker, until


@pytest.fixture(autouse=True)
def counted_from_0():
    metrics.renew_after_fork()


def run(code: str, emulator, **environ: str):
    """What a fresh process prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "URL": emulator.broker_url} | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def consume(connection, queue, number):
    found = []

    def settle(body, message):
        found.append(body)
        if body == "again" and found.count(body) == 1:
            message.requeue()
        else:
            message.ack()

    with connection.Consumer(connection.SimpleQueue(queue).queue, callbacks=[settle]):
        while len(found) < number:
            connection.drain_events(timeout=30)
    return found


def test_stats_tells_what_was_published_pulled_and_settled(emulator):
    # In a process of its own: threads of earlier tests may still try to reach their emulator.
    everything = run(
        "import json, os\nimport kombu_cfqueues\nfrom kombu import Connection\n"
        + inspect.getsource(consume)
        + textwrap.dedent(
            """
            with Connection(os.environ["URL"]) as connection:
                producer = connection.Producer()
                for body in ("one", "two", "again"):
                    producer.publish(body, routing_key="jobs")
                consume(connection, "jobs", 4)
            print(json.dumps(kombu_cfqueues.stats() | {"of": os.getpid()}))
            """
        ),
        emulator,
    )

    found = everything["queues"]["jobs"]
    assert (found["published"], found["publish_requests"], found["publish_failed"]) == (3, 3, 0)
    assert (found["pulled"], found["acked"], found["given_back"]) == (4, 3, 1)
    assert 0 < found["publish_seconds"] < 60
    assert everything["admin_requests"] == len(emulator.requests) - len(
        emulator.requests.of("push", "batch", "pull", "ack")
    )
    assert everything["pid"] == everything["of"]


def test_stats_names_a_queue_that_another_process_has_looked_up(emulator, tmp_path):
    """The spool's file tells its id, so the process that posts never asks for the queue."""
    queue_id = emulator.create_queue("jobs")
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path)}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        read = connection.transport.session.options
        spool = Spool.open(read.base_url, read.account_id, None, str, spool_dir=str(tmp_path))
        spool.messages.learn(Address("jobs", False, queue_id))
        connection.Producer().publish("x", routing_key="jobs")
        until(lambda: kombu_cfqueues.stats()["published"])

    assert kombu_cfqueues.stats()["queues"].keys() == {"jobs"}


def test_stats_tells_how_full_the_requests_were(emulator):
    with Connection(emulator.broker_url) as connection:
        producer = connection.Producer()
        if not hasattr(producer, "batch"):
            pytest.skip("Kombu 5.7")
        with kombu_cfqueues.batch(producer.connection):
            for number in range(250):
                producer.publish(number, routing_key="jobs")

    found = kombu_cfqueues.stats()
    assert (found["published"], found["publish_requests"]) == (250, 3)


@pytest.mark.parametrize(("scope", "burst"), [("process", 1), ("host", 1), ("host", 60)])
def test_stats_tells_of_failures_retries_and_waits_for_the_allowance(
    emulator, scope, burst, tmp_path
):
    emulator.faults.error("batch", status=503, times=1)
    emulator.faults.error("push", status=503, times=1)
    options = {
        "request_rate": 20,
        "request_burst": burst,
        "budget_scope": scope,
        "spool_dir": str(tmp_path),
    }
    # In a process of its own: threads of earlier tests may still try to reach their emulator.
    found = run(
        """
        import json, os
        import kombu_cfqueues
        from kombu import Connection
        options = json.loads(os.environ["OPTIONS"])
        with Connection(os.environ["URL"], transport_options=options) as connection:
            producer = connection.Producer()
            for number in range(3):
                producer.publish(number, routing_key="jobs")
        print(json.dumps(kombu_cfqueues.stats()))
        """,
        emulator,
        OPTIONS=json.dumps(options),
    )
    assert found["published"] == 3
    assert found["publish_failed"] == found["failed_requests"] == found["retries"] > 0
    assert found["permits"] == found["publish_requests"] + found["admin_requests"]
    if burst == 1:  # so many requests, so far apart: all but the first had to wait
        assert found["permit_wait_seconds"] > 0
    assert found["limited_requests"] == 0


def test_stats_counts_each_message_whose_publisher_got_an_error(emulator):
    emulator.create_queue("jobs")
    options = {"retry_uncertain": False, "publish_timeout": 30}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        with pytest.raises(MessageTooLarge):
            producer.publish(os.urandom(200_000), routing_key="jobs")
        with pytest.raises(InvalidMessage):
            producer.publish(1, exchange="nobody", routing_key="jobs")
        emulator.faults.lost_response("push")
        with pytest.raises(PublishTimeout):
            producer.publish(1, routing_key="jobs", retry=True)
        emulator.faults.refuse_messages(lambda body: json.loads(body)["body"] in ("3", "5"))
        with pytest.raises(BatchPublishError), kombu_cfqueues.batch(connection):  # noqa: PT012
            for number in range(10):
                producer.publish(number, routing_key="jobs", serializer="json")

    found = kombu_cfqueues.stats()
    assert (found["refused"], found["uncertain"]) == (4, 1)


def test_stats_tells_of_429s(emulator):
    emulator.faults.error("push", status=429, code=10250, times=1)
    with Connection(emulator.broker_url) as connection:
        connection.Producer().publish("x", routing_key="jobs")

    found = kombu_cfqueues.stats()["queues"]["jobs"]
    assert (found["limited_requests"], found["published"]) == (1, 1)


def test_stats_tells_of_leases_that_ended_too_soon(emulator):
    """The visibility timeout is too short for the tasks: they run twice."""
    with Connection(emulator.broker_url, transport_options={"visibility_timeout": 1}) as connection:
        connection.Producer().publish("slow", routing_key="jobs")
        messages = []
        with connection.Consumer(connection.SimpleQueue("jobs").queue, on_message=messages.append):
            while not messages:
                connection.drain_events(timeout=30)
            message = messages[0]
            lease = message.channel.qos._deliveries[message.delivery_tag]
            until(lambda: time.monotonic() > lease.leased_until)
            message.ack()
            until(lambda: kombu_cfqueues.stats()["queues"]["jobs"]["leases_expired"])


#: Publishes and consumes with OpenTelemetry's own SDK, and prints what its reader reads.
WITH_SDK = """
    import json, os, sys
    from kombu import Connection
    import kombu_cfqueues

    if os.environ.get("LATE") != "import":
        from opentelemetry import metrics
    with Connection(os.environ["URL"], transport_options={"request_rate": 100}) as connection:
        producer = connection.Producer()
        if os.environ.get("LATE"):
            producer.publish("a", routing_key="warm")
        if os.environ.get("LATE") == "import":
            assert "opentelemetry" not in sys.modules
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        producer.publish("a", routing_key="jobs")
        producer.publish("a", routing_key="jobs")
        try:
            producer.publish("a", routing_key="jobs", delay_seconds=-1)
        except kombu_cfqueues.errors.InvalidMessage:
            found = []
        with connection.Consumer(connection.SimpleQueue("jobs").queue, on_message=found.append):
            while len(found) < 2:
                connection.drain_events(timeout=30)
            for message in found:
                message.ack()
    print(json.dumps({
        metric.name: {
            "unit": metric.unit,
            "points": [
                {"attributes": dict(point.attributes)}
                | {"value": getattr(point, "value", None), "count": getattr(point, "count", None),
                   "sum": getattr(point, "sum", None)}
                for point in metric.data.data_points
            ],
        }
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics if scope.scope.name == "kombu_cfqueues"
        for metric in scope.metrics
    }))
"""


def points(found: dict, name: str, **attributes) -> list:
    wanted = {key.replace("_", "."): value for key, value in attributes.items()}
    return [
        point for point in found[name]["points"] if wanted.items() <= point["attributes"].items()
    ]


@pytest.mark.parametrize("late", ["", "provider", "import"])
def test_opentelemetry_gets_the_same_by_the_names_of_its_conventions(emulator, late):
    """Also where the application sets its provider, or imports it at all, after the first message.

    Who does not use it does not wait for its import.
    """
    if not late:
        emulator.faults.error("push", status=503)
    found = run(WITH_SDK, emulator, LATE=late)

    sent = points(found, "messaging.client.sent.messages", messaging_destination_name="jobs")
    assert sum(p["value"] for p in sent if "error.type" not in p["attributes"]) == 2
    failed = [p["attributes"] for p in sent if "error.type" in p["attributes"]]
    if not late:
        assert failed == [
            {
                "messaging.system": "cloudflare_queues",
                "messaging.operation.name": "publish",
                "messaging.operation.type": "send",
                "messaging.destination.name": "jobs",
                "error.type": "ServerError",
                "http.response.status_code": 503,
            }
        ]
        assert points(found, "kombu_cfqueues.retries")[0]["value"] == 1
    assert points(found, "kombu_cfqueues.refused")[0]["value"] == 1
    (pulled,) = points(found, "messaging.client.consumed.messages")
    assert pulled["value"] == 2
    (acked,) = points(found, "kombu_cfqueues.settled.messages")
    assert acked["value"] == 2
    assert acked["attributes"]["kombu_cfqueues.outcome"] == "ack"
    assert {
        p["attributes"]["messaging.operation.type"]
        for p in points(
            found, "messaging.client.operation.duration", messaging_destination_name="jobs"
        )
    } == {"send", "receive", "settle"}
    assert found["messaging.client.operation.duration"]["unit"] == "s"
    assert sum(p["sum"] for p in points(found, "kombu_cfqueues.publish.batch.size")) == 2
    assert points(found, "kombu_cfqueues.permit.wait.duration")[0]["count"] >= 2


def test_no_attribute_holds_a_token_or_anything_of_a_message(emulator):
    code = WITH_SDK.replace('publish("a"', 'publish("a-body-that-is-private"')
    text = json.dumps(run(code, emulator))

    assert emulator.token not in text
    assert emulator.account_id not in text
    assert "private" not in text


# Traces

PUBLISH_IN_A_TRACE = """
    import json, os
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    import sys; sys.path.insert(0, os.environ["TASKS"])
    from tasks import app

    trace.set_tracer_provider(TracerProvider())
    CeleryInstrumentor().instrument()
    with trace.get_tracer("test").start_as_current_span("request") as span:
        with app.connection_for_write() as connection, connection.Producer() as producer:
            app.send_task("traced.seen", ["direct"], producer=producer)
            app.send_task("traced.seen", ["later"], countdown=1, producer=producer)
    print(json.dumps(format(span.get_span_context().trace_id, "032x")))
"""


def test_one_trace_goes_from_who_publishes_through_the_queue_into_the_task(emulator, tmp_path):
    """With OpenTelemetry's own instrumentation of Celery on both sides, nothing else to set."""
    tasks = ROOT / "tests/integration/worker"
    trace_id = run(PUBLISH_IN_A_TRACE, emulator, TASKS=str(tasks), BROKER_URL=emulator.broker_url)

    with Worker(emulator, tmp_path, app="traced") as worker:
        until(lambda: len(worker.runs()) == 2, 60)
        told = worker.values("seen")

    assert {one["value"] for one in told} == {"direct", "later"}
    assert {one["trace"] for one in told} == {trace_id}
    assert all(one["has_parent"] for one in told)


STATE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "baggage": "user=ada%20lovelace,plan=pro",
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"content_type": "json"},
        {"publish_mode": "spool"},
        {"budget_scope": "host", "request_rate": 50},
    ],
    ids=str,
)
def test_trace_headers_come_out_as_they_went_in(emulator, options, tmp_path):
    """traceparent, tracestate and baggage survive each way of publishing, and a requeue."""
    options = {"spool_dir": str(tmp_path), **options}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.Producer().publish("x", routing_key="jobs", headers=STATE)
        found = []

        def settle(message):
            found.append({key: message.headers[key] for key in STATE})
            message.ack() if len(found) > 1 else message.requeue()

        with connection.Consumer(connection.SimpleQueue("jobs").queue, on_message=settle):
            while len(found) < 2:
                connection.drain_events(timeout=30)

    assert found == [STATE, STATE]


# Log lines


def test_a_failure_in_the_log_names_queue_status_code_and_ray(emulator, caplog):
    """Enough for an alert, and for a question to Cloudflare's support."""
    emulator.faults.error("ack", status=503, code=10201, times=1)
    with Connection(emulator.broker_url) as connection, caplog.at_level(logging.INFO):
        connection.Producer().publish("x", routing_key="jobs")
        consume(connection, "jobs", 1)
        until(lambda: "settled again" in caplog.text)

    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert re.search(
        r"queue 'jobs' .*settling 1 messages of queue 'jobs' failed "
        r"\(HTTP 503, code 10201, ray [0-9a-f]{16}-EMU\)",
        warning,
    )


def test_each_request_is_a_line_at_debug_and_no_message_is_one_at_info(emulator, caplog):
    with Connection(emulator.broker_url) as connection, caplog.at_level(logging.DEBUG):
        connection.Producer().publish("a-private-body", routing_key="jobs")
        consume(connection, "jobs", 1)

    ours = [r for r in caplog.records if r.name.startswith("kombu_cfqueues")]
    lines = [r.getMessage() for r in ours]
    assert any(re.match(r"publishing to queue 'jobs': HTTP 200, ray \S+-EMU", x) for x in lines)
    assert not any("private" in line or emulator.token in line for line in lines)
    told = {r.getMessage() for r in ours if r.levelno >= logging.INFO}
    assert told <= {
        "created queue 'jobs' at Cloudflare",
        "enabled HTTP pull for queue 'jobs' at Cloudflare",
    }
