"""Starting, stopping, what it remembers of requests, and state in a file."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import pytest
import requests
from emulator.client import Api

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.runtime.extras import install_command


def test_the_urls_say_where_it_is(make):
    emulator = make(account_id="acc", token="t%/o@k").emulator

    assert emulator.port > 0
    assert emulator.base_url == f"http://127.0.0.1:{emulator.port}/client/v4"
    assert emulator.broker_url == f"cfqueues://acc:t%25%2Fo%40k@127.0.0.1:{emulator.port}/"
    assert "t%/o@k" not in repr(emulator)


def test_requests_are_remembered(api):
    api.push("x", delay_seconds=1)
    api.get("?page=1&name=jobs")

    push, listing = api.emulator.requests

    assert (push.method, push.route, push.status) == ("POST", "push", 200)
    assert push.path.endswith(f"/queues/{api.emulator.queue_id('jobs')}/messages")
    assert json.loads(push.body) == {"body": "x", "content_type": "text", "delay_seconds": 1}
    assert push.headers["authorization"] == "Bearer emulator-token"
    assert (listing.route, listing.query) == ("list", "page=1&name=jobs")
    assert listing.time >= push.time
    assert api.emulator.requests[-1] is listing
    assert len(api.emulator.requests) == 2
    assert api.emulator.requests.of("push", "batch") == [push]
    assert "emulator-token" not in repr(push)

    api.emulator.requests.clear()
    assert list(api.emulator.requests) == []


def test_requests_are_not_remembered_without_end(api):
    big = b'{"body": "' + b"x" * 3_000_000 + b'"}'
    for _ in range(15):
        api.call("POST", "/{jobs}/messages", data=big)

    assert len(api.emulator.requests) == 10


def test_an_outage_refuses_connections_and_keeps_everything(api):
    api.push("x")

    with api.emulator.outage(), pytest.raises(requests.ConnectionError):
        api.get("")

    assert api.pull()[0]["body"] == "x"


@pytest.mark.long
def test_whoever_connects_while_it_stops_is_disconnected():
    """A socket left open would be a warning in whatever test the garbage collector runs."""
    connected = []
    with Emulator() as emulator, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(10):
            connecting = threading.Event()

            def connect(connecting=connecting):
                with contextlib.suppress(OSError):
                    for _ in range(300):  # files that a process may have open are few
                        time.sleep(0.0002)
                        address = (emulator.host, emulator.port)
                        connected.append(socket.create_connection(address, timeout=10))
                        connecting.set()

            thread = threading.Thread(target=connect)
            thread.start()
            connecting.wait(10)
            with emulator.outage():
                thread.join(10)
                gc.collect()
            while connected:
                with connected.pop() as one:
                    assert _is_cut(one)
    assert not [warning for warning in told if warning.category is ResourceWarning]


def _is_cut(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_second_emulator_on_the_same_port_says_so(api):
    with (
        pytest.raises(OSError, match="in use"),
        Emulator(port=api.emulator.port),
    ):
        pass


def test_many_threads_publish_at_once(api):
    def publish(n):
        client = Api(api.emulator)
        for m in range(20):
            assert client.push(f"{n}-{m}").status_code == 200
        client.session.close()

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    stored = {message.body for message in api.emulator.messages("jobs")}
    assert stored == {f"{n}-{m}" for n in range(10) for m in range(20)}


def test_broken_http_gets_400_and_hurts_nobody_else(api):
    for sent in (
        b"nonsense\r\n\r\n",
        b"POST /client/v4/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with socket.create_connection(("127.0.0.1", api.emulator.port), timeout=5) as connection:
            connection.sendall(sent)
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert api.push("x").status_code == 200


def test_a_client_that_leaves_while_it_sends_has_no_effect(api):
    path = f"/client/v4/accounts/{api.emulator.account_id}/queues/x/messages"
    with socket.create_connection(("127.0.0.1", api.emulator.port), timeout=5) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode()
        )
    assert api.push("x").status_code == 200
    assert len(api.emulator.messages("jobs")) == 1


def test_a_file_keeps_queues_messages_and_leases(make, tmp_path):
    db = tmp_path / "queues.db"
    before = make(db=db, queue={"delivery_delay": 5, "consumer": {"type": "http_pull"}})
    before.push("leased", delay_seconds=0)
    [leased] = before.pull()
    before.push({"delayed": True})
    queue_id = before.emulator.queue_id("jobs")
    before.emulator.stop()

    after = make(db=db)

    assert after.emulator.queue_id("jobs") == queue_id
    assert after.emulator.consumers("jobs")[0].type == "http_pull"
    assert [message.state for message in after.emulator.messages("jobs")] == ["leased", "delayed"]
    assert after.metrics()["backlog_count"] == 2
    assert after.ack(leased["lease_id"])["ackCount"] == 1
    after.emulator.clock.advance(5)
    assert after.pull()[0]["attempts"] == 1


def test_a_file_is_one_emulators(make, tmp_path):
    db = tmp_path / "queues.db"
    make(db=db)
    with pytest.raises(ValueError, match="in use by another emulator"):
        Emulator(db=db)


def test_an_emulator_whose_server_failed_closes_its_file(tmp_path):
    """The error comes once, and the next emulator can use the file."""
    db = tmp_path / "queues.db"
    server = []

    def find_server(body):
        server[:] = threading.current_thread(), asyncio.get_running_loop()

    def fail():
        raise SystemExit("a callback of the test's own")

    emulator = Emulator(db=db).start()
    emulator.create_queue("jobs")
    emulator.faults.refuse_messages(find_server)
    path = f"accounts/{emulator.account_id}/queues/{emulator.queue_id('jobs')}/messages"
    body = b'{"body": "x", "content_type": "text"}'
    head = (
        f"POST /client/v4/{path} HTTP/1.1\r\nHost: {emulator.host}\r\n"
        f"Authorization: Bearer {emulator.token}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((emulator.host, emulator.port), timeout=10) as client:
        client.sendall(head.encode() + body)
        while client.recv(10_000):  # until the server has closed its socket, which would leak
            pass
    thread, loop = server
    loop.call_soon_threadsafe(fail)
    thread.join(10)

    with pytest.raises(RuntimeError, match="did not stop as it should") as failed:
        emulator.stop()
    assert isinstance(failed.value.__cause__, SystemExit)
    with Emulator(db=db) as after:
        assert after.queue_names() == ["jobs"]
    emulator.stop()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    db = tmp_path / "notes.txt"
    db.write_text("These are my notes, and no database at all. " * 100)
    with pytest.raises(ValueError, match="cannot use"):
        Emulator(db=db)
    with pytest.raises(ValueError, match="cannot use"):
        Emulator(db=tmp_path / "missing" / "queues.db")


@pytest.fixture
def command(tmp_path):
    """Start ``cfqueues emulator`` and return its process and its broker URL."""
    running = []

    def start(*arguments):
        code = "from kombu_cfqueues.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "emulator", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        running.append(process)
        lines = []
        while not any("cfqueues://" in line for line in lines):
            line = process.stdout.readline()
            if not line:
                break
            lines.append(line)
        return process, "".join(lines)

    yield start
    for process in running:
        process.kill()
        process.communicate()


def queues_url(output, account="0123456789abcdef0123456789abcdef"):
    port = output.split("@127.0.0.1:")[1].split("/")[0]
    return f"http://127.0.0.1:{port}/client/v4/accounts/{account}/queues"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_is_and_stops_on_a_signal(command, number):
    process, output = command("--account", "acc", "--token", "tok")
    assert "cfqueues://acc:tok@127.0.0.1:" in output

    answer = requests.get(
        queues_url(output, "acc"), headers={"Authorization": "Bearer tok"}, timeout=5
    )
    assert answer.json()["success"] is True
    process.send_signal(number)
    out, err = process.communicate(timeout=10)

    assert process.returncode == 0
    assert out.endswith("Stopped.\n")
    assert err == ""


def test_a_killed_command_loses_no_message_and_no_lease(command, tmp_path):
    """Everything that was answered is there again."""
    db = str(tmp_path / "queues.db")
    session = requests.Session()
    session.headers["Authorization"] = "Bearer emulator-token"
    process, output = command("--db", db)
    url = queues_url(output)
    queue_id = session.post(url, json={"queue_name": "jobs"}).json()["result"]["queue_id"]
    session.post(f"{url}/{queue_id}/consumers", json={"type": "http_pull"})
    for n in range(50):
        answer = session.post(f"{url}/{queue_id}/messages", json={"body": {"n": n}})
        assert answer.status_code == 200
    pulled = session.post(f"{url}/{queue_id}/messages/pull", json={"batch_size": 10}).json()
    process.kill()
    process.wait()

    _, output = command("--db", db)
    url = queues_url(output)

    assert session.get(f"{url}/{queue_id}/metrics").json()["result"]["backlog_count"] == 50
    rest = session.post(f"{url}/{queue_id}/messages/pull", json={"batch_size": 100}).json()
    assert len(rest["result"]["messages"]) == 40
    acks = [{"lease_id": message["lease_id"]} for message in pulled["result"]["messages"]]
    settled = session.post(f"{url}/{queue_id}/messages/ack", json={"acks": acks}).json()
    assert settled["result"]["ackCount"] == 10
    session.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "choose a token"),
        (["--host", "203.0.113.1", "--token", "t"], "cannot listen on"),
        (["--account", "a/b"], "account id"),
        (["--db", "/"], "directory"),
        (["--knob", "colour=red"], "knobs: ack_result"),
        (["--knob", "rate_limit"], "NAME=VALUE"),
        (["--knob", "first_attempt=2"], "first_attempt must be 0 or 1"),
        (["--fault", "nonsense"], "kind must be one of"),
        (["--fault", ""], "--fault"),
        (["--fault", "error push status=x"], "status cannot be"),
        (["--latency", "soon"], "--latency"),
        (["--latency", "2-1"], "latency must be seconds"),
    ],
)
def test_the_command_refuses_in_plain_words(monkeypatch, capsys, arguments, said):
    from kombu_cfqueues.cli import main

    monkeypatch.setattr("sys.argv", ["cfqueues", "emulator", "--port", "0", *arguments])
    with pytest.raises(SystemExit) as end:
        main()

    assert end.value.code not in (None, 0)
    assert said in capsys.readouterr().err


def test_the_commands_options_are_those_of_python(command):
    """Faults, latency, knobs and the request limit, without a line of Python."""
    _, output = command(
        *("--rate-limit", "4", "--latency", "0.01-0.02", "--knob", "first_attempt=0"),
        *("--knob", "paused_pull=429/10252", "--knob", "pull_default_size=5"),
        *("--knob", "extend=True", "--fault", "error create status=503 times=1"),
    )
    page = output.split("http://")[1].split()[0]
    knobs = requests.get(f"http://{page}_emulator/knobs", timeout=5).json()
    assert (knobs["first_attempt"], knobs["paused_pull"], knobs["extend"]) == (0, "429/10252", True)
    assert knobs["pull_default_size"] == "5"
    headers = {"Authorization": "Bearer emulator-token"}
    url = queues_url(output)

    refused = requests.post(url, json={"queue_name": "jobs"}, headers=headers, timeout=5)
    made = requests.post(url, json={"queue_name": "jobs"}, headers=headers, timeout=5)

    assert (refused.status_code, made.status_code) == (503, 200)
    assert made.headers["Ratelimit"].startswith('"default";r=3;')
    assert made.elapsed.total_seconds() >= 0.01


def test_the_command_without_click_says_what_to_install(monkeypatch, capsys):
    from kombu_cfqueues.cli import main

    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(SystemExit) as stopped:
        main()

    assert stopped.value.code == 1
    assert install_command("cli", "click") in capsys.readouterr().err


def test_the_clock_only_goes_forward(api):
    before = api.emulator.clock.now()
    api.emulator.clock.advance(100)
    assert api.emulator.clock.now() >= before + 100
    with pytest.raises(ValueError, match="only goes forward"):
        api.emulator.clock.advance(-1)
