"""Measures one contender, in a process of its own, and prints what it found as JSON.

A process of its own, because CPU and peak memory are counted by process::

    python -m benchmarks.measure confirmed --threads 64 --port 8080
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .contenders import CONTENDERS, Connect, Publish, Settings
from .server import Server


class Figures(NamedTuple):
    """What one run of a contender showed.

    Attributes:
        messages: Messages published.
        calls: Calls that published them: of one message, or of as many as the contender sends.
        seconds: From the first call to the end of the last.
        p50: Median seconds of a call.
        p99: Seconds within which 99 % of the calls returned.
        cpu_seconds: CPU of the client's process meanwhile.
        peak_mib: Most memory that the client's process had, from its start.
        requests: POST requests that the server saw meanwhile; None: it was not asked.
        arrived: Different messages among them.
        twice: Messages that came more than once.
    """

    messages: int
    calls: int
    seconds: float
    p50: float
    p99: float
    cpu_seconds: float
    peak_mib: float
    requests: int | None = None
    arrived: int | None = None
    twice: int | None = None

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def request_rate(self) -> float:
        """Requests a second."""
        return (self.requests or 0) / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU a message."""
        return self.cpu_seconds * 1e6 / self.messages


class Stopwatch:
    """Lets many threads publish at the same time, for a while.

    Args:
        connect: Called once for each thread.
        threads: How many.
        seconds: For how long new calls are begun, at least one; a call that has begun is finished.
        count: Messages of one call.
    """

    def __init__(self, connect: Connect, threads: int, seconds: float, count: int) -> None:
        self._publishers = [connect() for _ in range(threads)]
        self._seconds = seconds
        self._count = count
        self._pool = ThreadPoolExecutor(threads)
        self._start = threading.Barrier(threads + 1)
        self._ends = 0.0

    def prepare(self) -> None:
        """Let each thread publish one message, not counted, so that each has its connection."""
        for _ in self._pool.map(lambda publish: publish(1), self._publishers):
            pass  # raises what a thread raised

    def run(self) -> Figures:
        """Let them publish."""
        running = [self._pool.submit(self._work, publish) for publish in self._publishers]
        cpu = time.process_time()
        began = time.perf_counter()
        self._ends = began + self._seconds
        self._start.wait()
        calls = sorted(duration for run in running for duration in run.result())
        seconds = time.perf_counter() - began
        cpu = time.process_time() - cpu
        return Figures(
            messages=len(calls) * self._count,
            calls=len(calls),
            seconds=seconds,
            p50=statistics.median(calls),
            p99=calls[int(0.99 * len(calls))],
            cpu_seconds=cpu,
            peak_mib=peak_mib(),
        )

    def _work(self, publish: Publish) -> list[float]:
        durations: list[float] = []
        self._start.wait(60)
        now = time.perf_counter()
        while not durations or now < self._ends:
            publish(self._count)
            began, now = now, time.perf_counter()
            durations.append(now - began)
        return durations


def measure(
    contender: str,
    *,
    port: int,
    threads: int = 1,
    in_flight: int = 1,
    seconds: float = 2.0,
    count: int = 1,
) -> Figures:
    """Measure in a new process; see `main` for the arguments."""
    command = [
        sys.executable, "-m", "benchmarks.measure", contender, "--port", port, "--threads", threads,
        "--in-flight", in_flight, "--seconds", seconds, "--count", count,
    ]  # fmt: skip
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, check=True, text=True
    )
    return Figures(**json.loads(done.stdout))


def peak_mib() -> float:
    """The most memory that this process has had so far."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        # Bytes on macOS.  Elsewhere it may be the parent's, which is why it is the second choice.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(peak[1]) / 1024 if peak else 0.0


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--port", type=int, required=True, help="of the server, or of Redis")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=1, help="this transport's max_in_flight")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--count", type=int, default=1, help="messages of one call")
    given = parser.parse_args()
    connect = CONTENDERS[given.contender](Settings(given.port, given.in_flight))
    stopwatch = Stopwatch(connect, given.threads, given.seconds, given.count)
    stopwatch.prepare()
    asked = given.contender not in ("memory", "redis", "redis_batch")
    server = Server(given.port)
    if asked:
        server.reset()
    figures = stopwatch.run()
    if asked:
        counts = server.counts()
        figures = figures._replace(
            requests=int(counts["requests"]),
            arrived=int(counts["distinct"]),
            twice=int(counts["messages"] - counts["distinct"]),
        )
    print(json.dumps(figures._asdict()))


if __name__ == "__main__":
    main()
