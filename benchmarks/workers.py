"""Celery workers: how many tasks a second they run.

The tasks do nothing.  They come from an emulator 30 ms away, in another process, and from Redis
without any delay where a server is installed.  A worker that holds N messages runs at most N tasks
in the time of a pull, as it took in that run, which is the bound that it is judged by::

    python -m benchmarks.workers            some minutes
    python -m benchmarks.workers --quick    about one
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from . import redis, report, wakeups
from .ratios import Check

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN = "<!-- begin of what `python -m benchmarks.workers` writes -->"
END = "<!-- end of what it writes about workers -->"

LATENCY = 0.03
SETTLING_SHARE = 0.1
"""Share of the tasks, at the beginning, that are not measured: the worker finds its pace."""

ROUNDS = 3
"""The median of so many runs counts."""

QUIET = ("--without-heartbeat", "--without-mingle", "--without-gossip")
"""Arguments of a worker that tells nobody anything."""

APPLICATION = """
import os, time
from celery import Celery
from celery.signals import worker_shutdown
import kombu_cfqueues
app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_acks_late=True, worker_hijack_root_logger=False, task_ignore_result=True,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_MULTIPLIER", "4")),
)

@app.task(name="run")
def run():
    file = os.open(os.environ["BENCH_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%f\\n" % time.time())
    os.close(file)

@worker_shutdown.connect
def tell(**_):
    stats = kombu_cfqueues.stats()
    with open(os.environ["BENCH_RUNS"] + ".pulls", "w") as file:
        print(stats["pull_seconds"] / max(1, stats["pull_requests"]), file=file)
"""

SERVER = f"""
import sys
from kombu_cfqueues.emulator import Emulator
with Emulator(latency={LATENCY}) as emulator:
    print(emulator.broker_url, flush=True)
    sys.stdin.read()
"""

FILL = """
import sys
from bench_tasks import app, run
with app.producer_pool.acquire(block=True) as producer, producer.batch():
    for _ in range(int(sys.argv[1])):
        run.apply_async(producer=producer)
"""


class Setup(NamedTuple):
    """How a worker is started."""

    pool: str
    size: int
    multiplier: int = 4

    def __str__(self) -> str:
        text = f"`-P {self.pool} -c {self.size}`"
        return text if self.multiplier == 4 else f"{text}, multiplier {self.multiplier}"

    def bound(self, seconds: float) -> float:
        """Tasks a second: as many as it may hold, in the time of a pull."""
        return self.size * self.multiplier / seconds


class Speed(NamedTuple):
    """What a worker did.

    Attributes:
        tasks: Tasks a second.
        pull_seconds: Mean time of a pull; 0 with Redis.
    """

    tasks: float
    pull_seconds: float


PREFORK, THREADS = Setup("prefork", 2), Setup("threads", 8)
SETUPS = (PREFORK, PREFORK._replace(multiplier=16), THREADS, THREADS._replace(multiplier=16))


@contextlib.contextmanager
def brokers() -> Iterator[dict[str, str]]:
    """The URL of each broker that is here, by its name, until the block ends."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(server.terminate)
        found = {"kombu_cfqueues": server.stdout.readline().strip() if server.stdout else ""}
        if not redis.why_not():
            found["Redis"] = f"redis://127.0.0.1:{stack.enter_context(redis.running())}//"
        yield found


class Worker:
    """A Celery worker in a process of its own, until the block ends.

    Args:
        broker: The URL that it consumes from.
        setup: How it is started.
        arguments: More of its command line.
        environ: More of its environment.
    """

    def __init__(
        self,
        broker: str,
        setup: Setup,
        arguments: Sequence[str] = QUIET,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._broker, self._setup = broker, setup
        self._arguments, self._given = arguments, environ or {}

    def __enter__(self) -> Worker:  # noqa: PYI034 - Self is not in Python 3.10
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "bench_tasks.py").write_text(APPLICATION)
        path = [str(folder), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        self._runs = folder / "runs"
        self._runs.touch()
        self._environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "BENCH_BROKER": self._broker,
            "BENCH_RUNS": str(self._runs),
            "BENCH_MULTIPLIER": str(self._setup.multiplier),
            **self._given,
        }
        return self

    def start(self) -> None:
        """Let it consume."""
        pool, size = self._setup.pool, str(self._setup.size)
        command = [
            *(sys.executable, "-W", "ignore", "-m", "celery", "-A", "bench_tasks", "worker"),
            *("--pool", pool, "--concurrency", size, "--loglevel", "ERROR"),
            *self._arguments,
        ]
        process = subprocess.Popen(command, env=self._environ, stdout=subprocess.DEVNULL)
        self._stack.callback(self.stop)
        self._process = process

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    @property
    def cpu_seconds(self) -> float:
        """What it and its children have used so far; only on Linux."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        stats = [Path(f"/proc/{one}/stat").read_text() for one in (pid, *children)]
        ticks = [stat.rpartition(")")[2].split()[11:13] for stat in stats]
        return sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")

    @property
    def pull_seconds(self) -> float:
        """Mean time of its pulls, once it has ended."""
        return float(self._runs.with_name("runs.pulls").read_text())

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def publish(self, program: str, *arguments: str) -> str:
        """Run a program that publishes tasks; return what it printed."""
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            command, env=self._environ, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def ran(self, count: int) -> list[float]:
        """Wait until so many tasks have run; return when each did, in seconds since the epoch."""
        while self._runs.read_bytes().count(b"\n") < count:
            if self._process.poll() is not None:
                raise SystemExit("the worker has ended")
            time.sleep(0.02)
        return sorted(float(line) for line in self._runs.read_text().splitlines())


def measure(broker: str, setup: Setup, count: int) -> Speed:
    """Run *count* tasks in a new worker."""
    with Worker(broker, setup) as worker:
        worker.publish(FILL, str(count))
        worker.start()
        at = worker.ran(count)
        worker.stop()
        pull_seconds = worker.pull_seconds
    first = int(count * SETTLING_SHARE)
    return Speed((len(at) - 1 - first) / (at[-1] - at[first]), pull_seconds)


def in_turn(brokers: Sequence[str], setup: Setup, count: int, rounds: int) -> list[Speed]:
    """Measure each broker in each round; return the median of each.

    The speed of a machine changes within a minute, and so it is no contender's alone.
    """
    runs = [[measure(broker, setup, count) for broker in brokers] for _ in range(rounds)]
    return [sorted(of_one)[rounds // 2] for of_one in zip(*runs, strict=True)]


def checks(ours: Sequence[Speed], others: Sequence[Speed]) -> list[Check]:
    """Judge a run.

    Args:
        ours: With this transport, by `SETUPS`.
        others: The same with Redis; empty if there is none.
    """
    judged = []
    for number, (setup, speed) in enumerate(zip(SETUPS, ours, strict=True)):
        redis_tasks = others[number].tasks if others else float("inf")
        if setup.multiplier == 4:
            # Celery itself may be slower than its window would allow.
            bound = min(setup.bound(speed.pull_seconds), redis_tasks)
            claim = f"{setup}: tasks/s by the bound of its window, or by those of Redis"
            judged.append(Check(claim, speed.tasks / bound, 0.85, False))
        elif others:
            claim = f"{setup}: tasks/s by those of Redis without delay"
            judged.append(Check(claim, speed.tasks / redis_tasks, 1.0, False))
    return judged


def main() -> int:
    """Print a table and what it must show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=2_000, help="tasks of a run (default: 2,000)")
    parser.add_argument("--quick", action="store_true", help="fewer tasks")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    if given.quick:
        given.count = 800
    rounds = 1 if given.quick else ROUNDS
    with brokers() as found:
        names, urls = list(found), list(found.values())
        by_setup = [in_turn(urls, setup, given.count, rounds) for setup in SETUPS]
    speeds = dict(zip(names, zip(*by_setup, strict=True), strict=True))
    table: list[tuple[str, ...]] = [
        ("tasks a second", f"the window's bound at {LATENCY * 1e3:g} ms", *names)
    ]
    for number, setup in enumerate(SETUPS):
        row = (f"{speeds[name][number].tasks:,.0f}" for name in names)
        table.append((str(setup), f"{setup.bound(LATENCY):,.0f}", *row))
    ours = names[0]
    judged = checks(speeds[ours], speeds.get("Redis", ()))
    late = wakeups.in_words()
    print(report.plain(table), "", *judged, "", late, sep="\n")
    if given.write:
        parts = [late, report.markdown(table), report.verdicts(judged)]
        report.replace(PAGE, BEGIN, END, parts)
    if redis.why_not():
        print(f"Redis was left out: {redis.why_not()}")
    return 0 if all(check.holds for check in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
