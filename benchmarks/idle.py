"""How soon an idle Celery worker starts a task: ``python -m benchmarks.idle``.

Another process of the machine sends the tasks, each after a quiet time.  The broker is an emulator
30 ms away, with the doorbell and without it, and Redis where a server is installed::

    python -m benchmarks.idle                          about five minutes
    python -m benchmarks.idle --count 50 --quiet 60    four hours
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import redis
from .workers import APPLICATION, brokers

SEND = """
import sys, time
from bench_tasks import app, run
for line in sys.stdin:
    began = time.time()
    run.delay()
    print(began, flush=True)
"""

OPTIONS = """
import json
app.conf.broker_transport_options = json.loads(os.environ["BENCH_OPTIONS"])
"""


@contextlib.contextmanager
def worker_and_sender(
    broker: str, pool: str, options: dict[str, Any]
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """An idle worker, and a process that sends a task for each line that it reads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench_tasks.py").write_text(APPLICATION + OPTIONS)
        runs = folder / "runs"
        runs.touch()
        path = os.pathsep.join([name, str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        environ = {
            **os.environ,
            "PYTHONPATH": path,
            "BENCH_BROKER": broker,
            "BENCH_RUNS": str(runs),
            "BENCH_OPTIONS": json.dumps(options),
            "XDG_STATE_HOME": name,
        }
        command = [
            *(sys.executable, "-W", "ignore", "-m", "celery", "-A", "bench_tasks", "worker"),
            *("--pool", pool, "--concurrency", "2", "--loglevel", "ERROR"),
            *("--without-heartbeat", "--without-mingle", "--without-gossip"),
        ]
        with (
            subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as worker,
            subprocess.Popen(
                [sys.executable, "-c", SEND],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as sender,
        ):
            try:
                yield sender, runs
            finally:
                sender.terminate()
                worker.send_signal(signal.SIGTERM)


def waits(broker: str, pool: str, options: dict[str, Any], count: int, quiet: float) -> list[float]:
    """Return the seconds from each call of ``delay()`` to the start of its task."""
    found = []
    with worker_and_sender(broker, pool, options) as (sender, runs):
        assert sender.stdin is not None
        assert sender.stdout is not None
        for n in range(count + 1):
            # Not in step with the polling.
            time.sleep(quiet + n * 0.618 % 1 if n else 0)
            sender.stdin.write("\n")
            sender.stdin.flush()
            began = float(sender.stdout.readline())
            while len(lines := runs.read_text().splitlines()) <= n:
                time.sleep(0.005)
            found.append(float(lines[-1]) - began)
    return sorted(found[1:])  # the first connects the sender, and waits for the worker


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=5, help="tasks of a run (default: 5)")
    parser.add_argument("--quiet", type=float, default=15, help="seconds before each (default: 15)")
    parser.add_argument("--pool", default="prefork", help="pool of the worker (default: prefork)")
    given = parser.parse_args()
    print(f"| an idle worker, `-P {given.pool}` | median s | longest s |\n|---|---|---|")
    with brokers() as found:
        rows: list[tuple[str, str, dict[str, Any]]] = [
            (name, broker, {}) for name, broker in found.items()
        ]
        name, broker, _ = rows[0]
        rows.insert(1, (f'{name}, `doorbell="off"`', broker, {"doorbell": "off"}))
        for title, url, options in rows:
            all_waits = waits(url, given.pool, options, given.count, given.quiet)
            median, longest = statistics.median(all_waits), all_waits[-1]
            print(f"| {title} | {median:.3f} | {longest:.3f} |", flush=True)
    if redis.why_not():
        print(f"Redis was left out: {redis.why_not()}")


if __name__ == "__main__":
    main()
