"""Sixteen processes, one allowance: confirmed and spooled publishing against the emulator.

    python benchmarks/spool.py                   all runs; some minutes
    python benchmarks/spool.py --only confirmed  one of confirmed, threads, queues, spooled,
                                                 outage, permits
    python benchmarks/spool.py --json            figures for a program

The allowance is 3.7 requests a second with a burst of 5, so that it binds at once; the server
answers after 30 ms; messages have 1 KB.  What a publish may cost depends on the disk, so the time
of a bare fsync there is measured meanwhile and printed beside it.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kombu.connection import Connection

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.spool.file import File
from kombu_cfqueues.spool.shared_budget import Permits
from kombu_cfqueues.waiting_room import Kind

SPAWN = multiprocessing.get_context("spawn")
BODY = "x" * 1000
RATE = 3.7
"""Requests a second that are allowed."""
INTERVAL = 1 / RATE
FIRST = "first"
"""The queue of each process's first message."""
SECONDS = 30.0
"""How long a run of the comparison lasts."""

Sample = tuple[str, float]  # queue, seconds


def publish(  # noqa: PLR0917  a process's arguments have no names
    url: str,
    options: dict[str, Any],
    queues: list[str],
    number: int,
    threads: int,
    rate: float,
    seconds: float,
    ready: Any,
    starts: Any,
    goes_on: Any,
    out: Any,
    done: Any,
) -> None:
    """Publish as a process of a web server does: a first message, then each thread at random."""
    # The threads publish in loops on purpose, of which the library would warn.
    logging.getLogger("kombu_cfqueues").setLevel(logging.ERROR)
    connection = Connection(url, transport_options=options)
    connection.transport  # noqa: B018  imported before the others wait
    samples: list[Sample] = []
    errors: list[str] = []

    ready.release()
    starts.wait()
    began = time.perf_counter()
    connection.Producer().publish({"n": number, "body": BODY}, routing_key=FIRST)  # connects
    samples.append((FIRST, time.perf_counter() - began))
    session = connection.transport.session
    for queue in queues:
        session.use_queue(queue, time.monotonic() + 300, lambda _: None)

    def work(name: int) -> None:
        chance = random.Random(name)
        producer = connection.clone().Producer()
        producer.channel  # noqa: B018  connects
        at, count = time.monotonic(), name
        end = at + seconds
        while (now := time.monotonic()) < end:
            at = max(at + chance.expovariate(rate / threads), now)
            time.sleep(max(0.0, at - now))
            queue = queues[count % len(queues)]
            count += 1
            began = time.perf_counter()
            try:
                producer.publish({"n": [name, count], "body": BODY}, routing_key=queue)
            except Exception as error:  # noqa: BLE001  counted
                errors.append(repr(error))
            else:
                samples.append((queue, time.perf_counter() - began))

    ready.release()
    goes_on.wait()
    workers = [
        threading.Thread(target=work, args=(number * threads + each,)) for each in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    out.put((samples, errors))
    out.close()
    out.join_thread()
    done.wait()  # a web server goes on living, and delivering


def run(
    *,
    processes: int = 16,
    threads: int = 1,
    offered: float = 100.0,
    seconds: float = 30.0,
    queues: int = 1,
    mode: str = "confirm",
    meanwhile: Callable[[Emulator], None] | None = None,
) -> dict[str, Any]:
    """One run; returns its figures."""
    names = [f"queue-{number}" for number in range(queues)]
    with (
        tempfile.TemporaryDirectory(dir=Path.home()) as folder,
        Emulator(latency=0.03, rate_limit=1200) as server,
        fsyncs(Path(folder)) as fsync_seconds,
    ):
        for name in (FIRST, *names):
            server.create_queue(name)
        options = {
            "request_rate": RATE,
            "request_burst": 5,
            "spool_dir": folder,
            "publish_mode": mode,
        }
        ready, out = SPAWN.Semaphore(0), SPAWN.Queue()
        starts, goes_on, done = SPAWN.Event(), SPAWN.Event(), SPAWN.Event()
        workers = [
            SPAWN.Process(
                target=publish,
                args=(server.broker_url, options, names, number, threads, offered / processes,
                      seconds, ready, starts, goes_on, out, done),
            )
            for number in range(processes)
        ]  # fmt: skip
        for worker in workers:
            worker.start()
        for together in (starts, goes_on):
            await_all(workers, ready)
            server.requests.clear()
            together.set()
        if meanwhile is not None:
            meanwhile(server)
        results = [out.get() for _ in workers]
        found = [sample for samples, _ in results for sample in samples]
        samples = [sample for sample in found if sample[0] != FIRST]
        errors = [error for _, failed in results for error in failed]
        ended, backlog = time.monotonic(), len(samples) - arrived(server, names)
        while arrived(server, names) < len(samples) and time.monotonic() - ended < 120:
            time.sleep(0.05)
        drained = time.monotonic() - ended
        done.set()
        for worker in workers:
            worker.join()
        times = [seconds for _, seconds in samples]
        firsts = [seconds for name, seconds in found if name == FIRST]
        figures = {
            "first_publish_ms": {name: quantile(firsts, q) for name, q in QUANTILES.items()},
            "offered_per_second": offered,
            "published_per_second": round(len(samples) / seconds, 1),
            "publish_ms": {name: quantile(times, q) for name, q in QUANTILES.items()},
            "requests_per_second": requests_per_second(server),
            "answers_429": sum(request.status == 429 for request in server.requests),
            "errors": len(errors),
            "lost": len(found) - arrived(server, [FIRST, *names]),
            "delivered_seconds_after_the_end": round(drained, 2),
            "fsync_ms": {name: quantile(fsync_seconds, q) for name, q in QUANTILES.items()},
        }
        if backlog > 1000:
            figures["drained_per_second"] = round(backlog / drained, 1)
        if queues > 1:
            by_queue = [[s for name, s in samples if name == queue] for queue in names]
            means = [sum(found) / len(found) for found in by_queue]
            figures["slowest_queue_to_fastest"] = round(max(means) / min(means), 2)
            figures["intervals_at_p99"] = round(quantile(times, 0.99) / 1000 / INTERVAL, 1)
        if errors:
            figures["first_error"] = errors[0]
        return figures


def await_all(workers: list[Any], ready: Any) -> None:
    """Block until each has said that it is ready."""
    for _ in workers:
        ready.acquire()


QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def quantile(seconds: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def requests_per_second(server: Emulator) -> float:
    """Over the time that the log of requests still holds."""
    times = [request.time for request in server.requests]
    return round((len(times) - 1) / (times[-1] - times[0]), 2)


def arrived(server: Emulator, names: list[str]) -> int:
    """How many messages are in their queues."""
    # Not by server.messages(), which reads them all, in the process that is to answer requests;
    # and not by a request, which would be counted.
    store = server._service.store
    return sum(store.metrics(server._queue(name)).backlog_count for name in names)


@contextmanager
def fsyncs(folder: Path) -> Iterator[list[float]]:
    """Measure what the disk takes to keep a page, ten times a second."""
    seconds: list[float] = [0.0]
    over = threading.Event()

    def measure() -> None:
        with (folder / "probe").open("wb") as file:
            while not over.wait(0.1):
                file.write(b"x" * 4096)
                file.flush()
                began = time.perf_counter()
                os.fsync(file.fileno())
                seconds.append(time.perf_counter() - began)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield seconds
    finally:
        over.set()
        thread.join()


def outage(seconds: float) -> Callable[[Emulator], None]:
    """The server is down in the middle of a run three times as long."""

    def meanwhile(server: Emulator) -> None:
        time.sleep(seconds)
        with server.outage():
            time.sleep(seconds)

    return meanwhile


def ask_permits(folder: str, alone: bool, ready: Any, start: Any, out: Any) -> None:
    """Take permits, one at a time, for the API's admin requests."""
    limit = Limit(1e6, 10**6) if alone else Limit(20.0, 1)
    file = File("http://127.0.0.1:1/client/v4", "account", limit, lambda: "t", spool_dir=folder)
    permits = Permits(file)
    file.read(lambda _: None)  # opens it
    ready.release()
    start.wait()
    times = []
    for _ in range(500 if alone else 3):
        began, ticket = time.perf_counter(), None
        while True:
            now = time.monotonic()
            ticket, wait = permits.request_permit(ticket, now + 600, Kind.ADMIN, now)
            if wait is None:
                break
            time.sleep(max(0.0, (wait.until or 0.0) - time.monotonic()))
        times.append(time.perf_counter() - began)
    out.put(times)
    out.close()
    out.join_thread()


def permits() -> dict[str, Any]:
    """One process alone; then 64 that stand in one line, at 20 permits a second."""
    figures: dict[str, Any] = {}
    for name, processes in (("uncontended", 1), ("contended", 64)):
        with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
            ready, start, out = SPAWN.Semaphore(0), SPAWN.Event(), SPAWN.Queue()
            workers = [
                SPAWN.Process(target=ask_permits, args=(folder, processes == 1, ready, start, out))
                for _ in range(processes)
            ]
            for worker in workers:
                worker.start()
            for _ in workers:
                ready.acquire()
            began = time.monotonic()
            start.set()
            waits = [out.get() for _ in workers]
            lasted = time.monotonic() - began
            for worker in workers:
                worker.join()
        if processes == 1:
            figures[f"{name}_ms"] = {n: quantile(waits[0], q) for n, q in QUANTILES.items()}
        else:
            means = [sum(times[1:]) / 2 for times in waits]  # the first began a line
            figures[f"{name}_permits_per_second"] = round(3 * processes / lasted, 1)
            figures[f"{name}_slowest_process_to_fastest"] = round(max(means) / min(means), 2)
    return figures


TOGETHER: dict[str, Callable[[float], dict[str, Any]]] = {
    "confirmed": lambda seconds: run(seconds=seconds),
    "spooled": lambda seconds: run(mode="spool", offered=300.0, seconds=seconds),
}
"""What `python -m benchmarks` measures beside the other ways to publish, by what it is called."""

RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "confirmed": run,
    "threads": lambda: run(processes=1, threads=48, offered=60.0),
    "queues": lambda: run(queues=10, seconds=60.0),
    "spooled": lambda: run(mode="spool", offered=300.0, seconds=60.0),
    "outage": lambda: run(mode="spool", offered=300.0, seconds=180.0, meanwhile=outage(60.0)),
    "permits": permits,
}


def main() -> None:
    """Make the runs, and print their figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=RUNS, action="append", help="runs to make")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.only or RUNS:
        results[name] = RUNS[name]()
        if not arguments.json:
            print(name)
            for figure, value in results[name].items():
                shown = value
                if isinstance(value, dict):
                    shown = ", ".join(f"{key} {each:g}" for key, each in value.items())
                print(f"  {figure.replace('_', ' ')}: {shown}", flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
