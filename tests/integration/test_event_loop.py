"""Celery's event loop: what changes hands between it, its pools and the library."""

from __future__ import annotations

import pytest

from .workers import Worker, states, until


@pytest.mark.parametrize("late", [True, False], ids=["late", "early"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_reconnect_in_the_middle_strands_nothing(emulator, tasks, tmp_path, pool, late):
    """The worker forgets what it has not started; that runs again, and what runs does not."""
    with Worker(
        emulator, tmp_path, pool=pool, concurrency=1 if pool == "solo" else 2,
        task_acks_late=late, broker_channel_error_retry=True, worker_prefetch_multiplier=3,
    ) as worker:  # fmt: skip
        for n in range(12):
            tasks.nap.delay(n, 0.2)
        until(lambda: worker.runs("nap"))
        fault = emulator.faults.error("pull", status=400, code=10100, times=None)
        until(lambda: "onnection to broker lost" in worker.log)
        emulator.faults.remove(fault)
        until(lambda: len(worker.runs("nap ended")) >= 12)
        until(lambda: not states(emulator), what="all is acknowledged")
    assert sorted(worker.values("nap")) == list(range(12))
