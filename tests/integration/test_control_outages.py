"""Tasks never notice that the control broker is gone, and remote control works again after it."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from kombu import Exchange
from kombu.exceptions import OperationalError
from support.forms import first_of
from support.processes import eventually, needs
from support.rabbitmq_server import RabbitServer, needs_rabbitmq
from support.redis_server import RedisServer, free_port, needs_redis

import kombu_cfqueues
from kombu_cfqueues.errors import ControlUnavailable
from kombu_cfqueues.side import forget_control_brokers
from kombu_cfqueues.side.outbox import MAX_MESSAGES

from .workers import MATRIX, Worker, within

TASKS = 500 if MATRIX else 60


@pytest.fixture
def absent_broker(request, tmp_path):
    """A control broker of its own for the test, which does not run yet."""
    if request.param == "redis":
        needs_redis()
        server = RedisServer(free_port(), tmp_path)
    else:
        needs_rabbitmq()
        folder = tmp_path / "rabbit"
        folder.mkdir()
        server = RabbitServer(folder)
    yield server
    if server.is_started:
        server.kill()


COMBINATIONS = [
    ("threads", "redis"),
    ("prefork", "redis"),
    ("threads", "rabbit"),
    ("prefork", "rabbit"),
]


def answers(app) -> bool:
    try:
        return bool(app.control.ping(timeout=2, limit=1))
    except ControlUnavailable:
        return False


def works_again(app, worker) -> None:
    began = time.monotonic()
    assert eventually(lambda: answers(app)), worker.log
    took = time.monotonic() - began
    print(f"control works again after {took:.1f} s")
    assert took < within(5, 50)


def all_run_once(app, worker, name) -> None:
    """All tasks run, each once."""
    before = len(worker.runs("note"))
    began = time.monotonic()
    for number in range(TASKS):
        app.send_task("tasks.note", [f"{name} {number}"])
    sent = time.monotonic()
    assert eventually(lambda: len(worker.runs("note")) >= before + TASKS), worker.log
    print(f"{name}: sent in {sent - began:.1f} s, ran in {time.monotonic() - began:.1f} s")
    counts = Counter(value for value in worker.values("note") if value.startswith(f"{name} "))
    assert counts == {f"{name} {number}": 1 for number in range(TASKS)}


@pytest.mark.parametrize(
    ("pool", "absent_broker"), first_of(COMBINATIONS), indirect=["absent_broker"]
)
def test_tasks_run_whatever_happens_to_the_control_broker(
    pool, emulator, absent_broker, control_app, tmp_path
):
    """Absent at the start, stopped, killed: no task is lost or runs twice, and control recovers."""
    app = control_app(absent_broker.url)
    options = {"control_url": absent_broker.url}
    with Worker(
        emulator, tmp_path, pool=pool, options=options, talks=True, arguments=("-E",)
    ) as worker:
        all_run_once(app, worker, "absent")
        with pytest.raises(ControlUnavailable) as refused:
            app.control.revoke("never arrives")
        assert refused.value.delivered == "no"
        assert not isinstance(refused.value, OperationalError)  # which Celery would repeat

        absent_broker.start()
        works_again(app, worker)
        all_run_once(app, worker, "present")

        absent_broker.hang()
        all_run_once(app, worker, "stopped")
        assert eventually(lambda: worker.log.count("does not work") == 2), worker.log
        all_run_once(app, worker, "known to be stopped")
        if MATRIX:
            time.sleep(30)
        absent_broker.go_on()
        works_again(app, worker)

        absent_broker.kill()
        all_run_once(app, worker, "killed")
        absent_broker.start()
        works_again(app, worker)

        log = worker.log
        assert worker.stop() == 0, worker.log
    # One line when it goes wrong, one when it is over.
    assert log.count("does not work") == log.count("works again") == 3, log
    assert "Traceback" not in log, log


@pytest.mark.long
def test_tasks_run_while_rabbitmq_hangs(emulator, rabbit, control_app, tmp_path):
    """A broker that accepts and never answers is given up after 2 seconds, and used again after."""
    app = control_app(rabbit.url)
    options = {"control_url": rabbit.url}
    with Worker(
        emulator, tmp_path, pool="threads", options=options, talks=True, arguments=("-E",)
    ) as worker:
        works_again(app, worker)
        rabbit.hang()
        try:
            all_run_once(app, worker, "stopped")
            with pytest.raises(ControlUnavailable):
                app.control.revoke("never arrives")
        finally:
            rabbit.go_on()
        works_again(app, worker)
        assert worker.stop() == 0, worker.log


def test_events_that_nobody_takes_are_bounded_and_counted(connect, caplog):
    """A worker of many tasks does not fill its memory while the control broker is gone."""
    needs("redis")
    connection = connect(control_url=f"redis://127.0.0.1:{free_port()}/0")
    exchange = Exchange("celeryev", type="topic")
    before = kombu_cfqueues.stats()["control_dropped"]
    producer = connection.Producer(exchange=exchange)
    for number in range(MAX_MESSAGES + 5):
        producer.publish({"type": "task-custom", "number": number}, headers={"hostname": "h"})
    forget_control_brokers()
    assert kombu_cfqueues.stats()["control_dropped"] - before == 5
    assert caplog.text.count("only the newest") == 1
