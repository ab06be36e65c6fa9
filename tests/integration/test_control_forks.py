"""Forks, ends of processes and threads, and processes that never use the control broker."""

from __future__ import annotations

import pytest
from support.forms import first_of
from support.processes import Script, eventually, needs

from .workers import Worker

FORK = """
import logging, socket
logging.basicConfig(level=logging.WARNING)
from kombu import Exchange, Queue
from kombu_cfqueues.side import control_broker

connection = connect()
exchange = Exchange("news", type="fanout", durable=False)
got = []
consumer = connection.Consumer([Queue("fork-%s" % os.getpid(), exchange, auto_delete=True)])
consumer.register_callback(lambda body, message: (got.append(body), message.ack()))
consumer.consume()

def publish(text):
    connection.Producer().publish(text, exchange=exchange, declare=[exchange])

def drain():
    while not got:
        connection.drain_events(timeout=30)
    return got.pop()

publish("before")
assert drain() == "before"
child = os.fork()
if not child:
    import gc
    with connect() as own:  # a connection of its own works
        own.Producer().publish("child", exchange=exchange, declare=[exchange])
    del consumer, connection
    gc.collect()
    sys.exit(0)  # as a process that ends well
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert drain() == "child"
publish("after")  # the parent's connection is as it was
print(json.dumps(drain()))
"""


@pytest.mark.parametrize("kind", first_of(["redis_server", "rabbit"]))
def test_a_forked_child_leaves_the_parents_connection_alone(kind, request, emulator):
    """The child ends, and the parent neither loses its connection nor its queue."""
    server = request.getfixturevalue(kind)
    with Script(FORK, emulator.broker_url, {"control_url": server.url}) as script:
        assert script.wait() == [0, "after"]
    assert "control broker" not in script.errors


ENDS = """
from celery import Celery
app = Celery(broker=URL)
app.conf.broker_transport_options = OPTIONS
with app.connection_for_write() as connection:
    app.events.Dispatcher(connection, hostname="script").send("task-custom", uuid="1")
"""


def test_the_last_event_of_a_process_is_sent(emulator, redis_server):
    """Such as `worker-offline`."""
    with redis_server.client() as client:
        pubsub = client.pubsub()
        pubsub.psubscribe("/0.celeryev/*")
        assert pubsub.get_message(timeout=10)["type"] == "psubscribe"
        with Script(ENDS, emulator.broker_url, {"control_url": redis_server.url}) as script:
            script.wait()
        assert pubsub.get_message(timeout=10)["channel"] == b"/0.celeryev/task.custom"
        pubsub.close()


UNUSED = """
with connect() as connection:
    connection.Producer().publish("x", routing_key="jobs")
print(json.dumps(sorted(name for name in sys.modules if name.startswith("kombu_cfqueues.side"))))
"""


def test_a_process_that_never_uses_the_control_broker_never_connects(emulator, redis_server):
    before = redis_server.connections_so_far()
    with Script(UNUSED, emulator.broker_url, {"control_url": redis_server.url}) as script:
        script.wait()
    assert redis_server.connections_so_far() == before + 1  # that of the question before


def test_without_a_control_url_nothing_of_it_is_imported(emulator):
    with Script(UNUSED, emulator.broker_url, {}) as script:
        assert script.wait() == [[]]


def test_a_worker_that_starts_learns_what_is_revoked(emulator, redis_server, control_app, tmp_path):
    """Of two workers one restarts, and knows from the other that a task is not to run."""
    given = {"pool": "solo", "options": {"control_url": redis_server.url}, "talks": True}
    app = control_app(redis_server.url)
    with Worker(emulator, tmp_path, queues="other", arguments=("-n", "one@h"), **given) as one:
        app.control.revoke("never-runs")
        assert eventually(lambda: "never-runs" in one.log), one.log
        emulator.create_queue("celery")
        app.send_task("tasks.note", ["revoked"], task_id="never-runs")
        app.send_task("tasks.note", ["after"])
        with Worker(emulator, tmp_path, arguments=("-n", "two@h"), **given) as two:
            assert eventually(lambda: two.values("note")), two.log
            assert eventually(lambda: two.values("task_revoked")), two.log
            assert two.values("note") == ["after"]
            assert "mingle: sync with 1 nodes" in two.log


@pytest.mark.parametrize("green", first_of(["gevent", "eventlet"]))
def test_greenlets_go_on_while_a_request_waits(green, emulator, redis_server):
    """Nothing blocks the thread that all greenlets share."""
    needs(green)
    redis_server.hang()
    code = """
    import threading
    from kombu import Exchange
    from kombu_cfqueues.errors import ControlUnavailable
    ticks = []
    def tick():
        while True:
            ticks.append(1)
            time.sleep(0.01)
    threading.Thread(target=tick, daemon=True).start()
    connection = connect()
    exchange = Exchange("news", type="fanout")
    try:
        connection.Producer().publish("x", exchange=exchange, declare=[exchange])
    except ControlUnavailable:
        print(len(ticks))
    """
    try:
        with Script(code, emulator.broker_url, {"control_url": redis_server.url}, green=green) as s:
            (ticks,) = s.wait()
    finally:
        redis_server.go_on()
    assert ticks > 10


KILLED = """
import gc, signal, gevent
from kombu import Exchange
from kombu_cfqueues.errors import ControlUnavailable

connection = connect()
exchange = Exchange("news", type="fanout", durable=False)

def publish(text):
    connection.Producer().publish(text, exchange=exchange, declare=[exchange])

def kill_all():
    gevent.killall([one for one in gc.get_objects() if isinstance(one, gevent.Greenlet)
                    and one is not gevent.getcurrent()])

publish("before")
os.kill({server}, signal.SIGSTOP)
gevent.spawn_later(0.2, kill_all)
try:
    publish("lost")
    print(json.dumps("delivered"))
except ControlUnavailable as error:
    print(json.dumps(error.delivered))
finally:
    os.kill({server}, signal.SIGCONT)
publish("after")
print(json.dumps("after"))
"""


def test_a_publish_whose_greenlets_are_killed_is_an_error(emulator, redis_server):
    """The broker has not confirmed it.  The next publish finds a new connection."""
    needs("gevent")
    code = KILLED.format(server=redis_server.pid)
    options = {"control_url": redis_server.url}
    with Script(code, emulator.broker_url, options, green="gevent") as script:
        assert script.wait() == ["unknown", "after"]
