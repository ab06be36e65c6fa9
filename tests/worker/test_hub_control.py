"""Celery through the hub: remote control, events, broadcasts and the bell, on both servers.

Each test that starts workers has one of them in the regular run, and both in the long one.
``CFQUEUES_WORKER_MATRIX=1`` has all pools.
"""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from integration.consuming import at_rest
from integration.test_control_flower import shows_and_revokes
from integration.test_control_workers import check
from integration.workers import SOME_POOLS, Worker, within
from kombu import Connection, Exchange, Queue
from support.forms import LONG, long
from support.hub_servers import QUOTED, drain
from support.processes import Script, eventually, needs
from support.tap import Tap

from kombu_cfqueues.errors import ControlUnavailable, MessageTooLarge
from kombu_cfqueues.side import forget_control_brokers

REGULAR = [("prefork", "workerd"), ("gevent", "emulator")]
ALL = [(pool, server) for pool in SOME_POOLS for server in ("emulator", "workerd")]
POOLS = [*REGULAR, *(long(*pair) for pair in ALL if pair not in REGULAR)]


def on(server):
    """Test with one server of the hub, and in the long form with the other, too."""
    (other,) = {"emulator", "workerd"} - {server}
    return pytest.mark.parametrize("hub", [server, long(other)], indirect=True)


@pytest.mark.parametrize(("pool", "hub"), POOLS, indirect=["hub"])
def test_a_worker_of_each_pool_is_controlled(pool, emulator, hub, control_app, tmp_path):
    """``inspect``, ``revoke``, ``rate_limit``, consumers and ``shutdown`` work."""
    if pool in ("gevent", "eventlet"):
        needs(pool)
    environ = {"CFQUEUES_CONTROL_URL": hub.url()}
    with Worker(emulator, tmp_path, pool=pool, environ=environ, talks=True) as worker:
        check(worker, control_app(hub.url()))


PUBLISH = """
with connect() as connection:
    connection.Producer().publish(
        [["from afar"], {}, {}], exchange="everybody", routing_key="celery",
        headers={"task": "tasks.note", "id": os.urandom(8).hex(), "lang": "py"},
    )
"""


@on("workerd")
def test_a_broadcast_of_a_fresh_process_reaches_two_workers(emulator, hub, tmp_path):
    options = {"control_url": hub.url()}
    given = {
        "app": "broadcasting",
        "pool": "solo",
        "queues": "celery,everybody",
        "options": options,
    }
    with (
        Worker(emulator, tmp_path, arguments=("-n", "one@h"), **given) as one,
        Worker(emulator, tmp_path, arguments=("-n", "two@h"), **given),
    ):
        with Script(PUBLISH, emulator.broker_url, options) as script:
            script.wait()
        assert eventually(lambda: len(one.values("note")) == 2), one.log
        assert len({run["pid"] for run in one.runs("note")}) == 2


@pytest.mark.long
@pytest.mark.parametrize("hub", ["emulator", "workerd"], indirect=True)
def test_flower_shows_a_worker_and_its_tasks_and_revokes_one(emulator, hub, control_app, tmp_path):
    shows_and_revokes(emulator, control_app(hub.url()), hub.url(), tmp_path)


@on("emulator")
def test_events_arrive_and_stop_when_nobody_listens(emulator, hub, control_app, tmp_path):
    """A worker with ``-E``: its events reach those who listen; then it is silent again."""
    seen = []
    app = control_app(hub.url())
    given = {"pool": "solo", "environ": {"CFQUEUES_CONTROL_URL": hub.url()}, "talks": True}
    with Worker(emulator, tmp_path, arguments=("-E",), **given):
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
        silence(hub, 4.5)  # two heartbeats


def silence(hub, seconds):
    """Check that nothing is sent to the hub; return what it says then."""

    def has_settled():
        before = hub.status()["frames"]
        time.sleep(1)
        return hub.status()["frames"] == before

    assert eventually(has_settled), hub.status()
    before = hub.status()
    time.sleep(seconds)
    after = hub.status()
    awoken = after.get("life") != before.get("life")  # it counts from 0 then
    assert after["frames"] == (0 if awoken else before["frames"])
    assert len(after["clients"]) == len(before["clients"])
    return awoken


@pytest.mark.long
@on("workerd")
def test_idle_workers_are_silent(emulator, hub, control_app, tmp_path):
    """Two default workers, with their heartbeats: no frame.

    `make long` looks for a minute, in which the object hibernates.
    """
    given = {"environ": {"CFQUEUES_CONTROL_URL": hub.url()}, "talks": True, "concurrency": 1}
    with (
        Worker(emulator, tmp_path, arguments=("-n", "one@h"), **given),
        Worker(emulator, tmp_path, arguments=("-n", "two@h"), **given),
    ):
        awoken = silence(hub, 60 if LONG else 2.5)
        assert awoken is (LONG and "life" in hub.status())
        assert len(control_app(hub.url()).control.ping(timeout=30, limit=2)) == 2


@on("emulator")
def test_a_revoke_is_not_lost_to_a_blip(emulator, hub, control_app, tmp_path):
    """A worker whose connection is cut when it is sent gets it once it is back."""
    app = control_app(hub.url())
    with Tap(int(hub.address.rpartition(":")[2])) as tap:
        options = {"control_url": f"cfhub://:{QUOTED}@127.0.0.1:{tap.port}/tests"}
        with Worker(emulator, tmp_path, pool="solo", options=options, talks=True) as worker:
            assert eventually(lambda: app.control.ping(timeout=2, limit=1)), worker.log
            with tap.cut():
                hub.await_clients(1)
                app.control.revoke("never-runs")
            flagged = "Tasks flagged as revoked: never-runs"
            assert eventually(lambda: flagged in worker.log), worker.log
            assert eventually(lambda: app.control.ping(timeout=2, limit=1)), worker.log
            assert worker.log.count(flagged) == 1


@on("workerd")
def test_a_hub_that_restarts_costs_a_worker_nothing(emulator, hub, control_app, tmp_path):
    """Tasks run while it is gone, and control works afterwards."""
    app = control_app(hub.url())
    options = {"control_url": hub.url()}
    with Worker(emulator, tmp_path, pool="solo", options=options, talks=True) as worker:
        assert eventually(lambda: app.control.ping(timeout=2, limit=1)), worker.log
        hub.stop()
        app.send_task("tasks.note", ["meanwhile"])
        assert eventually(lambda: worker.values("note") == ["meanwhile"]), worker.log
        hub.start()
        answered = []

        def answers():
            with contextlib.suppress(Exception):
                answered.extend(app.control.ping(timeout=1, limit=1))
            return answered

        assert eventually(answers), worker.log
        assert worker.log.count("does not work") == worker.log.count("works again") == 1


def test_a_message_over_the_limit_harms_no_other(hub, control_app, connect_to, caplog):
    """An event of that size is dropped, and the log says so; a broadcast of it is an error."""
    app, got = control_app(hub.url()), []
    listener, everybody = connect_to(), Exchange("everybody", "fanout")
    queue = Queue("events", Exchange("celeryev", "topic"), routing_key="#")
    consumer = listener.Consumer(queue, callbacks=[lambda body, _: got.append(body["uuid"])])
    consumer.consume(no_ack=True)
    with app.connection_for_write() as connection:
        events = app.events.Dispatcher(connection, hostname="test")
        for uuid, size in (("1", 10), ("2", 300_000), ("3", 10)):
            events.send("task-custom", uuid=uuid, text="x" * size)
        drain(listener, lambda: got == ["1", "3"])
        assert caplog.text.count("larger than the hub's limit") == 1
        with pytest.raises(MessageTooLarge):
            connection.Producer().publish("x" * 300_000, exchange=everybody, declare=[everybody])


@on("workerd")
def test_a_wrong_token_costs_a_worker_nothing_but_control(emulator, hub, control_app, tmp_path):
    """Tasks run, the log has one line, and a request fails and says why."""
    url = hub.url(token="wrong-token")
    app = control_app(url)
    with Worker(
        emulator, tmp_path, pool="solo", options={"control_url": url}, talks=True
    ) as worker:
        app.send_task("tasks.note", ["runs"])
        assert eventually(lambda: worker.values("note") == ["runs"]), worker.log
        with pytest.raises(ControlUnavailable, match="refused the token"):
            app.control.ping(timeout=2)
        assert eventually(lambda: "refused the token" in worker.log), worker.log
        assert worker.stop() == 0, worker.log
        assert worker.log.count("does not work") == 1
        assert "wrong-token" not in worker.log


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
    """A machine is a folder here.  The consumer polls every five minutes."""
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
            at_rest(emulator)
            began = time.time()
            connection.Producer().publish(number, routing_key="jobs")
            body, at = waiting.line()
            assert body == number
            seconds.append(round(at - began, 3))
        print("idle to start:", seconds)
        assert max(seconds) < within(0.3, 20)
    forget_control_brokers()
