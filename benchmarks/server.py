"""An HTTP server that takes messages as Cloudflare's API does, and counts them.

It is a process of its own and does no more than it must, so that what is measured is the client.
It answers each request after a chosen latency, refuses with 429 past a chosen limit, and knows
every message that came by the number in it::

    python -m benchmarks.server --latency 0.03
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from .message import NUMBER

ACCOUNT_ID = "0123456789abcdef0123456789abcdef"
TOKEN = "benchmark-token"
QUEUE_ID = "f" * 32

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SUCCESS = b'{"success":true,"errors":[],"messages":[],"result":[]}'
_TOO_MANY = b'{"success":false,"errors":[{"code":971,"message":"rate limited"}],"result":null}'


class Counts:
    """What came since the last reset, and when the limit lets a request through.

    Args:
        limit: POST requests that it takes in a window; None: any number.
        window_seconds: How long a window is, and a block after too many requests.
    """

    def __init__(self, limit: int | None, window_seconds: float) -> None:
        self._limit = limit
        self._window_seconds = window_seconds
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.requests = 0
        self.refused = 0
        self.messages = 0
        self.numbers: set[bytes] = set()
        self._window_began = time.monotonic()
        self._of_window = 0
        self._blocked_until = 0.0

    def take(self, body: bytes) -> bool:
        """Count a POST; tell whether it is within the limit."""
        self.requests += 1
        if self._limit is not None and not self._within_limit():
            self.refused += 1
            return False
        numbers = NUMBER.findall(body)
        self.messages += len(numbers)
        self.numbers.update(numbers)
        return True

    def _within_limit(self) -> bool:
        now = time.monotonic()
        if now < self._blocked_until:
            return False
        if now - self._window_began >= self._window_seconds:
            self._window_began, self._of_window = now, 0
        self._of_window += 1
        if self._of_window > (self._limit or 0):
            self._blocked_until = now + self._window_seconds
            return False
        return True

    def as_dict(self) -> dict[str, float]:
        """Requests, messages, and how many of these were different ones."""
        return {
            "requests": self.requests,
            "refused": self.refused,
            "messages": self.messages,
            "distinct": len(self.numbers),
            "cpu_seconds": time.process_time(),
        }


class Connection(asyncio.Protocol):
    """One connection of a client: requests one after the other."""

    def __init__(self, counts: Counts, latency: float) -> None:
        self._counts = counts
        self._latency = latency
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._end = 0  # of the request that is arriving, once its head is there

    def connection_made(self, transport: Any) -> None:
        """Remember where to answer."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete."""
        self._received += data
        if not self._end:
            head = self._received.find(b"\r\n\r\n")
            if head < 0:
                return
            length = _CONTENT_LENGTH.search(self._received, 0, head + 2)
            self._end = head + 4 + (int(length[1]) if length else 0)
        if len(self._received) >= self._end:
            request, self._received, self._end = bytes(self._received), bytearray(), 0
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"POST /reset"):
            self._counts.reset()
            self._write(b"200 OK", b"{}")
        elif request.startswith(b"GET /counts"):
            self._write(b"200 OK", json.dumps(self._counts.as_dict()).encode())
        elif not request.startswith(b"POST") or self._counts.take(request):
            self._loop.call_later(self._latency, self._write, b"200 OK", _SUCCESS)
        else:
            self._loop.call_later(self._latency, self._write, b"429 Too Many", _TOO_MANY)

    def _write(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, len(body)) + body)


class Server:
    """The running server, as the benchmark sees it.

    Attributes:
        port: Where it listens, on loopback.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    def reset(self) -> None:
        """Forget what came."""
        self._call("reset", data=b"")

    def counts(self) -> dict[str, float]:
        """What came since the last reset: see `Counts.as_dict`."""
        return dict(json.loads(self._call("counts")))

    def _call(self, name: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{name}", data) as answer:
            return bytes(answer.read())


@contextlib.contextmanager
def running(latency: float, *, limit: int | None = None) -> Iterator[Server]:
    """A server in a process of its own, which ends with the block.

    Args:
        latency: Seconds from a request to its answer.
        limit: POST requests that it takes in 5 minutes; None: any number.
    """
    command = [sys.executable, "-m", "benchmarks.server", "--latency", str(latency)]
    if limit is not None:
        command += ["--limit", str(limit)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(int(process.stdout.readline()))
        finally:
            process.terminate()


async def serve(latency: float, limit: int | None, window_seconds: float) -> None:
    """Serve on a free port of loopback, which is printed, until the process ends."""
    counts = Counts(limit, window_seconds)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(counts, latency), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.03, help="seconds before an answer")
    parser.add_argument("--limit", type=int, help="POST requests in a window")
    parser.add_argument("--window", type=float, default=300.0, help="seconds of a window")
    given = parser.parse_args()
    asyncio.run(serve(given.latency, given.limit, given.window))


if __name__ == "__main__":
    main()
