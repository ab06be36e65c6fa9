"""``publish_mode="spool"``: accepted by this machine's disk, delivered from there."""

import contextlib
import importlib.util
import itertools
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kombu import Connection, Producer
from support.forms import first_of
from support.processes import ROOT, Script, eventually

from kombu_cfqueues import errors
from kombu_cfqueues.account import Account
from kombu_cfqueues.emulator import ACCOUNT_ID, TOKEN, Emulator
from kombu_cfqueues.errors import BatchPublishError

BUSY = 3.0
"""Seconds for which another process writes; less than after which it would be taken for stuck."""


@pytest.fixture
def spooling(tmp_path):
    return {
        "publish_mode": "spool",
        "request_rate": 20.0,
        "request_burst": 2,
        "spool_dir": str(tmp_path / "spool"),
    }


@pytest.fixture
def server():
    with Emulator(latency=0.03) as emulator:
        yield emulator


@pytest.fixture
def port():
    """A port that nothing listens on, yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def bodies(server, queue="jobs"):
    if queue not in server.queue_names():
        return []
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages(queue)]


def listing(connection):
    return connection.transport.session.account.publisher.relay._spool.listing


def publish(connection, body, **given):
    return connection.Producer().publish(body, routing_key="jobs", serializer="json", **given)


# -- promises


def test_a_publish_returns_from_the_disk_and_the_message_arrives(server, spooling):
    with Connection(server.broker_url, transport_options=spooling) as connection:
        with server.outage():  # nobody could answer
            promise = publish(connection, {"a": 1})
            assert not promise.ready
        assert eventually(lambda: promise.ready)
        assert bodies(server) == [{"a": 1}]


def test_messages_that_are_spooled_together_share_requests(server, spooling):
    server.create_queue("jobs")
    server.latency = 0.1  # seconds; meanwhile the next messages gather, on a slow machine too
    with Connection(server.broker_url, transport_options=spooling) as connection:
        with server.outage():
            for number in range(300):
                publish(connection, number)
            server.requests.clear()
        assert eventually(lambda: len(bodies(server)) == 300)
    assert sorted(bodies(server)) == list(range(300))
    assert len(server.requests) < 10


def test_a_process_that_starts_in_an_outage_publishes_at_once(port, spooling):
    """No connection, no look-up: the disk is all that it needs."""
    url = f"cfqueues://{ACCOUNT_ID}:{TOKEN}@127.0.0.1:{port}/"
    with Connection(url, transport_options=spooling) as connection:
        for number in range(10):
            publish(connection, number)
        with Emulator(port=port) as server:
            assert eventually(lambda: len(bodies(server)) == 10)


def test_countdown_runs_on_through_an_outage(server, spooling):
    """Ten minutes later the 90 seconds are over: it is delivered at once, not 90 s later."""
    server.create_queue("jobs")
    with Connection(server.broker_url, transport_options=spooling) as connection:
        with server.outage():
            publish(connection, "late", delay_seconds=90)
            publish(connection, "later", delay_seconds=900)
            file = connection.transport.session.account.publisher.relay._spool._file
            # Ten minutes pass, as the wall clock counts them: for all that nobody holds just now.
            pass_by = "UPDATE message SET due = due - 600, alone = 0 WHERE state = 0 AND alone = 1"
            left = 2
            while left:
                left -= file.write(lambda c: c.execute(pass_by).rowcount)
        assert eventually(lambda: len(bodies(server)) == 2)
    delays = {
        json.loads(json.loads(m.body)["body"]): m.delay_seconds for m in server.messages("jobs")
    }
    assert delays["late"] == 0
    assert 290 <= delays["later"] <= 300


def test_what_expires_in_the_spool_is_dropped_with_a_word(server, spooling, caplog):
    with Connection(server.broker_url, transport_options=spooling) as connection:
        with server.outage(), caplog.at_level(logging.WARNING):
            publish(connection, "stale", expiration=0.2)
            publish(connection, "fresh")
            time.sleep(0.3)
        assert eventually(lambda: bodies(server) == ["fresh"])
    assert "1 spooled messages to queue 'jobs' expired" in caplog.text


@pytest.mark.skipif(not hasattr(Producer, "batch"), reason="Producer.batch() came with Kombu 5.7")
def test_a_batch_is_on_the_disk_as_a_whole_or_not_at_all(server, spooling):
    options = spooling | {"spool_max_bytes": 100_000}
    with Connection(server.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        with server.outage():
            with producer.batch():
                for number in range(20):
                    producer.publish(number, routing_key="jobs")
            collected = producer.batch()
            collected.__enter__()
            for number in range(900):
                producer.publish(["x" * 100, number], routing_key="jobs")
            with pytest.raises(
                BatchPublishError, match="0 were accepted, 900 certainly"
            ) as refused:
                collected.__exit__(None, None, None)
            assert isinstance(refused.value.__cause__, errors.SpoolFull)
            with pytest.raises(errors.SpoolFull):
                publish(connection, "x" * 100_000)
        assert eventually(lambda: sorted(bodies(server)) == list(range(20)))


def test_where_nothing_can_hold_the_spool_publishing_says_so(server, spooling, tmp_path):
    (tmp_path / "no").write_text("in the way")
    options = spooling | {"spool_dir": str(tmp_path / "no")}
    with (
        Connection(server.broker_url, transport_options=options) as connection,
        pytest.raises(errors.SpoolUnavailable, match="no cannot be used"),
    ):
        publish(connection, 1)


# -- what the server has against it


def test_where_no_thread_can_be_started_messages_wait_for_the_next_publish(
    server, spooling, monkeypatch
):
    """They are on the disk, so that is no failure of the publish."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    with Connection(server.broker_url, transport_options=spooling) as connection:
        with monkeypatch.context() as scarce:
            scarce.setattr("threading.Thread.start", start)
            publish(connection, 1)
        publish(connection, 2)
        assert eventually(lambda: sorted(bodies(server)) == [1, 2])


def test_a_refused_message_is_kept_for_a_decision(server, spooling, caplog):
    server.faults.refuse_messages(lambda body: "wrong" in body)
    with Connection(server.broker_url, transport_options=spooling) as connection:
        with caplog.at_level(logging.ERROR):
            promises = [publish(connection, word) for word in ("good", "wrong", "fine")]
            assert eventually(lambda: all(p.ready or p.failed for p in promises))
        assert [p.failed for p in promises] == [False, True, False]
        assert isinstance(promises[1].reason, errors.InvalidMessage)
        assert sorted(bodies(server)) == ["fine", "good"]
        assert len([r for r in caplog.records if "were refused" in r.getMessage()]) == 1
        (refused,) = listing(connection).refused()
        assert (refused.queue, refused.code) == ("jobs", 10203)

        server.faults.clear()
        assert listing(connection).retry([refused.id]) == 1
        publish(connection, "next")
        assert eventually(lambda: "wrong" in bodies(server))
        assert listing(connection).refused() == []


def test_what_a_revoked_token_cannot_send_waits_for_the_next_one(server, spooling):
    """Rotating a token strands no message."""
    revoked = server.broker_url.replace(server.token, "revoked")
    with Connection(revoked, transport_options=spooling) as connection:
        publish(connection, "waits")
        found = listing(connection)
        assert eventually(lambda: any(queue.why for queue in found.queues()))
        (queue,) = found.queues()
        assert (queue.waiting + queue.sending, queue.refused) == (1, 0)
        assert "revoked" not in queue.why.replace("may have been revoked", "")
        with Connection(server.broker_url, transport_options=spooling) as rotated:
            publish(rotated, "with the new token")
            assert eventually(lambda: len(bodies(server)) == 2)


def test_a_token_from_a_callable_may_change_while_messages_wait(server, spooling):
    tokens = ["revoked"]
    options = spooling | {"api_token": lambda: tokens[-1]}
    url = server.broker_url.replace(f":{server.token}@", "@")
    with Connection(url, transport_options=options) as connection:
        publish(connection, "waits")
        found = listing(connection)
        assert eventually(lambda: any(queue.why for queue in found.queues()))
        tokens.append(server.token)
        assert eventually(lambda: bodies(server) == ["waits"])


def test_a_queue_that_is_deleted_while_messages_wait_is_made_again(server, spooling):
    server.create_queue("jobs")
    with Connection(server.broker_url, transport_options=spooling) as connection:
        publish(connection, 1)
        assert eventually(lambda: bodies(server) == [1])
        connection.transport.session.account.client.delete_queue(
            server.queue_id("jobs"), deadline=time.monotonic() + 5
        )
        publish(connection, 2)
        assert eventually(lambda: bodies(server) == [2])


def test_messages_to_a_queue_that_is_missing_wait_until_it_is_there(server, spooling):
    options = spooling | {"create_missing_queues": False}
    with Connection(server.broker_url, transport_options=options) as connection:
        publish(connection, 1)
        connection.Producer().publish(2, routing_key="other")
        server.create_queue("other")
        assert eventually(lambda: bodies(server, "other") == [2])
        found = listing(connection)
        assert eventually(lambda: any("does not exist" in (q.why or "") for q in found.queues()))
        server.create_queue("jobs")
        assert eventually(lambda: bodies(server) == [1], 120)


# -- processes


SPOOL_AND_WAIT = """
    producer = connect().Producer()
    for number in range(int(OPTIONS.get("count", 10))):
        producer.publish([os.getpid(), number], routing_key="jobs")
        print(json.dumps([os.getpid(), number]), flush=True)
    time.sleep(60)
"""


@pytest.mark.long
def test_what_killed_processes_have_spooled_arrives_by_the_next_one(server, spooling):
    """``kill -9`` of all at any moment: nothing is lost, and at most a batch is sent twice."""
    told = []
    for _ in range(3):
        options = spooling | {"count": 100_000}
        with contextlib.ExitStack() as stack:
            scripts = [
                stack.enter_context(Script(SPOOL_AND_WAIT, server.broker_url, options))
                for _ in range(3)
            ]
            told += [script.line() for script in scripts]
            time.sleep(0.3)
            for script in scripts:
                script.process.kill()
            for script in scripts:
                out, _ = script.process.communicate()
                told += [json.loads(line) for line in out.splitlines() if line.endswith("]")]
    with relay(server, spooling) as process:
        expected = {tuple(body) for body in told}
        assert eventually(lambda: {tuple(body) for body in bodies(server)} >= expected)
        assert stop(process) == 0
    arrived = [tuple(body) for body in bodies(server)]
    # What was on the disk when its publisher was killed, before it could say so, arrives too.
    assert len(arrived) - len(set(arrived)) <= 3 * 100


def test_a_process_that_ends_delivers_first_if_it_can(server, spooling):
    script = Script(
        """
        from kombu_cfqueues.publish import relay
        relay.RELAY_EXIT_SECONDS = 60.0  # this machine may be slow
        producer = connect().Producer()
        for number in range(250):
            producer.publish(number, routing_key="jobs")
        """,
        server.broker_url,
        spooling,
    )
    with script:
        script.wait()
    assert sorted(bodies(server)) == list(range(250))


def test_a_process_that_ends_in_an_outage_ends_soon_and_loses_nothing(port, spooling):
    url = f"cfqueues://{ACCOUNT_ID}:{TOKEN}@127.0.0.1:{port}/"
    script = Script(
        """
        from kombu_cfqueues.publish import relay
        relay.RELAY_EXIT_SECONDS = 600.0  # not used up where nothing succeeds
        connect().Producer().publish(1, routing_key="jobs")
        """,
        url,
        spooling,
    )
    with script:
        script.wait()
    with Emulator(port=port) as server, relay(server, spooling) as process:
        assert eventually(lambda: bodies(server) == [1])
        assert stop(process) == 0


@pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "each for itself"])
def test_forked_workers_publish_each_with_a_thread_of_its_own(server, spooling, preload):
    """gunicorn with and without --preload: the parent may have published before it forks."""
    script = Script(
        f"""
        if {preload}:
            parent = connect()
            parent.Producer().publish(["parent", 0], routing_key="jobs")
        for worker in range(4):
            if os.fork() == 0:
                connection = parent if {preload} else connect()
                producer = connection.Producer()
                for number in range(5):
                    producer.publish([worker, number], routing_key="jobs")
                time.sleep(2)
                os._exit(0)
        for worker in range(4):
            os.wait()
        """,
        server.broker_url,
        spooling,
    )
    with script:
        script.wait()
    expected = [[worker, number] for worker in range(4) for number in range(5)]
    arrived = [body for body in bodies(server) if body[0] != "parent"]
    assert sorted(arrived) == expected


def test_an_idle_process_does_no_io(server, spooling):
    """A thousand idle workers of a machine cost nothing."""
    script = Script(
        """
        promise = connect().Producer().publish(1, routing_key="jobs")
        while not promise.ready:
            time.sleep(0.01)
        del promise
        time.sleep(0.5)
        def calls():
            return [int(line.split()[1]) for line in open("/proc/self/io") if "sysc" in line]
        calls()
        looks = [calls()]
        for _ in range(3):
            time.sleep(1)
            looks.append(calls())
        print(json.dumps(looks))
        """,
        server.broker_url,
        spooling,
    )
    if not Path("/proc/self/io").exists():
        pytest.skip("this system does not count")
    with script:
        [looks] = script.wait()
    # Each look at the counters is a few calls itself; a slow machine may still have been at work
    # during the first.
    between = [max(b - a for a, b in zip(*two, strict=True)) for two in itertools.pairwise(looks)]
    assert min(between) <= 6


HEARTBEAT = """
    import sqlite3, threading
    late, stop = [0.0], []
    def waited_for_a_cpu():
        try:
            with open("/proc/thread-self/schedstat") as file:
                return int(file.read().split()[1]) / 1e9
        except OSError:
            return 0.0
    def beat():
        while not stop:
            due, waited = time.monotonic() + 0.01, waited_for_a_cpu()
            time.sleep(0.01)
            late[0] = max(late[0], time.monotonic() - due - waited_for_a_cpu() + waited)
    connection = connect()
    connection.Producer().publish(0, routing_key="jobs")
    path = connection.transport.session.account.publisher.relay.path
    print(json.dumps(str(path)), flush=True)
    sys.stdin.readline()
    heart = threading.Thread(target=beat)
    heart.start()
    def work(name):
        producer = connection.clone().Producer()
        for number in range(3):
            producer.publish([name, number], routing_key="jobs")
    workers = [threading.Thread(target=work, args=(name,)) for name in range(10)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    stop.append(1)
    heart.join()
    print(json.dumps(late[0]))
"""


@pytest.mark.parametrize(
    ("green", "mode"),
    first_of(
        [("gevent", "spool"), ("gevent", "confirm"), ("eventlet", "spool"), ("eventlet", "confirm")]
    ),
)
def test_a_file_that_is_busy_stops_no_greenlet(server, spooling, green, mode):
    """SQLite's own waiting sleeps in C, and a worker would miss its heartbeats."""
    if importlib.util.find_spec(green) is None:  # not imported: eventlet warns at each fork then
        pytest.skip(f"needs {green}")
    options = spooling | {"publish_mode": mode}
    with Script(HEARTBEAT, server.broker_url, options, green=green) as script:
        writer = sqlite3.connect(script.line(), isolation_level=None, timeout=30)
        writer.execute("BEGIN IMMEDIATE")
        script.go()
        time.sleep(BUSY)
        writer.execute("COMMIT")
        writer.close()
        [late] = script.wait()
    assert eventually(lambda: len(server.messages("jobs")) == 31)
    assert late < BUSY / 2, "the greenlets stood still for as long as the file was busy"


# -- the commands


@contextlib.contextmanager
def relay(server, spooling):
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from kombu_cfqueues.cli import main; main()",
            "relay",
            "--spool-dir",
            spooling["spool_dir"],
            "--request-rate",
            "20",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CFQUEUES_BROKER_URL": server.broker_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def stop(process) -> int:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    return process.returncode


def command(server, spooling, *arguments):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from kombu_cfqueues.cli import main; main()",
            "spool",
            "--spool-dir",
            spooling["spool_dir"],
            *arguments,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CFQUEUES_BROKER_URL": server.broker_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_relay_delivers_what_nobody_else_does(server, spooling):
    account = Account.open(
        Connection(server.broker_url, transport_options=spooling).transport.session.options
    )
    account.publisher._relay.notify = lambda: None  # as where threads cannot run
    with Connection(server.broker_url, transport_options=spooling) as connection:
        connection.transport.session.account.publisher._relay.promise = lambda rows: None
        for number in range(3):
            publish(connection, number)
        with relay(server, spooling) as process:
            assert eventually(lambda: sorted(bodies(server)) == [0, 1, 2])
            publish(connection, 3)
            assert eventually(lambda: sorted(bodies(server)) == [0, 1, 2, 3])
            assert stop(process) == 0
    account.close()


def test_the_spool_command_shows_and_decides(server, spooling):
    server.faults.refuse_messages(lambda body: "wrong" in body)
    with Connection(server.broker_url, transport_options=spooling) as connection:
        publish(connection, "wrong")
        found = listing(connection)
        assert eventually(found.refused)

    shown = command(server, spooling)
    assert "jobs: 1 refused" in shown
    assert "10203" in shown
    [refused] = json.loads(command(server, spooling, "--json"))["refused"]
    assert refused["queue"] == "jobs"
    assert server.token not in shown
    server.faults.error("push", "batch", status=503, times=None)  # so that the message waits
    assert "1 message will be sent again" in command(server, spooling, "retry", str(refused["id"]))
    assert "Deleted 0 messages" in command(server, spooling, "drop", "--all")
    server.faults.clear()
    server.faults.refuse_messages(lambda body: "wrong" in body)
    with Connection(server.broker_url, transport_options=spooling) as connection:
        publish(connection, "good")
        assert eventually(lambda: bodies(server) == ["good"])
        found = listing(connection)
        assert eventually(found.refused)
    assert "Deleted 1 message" in command(server, spooling, "drop", "--all")
    assert "No messages wait" in command(server, spooling)
