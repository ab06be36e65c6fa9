"""Publishing beside a process that keeps the spool's file busy, or on a disk that is full.

A process may be stopped while it writes: by a debugger, by a full cgroup, by ``kill -STOP``.  What
others publish then is late, or is refused, but their calls end when they said that they would.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from kombu import Connection
from support.processes import Script, eventually
from support.publishers import held

from kombu_cfqueues import errors

SLACK = 1.5
"""Seconds by which a call may be late on a busy machine."""


SERVER = {"latency": 0.02}


@pytest.fixture
def limited(tmp_path):
    """Three requests a second, so that a second publish has to wait in the file."""
    return {"request_rate": 3.0, "request_burst": 2, "spool_dir": str(tmp_path / "spool")}


@pytest.fixture
def spooling(limited):
    return limited | {"publish_mode": "spool"}


def bodies(server):
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages("jobs")]


def file_of(options) -> Path:
    """The database, as anybody finds it on the disk."""
    (path,) = Path(options["spool_dir"]).glob("*.db")
    return path


class Writer:
    """Another program that has begun to write, and stands still."""

    def __init__(self, options):
        self._connection = sqlite3.connect(
            file_of(options), isolation_level=None, timeout=30, check_same_thread=False
        )

    def begin(self):
        self._connection.execute("BEGIN IMMEDIATE")

    def end(self):
        with contextlib.suppress(sqlite3.ProgrammingError):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._connection.close()

    def __enter__(self):
        self.begin()
        return self

    def __exit__(self, *_):
        self.end()


def attempt(producer, body, **given):
    """What a publish raised, if anything, and how many seconds it took."""
    started = time.monotonic()
    try:
        producer.publish(body, routing_key="jobs", serializer="json", **given)
    except errors.CFQueuesError as error:
        return error, time.monotonic() - started
    return None, time.monotonic() - started


# -- while another process writes


@pytest.mark.parametrize("timeout", [0.2, 1.0])
def test_a_confirmed_publish_ends_in_time_while_the_file_is_busy(server, limited, timeout):
    """``timeout=1`` is a second, whatever another process does to the file."""
    with Connection(server.broker_url, transport_options=limited) as connection:
        producer = connection.Producer()
        producer.publish("first", routing_key="jobs", serializer="json")
        with Writer(limited):
            error, seconds = attempt(producer, "busy", timeout=timeout)
        if error is not None:
            assert isinstance(error, errors.PublishTimeout)
            assert (error.delivered == "no") >= ("busy" in bodies(server))
    assert seconds < timeout + SLACK


@pytest.mark.parametrize("given", ["timeout", "publish_timeout"])
def test_a_spooled_publish_ends_in_time_while_the_file_is_busy(server, spooling, given):
    """A web request that has a second for it does not take five."""
    option, argument = (
        ({"publish_timeout": 1.0}, {}) if given == "publish_timeout" else ({}, {"timeout": 1.0})
    )
    with Connection(server.broker_url, transport_options=spooling | option) as connection:
        producer = connection.Producer()
        producer.publish("first", routing_key="jobs", serializer="json")
        assert eventually(lambda: bodies(server) == ["first"])
        with Writer(spooling):
            error, seconds = attempt(producer, "busy", **argument)
        assert isinstance(error, (errors.SpoolUnavailable, errors.PublishTimeout))
        assert error.delivered == "no"
        assert seconds < 1.0 + SLACK
        producer.publish("last", routing_key="jobs", serializer="json")
        assert eventually(lambda: "last" in bodies(server))
    assert "busy" not in bodies(server)


def test_threads_that_publish_at_the_same_time_each_end_in_time_while_the_file_is_busy(
    server, limited
):
    """The second of them waits for the first, and the last for all: none longer than it said."""
    with Connection(server.broker_url, transport_options=limited) as connection:
        connection.Producer().publish("first", routing_key="jobs", serializer="json")
        results = []

        def publish(number):
            results.append(attempt(connection.clone().Producer(), number, timeout=1.0)[1])

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        with Writer(limited):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert max(results) < 1.0 + SLACK


def test_the_first_publish_of_a_process_ends_in_time_while_the_file_is_busy(server, limited):
    """It connects as well, for which it may take as long again."""
    with Connection(server.broker_url, transport_options=limited) as connection:
        connection.Producer().publish("first", routing_key="jobs", serializer="json")
        code = """
            from kombu_cfqueues import errors
            producer = connect(publish_timeout=1.0).Producer()
            started = time.monotonic()
            try:
                producer.publish("other", routing_key="jobs", serializer="json")
            except Exception as error:
                pass
            print(json.dumps(time.monotonic() - started))
        """
        with Writer(limited), Script(code, server.broker_url, limited) as script:
            seconds = script.line()
            script.kill()
    assert seconds < 2 * 1.0 + SLACK


def test_a_publish_that_waits_for_a_permit_ends_in_time_when_the_file_becomes_busy(server, limited):
    """The permit would have come a second before its deadline, and nobody can take it."""
    slow = limited | {"request_rate": 0.25, "request_burst": 1}
    with Connection(server.broker_url, transport_options=slow) as connection:
        connection.connect()  # which takes the one permit
        producer = connection.Producer()
        results = []
        thread = threading.Thread(
            target=lambda: results.append(attempt(producer, "late", timeout=5.0))
        )
        thread.start()
        assert eventually(lambda: held(server.broker_url, slow["spool_dir"])["confirmed"], 3)
        with Writer(slow):
            thread.join()
        [(error, seconds)] = results
    assert isinstance(error, errors.PublishTimeout)
    assert seconds < 5.0 + SLACK


# -- what becomes of an answer that cannot be noted


def when_posted(server, limited, act, publish):
    """Publish what has to wait in the file; *act* once its request has reached the server."""
    with Connection(server.broker_url, transport_options=limited) as connection:
        producer = connection.Producer()
        for _ in range(3):  # what was saved up is spent
            producer.publish("first", routing_key="jobs", serializer="json")
        posts = len(server.requests.of("push", "batch"))
        server.latency = 0.5
        result = []
        thread = threading.Thread(target=lambda: result.append(publish(producer)))
        thread.start()
        assert eventually(lambda: len(server.requests.of("push", "batch")) > posts, 20)
        act()
        thread.join()
        return result[0]


def test_an_accepted_message_is_confirmed_although_the_file_has_become_busy(server, limited):
    """Cloudflare has said yes; that nobody can note it is no reason to wait, or to doubt."""
    with contextlib.ExitStack() as stack:
        error, seconds = when_posted(
            server,
            limited,
            act=lambda: stack.enter_context(Writer(limited)),
            publish=lambda producer: attempt(producer, "sent", timeout=6.0),
        )
    assert "sent" in bodies(server)
    assert error is None
    assert seconds < 3.0


FULL_DISK = """
    # The files of this process may grow no further, as on a disk that is full.
    import resource, signal, threading
    from pathlib import Path
    from kombu_cfqueues import errors
    producer = connect(request_rate=0.7, request_burst=1).Producer()
    producer.connection.connect()  # which takes the one permit
    def fill():
        sys.stdin.readline()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    threading.Thread(target=fill, daemon=True).start()
    print(0, flush=True)
    started, said = time.monotonic(), None
    try:
        producer.publish("sent", routing_key="jobs", serializer="json", timeout=6.0)
    except errors.CFQueuesError as error:
        said = error.delivered
    print(json.dumps([time.monotonic() - started, said]), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""


def test_an_accepted_message_is_confirmed_although_the_disk_has_become_full(server, limited):
    """Six seconds are six seconds, also where the outcome cannot be written down."""
    with Script(FULL_DISK, server.broker_url, limited) as script:
        server.latency = 0.5
        script.line()
        assert eventually(lambda: len(server.requests.of("push", "batch")) == 1, 20)
        script.go()
        seconds, said = script.line()
        script.wait()
    assert "sent" in bodies(server)
    assert said is None
    assert seconds < 3.0


# -- promises that many keep

KEEPERS = """
    producer, kept = connect().Producer(), []

    def used_cpu(seconds):  # what this process has used, whatever else the machine does
        began, cpu = time.monotonic(), time.process_time()
        time.sleep(seconds)
        return (time.process_time() - cpu) / (time.monotonic() - began)

    def keep(count):
        for number in range(count):
            kept.append(producer.publish(number, routing_key="jobs", serializer="json"))

    keep(100)
    few = used_cpu(2)
    keep(8_000)
    many = used_cpu(3)
    print(json.dumps([few, many, sum(promise.ready for promise in kept)]), flush=True)
    os._exit(0)  # what is left is nobody's
"""


@pytest.mark.long
def test_thousands_of_kept_promises_cost_an_idle_process_next_to_nothing(server, spooling):
    """A web server that collects them through an outage has its CPU for its requests."""
    with server.outage(), Script(KEEPERS, server.broker_url, spooling) as script:
        few, many, kept = script.line()
    print(f"CPU with 100 promises: {few:.2%}, with 8,100: {many:.2%}")
    assert kept == 0
    assert many < few + 0.02
