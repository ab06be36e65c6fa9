"""How fast messages are consumed: ``python -m benchmarks.consuming``, which `make bench` runs too.

Each contender is a process of its own and consumes the same number of 1 KB messages from an
emulator 30 ms away, in another process.  Ratios are judged, because the figures themselves change
with the machine::

    python -m benchmarks.consuming            some minutes; --quick: one, --write: into the docs
    python -m benchmarks.consuming kombu URL  one contender, which prints what it saw as JSON
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from kombu.connection import Connection
from kombu.entity import Queue

import kombu_cfqueues  # noqa: F401  makes the scheme known

from . import measure, message, redis, report, wakeups
from .ratios import Check

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN = "<!-- begin of what `python -m benchmarks.consuming` writes -->"
END = "<!-- end of what it writes -->"

ACCOUNT = "0123456789abcdef0123456789abcdef"
QUEUE = "consuming"
COUNT = 10_000
LATENCY = 0.03
PREFETCH = 1_000
MOST_MESSAGES = 1_000_000
"""Of all that a comparison publishes: their numbers are below."""

EMULATOR = f"""
import json, sys
from kombu_cfqueues.emulator import Emulator
with Emulator(latency={LATENCY}) as emulator:
    consumer = {{"type": "http_pull", "settings": {{"max_retries": 100}}}}
    emulator.create_queue("{QUEUE}", consumer=consumer)
    print(json.dumps([emulator.broker_url, emulator.base_url, emulator.token]), flush=True)
    for line in sys.stdin:
        pulls, acks = emulator.requests.of("pull"), emulator.requests.of("ack")
        settled = [[request.time, request.body.count(b"lease_id")] for request in acks]
        print(json.dumps([len(pulls), settled]), flush=True)
        emulator.requests.clear()
"""


class Seen(NamedTuple):
    """What a contender saw.

    Attributes:
        messages: Messages consumed.
        missed: Of them, those that did not come, or came twice.
        seconds: From the first request to the last message.
        cpu_seconds: CPU of the process meanwhile.
        peak_mib: Most memory that the process had.
        most_held: Most messages that were pulled and unsettled at a time; 0: not counted.
        acked: When each was acknowledged, in seconds since the epoch.
        pulls: Requests for messages.
        ack_requests: Requests that acknowledge.
        slowest_ack: Most seconds from an acknowledgement to its arrival at the server.
    """

    messages: int
    missed: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    most_held: int
    acked: list[float]
    pulls: int = 0
    ack_requests: int = 0
    slowest_ack: float = 0.0

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU a message."""
        return self.cpu_seconds * 1e6 / self.messages


class Handler:
    """What an application does with a message: looks at it, works for a while, acknowledges."""

    def __init__(self, count: int, work_seconds: float = 0.0) -> None:
        self._count = count
        self._work_seconds = work_seconds
        # Of a fixed size or nearly so, as what is measured is the memory of the transport.
        self._came = bytearray(MOST_MESSAGES)  # how often, by the message's number
        self.came = 0
        self.most_held = 0
        self.acked = array("d")
        self._began = time.perf_counter()
        self._cpu = time.process_time()

    @property
    def done(self) -> bool:
        """Whether all have come."""
        return self.came >= self._count

    def __call__(self, body: Mapping[str, str], got: Any) -> None:
        """Kombu's callback."""
        self.see(body)
        window = getattr(got.channel.qos, "window", None)
        if window is not None:
            self.most_held = max(self.most_held, window.held + window.unsettled)
        got.ack()

    def see(self, body: Mapping[str, str]) -> None:
        """Work on a message that is acknowledged right after."""
        self.came += 1
        self._came[int(body["id"].split("#")[1])] += 1
        if self._work_seconds:
            time.sleep(self._work_seconds)
        self.acked.append(time.time())

    def seen(self) -> Seen:
        """What it was, now that all have come."""
        return Seen(
            messages=self.came,
            missed=self._count + self.came - 2 * (MOST_MESSAGES - self._came.count(0)),
            seconds=time.perf_counter() - self._began,
            cpu_seconds=time.process_time() - self._cpu,
            peak_mib=measure.peak_mib(),
            most_held=self.most_held,
            acked=list(self.acked),
        )


def kombu(given: argparse.Namespace) -> Seen:
    """A Kombu consumer, of whatever transport the URL says."""
    with Connection(given.url) as connection:
        if given.url.startswith("memory:"):
            fill(connection, given.count)
        handle = Handler(given.count, given.work)
        queue = Queue(QUEUE)
        with connection.Consumer(queue, callbacks=[handle], prefetch_count=given.prefetch):
            while not handle.done:
                connection.drain_events(timeout=30)
        return handle.seen()


def bare_requests(given: argparse.Namespace) -> Seen:
    """A `requests.Session` that pulls 100, acknowledges them, and so on."""
    import requests

    handle = Handler(given.count)
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {given.token}"
        url = f"{given.url}/accounts/{ACCOUNT}/queues"
        (queue,) = (q for q in session.get(url).json()["result"] if q["queue_name"] == QUEUE)
        url = f"{url}/{queue['queue_id']}/messages"
        while not handle.done:
            asked = {"batch_size": 100, "visibility_timeout_ms": 60_000}
            pulled = session.post(f"{url}/pull", json=asked).json()["result"]["messages"]
            for one in pulled:
                handle.see(json.loads(json.loads(one["body"])["body"]))
            acks = [{"lease_id": one["lease_id"]} for one in pulled]
            session.post(f"{url}/ack", json={"acks": acks}).raise_for_status()
    return handle.seen()


def sdk(given: argparse.Namespace) -> Seen:
    """Cloudflare's own SDK, in the same way."""
    import cloudflare

    handle = Handler(given.count)
    with cloudflare.Cloudflare(api_token=given.token, base_url=given.url) as client:
        queues = client.queues
        (queue,) = (q for q in queues.list(account_id=ACCOUNT) if q.queue_name == QUEUE)
        where: Any = {"queue_id": queue.queue_id, "account_id": ACCOUNT}
        while not handle.done:
            pulled: Any = queues.messages.pull(
                **where, batch_size=100, visibility_timeout_ms=60_000
            )
            for one in pulled.messages:
                handle.see(json.loads(json.loads(one.body)["body"]))
            queues.messages.ack(**where, acks=[{"lease_id": m.lease_id} for m in pulled.messages])
    return handle.seen()


CONTENDERS: dict[str, Callable[[argparse.Namespace], Seen]] = {
    "kombu": kombu,
    "requests": bare_requests,
    "sdk": sdk,
}


class Row(NamedTuple):
    """One line of the table: who consumes, and how."""

    label: str
    contender: str
    where: str  # "broker", "api", "redis" or "memory"
    prefetch: int = PREFETCH
    work: float = 0.0
    share: float = 1.0  # of the messages of a run

    @property
    def is_ours(self) -> bool:
        """Whether it is this transport."""
        return self.where == "broker"


OURS = Row("kombu_cfqueues, `prefetch_count=1000`", "kombu", "broker")
NARROW = Row("kombu_cfqueues, `prefetch_count=100`", "kombu", "broker", prefetch=100)
TASKS = Row(
    "kombu_cfqueues, 10 ms of work a message", "kombu", "broker", prefetch=8, work=0.01, share=0.05
)
BARE = Row("requests, pull and ack in turn", "requests", "api")
SDK = Row("Cloudflare's SDK, pull and ack in turn", "sdk", "api")
MEMORY = Row("Kombu's memory transport", "kombu", "memory")
REDIS = Row("Kombu's Redis transport", "kombu", "redis")
ROWS = (OURS, NARROW, TASKS, BARE, SDK, MEMORY, REDIS)

HEAD = (
    "who consumes", "messages/s", "pulls", "ack requests", "messages an ack request",
    "slowest ack ms", "CPU µs a message", "most held", "peak MiB",
)  # fmt: skip


class Bench:
    """An emulator and perhaps Redis, and contenders that consume from them."""

    def __init__(self, emulator: subprocess.Popen[str], redis_port: int) -> None:
        self._emulator = emulator
        broker, api, self._token = json.loads(self._read())
        self._urls = {
            "broker": broker,
            "api": api,
            "redis": f"redis://127.0.0.1:{redis_port}//",
            "memory": "memory://",
        }

    def run(self, row: Row, count: int) -> Seen:
        """Fill the queue with *count* messages, and let a new process consume them."""
        count = int(count * row.share)
        if row.where != "memory":
            filled = "broker" if row.where == "api" else row.where
            with Connection(self._urls[filled]) as connection:
                fill(connection, count)
        self._requests()
        command = [
            sys.executable, "-m", "benchmarks.consuming", row.contender, self._urls[row.where],
            "--token", self._token, "--prefetch", row.prefetch, "--work", row.work,
            "--count", count,
        ]  # fmt: skip
        done = subprocess.run(
            [str(part) for part in command], stdout=subprocess.PIPE, check=True, text=True
        )
        seen = Seen(**json.loads(done.stdout))
        pulls, settled = self._requests()
        arrived = [at for at, number in settled for _ in range(number)]
        ways = [at - acked for acked, at in zip(seen.acked, arrived, strict=False)]
        return seen._replace(
            pulls=pulls,
            ack_requests=len(settled),
            slowest_ack=max(ways, default=0.0),
            missed=seen.missed + (abs(len(arrived) - len(seen.acked)) if settled else 0),
        )

    def _requests(self) -> Any:
        if self._emulator.stdin is None:
            raise AssertionError("it was asked for")
        self._emulator.stdin.write("\n")
        self._emulator.stdin.flush()
        return json.loads(self._read())

    def _read(self) -> str:
        if self._emulator.stdout is None:
            raise AssertionError("it was asked for")
        return self._emulator.stdout.readline()


def fill(connection: Connection, count: int) -> None:
    """Publish *count* messages."""
    with connection.Producer() as producer, producer.batch():
        for _ in range(count):
            producer.publish(message.body(), routing_key=QUEUE)


@contextlib.contextmanager
def running() -> Iterator[Bench]:
    """All that is consumed from, until the block ends."""
    with contextlib.ExitStack() as stack:
        port = 0 if redis.why_not() else stack.enter_context(redis.running())
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", EMULATOR],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        try:
            yield Bench(process, port)
        finally:
            process.terminate()


def checks(rounds: Sequence[Mapping[Row, Seen]], small: Seen, large: Seen) -> list[Check]:
    """Judge the rounds of a run; each ratio is taken within a round.

    Args:
        rounds: What was measured.
        small: A run of its own.
        large: The same with four times as many messages.
    """

    def middle(value: Callable[[Mapping[Row, Seen]], float]) -> float:
        return statistics.median(map(value, rounds))

    missed = max(seen.missed for r in rounds for row, seen in r.items() if row.is_ours)
    held = max(seen.most_held / row.prefetch for r in rounds for row, seen in r.items())
    return [
        Check(
            "consuming: messages that were missed, came twice or were not acked", missed, 0, True
        ),
        Check(
            "consuming: throughput by that of pull and ack in turn",
            middle(lambda r: r[OURS].rate / r[BARE].rate),
            2.6,
            False,
        ),
        Check(
            "consuming: CPU a message by that of pull and ack in turn",
            middle(lambda r: r[OURS].cpu_us / r[BARE].cpu_us),
            3.0,
            True,
        ),
        Check(
            "consuming: messages an ack request",
            middle(lambda r: r[OURS].messages / r[OURS].ack_requests),
            80,
            False,
        ),
        Check(
            "consuming: messages a pull",
            middle(lambda r: r[OURS].messages / r[OURS].pulls),
            80,
            False,
        ),
        Check("consuming: messages held, by the prefetch count", held, 1, True),
        Check(
            "consuming: memory for four times as many messages",
            large.peak_mib / small.peak_mib,
            1.07,
            True,
        ),
        Check(
            "10 ms of work a message: messages an ack request",
            middle(lambda r: r[TASKS].messages / r[TASKS].ack_requests),
            5,
            False,
        ),
        Check(
            "10 ms of work a message: slowest ack by the time between two ack requests",
            middle(lambda r: r[TASKS].slowest_ack * r[TASKS].ack_requests / r[TASKS].seconds),
            2,
            True,
        ),
    ]


def line(row: Row, seen: Seen) -> tuple[str, ...]:
    """One line of the table."""
    asked = row.where in ("broker", "api")
    return (
        row.label,
        f"{seen.rate:,.0f}",
        f"{seen.pulls:,}" if asked else "",
        f"{seen.ack_requests:,}" if asked else "",
        f"{seen.messages / seen.ack_requests:.1f}" if asked else "",
        f"{seen.slowest_ack * 1e3:,.0f}" if asked else "",
        f"{seen.cpu_us:,.0f}",
        f"{seen.most_held:,}" if row.is_ours else "",
        f"{seen.peak_mib:,.0f}",
    )


def write(table: Sequence[tuple[str, ...]], judged: Sequence[Check], late: str) -> None:
    """Put the run into the documentation, between its markers."""
    today = datetime.now(timezone.utc).date().isoformat()
    parts = [
        (
            f"Measured on {today}: {report.machine()}; {COUNT:,} messages of 1 KB, an emulator "
            f"that answers after {LATENCY * 1e3:g} ms. {late}"
        ),
        report.markdown(table),
        report.verdicts(judged),
    ]
    report.replace(PAGE, BEGIN, END, parts)


def compare(given: argparse.Namespace) -> bool:
    """Measure all, print it, and say whether it is as it must be."""
    rows = [row for row in ROWS if not (row.where == "redis" and redis.why_not())]
    with running() as bench:
        rounds = [
            {row: bench.run(row, COUNT) for row in rows} for _ in range(1 if given.quick else 3)
        ]
        small, large = bench.run(OURS, COUNT), bench.run(OURS, 4 * COUNT)
    table: list[tuple[str, ...]] = [HEAD]
    for row in rows:
        runs = sorted((r[row] for r in rounds), key=lambda seen: seen.rate)
        table.append(line(row, runs[len(runs) // 2]))
    judged = checks(rounds, small, large)
    late = wakeups.in_words()
    print(report.plain(table), "", *judged, "", late, sep="\n")
    if given.write:
        write(table, judged, late)
    return all(check.holds for check in judged)


def main() -> int:
    """Compare all, or be one of those that are compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", nargs="?", choices=CONTENDERS)
    parser.add_argument("url", nargs="?", help="broker URL, or the API's")
    parser.add_argument("--token", default="", help="for the API")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--prefetch", type=int, default=PREFETCH)
    parser.add_argument("--work", type=float, default=0.0, help="seconds a message")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    if given.contender is None:
        return 0 if compare(given) else 1
    print(json.dumps(CONTENDERS[given.contender](given)._asdict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
