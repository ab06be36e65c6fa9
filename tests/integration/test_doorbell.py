"""A process that publishes wakes the consumers of the queue on its machine.

The consumers poll every five minutes here, so a message that comes at once was announced by a bell.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from kombu import Connection
from support.forms import first_of, long

import kombu_cfqueues
from kombu_cfqueues.consume.doorbell import MAX_PATH_BYTES
from tests.support.processes import Script, eventually, needs

from .consuming import Collector, consume, drain, nothing_comes, publish, settled

SOON = 20
"""Seconds: much on a busy machine, little for who polls every 300."""

CONSUME = """
from kombu import Queue

def tell(body, message):
    message.ack()
    print(json.dumps([body, time.time()]), flush=True)

connection = connect()
with connection.Consumer(queues=Queue("jobs"), callbacks=[tell]):
    while True:
        try:
            connection.drain_events(timeout=60)
        except TimeoutError:
            pass
"""

#: A child that inherits the socket, as one would that C code forks.
HELD = """
import socket, subprocess, threading
made, bind = [], socket.socket.bind

def noted(self, address):
    bind(self, address)
    if self.family == socket.AF_UNIX:  # urllib3 binds one of another kind
        made.append(self.fileno())

def hold():
    while not made:
        time.sleep(0.01)
    child = subprocess.Popen(["sleep", "60"], pass_fds=made, stdout=subprocess.DEVNULL)
    print(json.dumps(child.pid), flush=True)

socket.socket.bind = noted
threading.Thread(target=hold, daemon=True).start()
"""

FORK = """
import _socket, re, stat
from kombu import Queue

def bells():
    "How many sockets of doorbells this process has open."
    found = 0
    for fd in range(200):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                one = _socket.socket(fileno=os.dup(fd))  # which is never green
                found += bool(re.search(r"/\\d+-[0-9a-f]{16}$", str(one.getsockname())))
                one.close()
        except OSError:
            pass
    return found

connection = connect()
with connection.Consumer(queues=Queue("jobs"), callbacks=[print]):
    while not bells():
        try:
            connection.drain_events(timeout=0.1)
        except TimeoutError:
            pass
    child = os.fork()
    os.write(1, json.dumps(["parent" if child else "child", bells()]).encode() + b"\\n")
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
"""

PUBLISH = """
connection = connect()
sys.stdin.readline()
connection.Producer().publish("one", routing_key="jobs")
"""


@pytest.fixture
def options(tmp_path):
    """Transport options of a process that polls seldom."""
    return {"polling_interval": 300, "spool_dir": str(tmp_path / "spool")}


@pytest.fixture
def connection(server, options):
    with Connection(server.broker_url, transport_options=options) as connection:
        yield connection


def other(server) -> str:
    """Another URL of the same queues, as a gateway is."""
    assert "127.0.0.1" in server.broker_url
    return server.broker_url.replace("127.0.0.1", "localhost")


def pulls(server) -> int:
    return len(server.requests.of("pull"))


def listened_for(server, count=1) -> None:
    """Block until consumers have pulled, before which they listen for the doorbell."""
    assert eventually(lambda: pulls(server) >= count)


@contextmanager
def consumer(server, options, **given):
    """A process that consumes, and tells what it gets."""
    before = pulls(server)
    with Script(CONSUME, server.broker_url, options, **given) as script:
        listened_for(server, before + 1)
        yield script


def files(options) -> list[Path]:
    return [path for path in Path(options["spool_dir"]).rglob("*") if not path.is_dir()]


def rings(options) -> list[Path]:
    """The files of processes that listen."""
    return [path for path in files(options) if "doorbells" in path.parts]


# --- Who meets


@pytest.mark.parametrize("limit", [None, 100])
@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_an_idle_consumer_gets_what_another_process_publishes(server, options, limit, mode):
    """With and without a request limit, and from the spool, whose relay rings."""
    options |= {"request_rate": limit}
    with (
        consumer(server, options) as consumes,
        Connection(other(server), transport_options={**options, "publish_mode": mode}) as publishes,
    ):
        for body in ("one", "two", "three"):
            publish(publishes, body)
            began = time.monotonic()
            assert consumes.line()[0] == body
            assert time.monotonic() - began < SOON


@pytest.mark.parametrize("green", first_of(["gevent", "eventlet"]))
def test_greenlets_are_woken_and_ring(server, options, connection, green):
    needs(green)
    with consumer(server, options, green=green) as consumes:
        for body in ("one", "two"):
            publish(connection, body)
            assert consumes.line()[0] == body
    with Script(PUBLISH, server.broker_url, options, green=green) as publishes:
        got = Collector()
        with consume(connection, got):
            nothing_comes(connection, 0.1)
            publishes.go()
            drain(connection, 1, timeout=SOON)


def test_a_process_wakes_itself(server, connection):
    got = Collector()
    with consume(connection, got):
        nothing_comes(connection, 0.1)
        listened_for(server)
        publish(connection, "one")
        drain(connection, 1, timeout=SOON)
    assert got.bodies == ["one"]


def test_a_batch_and_queues_that_are_given_by_id_ring(server, options):
    options |= {"queues": {"jobs": server.queue_id("jobs")}}
    with Connection(server.broker_url, transport_options=options) as connection:
        got = Collector()
        with consume(connection, got), connection.Producer() as producer:
            nothing_comes(connection, 0.1)
            listened_for(server)
            with kombu_cfqueues.batch(producer.connection):
                for n in range(3):
                    producer.publish(n, routing_key="jobs")
            drain(connection, 3, timeout=SOON)
    assert sorted(got.bodies) == [0, 1, 2]


def test_a_consumer_that_is_told_off_polls(server, options):
    options |= {"doorbell": "off", "polling_interval": 0.2}
    got = Collector()
    with Connection(server.broker_url, transport_options=options) as connection:
        with consume(connection, got):
            publish(connection, "one")
            drain(connection, 1)
        assert not files(options)


# --- Bells that are lost


@pytest.mark.parametrize(
    "lost", ["socket", "folder", "folder_that_cannot_be", "queue_that_cannot_be", "no_sockets"]
)
def test_where_there_is_no_bell_the_message_comes_by_polling(
    server, options, lost, monkeypatch, caplog
):
    options |= {"polling_interval": 0.5, "max_polling_interval": 2}
    if lost == "folder_that_cannot_be":
        Path(options["spool_dir"]).write_text("a file")
    if lost == "queue_that_cannot_be":
        # Nothing can be made there, and by then the socket exists.
        queues = Path(options["spool_dir"]) / "doorbells" / "queues"
        queues.parent.mkdir(mode=0o700, parents=True)
        queues.symlink_to("/proc")
    if lost == "no_sockets":
        monkeypatch.delattr("socket.AF_UNIX")
    got = Collector()
    with (
        Connection(server.broker_url, transport_options=options) as connection,
        consume(connection, got),
    ):
        nothing_comes(connection, 0.1)
        listened_for(server)
        if lost == "socket":
            (socket,) = [path for path in files(options) if path.is_socket()]
            socket.unlink()
        if lost == "folder":
            Path(options["spool_dir"]).rename(options["spool_dir"] + "-gone")
        publish(connection, "one")
        drain(connection, 1)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_a_socket_that_was_removed_is_made_again(server, options):
    options |= {"polling_interval": 0.1, "max_polling_interval": 0.1}
    with (
        Connection(server.broker_url, transport_options=options) as connection,
        consume(connection, Collector()),
    ):
        nothing_comes(connection, 0.1)
        listened_for(server)
        Path(options["spool_dir"]).rename(options["spool_dir"] + "-gone")
        assert eventually(lambda: len(rings(options)) >= 4)


def test_nobody_waits_for_a_consumer_that_is_stopped(server, options, connection):
    """Ten datagrams fill its socket, and it is woken for all of them when it goes on."""
    with consumer(server, options) as consumes:
        consumes.process.send_signal(signal.SIGSTOP)
        publish(connection, *range(40))
        consumes.process.send_signal(signal.SIGCONT)
        assert sorted(consumes.line()[0] for _ in range(40)) == [*range(40)]


def test_what_a_killed_consumer_leaves_is_removed_by_the_next_publish(server, options, connection):
    with consumer(server, options) as consumes:
        assert rings(options)
        consumes.kill()
    publish(connection, "one")
    assert not [path for path in rings(options) if "alive" in path.parts or path.is_socket()]


def test_what_a_killed_consumer_leaves_is_removed_by_the_next_consumer(server, options):
    with consumer(server, options) as consumes:
        consumes.kill()
    left = set(rings(options))
    assert left
    with consumer(server, options):
        assert not left & set(rings(options))


def test_a_dead_consumer_whose_child_holds_its_socket_is_found_by_its_lock(
    server, options, connection
):
    """Sending to that socket succeeds until it is full."""
    with Script(HELD + CONSUME, server.broker_url, options) as consumes:
        child = consumes.line()
        try:
            listened_for(server)
            consumes.process.send_signal(signal.SIGKILL)
            consumes.process.wait()
            assert [path for path in rings(options) if path.is_socket()]
            publish(connection, *range(40))
            assert not [path for path in rings(options) if path.is_socket()]
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("green", ["", "gevent", long("eventlet")])
def test_a_forked_child_closes_the_socket(server, options, green):
    if green:
        needs(green)
    with Script(FORK, server.broker_url, options, green=green) as script:
        assert sorted(script.wait()) == [["child", 0], ["parent", 1]]


def test_a_forked_child_that_consumes_is_woken(server, options, connection):
    """It has inherited the subscription of its parent, which has consumed before and ends."""
    parent, child = CONSUME.split("    while True:")
    fork = """
    try:
        connection.drain_events(timeout=0.5)
    except TimeoutError:
        pass
    if os.fork():
        os._exit(0)
    print(json.dumps(os.getpid()), flush=True)
    while True:"""
    with Script(parent + fork + child, server.broker_url, options) as script:
        pid = script.line()
        try:
            listened_for(server, 2)
            for body in ("one", "two"):
                publish(connection, body)
                assert script.line()[0] == body
        finally:
            os.kill(pid, signal.SIGKILL)


# --- What is on the disk


def test_a_process_that_only_publishes_makes_nothing(server, options):
    """No folder, no socket and no thread: it has no request limit here, and so no spool."""
    before = threading.enumerate()
    with Connection(server.broker_url, transport_options=options) as connection:
        publish(connection, "one", "two")
        assert set(threading.enumerate()) <= set(before)  # earlier ones may end
    assert not Path(options["spool_dir"]).exists()


def test_a_consumer_that_ends_leaves_nothing(server, options):
    code = CONSUME.replace("while True:", "for _ in range(1):").replace("60", "0.5")
    with Script(code, server.broker_url, options) as script:
        listened_for(server)
        assert rings(options)
        script.wait()
    assert not rings(options)


def test_a_consumer_that_is_closed_soon_leaves_nothing(server, options):
    with (
        Connection(server.broker_url, transport_options=options) as connection,
        consume(connection, Collector()),
    ):
        nothing_comes(connection, 0.1)
        listened_for(server)
        assert len(rings(options)) == 4
    assert eventually(lambda: not rings(options))
    assert eventually(lambda: "cfqueues-doorbell" not in [t.name for t in threading.enumerate()])


@pytest.mark.parametrize(
    ("folder_mode", "mode"), [(0o700, 0o600), (0o2770, 0o660)], ids=["own", "of the group"]
)
def test_the_rights_are_those_of_the_spool(server, options, folder_mode, mode):
    spool = Path(options["spool_dir"])
    spool.mkdir()
    spool.chmod(folder_mode)
    before = os.umask(0)
    os.umask(before)
    with (
        Connection(server.broker_url, transport_options=options) as connection,
        consume(connection, Collector()),
    ):
        nothing_comes(connection, 0.1)
        listened_for(server)
        found = {path: stat.S_IMODE(path.lstat().st_mode) for path in spool.rglob("*")}
    assert {found[path] for path in found if path.is_dir()} == {folder_mode}
    assert {found[path] for path in found if path.is_socket() or path.parent.name == "alive"} == {
        mode
    }
    assert not any(found[path] & 0o007 for path in found if not path.is_dir())


def test_a_folder_with_a_long_path_holds_sockets(server, options):
    options["spool_dir"] += "/" + "/".join(["a" * 50] * 4)
    assert len(options["spool_dir"]) > MAX_PATH_BYTES
    with (
        consumer(server, options) as consumes,
        Connection(server.broker_url, transport_options=options) as publishes,
    ):
        publish(publishes, "one")
        assert consumes.line()[0] == "one"


def test_other_files_in_the_folder_are_left_alone(server, options, connection):
    """Somebody of the group may have put them there, or a link to them."""
    with consumer(server, options):
        (key, _) = {path.parent for path in rings(options) if path.parent.parent.name == "queues"}
        strange = [key / ".bashrc", key.parent.parent / "alive" / "notes"]
        for path in strange:
            path.touch()
        publish(connection, "one")
        with consumer(server, options):
            assert eventually(lambda: sum(path.is_socket() for path in rings(options)) == 2)
            assert all(path.exists() for path in strange)


# --- Which bells there are


def test_a_message_that_is_delayed_rings_no_bell(server, options, connection):
    got = Collector()
    with consume(connection, got):
        nothing_comes(connection, 0.1)
        listened_for(server)
        eta = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
        headers = {"task": "shop.add", "id": "1", "lang": "py", "eta": eta}
        publish(connection, [[], {}, {}], headers=headers)
        before = pulls(server)
        nothing_comes(connection, 0.5)
        assert pulls(server) == before
        publish(connection, "now")
        drain(connection, 1, timeout=SOON)
    assert got.bodies == ["now"]


def test_a_bell_that_rings_while_the_window_is_full_is_remembered(server, connection):
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=1):
        nothing_comes(connection, 0.1)
        listened_for(server)
        publish(connection, "one")
        drain(connection, 1, timeout=SOON)
        publish(connection, "two")
        nothing_comes(connection, 0.3)
        got.messages[0].ack()
        drain(connection, 1, timeout=SOON)
        got.messages[1].ack()
    assert got.bodies == ["one", "two"]


def test_several_consumers_of_a_queue_pull_a_bounded_number_of_times(server, options, connection):
    """One of them gets the message, and the bells of the others are vain."""
    options |= {"polling_interval": 5}
    with (
        consumer(server, options),
        consumer(server, options),
        consumer(server, options),
    ):
        before, count = pulls(server), 20
        for n in range(count):
            publish(connection, n)
            settled(server)
        # Two for each message, and for each consumer one bell and one poll in five seconds.
        assert pulls(server) - before < 2 * count + 3 * 2 * 3
