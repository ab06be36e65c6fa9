"""How fast the emulator is: start-up, memory, publishing under wrk, and pulling from a full queue.

``python benchmarks/emulator.py`` needs wrk.  All of it takes about half a minute, on loopback.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kombu_cfqueues.emulator import ACCOUNT_ID, TOKEN, Knobs
from kombu_cfqueues.emulator.service import Service
from kombu_cfqueues.emulator.store import Draft

SECONDS = 4
CONNECTIONS = 8


def main() -> None:
    """Measure and print."""
    with running() as (port, pid, started):
        print(f"start-up                     {started:8.2f} s")
        print(f"memory, idle                 {resident_mb(pid):8.1f} MB")
        if shutil.which("wrk") is None:
            print("publishing: not measured, needs wrk")
        else:
            single = {"body": "x" * 300, "content_type": "text"}
            rate = publish(port, "messages", single)
            print(f"single publishes             {rate:8.0f} requests/s")
            rate = publish(port, "messages/batch", {"messages": [single] * 100})
            print(f"in batches of 100            {rate * 100:8.0f} messages/s")
            print(f"memory, after that           {resident_mb(pid):8.1f} MB")
    for count in (100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            for name, path in (("memory", None), ("a file", Path(folder) / "queues.db")):
                median, most, size = pull_from(count, path)
                print(
                    f"pull of 100 of {count:9,} in {name}: median {median * 1000:.1f} ms, "
                    f"most {most * 1000:.1f} ms{size}"
                )


@contextlib.contextmanager
def running() -> Iterator[tuple[int, int, float]]:
    """Start the command; give its port, its process id, and the seconds until it answered."""
    code = "from kombu_cfqueues.cli import main; main()"
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "emulator", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = 0
        while not port:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise SystemExit("the emulator did not start")
            if "http://127.0.0.1:" in line:
                port = int(line.split(":")[2].split("/")[0])
        call(port, "GET", "")
        yield port, process.pid, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def call(port: int, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Call the API once."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/client/v4/accounts/{ACCOUNT_ID}/queues{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {TOKEN}"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def publish(port: int, route: str, body: object) -> float:
    """Publish with wrk over kept connections; return requests a second, all answered by 200."""
    name = f"bench-{route.replace('/', '-')}"
    queue_id = call(port, "POST", "", {"queue_name": name})["result"]["queue_id"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            'wrk.method = "POST"\n'
            f'wrk.headers["Authorization"] = "Bearer {TOKEN}"\n'
            f"wrk.body = [==[{json.dumps(body)}]==]\n"
        )
        script.flush()
        url = f"http://127.0.0.1:{port}/client/v4/accounts/{ACCOUNT_ID}/queues/{queue_id}/{route}"
        done = subprocess.run(
            ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", script.name, url],
            capture_output=True,
            text=True,
            check=True,
        )
    if "Non-2xx" in done.stdout:
        raise SystemExit(done.stdout)
    return float(done.stdout.split("Requests/sec:")[1].split()[0])


def resident_mb(pid: int) -> float:
    """Return the memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def pull_from(count: int, path: Path | None) -> tuple[float, float, str]:
    """Fill a queue; return the median and the longest time of 50 pulls, and the file's size."""
    service = Service(ACCOUNT_ID, path, Knobs())
    queue = service.queues.create("jobs")
    batch = [Draft(b"x" * 300, "text", 0)] * 10_000
    for _ in range(count // len(batch)):
        service.store.add(queue, batch)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        pulled = service.store.pull(queue, 100, 30_000)
        times.append(time.perf_counter() - began)
        if len(pulled) != 100:
            raise SystemExit(f"a pull gave {len(pulled)} messages")
    service.close()
    size = f", {path.stat().st_size / 1e6:.0f} MB" if path else ""
    return statistics.median(times), max(times), size


if __name__ == "__main__":
    main()
