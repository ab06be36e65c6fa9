"""Remote control of real workers through a control broker: ``control_url``."""

from __future__ import annotations

import json
import time

import pytest
from support.forms import first_of
from support.processes import eventually, needs

from kombu_cfqueues.emulator import TOKEN

from .workers import SOME_POOLS, Worker, until


@pytest.fixture
def broker(request):
    """The control broker that the test is for."""
    return request.getfixturevalue(request.param)


def broadcast(app, command, **given):
    """What the one worker answers to a command; waits for it on a slow machine too."""
    answers = until(
        lambda: app.control.broadcast(command, reply=True, timeout=10, limit=1, **given)
    )
    (answer,) = answers
    return next(iter(answer.values()))


def check(worker, app):
    """Everything that a worker is to do by remote control."""
    seconds = []
    for _ in range(4):
        began = time.monotonic()
        assert broadcast(app, "ping") == {"ok": "pong"}
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1, seconds  # the others are what a busy machine makes of it

    # A task that no worker has received yet is revoked, and does not run.
    assert "ok" in broadcast(app, "cancel_consumer", arguments={"queue": "celery"})
    # With gevent and eventlet, Celery does so after the wait for its next message.
    assert eventually(lambda: "Canceling queue" in worker.log), worker.log
    revoked = app.send_task("tasks.note", ["revoked"])
    app.control.revoke(revoked.id)
    app.send_task("tasks.note", ["after"])
    assert "ok" in broadcast(app, "add_consumer", arguments={"queue": "celery"})
    assert eventually(lambda: worker.values("note")), worker.log
    assert eventually(lambda: worker.values("task_revoked") == [[revoked.id, False]]), worker.log
    assert worker.values("note") == ["after"]

    text = json.dumps(broadcast(app, "stats"))
    assert TOKEN not in text
    assert "'ok'" in repr(broadcast(app, "rate_limit", arguments={
        "task_name": "tasks.note", "rate_limit": "100/s"}))  # fmt: skip
    app.control.shutdown()
    assert worker.wait() == 0, worker.log
    assert "control broker" not in worker.log.replace("control broker (control_url)", ""), (
        worker.log
    )


@pytest.mark.parametrize("pool", first_of(SOME_POOLS))
def test_a_worker_of_each_pool_is_controlled_through_redis(
    pool, emulator, redis_server, control_app, tmp_path
):
    """``inspect``, ``revoke``, ``rate_limit``, consumers and ``shutdown`` work."""
    if pool in ("gevent", "eventlet"):
        needs(pool)
    environ = {"CFQUEUES_CONTROL_URL": redis_server.url}
    with Worker(emulator, tmp_path, pool=pool, environ=environ, talks=True) as worker:
        check(worker, control_app(redis_server.url))


@pytest.mark.parametrize("pool", first_of(SOME_POOLS))
def test_a_worker_is_controlled_through_rabbitmq(pool, emulator, rabbit, control_app, tmp_path):
    if pool in ("gevent", "eventlet"):
        needs(pool)
    options = {"control_url": rabbit.url}
    with Worker(emulator, tmp_path, pool=pool, options=options, talks=True) as worker:
        check(worker, control_app(rabbit.url))
