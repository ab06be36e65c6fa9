"""Celery's event loop: what changes hands between it, its pools and the library."""

from __future__ import annotations

import pytest
from celery import VERSION
from support.forms import first_of
from support.processes import Script

from .workers import HERE, Worker, send_many, states, until, within


@pytest.mark.parametrize("late", first_of([True, False]), ids=["late", "early"])
@pytest.mark.parametrize("pool", first_of(["prefork", "threads", "solo"]))
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


EMBEDDED = """
import threading
from tasks import app, note

def start(name):
    ready = threading.Event()
    worker = app.Worker(
        app=app, quiet=True, redirect_stdouts=False, pool="threads", concurrency=1,
        hostname=f"{name}@here", ready_callback=lambda _: ready.set(),
        without_heartbeat=True, without_mingle=True, without_gossip=True,
    )
    threading.Thread(target=worker.start, daemon=True).start()
    assert ready.wait(60)
    return worker

def send(*values):
    for value in values:
        note.delay(value)
    print(0, flush=True)
    sys.stdin.readline()

first, second = start("first"), start("second")
send(1, 2)
second.stop()
print(0, flush=True)
sys.stdin.readline()
send(3, 4, 5)
first.stop()
"""


def test_of_two_workers_in_one_process_one_goes_on_when_the_other_stops(
    emulator, tasks, tmp_path, monkeypatch
):
    """They share a loop, and the first that stops closes it."""
    worker = Worker(emulator, tmp_path)  # only reads what its tasks tell
    monkeypatch.setenv("PYTHONPATH", worker.environ["PYTHONPATH"])
    with Script(f"sys.path.insert(0, {str(HERE)!r})\n{EMBEDDED}", emulator.broker_url, {}) as both:
        both.line()
        until(lambda: len(worker.runs("note")) == 2)
        both.go()
        both.line()
        both.go()
        both.line()
        until(lambda: len(worker.runs("note")) == 5)
        until(lambda: not states(emulator))
        both.go()
        both.wait()


@pytest.mark.parametrize("late", first_of([True, False]), ids=["late", "early"])
def test_short_tasks_run_one_after_the_other_with_a_window_of_their_number(
    emulator, tasks, tmp_path, late
):
    """Each acknowledgement makes room for the next message at once."""
    with Worker(
        emulator, tmp_path, pool="threads", concurrency=4,
        task_acks_late=late, worker_prefetch_multiplier=1,
    ) as worker:  # fmt: skip
        send_many(tasks.nap, range(80), 0.05)
        until(lambda: len(worker.runs("nap ended")) == 80)
        at = [run["at"] for run in worker.runs("nap")]
    # Fewer on Celery before 5.7, by measurement.
    assert len(at) / (at[-1] - at[0]) > within(40 if VERSION >= (5, 7) else 20, 6)


HINT = "worker_prefetch_multiplier"


@pytest.mark.parametrize(
    ("seconds", "count", "is_hinted"), first_of([(0, 150, True), (0.1, 80, False)])
)
def test_a_worker_that_waits_for_pulls_says_once_which_setting_would_help(
    emulator, tasks, tmp_path, seconds, count, is_hinted
):
    """In its log and in `stats`.  Where tasks take longer than a pull, it says nothing."""
    if is_hinted and VERSION < (5, 7):
        pytest.skip("Celery before 5.7 itself is slower than the pulls")
    emulator.latency = 0.2 if is_hinted else 0.01
    with Worker(
        emulator, tmp_path, pool="threads", concurrency=4,
        task_acks_late=True, worker_prefetch_multiplier=2,
    ) as worker:  # fmt: skip
        send_many(tasks.nap, range(count), seconds)
        until(lambda: len(worker.runs("nap ended")) == count)
        tasks.hints.delay()
        (told,) = until(lambda: worker.values("hints"))
    assert (HINT in told) is is_hinted
    assert len([line for line in worker.log.splitlines() if HINT in line]) == is_hinted


def test_a_full_window_costs_no_cpu(emulator, tasks, tmp_path):
    with Worker(
        emulator, tmp_path, pool="threads", concurrency=1,
        task_acks_late=True, worker_prefetch_multiplier=1,
    ) as worker:  # fmt: skip
        send_many(tasks.nap, range(4), 2)
        until(lambda: worker.runs("nap"))
        before = worker.cpu_seconds
        until(lambda: worker.runs("nap ended"))
        assert worker.cpu_seconds - before < within(0.2, 1)


def test_what_celery_holds_in_reserve_is_back_while_the_last_tasks_run(emulator, tasks, tmp_path):
    """The loop has handed out the whole window; at a stop Celery forgets what waits for a child."""
    with Worker(emulator, tmp_path, concurrency=2, task_acks_late=True) as worker:
        send_many(tasks.nap, range(8), 3)
        until(lambda: len(worker.runs("nap")) == 2)
        worker.terminate()
        until(lambda: states(emulator) == {"leased": 2, "ready": 6})
        assert not worker.runs("nap ended")
        assert worker.wait(60) == 0
        assert states(emulator) == {"ready": 6}
