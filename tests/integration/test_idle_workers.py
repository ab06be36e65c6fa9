"""A task for an idle ``celery worker`` starts at once if it was sent from the same machine.

The regular run polls every five minutes, so that polling alone could not be that fast.
``CFQUEUES_IDLE_STARTS=50x60`` has 50 tasks after 60 quiet seconds each, with the default options.
"""

from __future__ import annotations

import os
import statistics
import time

import pytest
from support.forms import long

from .workers import Worker, until

STARTS = os.environ.get("CFQUEUES_IDLE_STARTS", "")
COUNT, _, QUIET_SECONDS = STARTS.partition("x") if STARTS else ("5", "x", "0")

POOLS = ["prefork", "threads", "solo", "gevent", "eventlet"]


@pytest.mark.parametrize("pool", [POOLS[0], POOLS[1], *map(long, POOLS[2:])])
@pytest.mark.timeout(60 + 2 * int(COUNT) * (int(QUIET_SECONDS) + 1) + 300)
def test_a_task_for_an_idle_worker_starts_at_once(emulator, tasks, tmp_path, pool):
    options = {} if STARTS else {"polling_interval": 300}
    waits = []
    with Worker(
        emulator, tmp_path, pool=pool, concurrency=1 if pool == "solo" else 2, options=options
    ) as worker:
        tasks.note.delay("first")  # connects this process
        until(lambda: worker.runs("note"))
        for n in range(int(COUNT)):
            until(lambda: not emulator.messages("celery"))
            time.sleep(int(QUIET_SECONDS))
            sent = time.time()
            tasks.note.delay(n)
            found = until(lambda n=n: [r for r in worker.runs("note") if r["value"] == n])
            waits.append(found[0]["at"] - sent)
    print(pool, "seconds until the start:", *(f"{wait:.3f}" for wait in sorted(waits)))
    assert max(waits) < (0.3 if STARTS else 20)
    if STARTS:
        assert statistics.median(waits) < 0.1
