"""``celery worker`` as a process of its own, in every pool.

The regular run has prefork once; ``CFQUEUES_WORKER_MATRIX=1`` has each with early and with late
acknowledgement, and outages of a minute.
"""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from celery import VERSION, chord, group
from kombu import Connection
from support.forms import long

from .workers import MATRIX, Worker, send_many, states, until, within

#: Before 5.7 Celery's pool of threads, when stopped, still ran all that it had been given.
NEW_CELERY = VERSION >= (5, 7)

POOLS = ["prefork", "threads", "solo", "gevent", "eventlet"]
CASES = [
    (pool, late)
    for n, pool in enumerate(POOLS)
    for late in ([False, True] if MATRIX else [n % 2 == 0])
]

COUNT = 40
"""Tasks of a worker that is stopped: more than it starts until it stops, however slow it is."""

every_pool = pytest.mark.parametrize(
    ("pool", "late"),
    [long(*case) if case[0] != "prefork" else case for case in CASES],
    ids=[f"{pool}-{'late' if late else 'early'}" for pool, late in CASES],
)


def concurrency(pool: str) -> int:
    return 1 if pool == "solo" else 2


def settled_by(acks, at) -> int:
    """How many messages the server had been told of at a time."""
    return sum(request.body.count(b"lease_id") for request in acks if request.time <= at)


def empty(emulator, queue="celery") -> bool:
    return not emulator.messages(queue)


@every_pool
def test_tasks_run_once_and_all_of_celery_works(emulator, tasks, tmp_path, pool, late):
    options = {"dead_letter_queue": "graves", "polling_interval": 0.2, "max_polling_interval": 1}
    worker = Worker(
        emulator,
        tmp_path,
        pool=pool,
        concurrency=concurrency(pool),
        options=options,
        task_acks_late=late,
    )
    tasks.note.apply_async(("expired",), expires=0.2)
    with worker:
        emulator.requests.clear()
        send_many(tasks.note, range(200))
        until(lambda: len(worker.runs("note")) >= 200)
        until(lambda: empty(emulator), what="all is acknowledged")
        assert sorted(worker.values("note")) == list(range(200))
        acks = emulator.requests.of("ack")
        took = acks[-1].time - acks[0].time
        assert len(acks) <= within(200 / 5, 200 / 5 + took / 0.1)
        late_ones = [
            run["at"]
            for n, run in enumerate(worker.runs("note"))
            if settled_by(acks, run["at"] + within(0.2, 10)) <= n
        ]
        assert not late_ones

        began = time.time()
        tasks.flaky.delay("f")
        tasks.note.apply_async(("in 1.5 s",), countdown=1.5)
        tasks.reject.delay("back", True)
        tasks.reject.delay("away", False)
        total = chord(group(tasks.note.s(n) for n in range(1000, 1010)))(tasks.add.s())
        if pool == "prefork":
            tasks.overdue.delay("o")
        assert total.get(timeout=60, disable_sync_subtasks=False) == sum(range(1000, 1010))
        until(lambda: len(worker.runs("flaky")) == 2)
        (eta,) = until(lambda: [r for r in worker.runs("note") if r["value"] == "in 1.5 s"])
        assert 1.5 <= eta["at"] - began < within(6, 60)
        assert worker.values("reject").count(["back", False]) == 1
        assert worker.values("reject").count(["back", True]) == 1
        assert worker.values("reject").count(["away", False]) == 1
        if pool == "prefork":
            until(lambda: "Hard time limit (1s) exceeded" in worker.log)
        until(lambda: empty(emulator), what="all is acknowledged")
        (dead,) = emulator.messages("graves")
        assert "away" in dead.body
        assert "expired" not in worker.values("note")
    assert "Unrecoverable" not in worker.log
    assert "a bug in kombu_cfqueues" not in worker.log


@every_pool
def test_what_a_stopped_worker_has_not_started_is_back_at_once(
    emulator, tasks, tmp_path, pool, late
):
    with Worker(
        emulator, tmp_path, pool=pool, concurrency=concurrency(pool), task_acks_late=late
    ) as worker:
        send_many(tasks.nap, range(COUNT), 1.2)
        until(lambda: worker.runs("nap"))
        emulator.requests.clear()
        worker.terminate()
        worker.wait(120)
        gone_at = time.time()
        assert not emulator.requests.of("push", "batch")  # nothing is given back by a copy
        left = states(emulator)
    started = worker.values("nap")
    ended = worker.runs("nap ended")
    assert sorted(started) == sorted({*started})
    assert sorted(run["value"] for run in ended) == sorted(started)
    assert gone_at - ended[-1]["at"] < within(3, 30)
    assert left == {"ready": COUNT - len(started)}


def test_what_one_worker_leaves_another_runs(emulator, tasks, tmp_path):
    with Worker(emulator, tmp_path, pool="threads", task_acks_late=True) as worker:
        for n in range(10):
            tasks.nap.delay(n, 0.3)
        until(lambda: worker.runs("nap"))
        worker.stop()
    with Worker(emulator, tmp_path, pool="threads", task_acks_late=True) as worker:
        until(lambda: empty(emulator))
    assert sorted(worker.values("nap")) == list(range(10))


@pytest.mark.parametrize("late", [False, True] if MATRIX else [False])
def test_an_ack_of_a_solo_worker_is_not_held_up_by_its_next_task(emulator, tasks, tmp_path, late):
    with Worker(emulator, tmp_path, pool="solo", concurrency=1, task_acks_late=late) as worker:
        emulator.requests.clear()
        tasks.nap.delay("first", 0.3)
        until(lambda: worker.runs("nap"))
        tasks.sleep_hard.delay("x", 2)
        (hard,) = until(lambda: worker.runs("sleep_hard"))
        (ended,) = worker.runs("nap ended")
        until(lambda: len(emulator.requests.of("ack")) >= (1 if late else 2))
        first = emulator.requests.of("ack")[0]
        since = ended["at"] if late else worker.runs("nap")[0]["at"]
        assert first.time - since < within(0.2, 10)
        assert first.time < hard["at"] + 2  # while the thread sat in the task
        if not late:
            second = emulator.requests.of("ack")[1]
            assert second.time - hard["at"] < within(0.2, 2)


def test_a_task_whose_worker_is_killed_runs_again_after_its_lease(emulator, tasks, tmp_path):
    with Worker(emulator, tmp_path, task_acks_late=True) as worker:
        tasks.nap.delay(1, 1)
        until(lambda: worker.runs("nap"))
        worker.kill()
    time.sleep(0.3)  # a pull of the dead may still be on its way
    emulator.clock.advance(1801)
    with Worker(emulator, tmp_path, task_acks_late=True) as worker:
        until(lambda: len(worker.runs("nap ended")) == 1)
        until(lambda: empty(emulator))
    assert worker.values("nap") == [1, 1]


@pytest.mark.parametrize("gone", ["refuses", "hangs"] if MATRIX else ["hangs"])
def test_a_worker_stops_soon_although_the_server_is_gone(emulator, tasks, tmp_path, gone):
    with Worker(emulator, tmp_path, pool="threads", task_acks_late=True) as worker:
        # Longer than Celery's own loop takes to notice that it is to stop.
        for n in range(4):
            tasks.nap.delay(n, within(4.2, 8))
        until(lambda: len(worker.runs("nap")) == 2 and worker.log.count(" received") == 4)
        if gone == "hangs":
            emulator.faults.hang(times=None)
            worker.stop(120)
            stopped = time.time()
            emulator.faults.clear()
        else:
            with emulator.outage():
                worker.stop(120)
                stopped = time.time()
        assert stopped - worker.runs("nap ended")[-1]["at"] < within(6, 30)
        assert len(worker.runs("nap")) == (2 if NEW_CELERY else 4)


def test_a_worker_outlives_an_outage_and_loses_nothing(emulator, tasks, tmp_path):
    """It stays connected, so that Celery has no reason to give up what runs."""
    seconds = 60 if MATRIX else 2
    with Worker(
        emulator, tmp_path, pool="prefork", concurrency=2, task_acks_late=True,
        worker_cancel_long_running_tasks_on_connection_loss=True,
    ) as worker:  # fmt: skip
        for n in range(6):
            tasks.nap.delay(n, 1)
        until(lambda: worker.runs("nap"))
        with emulator.outage():
            time.sleep(seconds)
        tasks.note.delay("after")
        until(lambda: worker.runs("note"))
        until(lambda: empty(emulator))
        assert sorted(worker.values("nap")) == list(range(6))
        assert worker.log.count("cannot be pulled") == 1
        assert "reconnect" not in worker.log
        assert not worker.ended


STORMS = {
    "503": lambda faults: faults.error("pull", "ack", status=503, retry_after=0, times=4),
    "429": lambda faults: faults.error("pull", "ack", status=429, code=10250, times=4),
    "html": lambda faults: faults.html_page("pull", "ack", status=502, times=4),
    "html 403": lambda faults: faults.html_page("pull", "ack", status=403, times=2),
    "lost answers": lambda faults: faults.lost_response("ack", times=3),
    "resets": lambda faults: faults.reset("ack", times=3),
}


def test_a_worker_goes_through_storms_and_ended_leases_with_all_its_slots(
    emulator, tasks, tmp_path
):
    """It holds 8 messages at most, so slots that leak would end it soon."""
    storms = STORMS if MATRIX else {"html 403": STORMS["html 403"]}
    options = {"polling_interval": 0.2, "max_polling_interval": 1}
    with Worker(emulator, tmp_path, pool="threads", task_acks_late=True, options=options) as worker:
        for storm, begin in storms.items():
            fault = begin(emulator.faults)
            send_many(tasks.note, [f"{storm} {n}" for n in range(12)])
            until(lambda fault=fault: fault.hits >= 2, what=storm)
            until(lambda: empty(emulator))
            emulator.faults.clear()
        tasks.nap.delay("long", 1)
        until(lambda: worker.runs("nap"))
        emulator.clock.advance(1801)
        until(lambda: len(worker.runs("nap")) == 2)  # as its lease has ended, it comes again
        until(lambda: empty(emulator))
        send_many(tasks.note, range(40))
        until(lambda: set(range(40)) <= set(worker.values("note")))
        until(lambda: empty(emulator))
        assert {f"{storm} {n}" for storm in storms for n in range(12)} <= {*worker.values("note")}
        assert "reconnect" not in worker.log.lower()
        assert not worker.ended


def test_a_revoked_token_stops_the_worker_and_its_log_says_why_once(emulator, tasks, tmp_path):
    with Worker(emulator, tmp_path, pool="threads", task_acks_late=True) as worker:
        tasks.nap.delay(1, 1)
        until(lambda: worker.runs("nap"))
        emulator.faults.error(status=403, code=10000, message="Authentication error", times=None)
        assert worker.wait(120) != 0
    explanation = "The API token needs the permission 'Account > Queues > Edit'"
    errors = [line for line in worker.log.splitlines() if "CRITICAL" in line or "WARNING" in line]
    assert sum(explanation in line for line in errors) == 1


def test_strange_messages_do_not_stop_a_worker(emulator, tasks, tmp_path):
    url = emulator.broker_url
    strange = [
        {"hello": "world"}, "text", 42, None, [1, 2], True,
        {"task": "tasks.note"}, {"task": {"id": 3}}, {"task": "unknown"}, {"task": None, "id": []},
        {"task": "tasks.note", "id": "i", "args": 3, "kwargs": []},
        {"body": "x", "headers": {"task": "tasks.note"}, "properties": {}},
        {"body": "x", "headers": {"task": ["a"]}, "properties": {}},
        {"body": "%%", "headers": {"task": "tasks.note", "id": "x"},
         "properties": {"body_encoding": "base64", "delivery_tag": 3, "delivery_info": [1]}},
        {"body": "[[1],{},{}]", "headers": {"task": "tasks.note", "id": 7, "eta": "soon"},
         "properties": {"body_encoding": "rot13"}},
        {"body": {"a": 1}, "headers": {"task": "tasks.note", "id": "x", "expires": {}},
         "properties": {"expiration": "never"}, "content-type": 5},
        {"__type__": "decimal", "__value__": "x"},
    ]  # fmt: skip
    with Connection(url, transport_options={"body_format": "plain", "content_type": "json"}) as c:
        for body in strange:
            c.Producer().publish(body, routing_key="celery", serializer="json")
    with Worker(emulator, tmp_path, pool="threads") as worker:
        until(lambda: empty(emulator))
        tasks.note.delay("alive")
        until(lambda: "alive" in worker.values("note"))
        assert worker.log.count("Received and deleted unknown message") >= 1
        assert not worker.ended


def test_a_task_that_a_javascript_worker_wrote_runs(emulator, tmp_path, tasks):
    """What worker/celery-consumer's `sendTask` sends, and docs/workers.md shows."""
    envelope = {
        "body": json.dumps([["from js"], {}, {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "js", "task": "tasks.note", "id": "0c8e4fd0-9f2c-4a64-9d39-5ac"},
        "properties": {"body_encoding": "utf-8"},
    }
    options = {"body_format": "plain", "content_type": "json"}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.Producer().publish(envelope, routing_key="celery", serializer="json")
    with Worker(emulator, tmp_path, pool="solo", concurrency=1) as worker:
        until(lambda: worker.values("note") == ["from js"])


SHIFTED = """
import os, pathlib, time
real, file = time.time, pathlib.Path(os.environ["SHIFT"])
time.time = lambda: real() + float(file.read_text())
from celery.__main__ import main
main()
"""


def test_an_eta_30_hours_off_runs_once_at_its_time(emulator, tasks, tmp_path):
    """No worker ever holds it for longer than a minute."""
    shift = Path(tmp_path / "shift")
    shift.write_text("0")

    def advance(seconds: float) -> None:
        new = tmp_path / "shift.new"
        new.write_text(str(float(shift.read_text()) + seconds))
        new.replace(shift)  # whole at every moment: each reading of the time reads it
        emulator.clock.advance(seconds)

    eta = datetime.now(timezone.utc) + timedelta(hours=30)
    options = {"max_polling_interval": 1}
    with Worker(
        emulator, tmp_path, pool="threads", program=SHIFTED, options=options,
        environ={"SHIFT": str(shift)},
    ) as worker:  # fmt: skip
        tasks.note.apply_async(("far",), eta=eta)
        advance(86_401)
        until(lambda: emulator.messages("celery")[0].attempts == 1)
        until(lambda: states(emulator) == {"delayed": 1})
        advance(6 * 3600 - 5)
        until(lambda: worker.values("note"))
        (run,) = worker.runs("note")
        assert run["at"] >= eta.timestamp() - 0.001
        until(lambda: empty(emulator))
    assert worker.values("note") == ["far"]
    assert worker.log.count("received") <= 2


def test_remote_control_returns_nothing_and_costs_nothing(emulator, tasks, tmp_path):
    with Worker(emulator, tmp_path, pool="solo", concurrency=1):
        tasks.app.control.inspect(timeout=0.3).ping()  # connects
        emulator.requests.clear()
        assert tasks.app.control.inspect(timeout=0.5).stats() is None
        assert tasks.app.control.ping(timeout=0.5) == []
        tasks.app.control.broadcast("shutdown")
        time.sleep(0.3)
    assert {request.route for request in emulator.requests} <= {"pull", "ack"}
    assert emulator.queue_names() == ["celery"]
