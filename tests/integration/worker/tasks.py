"""The Celery application that the tests run in real workers.

Every run of a task is a line of the file $RUNS: JSON, with the task's name, what it was given and
when it began.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import Reject
from celery.signals import task_revoked

import kombu_cfqueues

app = Celery("tests", broker=os.environ["BROKER_URL"])
app.conf.broker_transport = "kombu_cfqueues:Transport"
app.conf.update(
    result_backend=os.environ.get("RESULTS", "disabled://"),
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ.get("SETTINGS", "{}")),
)


# Not shared, so that a process may make this application more than once.
task = functools.partial(app.task, shared=False)


def tell(name: str, value: object) -> None:
    line = json.dumps({"task": name, "value": value, "at": time.time(), "pid": os.getpid()})
    file = os.open(os.environ["RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


@task_revoked.connect
def on_revoked(request, expired, **_):
    tell("task_revoked", [request.id, expired])


@task()
def note(value):
    tell("note", value)
    return value


@task()
def add(values, more=0):
    total = sum(values) + more
    tell("add", total)
    return total


@task()
def nap(value, seconds):
    tell("nap", value)
    time.sleep(seconds)
    tell("nap ended", value)


@task()
def hints():
    """Tell what `stats` recommends to the process that runs this."""
    tell("hints", kombu_cfqueues.stats()["hints"])


@task()
def sleep_hard(value, seconds):
    """Sleep in one piece: with the thread, and everything on it, blocked."""
    tell("sleep_hard", value)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(10_000))


@task(bind=True, max_retries=3)
def flaky(self, value):
    tell("flaky", value)
    if self.request.retries < 1:
        raise self.retry(countdown=1)


@task()
def send_many(count):
    with kombu_cfqueues.batch(app):
        for number in range(count):
            note.delay(number)


@task(bind=True)
def retry_in_block(self, value):
    tell("retry_in_block", value)
    with kombu_cfqueues.batch(app):
        if self.request.retries < 1:
            note.delay(value)
            raise self.retry(countdown=0)


@task(bind=True)
def replace_in_block(self, value):
    with kombu_cfqueues.batch(app):
        return self.replace(note.s(value))


@task(bind=True, acks_late=True)
def reject(self, value, requeue):
    redelivered = bool(self.request.delivery_info.get("redelivered"))
    tell("reject", [value, redelivered])
    if requeue and redelivered:
        return
    raise Reject("as told", requeue=requeue)


@task(acks_late=True, reject_on_worker_lost=True)
def die_once(value):
    """Kill the pool's child that runs this, the first time."""
    tell("die_once", value)
    flag = Path(os.environ["RUNS"] + ".died")
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), 9)


@task(acks_late=True, reject_on_worker_lost=True)
def die(value):
    """Kill the pool's child that runs this."""
    tell("die", value)
    os.kill(os.getpid(), 9)


@task(acks_late=True)
def requeue(value):
    tell("requeue", value)
    raise Reject("not now", requeue=True)


@task(time_limit=1)
def overdue(value):
    tell("overdue", value)
    time.sleep(30)
    tell("overdue ended", value)


@task(acks_late=True, acks_on_failure_or_timeout=False)
def fail_for_good(value):
    raise ZeroDivisionError(f"no {value}")


@task(time_limit=1, acks_late=True, acks_on_failure_or_timeout=False)
def overdue_for_good(value):
    tell("overdue_for_good", value)
    time.sleep(30)
