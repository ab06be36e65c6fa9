"""Tasks that come before their time: the lease decides whether a worker may hold them."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from kombu import Connection

from .consuming import FAST, Collector, consume, drain, nothing_comes, publish, settled
from .workers import Worker, until


def test_a_task_that_is_due_after_its_lease_runs_once(emulator, tasks, tmp_path):
    """A worker that held it would get it again each time the lease ends, and run it each time."""
    # Celery before 5.7 may acknowledge 2 s after the start of the task.
    options = {**FAST, "visibility_timeout": 3}
    tasks.app.conf.broker_transport_options = {"native_delay": False}
    with Worker(emulator, tmp_path, pool="solo", concurrency=1, options=options) as worker:
        sent = time.time()
        tasks.note.apply_async(("early",), countdown=5)
        (run,) = until(lambda: worker.runs("note"))
        settled(emulator, "celery")
        tasks.note.delay("later")  # what else waits in the worker runs before or with it
        until(lambda: "later" in worker.values("note"))
        assert worker.values("note") == ["early", "later"]
    assert run["at"] >= sent + 5 - 0.01


@pytest.mark.parametrize(
    ("lease", "early", "is_held"), [(1800, 50, True), (1800, 70, False), (30, 10, False)]
)
def test_a_worker_holds_a_task_for_a_small_part_of_its_lease(emulator, lease, early, is_held):
    """The rest is for the task itself."""
    eta = (datetime.now(timezone.utc) + timedelta(seconds=early)).isoformat()
    options = {**FAST, "visibility_timeout": lease, "native_delay": False}
    headers = {"lang": "py", "task": "t", "id": "i", "eta": eta}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection, "early", headers=headers)
        with consume(connection, Collector()):
            if is_held:
                drain(connection, 1)
            else:
                nothing_comes(connection, 0.2)
                until(lambda: emulator.messages("jobs")[0].state == "delayed")
