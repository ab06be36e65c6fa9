"""Asks a server of this machine, as a probe does."""

from __future__ import annotations

import http.client
import socket


def get(port: int, path: str, *, timeout: float = 10) -> tuple[int, str]:
    """Status and body of an answer; status 0 if nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
