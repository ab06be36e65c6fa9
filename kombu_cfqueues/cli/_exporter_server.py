"""Serves backlogs: ``/metrics`` for Prometheus, ``/queues/NAME`` for KEDA, ``/healthz``."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..metrics import stats
from ..options import HostPort
from ._backlogs import Backlogs, as_json

CLIENT_SECONDS: Final = 5.0
"""How long a client may take to send its request."""


class QueueCollector:
    """The backlogs as the Prometheus client library collects them.

    Args:
        backlogs: What was read.
    """

    def __init__(self, backlogs: Backlogs) -> None:
        self._backlogs = backlogs

    def collect(self) -> Iterator[Metric]:
        """Yield each metric.  Makes no request."""
        backlogs = self._backlogs
        messages = _gauge("backlog_messages", "Messages in the queue, approximately.")
        size = _gauge("backlog_bytes", "Size of the messages in the queue, approximately.")
        oldest = _gauge("oldest_message_age_seconds", "Age of the oldest message; 0 without one.")
        paused = _gauge("paused", "Whether the delivery of the queue is paused.")
        up = _gauge("up", "Whether the last reading of the queue succeeded.")
        read = _gauge("read_timestamp_seconds", "When the queue was last read, since the epoch.")
        for state in backlogs.states():
            label = [state.queue.name]
            up.add_metric(label, state.error is None and state.backlog is not None)
            if state.queue.paused is not None:
                paused.add_metric(label, state.queue.paused)
            if state.backlog is None:
                continue
            read.add_metric(label, state.read_time)
            if not backlogs.is_fresh(state):
                continue
            values = (state.backlog.messages, state.backlog.bytes, state.oldest_seconds())
            for metric, value in zip((messages, size, oldest), values, strict=True):
                if value is not None:
                    metric.add_metric(label, value)
        yield from (messages, size, oldest, paused, up, read)
        yield _counter("requests", "Requests that this exporter made.", stats()["admin_requests"])
        yield _counter("failures", "Readings that failed.", backlogs.failures)
        per_day = GaugeMetricFamily(
            "cfqueues_exporter_requests_per_day", "Requests that this exporter makes in a day."
        )
        per_day.add_metric([], backlogs.requests_per_day())
        yield per_day


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cfqueues_queue_{name}", text, labels=["queue"])


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"cfqueues_exporter_{name}", text, value=value)


class ExporterServer(ThreadingHTTPServer):
    """Answers in threads of its own; every answer comes from what was read before.

    Args:
        address: Where to listen.
        backlogs: What was read.

    Raises:
        OSError: The address is in use, or not of this machine.
    """

    daemon_threads = True

    def __init__(self, address: HostPort, backlogs: Backlogs) -> None:
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        self.backlogs = backlogs
        self.registry = CollectorRegistry()
        self.registry.register(QueueCollector(backlogs))
        super().__init__((address.host, address.port), _Request)

    @property
    def listens_at(self) -> HostPort:
        """Where it listens, with the port that the system has chosen if it was 0."""
        return HostPort(*self.socket.getsockname()[:2])

    def server_bind(self) -> None:
        """Bind, without the look-up of this machine's name that the base class makes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def start(self) -> None:
        """Answer from now on."""
        threading.Thread(target=self.serve_forever, name="cfqueues-exporter", daemon=True).start()


class _Request(BaseHTTPRequestHandler):
    timeout = CLIENT_SECONDS
    server: ExporterServer
    server_version = "kombu-cfqueues"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one request."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._send(200, generate_latest(self.server.registry), CONTENT_TYPE_LATEST)
        elif path == "/healthz":
            self._json(200, {"queues": len(self.server.backlogs.states())})
        elif path.startswith("/queues/"):
            self._queue(unquote(path.removeprefix("/queues/")))
        else:
            self._json(404, {"error": "no such path: use /metrics, /queues/NAME or /healthz"})

    def _queue(self, name: str) -> None:
        state = self.server.backlogs.state(name)
        if state is None:
            self._json(404, {"error": f"queue {name!r} does not exist, or is not exported"})
        elif not self.server.backlogs.is_fresh(state) or state.backlog is None:
            cause = " ".join(str(state.error or "it has not been read yet").split())
            self._json(503, {"error": f"the backlog of queue {name!r} is not known: {cause}"})
        else:
            self._json(200, as_json(state))

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode() + b"\n", "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Print nothing: a line for each scrape would hide the others."""
