"""Celery through the hub: remote control, events, broadcasts and the bell, on both servers."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from celery import Celery
from integration.test_control_workers import POOLS, check
from integration.workers import Worker
from kombu import Connection
from support.processes import Script, eventually, needs

from kombu_cfqueues.side import forget_control_brokers

SOON = 20
"""Seconds: much on a busy machine, little for a consumer that polls every 300."""


@pytest.fixture
def control_app(emulator):
    """Makes applications that send tasks of the workers and control them."""
    apps = []

    def make(url, **options):
        app = Celery("tests", broker=emulator.broker_url, set_as_current=False)
        app.conf.broker_transport = "kombu_cfqueues:Transport"
        app.conf.broker_transport_options = {"control_url": url, **options}
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()
    forget_control_brokers()


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_of_each_pool_is_controlled(pool, emulator, hub, control_app, tmp_path):
    """``inspect``, ``revoke``, ``rate_limit``, consumers and ``shutdown`` work."""
    if pool in ("gevent", "eventlet"):
        needs(pool)
    environ = {"CFQUEUES_CONTROL_URL": hub.url()}
    folder = tmp_path / "worker"
    folder.mkdir()
    with Worker(emulator, folder, pool=pool, environ=environ, talks=True) as worker:
        check(worker, control_app(hub.url()))


PUBLISH = """
with connect() as connection:
    connection.Producer().publish(
        [["from afar"], {}, {}], exchange="everybody", routing_key="celery",
        headers={"task": "tasks.note", "id": os.urandom(8).hex(), "lang": "py"},
    )
"""


def test_a_broadcast_of_a_fresh_process_reaches_two_workers(emulator, hub, tmp_path):
    folder, options = tmp_path / "worker", {"control_url": hub.url()}
    folder.mkdir()
    given = {
        "app": "broadcasting",
        "pool": "solo",
        "queues": "celery,everybody",
        "options": options,
    }
    with (
        Worker(emulator, folder, arguments=("-n", "one@h"), **given) as one,
        Worker(emulator, folder, arguments=("-n", "two@h"), **given),
    ):
        with Script(PUBLISH, emulator.broker_url, options) as script:
            script.wait()
        assert eventually(lambda: len(one.values("note")) == 2), one.log
        assert len({run["pid"] for run in one.runs("note")}) == 2


def test_events_arrive_and_stop_when_nobody_listens(emulator, hub, control_app, tmp_path):
    """A worker with ``-E``: its events reach who listens; then it is silent again."""
    folder, seen = tmp_path / "worker", []
    folder.mkdir()
    app = control_app(hub.url())
    options = {"control_url": hub.url()}
    with Worker(emulator, folder, pool="solo", options=options, talks=True, arguments=("-E",)):
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(
                connection, handlers={"*": lambda event: seen.append(event["type"])}
            )
            with contextlib.closing(receiver.itercapture(limit=None, timeout=60)) as events:
                ready = threading.Timer(0.5, app.send_task, ("tasks.note", ["x"]))
                ready.start()
                assert eventually(lambda: next(events, True) or "task-succeeded" in seen)
            ready.join()
        assert {"task-received", "task-started", "worker-heartbeat"} & set(seen)
        forget_control_brokers()
        hub.await_clients(1)
        before = hub.status()["frames"]
        time.sleep(4.5)  # two heartbeats
        assert hub.status()["frames"] == before


def test_a_hub_that_restarts_costs_a_worker_nothing(emulator, hub, control_app, tmp_path):
    """Tasks run while it is gone, and control works afterwards."""
    folder = tmp_path / "worker"
    folder.mkdir()
    app = control_app(hub.url())
    options = {"control_url": hub.url()}
    with Worker(emulator, folder, pool="solo", options=options, talks=True) as worker:
        assert eventually(lambda: app.control.ping(timeout=2)), worker.log
        hub.stop()
        app.send_task("tasks.note", ["meanwhile"])
        assert eventually(lambda: worker.values("note") == ["meanwhile"]), worker.log
        hub.start()
        answered = []

        def answers():
            with contextlib.suppress(Exception):
                answered.extend(app.control.ping(timeout=1))
            return answered

        assert eventually(answers), worker.log
        assert worker.log.count("works again") == 1


CONSUME = """
from kombu import Queue

def tell(body, message):
    message.ack()
    print(json.dumps([body, time.time()]), flush=True)

connection = connect()
with connection.Consumer(queues=Queue("jobs"), callbacks=[tell]):
    print(json.dumps("ready"), flush=True)
    while True:
        try:
            connection.drain_events(timeout=60)
        except TimeoutError:
            pass
"""


def test_a_publisher_wakes_a_consumer_of_another_machine(emulator, hub, tmp_path):
    """A machine is a folder here."""
    emulator.create_queue("jobs")

    def options(name):
        return {
            "spool_dir": str(tmp_path / name),
            "control_url": hub.url(),
            "doorbell": "everywhere",
            "polling_interval": 300,
            "max_polling_interval": 300,
        }

    with (
        Script(CONSUME, emulator.broker_url, options("one")) as waiting,
        Connection(emulator.broker_url, transport_options=options("two")) as connection,
    ):
        assert waiting.line() == "ready"
        seconds = []
        for number in range(4):
            connection.Producer().publish(number, routing_key="jobs")
            began = time.time()
            body, at = waiting.line()
            assert body == number
            seconds.append(round(at - began, 3))
        print("idle to start:", seconds)
        assert max(seconds) < SOON
    forget_control_brokers()
