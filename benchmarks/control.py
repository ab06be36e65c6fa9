"""Tasks per second of a Celery worker, whatever happens to its control broker (``control_url``).

The tasks do nothing and come from an emulator 30 ms away.  The control broker is a Redis server of
our own.  Every worker sends heartbeats, and with ``--events`` the events of each task as well.
What happens to the control broker happens after a tenth of the tasks, and only the others are
measured::

    python -m benchmarks.control               some minutes
    python -m benchmarks.control --rounds 1    about two
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

from . import redis, report
from .ratios import Check
from .workers import FILL, PREFORK, SETTLING_SHARE, THREADS, Setup, Worker, brokers

NONE = "without control_url"
WORKS, STOPPED, KILLED, ABSENT = "it works", "stopped in the middle", "killed", "never there"
STATES = (NONE, WORKS, STOPPED, KILLED, ABSENT)
"""What happens to the control broker."""

SIGNALS = {STOPPED: signal.SIGSTOP, KILLED: signal.SIGKILL}

SETUPS = (PREFORK._replace(multiplier=16), THREADS._replace(multiplier=16))

MOST = 1.5
"""A task costs at most this many times the CPU time of one without a control broker.  Tasks per
second say the same where the machine has nothing else to do."""


class Speed(NamedTuple):
    """What a worker did.

    Attributes:
        tasks: Tasks per second.
        cpu_us: CPU time per task, of all its processes, in microseconds.
    """

    tasks: float
    cpu_us: float


def measure(broker: str, setup: Setup, state: str, count: int, arguments: Sequence[str]) -> Speed:
    """Run *count* tasks in a new worker with *arguments*."""
    port = redis.free_port()
    environ = {"CFQUEUES_CONTROL_URL": "" if state == NONE else f"redis://127.0.0.1:{port}/0"}
    with contextlib.ExitStack() as stack:
        if state not in (NONE, ABSENT):
            server = stack.enter_context(redis.process(port))
        worker = stack.enter_context(Worker(broker, setup, arguments, environ))
        worker.publish(FILL, str(count))
        worker.start()
        first = int(count * SETTLING_SHARE)
        begun = len(worker.ran(first))
        before = worker.cpu_seconds
        if state in SIGNALS:
            server.send_signal(SIGNALS[state])
        at = worker.ran(count)
        cpu = worker.cpu_seconds - before
        worker.stop()
    tasks = (len(at) - 1 - first) / (at[-1] - at[first])
    return Speed(tasks, cpu / (count - begun) * 1e6)


def main() -> int:
    """Print a table and what it must show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=3_000, help="tasks of a run (default: 3,000)")
    parser.add_argument("--rounds", type=int, default=3, help="each figure is their median")
    parser.add_argument("--events", action="store_true", help="start the workers with -E")
    given = parser.parse_args()
    arguments = ("-E",) if given.events else ()
    if redis.why_not():
        print(f"Nothing is measured: {redis.why_not()}.", file=sys.stderr)
        return 0
    runs: dict[tuple[Setup, str], list[Speed]] = {}
    with brokers() as found:
        for _ in range(given.rounds):
            for setup in SETUPS:
                for state in STATES:
                    broker = found["kombu_cfqueues"]
                    speed = measure(broker, setup, state, given.count, arguments)
                    runs.setdefault((setup, state), []).append(speed)
                    print(f"{setup}, {state}: {_shown([speed])}", file=sys.stderr, flush=True)
    table: list[tuple[str, ...]] = [("tasks a second (CPU µs of each)", *STATES)]
    judged = []
    for setup in SETUPS:
        without = runs[setup, NONE]
        table.append((str(setup), *(_shown(runs[setup, state]) for state in STATES)))
        for state in STATES[1:]:
            claim = f"{setup}: CPU of a task if {state}, by that without"
            judged.append(Check(claim, _ratio(runs[setup, state], without), MOST, True))
    print(report.plain(table), "", *judged, sep="\n")
    return 0 if all(check.holds for check in judged) else 1


def _shown(speeds: Sequence[Speed]) -> str:
    tasks = statistics.median(one.tasks for one in speeds)
    return f"{tasks:,.0f} ({statistics.median(one.cpu_us for one in speeds):,.0f})"


def _ratio(speeds: Sequence[Speed], others: Sequence[Speed]) -> float:
    """Return the median of the ratios of CPU time, each of which is of one round."""
    return statistics.median(one.cpu_us / o.cpu_us for one, o in zip(speeds, others, strict=True))


if __name__ == "__main__":
    sys.exit(main())
