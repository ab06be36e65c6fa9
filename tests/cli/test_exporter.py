"""``cfqueues exporter``: what Prometheus and KEDA get, and what it costs.

The dashboard, the alerts and the KEDA example of the docs are held against its real output.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from kombu import Connection
from prometheus_client.parser import text_string_to_metric_families
from support.http import free_port, get

from kombu_cfqueues.health.exposition import exposition
from kombu_cfqueues.health.judge import Report

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs/files"


class Exporter:
    """The command as a process of its own, and what it answers."""

    def __init__(self, emulator, *arguments, interval=1):
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-u"),
                *("-c", "from kombu_cfqueues.cli import main; main()"),
                *("exporter", "--port", str(self.port), "--interval", str(interval), *arguments),
            ],
            env=os.environ | {"CFQUEUES_BROKER_URL": emulator.broker_url, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.greeting = self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def get(self, path):
        return get(self.port, path)

    def metrics(self):
        """Name of a sample, and its labels -> value."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
        }

    def queue(self, name):
        status, body = self.get(f"/queues/{name}")
        return status, json.loads(body)


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)
    return found


@pytest.fixture
def queues(emulator):
    """Three messages in one queue, and none in another."""
    with Connection(emulator.broker_url) as connection:
        for number in range(3):
            connection.Producer().publish(number, routing_key="celery")
    emulator.create_queue("empty")
    return emulator


def test_it_exports_messages_bytes_and_age(queues):
    with Exporter(queues) as exporter:
        found = exporter.metrics()
        assert found["cfqueues_queue_backlog_messages", "celery"] == 3
        assert found["cfqueues_queue_backlog_bytes", "celery"] > 0
        assert 0 <= found["cfqueues_queue_oldest_message_age_seconds", "celery"] < 60
        assert found["cfqueues_queue_backlog_messages", "empty"] == 0
        assert found["cfqueues_queue_oldest_message_age_seconds", "empty"] == 0
        assert found["cfqueues_queue_up", "celery"] == found["cfqueues_queue_up", "empty"] == 1
        assert found["cfqueues_queue_paused", "celery"] == 0
        assert exporter.get("/healthz")[0] == 200
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.process.wait(10) == 0


def test_it_says_what_it_costs_and_counts_what_it_asks(queues):
    """One request for each queue and interval, however often Prometheus and KEDA ask."""
    with Exporter(queues, interval=3600) as exporter:
        # Two queues each hour, and the list of queues each ten minutes.
        assert "192 requests per day, 0.1% of the allowance" in exporter.greeting
        asked = len(queues.requests)
        for _ in range(5):
            exporter.metrics()
            exporter.queue("celery")
        assert len(queues.requests) == asked
        found = exporter.metrics()
        assert found["cfqueues_exporter_requests_per_day",] == 192
        assert found["cfqueues_exporter_requests_total",] == 3
        assert len(queues.requests.of("metrics")) == 2


def test_its_requests_take_permits_of_the_allowance(queues, tmp_path):
    """Which all processes of the machine share; with many queues, it takes a quarter at most."""
    asked = len(queues.requests)
    rate = ["--request-rate", "1", "--request-burst", "1", "--spool-dir", str(tmp_path)]
    with Exporter(queues, *rate) as exporter:
        assert "read every 8 s" in exporter.greeting  # two requests at a quarter of one per second
    times = [request.time for request in list(queues.requests)[asked:]]
    assert len(times) == 3
    assert times[-1] - times[0] > 1.5  # a second for each permit but the first


def test_keda_gets_json_by_the_names_of_kombu_and_of_cloudflare(queues):
    queues.create_queue("shop-mail")
    with Exporter(queues, "-o", "queue_name_prefix=shop-") as exporter:
        status, found = exporter.queue("mail")
        assert (status, found["queue"], found["messages"]) == (200, "shop-mail", 0)
        assert exporter.queue("celery")[1]["messages"] == 3
        assert exporter.queue("unknown")[0] == 404
        assert set(found) == {
            "queue",
            "messages",
            "bytes",
            "oldest_seconds",
            "paused",
            "read_seconds_ago",
        }


def test_only_the_queues_that_are_named(queues):
    with Exporter(queues, "empty") as exporter:
        assert exporter.queue("celery")[0] == 404
        assert exporter.queue("empty")[0] == 200
        assert "Exporting 1 queue at" in exporter.greeting


def test_nobody_scales_by_a_number_that_is_old(queues):
    """Cloudflare answers no more: KEDA gets an error, and Prometheus a gap and `up` 0."""
    with Exporter(queues, "-o", "publish_timeout=2") as exporter:
        until(lambda: exporter.queue("celery")[0] == 200)  # a busy machine may miss the timeout
        queues.faults.error("metrics", status=503, times=None)
        until(lambda: "503" in exporter.queue("celery")[1].get("error", ""))
        assert exporter.queue("celery")[0] == 503
        found = exporter.metrics()
        assert found["cfqueues_queue_up", "celery"] == 0
        assert ("cfqueues_queue_backlog_messages", "celery") not in found
        assert found["cfqueues_exporter_failures_total",] >= 1
        queues.faults.clear()
        until(lambda: exporter.queue("celery")[0] == 200)
        exporter.process.send_signal(signal.SIGTERM)
        _, errors = exporter.process.communicate(timeout=10)
    assert errors.count("Reading failed") == errors.count("Every queue is read again") >= 1


def test_a_queue_that_is_missing_is_named_and_found_when_it_comes(emulator):
    with Exporter(emulator, "late") as exporter:
        assert exporter.queue("late")[0] == 404
        emulator.create_queue("late")
        until(lambda: exporter.queue("late")[0] == 200)
        exporter.process.send_signal(signal.SIGTERM)
        _, errors = exporter.process.communicate(timeout=10)
    assert "queue 'late' does not exist" in errors


def test_a_port_in_use_is_said_in_a_line(queues, run):
    with Exporter(queues) as exporter:
        done = run(queues.broker_url, "exporter", "--port", exporter.port, code=1)
    assert "choose another --port" in done.err


# The files of the docs


def names_in(text):
    return set(re.findall(r"\bcfqueues_\w+", text))


def all_names(exporter):
    """Each name that Prometheus gets from the exporter and from a worker."""
    lines = (exporter.get("/metrics")[1] + exposition(Report([], True, []))).splitlines()
    return {line.split()[2] if line[0] == "#" else re.match(r"\w+", line)[0] for line in lines}


def test_each_metric_of_the_dashboard_and_the_alerts_exists(queues):
    """A panel of a metric that is not there stays empty, and an alert silent."""
    dashboard = json.loads((FILES / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [one["query"]["query"] for one in dashboard["templating"]["list"][1:]]
    rules = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]
    alerts = [rule["expr"] for rule in rules]
    with Exporter(queues) as exporter:
        there = all_names(exporter)
    assert len(dashboard["panels"]) == 10
    for expression in [*expressions, *alerts]:
        assert names_in(expression), expression
        assert names_in(expression) <= there, expression


def test_the_page_names_each_metric_and_no_other(queues):
    page = (ROOT / "docs/monitoring.md").read_text()
    named = names_in(page) - {"cfqueues_queue_", "cfqueues_NAME_total"}  # patterns
    with Exporter(queues) as exporter:
        of_queues = names_in(exporter.get("/metrics")[1])
        there = all_names(exporter)
    assert named <= there
    assert of_queues - {"cfqueues_exporter_requests", "cfqueues_exporter_failures"} <= named


def test_the_labels_of_the_dashboard_exist(queues):
    text = (FILES / "grafana.json").read_text()
    with Exporter(queues) as exporter:
        shown = exporter.get("/metrics")[1] + exposition(Report([], True, []))
    labels = set(re.findall(r"\{\{(\w+)\}\}", text)) | set(re.findall(r"by \((\w+)\)", text))
    assert labels == {"queue", "state", "instance"}  # Prometheus itself adds the last one
    assert all(f'{label}="' in shown for label in labels - {"instance"})


def test_the_example_for_keda_reads_what_the_exporter_answers(queues):
    (trigger,) = yaml.safe_load((FILES / "keda.yaml").read_text())["spec"]["triggers"]
    assert trigger["type"] == "metrics-api"
    url = urlsplit(trigger["metadata"]["url"])
    with Exporter(queues) as exporter:
        status, body = exporter.get(url.path)
    assert status == 200
    assert json.loads(body)[trigger["metadata"]["valueLocation"]] == 3
    assert url.port == 9811
