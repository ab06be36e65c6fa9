"""What a person notices: start-up, memory, and a queue that has grown large."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kombu_cfqueues.emulator import Knobs
from kombu_cfqueues.emulator.service import Service
from kombu_cfqueues.emulator.store import Draft
from kombu_cfqueues.emulator.stored_messages import Query


def test_the_command_is_small():
    """Below 80 MB while idle.  How long it takes to start is measured by the benchmarks."""
    code = "from kombu_cfqueues.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "emulator", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = ""
        while "cfqueues://" not in line:
            line = process.stdout.readline()
            assert line
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            assert int(status.read_text().split("VmRSS:")[1].split()[0]) < 80_000
    finally:
        process.terminate()
        process.communicate()


def test_a_pull_costs_the_same_however_much_a_queue_holds():
    service = Service("account", None, Knobs())
    small, large = service.queues.create("small"), service.queues.create("large")
    for _ in range(10):
        service.store.add(small, [Draft(b"x" * 100, "text", 0)] * 300)
        service.store.add(large, [Draft(b"x" * 100, "text", 0)] * 10_000)
    steps = {small: 0, large: 0}  # instructions of SQLite's virtual machine, in hundreds
    for queue in (small, large):

        def count(queue=queue):
            steps[queue] += 1

        service.database.connection.set_progress_handler(count, 100)
        for _ in range(30):
            assert len(service.store.pull(queue, 100, 30_000)) == 100
    assert steps[small] > 100
    assert steps[large] < 1.5 * steps[small]
    counts = service.store.counts(large)
    assert (counts.ready, counts.leased) == (97_000, 3_000)
    assert len(service.store.stored(large, Query(order="newest", limit=50))) == 50
    service.close()
