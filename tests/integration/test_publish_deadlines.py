"""What ``publish_timeout`` means: nobody waits in vain, and nobody gives up while there is time.

The allowance of a process (``budget_scope="process"``) and that of the machine (``"host"``, the
default) keep the same promises.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kombu import Connection, Exchange, Producer, Queue
from support.processes import Script

from kombu_cfqueues import errors

SCOPES = ["process", "host"]

NO_BATCHES = pytest.mark.skipif(
    not hasattr(Producer, "batch"), reason="Producer.batch() came with Kombu 5.7"
)

AT_ONCE = 2.0
"""Seconds within which a publish that cannot succeed has to say so, on a busy machine too."""

PATIENCE = 6.0
"""``publish_timeout`` of those who must not need it."""

SHORT = 2.0
"""``publish_timeout`` of those who do not get what they ask for."""

FANOUT = Exchange("to-all", "fanout")

SERVER = {"latency": 0.02}


@pytest.fixture
def folder(tmp_path):
    return {"spool_dir": str(tmp_path / "spool")}


def bodies(server, queue="jobs"):
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages(queue)]


def posts(server):
    return server.requests.of("push", "batch")


def attempt(call, *args, **kwargs):
    """What a call raised, if anything, and how many seconds it took."""
    started = time.monotonic()
    try:
        call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  it is looked at
        return error, time.monotonic() - started
    return None, time.monotonic() - started


def at_the_same_time(calls):
    """Call each in a thread of its own; return what each came to."""
    ready = threading.Barrier(len(calls))

    def run(call):
        ready.wait()
        return attempt(call)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def publishing(connection, body, queue="jobs", **given):
    """A publish over a connection of its own."""
    producer = connection.clone().Producer()
    return lambda: producer.publish(body, routing_key=queue, serializer="json", **given)


def the_truth_at_once(error, seconds):
    assert isinstance(error, errors.PublishTimeout)
    assert error.delivered == "no"
    assert seconds < AT_ONCE


# -- what cannot be in time


def spent(server, options):
    """A connection whose next permit comes in 20 seconds."""
    scarce = {"request_rate": 0.05, "request_burst": 2, "publish_timeout": PATIENCE}
    connection = Connection(server.broker_url, transport_options=scarce | options)
    connection.Producer().publish("first", routing_key="jobs")  # the other permit has connected
    server.requests.clear()
    return connection


@pytest.mark.parametrize("scope", SCOPES)
def test_nobody_waits_for_a_permit_that_comes_after_the_deadline(server, folder, scope):
    """Nine threads of a web server learn within moments that the allowance is used up."""
    with spent(server, folder | {"budget_scope": scope}) as connection:
        results = at_the_same_time([publishing(connection, number) for number in range(9)])
    for error, seconds in results:
        the_truth_at_once(error, seconds)
    assert len(server.requests) == 0


@pytest.mark.parametrize("scope", SCOPES)
def test_a_short_timeout_of_one_publish_counts_as_well(server, folder, scope):
    """``timeout=3`` is a deadline like any other: three seconds are no better than one."""
    options = folder | {"budget_scope": scope, "publish_timeout": 60.0}
    with spent(server, options) as connection:
        error, seconds = attempt(publishing(connection, 1, timeout=3.0))
    the_truth_at_once(error, seconds)


@pytest.mark.parametrize("scope", SCOPES)
@NO_BATCHES
def test_a_batch_does_not_wait_for_a_permit_that_comes_after_the_deadline(server, folder, scope):
    with spent(server, folder | {"budget_scope": scope}) as connection:
        producer = connection.Producer()

        def publish_batch():
            with producer.batch():
                for number in range(250):
                    producer.publish(number, routing_key="jobs")

        error, seconds = attempt(publish_batch)
    assert len(error.refused) == 250
    assert {outcome.error.delivered for outcome in error.refused} == {"no"}
    assert seconds < AT_ONCE


@pytest.mark.parametrize("scope", SCOPES)
def test_a_look_up_does_not_wait_for_a_permit_that_comes_after_the_deadline(server, folder, scope):
    """The queue is new to the process, so its id is asked for first."""
    with spent(server, folder | {"budget_scope": scope}) as connection:
        error, seconds = attempt(publishing(connection, 1, queue="new"))
    the_truth_at_once(error, seconds)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_question_about_a_queue_does_not_wait_for_a_permit_that_comes_too_late(
    server, folder, scope
):
    with spent(server, folder | {"budget_scope": scope}) as connection:
        queue = connection.SimpleQueue("jobs")
        error, seconds = attempt(queue.qsize)
    assert isinstance(error, errors.RateLimited)
    assert seconds < AT_ONCE


# -- calls that make several requests


@pytest.mark.parametrize(
    ("routes", "call"),
    [
        (("metrics", "delete"), lambda c: c.default_channel.queue_delete("empty", if_empty=True)),
        (("list", "metrics"), lambda c: c.default_channel.queue_declare("unknown", passive=True)),
        (("push", "batch"), lambda c: c.Producer(exchange=FANOUT).publish("x")),
    ],
    ids=["queue_delete", "queue_declare", "publish"],
)
def test_several_requests_of_one_call_share_its_time(server, folder, routes, call):
    """Each alone would be in time.  All together take no longer than one may."""
    for name in ("more", "empty"):
        server.create_queue(name)
    with Connection(server.broker_url, transport_options=folder) as connection:
        for name in ("jobs", "more"):
            Queue(name, FANOUT, channel=connection.default_channel).declare()
        connection.Producer(exchange=FANOUT).publish("x")
    server.create_queue("unknown")  # so its id has to be looked up
    server.faults.latency(*routes, seconds=0.75 * SHORT)
    options = folder | {"publish_timeout": SHORT}
    with Connection(server.broker_url, transport_options=options) as connection:
        connection.connect()
        error, seconds = attempt(call, connection)
    assert isinstance(error, errors.CFQueuesError)
    assert seconds < 1.3 * SHORT


def test_a_process_that_finds_the_machines_permits_spent_says_so_at_once(server, folder):
    """Whoever has spent them: the process itself has not sent a request."""
    scarce = {"request_rate": 0.05, "request_burst": 2, "publish_timeout": PATIENCE}
    other = Script(
        """
        from kombu_cfqueues import errors
        producer = connect().Producer()
        connection = producer.connection
        connection.connect()
        print(0, flush=True)
        sys.stdin.readline()
        started = time.monotonic()
        try:
            producer.publish(1, routing_key="jobs")
        except errors.CFQueuesError as error:
            print(json.dumps([time.monotonic() - started, error.delivered]))
        """,
        server.broker_url,
        scarce | folder,
    )
    with other:
        other.line()
        with Connection(server.broker_url, transport_options=scarce | folder) as connection:
            connection.Producer().publish("first", routing_key="jobs")
            server.requests.clear()
            other.go()
            [[seconds, delivered]] = other.wait()
    assert delivered == "no"
    assert seconds < AT_ONCE
    assert len(server.requests) == 0


def generous(scope, folder):
    return folder | {
        "budget_scope": scope,
        "request_rate": 50.0,
        "request_burst": 20,
        "publish_timeout": PATIENCE,
    }


@pytest.mark.parametrize("scope", SCOPES)
def test_nobody_waits_for_a_queue_that_takes_nothing_until_after_the_deadline(
    server, folder, scope
):
    """The server says how long the queue is stopped; the others are not held up."""
    server.create_queue("other")
    with Connection(server.broker_url, transport_options=generous(scope, folder)) as connection:
        publishing(connection, "first")()
        server.faults.error("push", "batch", status=429, code=10250, retry_after=100)
        the_truth_at_once(*attempt(publishing(connection, 1)))
        server.requests.clear()
        for error, seconds in at_the_same_time([publishing(connection, n) for n in (2, 3, 4)]):
            the_truth_at_once(error, seconds)
        assert len(server.requests) == 0
        publishing(connection, "open", queue="other")()
    assert bodies(server, "other") == ["open"]


@pytest.mark.parametrize("scope", SCOPES)
def test_nobody_waits_for_a_server_that_asks_to_wait_until_after_the_deadline(
    server, folder, scope
):
    """503 with ``Retry-After: 100``: maintenance, and no case for patience."""
    with Connection(server.broker_url, transport_options=generous(scope, folder)) as connection:
        publishing(connection, "first")()
        server.faults.error("push", "batch", status=503, retry_after=100, times=None)
        error, seconds = attempt(publishing(connection, 1))
        assert isinstance(error, errors.PublishTimeout)
        assert seconds < AT_ONCE


# -- what can still be in time


class Outage:
    """The server fails each publish, from the first one on, for so many seconds."""

    def __init__(self, server, seconds, *routes, **fault):
        self.server = server
        self.seconds = seconds
        self.routes = routes or ("push", "batch")
        self.fault = {"status": 503, "times": None} | fault

    def __enter__(self):
        self.server.faults.error(*self.routes, **self.fault)
        self._timer = threading.Timer(self.seconds, self.server.faults.clear)
        self._timer.start()
        return self

    def __exit__(self, *_):
        self._timer.join()


QUEUES = [f"queue-{number:02d}" for number in range(32)]


@pytest.mark.parametrize("seconds", [2.5, 4.0], ids=["half of the time", "4 of 5 s"])
def test_an_outage_that_ends_before_the_deadline_fails_no_publish(server, folder, seconds):
    """However long the pauses between tries have grown, there is a last one in time.

    Each queue has tries, and pauses, of its own.
    """
    options = folder | {"publish_timeout": 5.0, "budget_scope": "process"}
    for name in QUEUES:
        server.create_queue(name)
    with Connection(server.broker_url, transport_options=options) as connection:
        calls = [publishing(connection, 1, queue=name) for name in ["jobs", *QUEUES]]
        for call in calls:  # all are connected, and know their queues
            call()
        with Outage(server, seconds):
            results = at_the_same_time(calls)
    raised = [f"after {took:.1f} s: {error}" for error, took in results if error]
    assert not raised


@pytest.mark.parametrize("scope", SCOPES)
def test_one_slow_answer_moves_no_last_try(server, folder, scope):
    """It says nothing of the next one, to whichever queue that goes."""
    server.create_queue("other")
    options = folder | {"publish_timeout": 5.0, "budget_scope": scope}
    with Connection(server.broker_url, transport_options=options) as connection:
        publishing(connection, 1)()
        server.faults.latency("push", "batch", seconds=1.5, times=1)
        publishing(connection, 2, queue="other")()
        with Outage(server, 4.0):
            publishing(connection, 3, queue="other")()
    assert bodies(server, "other") == [2, 3]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_slow_first_request_moves_no_last_try(server, folder, scope):
    """It has loaded the HTTP client and connected, on a machine where many processes start."""
    options = folder | {"publish_timeout": 5.0, "budget_scope": scope}
    with Connection(server.broker_url, transport_options=options) as connection:
        server.faults.latency("push", "batch", seconds=2.6, times=1)
        publishing(connection, 1)()
        with Outage(server, 3.0):
            publishing(connection, 2)()
    assert bodies(server) == [1, 2]


@pytest.mark.parametrize("limit", [(60.0, 30), (4.0, 60)], ids=["wide", "as at Cloudflare"])
def test_an_outage_that_ends_before_the_deadline_fails_no_process_of_a_machine(
    server, folder, limit
):
    """Twelve processes share the machine's allowance.  Each has its last try, or is in another's:
    at Cloudflare's rate there is no permit for each of them after the outage."""
    rate, burst = limit
    options = folder | {"publish_timeout": 6.0, "request_rate": rate, "request_burst": burst}
    script = Script(
        """
        connection = connect()
        starts, begin = os.pipe()

        def say(what):  # in one piece, as twelve processes say something
            os.write(1, json.dumps(what).encode() + b"\\n")

        def work(child):
            os.close(begin)
            producer = connection.clone().Producer()
            producer.publish(-1, routing_key="jobs", timeout=60)
            say("ready")
            os.read(starts, 1)
            started, said = time.monotonic(), ""
            try:
                producer.publish(child, routing_key="jobs")
            except Exception as error:
                said = str(error)
            say([round(time.monotonic() - started, 1), said])

        children = []
        for child in range(12):
            pid = os.fork()
            if pid == 0:
                try:
                    work(child)
                    os._exit(0)
                except BaseException as error:
                    say(repr(error))
                finally:
                    os._exit(1)
            children.append(pid)
        sys.stdin.readline()
        os.write(begin, b"." * 12)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 12
        """,
        server.broker_url,
        options,
    )
    with script:
        assert [script.line() for _ in range(12)] == ["ready"] * 12
        with Outage(server, 4.0):
            script.go()
            results = script.wait()
    assert [result for result in results if result[1]] == []
    assert set(bodies(server)) == {-1, *range(12)}


@pytest.mark.parametrize("scope", SCOPES)
def test_an_outage_that_ends_before_the_deadline_fails_no_look_up(server, folder, scope):
    """The first publish to a queue asks for its id; those tries have the same time.

    The longest pause leaves four seconds in which a busy machine looks up and creates them all.
    """
    options = generous(scope, folder) | {"publish_timeout": 20.0}
    with Connection(server.broker_url, transport_options=options) as connection:
        publishing(connection, "first")()
        calls = [publishing(connection, 1, queue=f"new-{number}") for number in range(12)]
        with Outage(server, 6.0, "list", "create"):
            results = at_the_same_time(calls)
    raised = [f"after {took:.1f} s: {error}" for error, took in results if error]
    assert not raised


@NO_BATCHES
@pytest.mark.parametrize("scope", SCOPES)
def test_an_outage_that_ends_before_the_deadline_fails_no_batch(server, folder, scope):
    """Eight threads, each with a batch for a queue of its own."""
    options = generous(scope, folder) | {"publish_timeout": 5.0}
    names = QUEUES[:8]
    with Connection(server.broker_url, transport_options=options) as connection:
        for name in names:
            server.create_queue(name)
            publishing(connection, "first", queue=name)()

        def batch_to(name):
            producer = connection.clone().Producer()

            def publish_batch():
                with producer.batch():
                    for number in range(20):
                        producer.publish(number, routing_key=name)

            return publish_batch

        calls = [batch_to(name) for name in names]
        with Outage(server, 4.0):
            results = at_the_same_time(calls)
    raised = [f"after {took:.1f} s: {error}" for error, took in results if error]
    assert not raised
