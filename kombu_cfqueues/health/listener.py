"""Answers probes over HTTP: ``/healthz``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import json
import logging
import socket
import socketserver
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from ..options import HostPort
from ..runtime.inherited import abandon
from .exposition import CONTENT_TYPE, exposition
from .judge import Report, judge

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_SECONDS: Final = 5.0
"""How long a client may take to send its request, so that a silent client occupies a thread only
briefly."""


class ProbeListener:
    """Listens at an address; a thread of its own answers each probe.

    The thread that calls `answer` waits in ``accept``, which gevent and eventlet make cooperative.
    They may not do so with the selectors of ``serve_forever``.

    Args:
        address: Where to listen.

    Raises:
        OSError: The address is in use, or does not belong to this machine.
    """

    def __init__(self, address: HostPort) -> None:
        self._server = _Server(address)

    @property
    def address(self) -> HostPort:
        """Where it listens, with the port that the system has chosen if it was 0."""
        return HostPort(*self._server.socket.getsockname()[:2])

    def answer(self, seconds: float) -> None:
        """Answer one probe, or wait for *seconds*."""
        self._server.socket.settimeout(seconds)
        try:
            request, client = self._server.get_request()
        except TimeoutError:
            return
        except OSError as error:
            logger.debug("a health check could not be accepted: %s", error)
            return
        try:
            self._server.process_request(request, client)
        except RuntimeError as error:  # the system allows no more threads
            logger.debug("a health check from %s was not answered: %s", client, error)
            self._server.shutdown_request(request)

    def close(self) -> None:
        """Stop listening.  Only the thread that calls `answer` may do this."""
        self._server.server_close()

    def abandon(self) -> None:
        """Free the parent's address in a forked child, which would keep it in use otherwise."""
        abandon(self._server.socket, [self._server.socket.fileno()])


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False  # the threads end by themselves

    def __init__(self, address: HostPort) -> None:
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__((address.host, address.port), _Probe)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a health check from %s was not answered", client_address)


class _Probe(BaseHTTPRequestHandler):
    timeout = PROBE_TIMEOUT_SECONDS
    server_version = "kombu-cfqueues"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one probe."""
        report = judge.report()
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._state(report, good=report.is_healthy)
        elif path == "/readyz":
            self._state(report, good=report.is_ready)
        elif path == "/metrics":
            self._send(200, exposition(report).encode(), CONTENT_TYPE)
        else:
            body = b"There is /healthz, /readyz and /metrics.\n"
            self._send(404, body, "text/plain; charset=utf-8")

    def _state(self, report: Report, *, good: bool) -> None:
        state = {
            "healthy": report.is_healthy,
            "ready": report.is_ready,
            "faults": list(report.faults),
            "queues": [queue.name for one in report.vitals for queue in one.queues],
        }
        self._send(200 if good else 503, json.dumps(state).encode() + b"\n", "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        logger.debug(format, *args)
