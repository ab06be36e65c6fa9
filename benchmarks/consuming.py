"""How fast a plain Kombu consumer is: ``python -m benchmarks.consuming`` (some seconds).

10,000 messages of 1 KB, from an emulator 30 ms away in a process of its own.  Fails below 2,500
messages a second, if one is missing or comes twice, or if more are held than the prefetch count.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from kombu.connection import Connection
from kombu.entity import Queue

import kombu_cfqueues  # noqa: F401  makes the scheme known

MESSAGES = 10_000
PREFETCH = 1_000
LEAST_RATE = 2_500
LATENCY = 0.03

EMULATOR = f"""
import sys
from kombu_cfqueues.emulator import Emulator
with Emulator(latency={LATENCY}) as emulator:
    print(emulator.broker_url, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    """The broker URL of an emulator in a process of its own, as its CPU is not the client's."""
    command = [sys.executable, "-c", EMULATOR]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both were asked for")
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def main() -> int:
    """Publish, consume, print, and say by the exit status whether it was fast enough."""
    with emulator() as url, Connection(url) as connection:
        with connection.Producer() as producer, producer.batch():
            for number in range(MESSAGES):
                producer.publish({"n": number, "text": "x" * 1000}, routing_key="consuming")
        rate, complete, most = _consume(connection)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{rate:,.0f} messages/s, {'each once' if complete else 'NOT EACH ONCE'}, "
        f"at most {most:,} held of a prefetch count of {PREFETCH:,}, {peak:.0f} MB at most"
    )
    return 0 if rate >= LEAST_RATE and complete and most <= PREFETCH else 1


def _consume(connection: Connection) -> tuple[float, bool, int]:
    seen: list[int] = []
    most = 0

    def handle(body: dict[str, int], message: Any) -> None:
        nonlocal most
        seen.append(body["n"])
        window = message.channel.qos.window
        most = max(most, window.held + window.unsettled)
        message.ack()

    queue = Queue("consuming")
    started = time.perf_counter()
    with connection.Consumer(queue, callbacks=[handle], prefetch_count=PREFETCH):
        while len(seen) < MESSAGES:
            connection.drain_events(timeout=10)
    rate = MESSAGES / (time.perf_counter() - started)
    return rate, sorted(seen) == list(range(MESSAGES)), most


if __name__ == "__main__":
    sys.exit(main())
