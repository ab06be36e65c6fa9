"""How many tasks a second a Celery worker runs: ``python -m benchmarks.workers``.

The tasks do nothing.  They come from an emulator 30 ms away, in another process, and from Redis
where a server is installed::

    python -m benchmarks.workers            about a minute
    python -m benchmarks.workers --count 500
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
from collections.abc import Iterator
from pathlib import Path

from . import redis

POOLS = (("prefork", 2), ("threads", 8))
SETTLING_SHARE = 0.1
"""Share of the tasks, at the beginning, that are not measured: the worker finds its pace."""

APPLICATION = """
import os, time
from celery import Celery
import kombu_cfqueues
app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_acks_late=True, worker_hijack_root_logger=False, task_ignore_result=True)

@app.task(name="run")
def run():
    file = os.open(os.environ["BENCH_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%f\\n" % time.time())
    os.close(file)
"""

SERVER = """
import sys
from kombu_cfqueues.emulator import Emulator
with Emulator(latency=0.03) as emulator:
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


def tasks_per_second(broker: str, pool: str, concurrency: int, count: int) -> float:
    """Run *count* tasks in a new worker, and return how many it ran each second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench_tasks.py").write_text(APPLICATION)
        path = os.pathsep.join([name, str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        runs = folder / "runs"
        runs.touch()
        environ = {
            **os.environ, "PYTHONPATH": path, "BENCH_BROKER": broker, "BENCH_RUNS": str(runs)
        }  # fmt: skip
        subprocess.run([sys.executable, "-c", FILL, str(count)], env=environ, check=True)
        command = [
            *(sys.executable, "-W", "ignore", "-m", "celery", "-A", "bench_tasks", "worker"),
            *("--pool", pool, "--concurrency", str(concurrency), "--loglevel", "ERROR"),
            *("--without-heartbeat", "--without-mingle", "--without-gossip"),
        ]
        with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as worker:
            while runs.read_bytes().count(b"\n") < count and worker.poll() is None:
                time.sleep(0.1)
            worker.send_signal(signal.SIGTERM)
        at = sorted(float(line) for line in runs.read_text().splitlines())
    first = int(count * SETTLING_SHARE)
    return (len(at) - 1 - first) / (at[-1] - at[first])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=2_000, help="tasks of a run (default: 2,000)")
    count = parser.parse_args().count
    print("| tasks a second | " + " | ".join(f"`-P {p} -c {c}`" for p, c in POOLS) + " |")
    print("|---|" + "---|" * len(POOLS))
    with brokers() as found:
        for name, broker in found.items():
            rates = [tasks_per_second(broker, pool, size, count) for pool, size in POOLS]
            print(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |", flush=True)
    if redis.why_not():
        print(f"Redis was left out: {redis.why_not()}")


if __name__ == "__main__":
    main()
