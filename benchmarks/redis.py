"""A Redis server of our own, where one is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator


def why_not() -> str:
    """Why Redis cannot be measured here; empty if it can."""
    if shutil.which("redis-server") is None:
        return "no redis-server on PATH"
    if importlib.util.find_spec("redis") is None:
        return "the Python package redis is not installed"
    return ""


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running(port: int | None = None) -> Iterator[int]:
    """A server on loopback that keeps nothing on disk, until the block ends; yields its port."""
    port = port or free_port()
    with process(port):
        yield port


@contextlib.contextmanager
def process(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The same server as a process, which may be stopped and killed."""
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            _await(port)
            yield server
        finally:
            server.kill()


def _await(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("redis-server did not start")
