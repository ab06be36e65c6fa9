"""Health checks of consumers and workers: what a probe of Kubernetes or systemd is told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import requests
from kombu import Connection
from support.forms import first_of
from support.http import free_port, get

from kombu_cfqueues.health import judge as judging
from kombu_cfqueues.health import service

from .consuming import FAST, Collector, consume, drain, publish
from .workers import HERE, MATRIX, ROOT, SOME_POOLS, Worker, until

#: A worker that loses patience after a second, so that the tests need not wait for 15.
IMPATIENT = """
import sys
import kombu_cfqueues.health.judge as judge
judge.PATIENCE_SECONDS = 1.0
from celery.__main__ import main
sys.argv[0] = "celery"
main()
"""

#: A pull that is not answered fails after a second, so that the next one can succeed soon.
BRISK = FAST | {"read_timeout": 1}


@pytest.fixture(autouse=True)
def _service_ends():
    yield
    service._services.stop()
    judging.judge.renew_after_fork()


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(judging, "PATIENCE_SECONDS", 1.0)


def status(port, path="/healthz"):
    return get(port, path)[0]


def at(port, **more):
    return BRISK | {"health_address": f"127.0.0.1:{port}"} | more


@contextlib.contextmanager
def consumer(server, **options):
    """A consumer that asks for messages in the background, as an application does."""
    with (
        Connection(server.broker_url, transport_options=options) as connection,
        consume(connection, Collector(), prefetch_count=10),
    ):
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)
        yield connection


def test_a_consumer_is_healthy_and_ready_once_it_pulls(server, port):
    """Nothing but the option: a thread of the process answers."""
    with consumer(server, **at(port)):
        until(lambda: status(port, "/readyz") == 200)
        found = get(port, "/healthz")
        assert found[0] == 200
        assert json.loads(found[1]) == {
            "healthy": True,
            "ready": True,
            "faults": [],
            "queues": ["jobs"],
        }
        assert status(port, "/elsewhere") == 404
        assert sum(one.route == "pull" for one in server.requests) >= 1


def test_a_consumer_whose_pulls_hang_is_unhealthy_until_they_do_not(
    server, port, impatient, caplog
):
    """A server that accepts and never answers is what a probe must see; the log has one line."""
    with caplog.at_level("INFO"), consumer(server, **at(port)):
        until(lambda: status(port, "/readyz") == 200)
        fault = server.faults.hang("pull", times=None)
        until(lambda: status(port) == 503)
        assert status(port, "/readyz") == 503
        (cause,) = json.loads(get(port, "/healthz")[1])["faults"]
        assert cause.startswith("queue 'jobs' could not be pulled for ")
        until(lambda: "unhealthy" in caplog.text)
        server.faults.clear()
        until(lambda: status(port) == 200)
        until(lambda: "healthy again" in caplog.text)
        assert fault.hits
    assert caplog.text.count("is unhealthy") == caplog.text.count("is healthy again") == 1


def test_a_revoked_token_is_unhealthy_at_once(server, port):
    """No patience: another pull does not repair it."""
    with consumer(server, **at(port)):
        until(lambda: status(port, "/readyz") == 200)
        server.faults.error("pull", status=403, code=9109, message="no", times=None)
        until(lambda: status(port) == 503)
        shown = get(port, "/healthz")[1]
        assert "revoked or mistyped" in shown
        assert server.token not in shown + get(port, "/metrics")[1]


def test_acknowledgements_that_hang_are_unhealthy(server, port, impatient):
    """It pulls, and all that it does will come again."""
    with consumer(server, **at(port)) as connection:
        server.faults.hang("ack", times=None)
        publish(connection, 1)
        drain(connection, 1)
        until(lambda: status(port) == 503)
        assert "could not be settled" in get(port, "/healthz")[1]
        server.faults.clear()
        until(lambda: status(port) == 200)


def test_a_consumer_with_all_that_it_may_hold_is_healthy(server, port, impatient):
    """A long task is no fault: there is no room for another message, so nothing is pulled."""
    with Connection(server.broker_url, transport_options=at(port)) as connection:
        got = Collector(ack=False)
        with consume(connection, got, prefetch_count=1):
            publish(connection, 1)
            drain(connection, 1)
            server.faults.hang("pull", times=None)
            time.sleep(2.5)  # more than its patience
            assert status(port) == 200


def test_a_paused_queue_is_healthy(server, port, impatient):
    """Somebody has paused it, and a restart would not resume it."""
    with consumer(server, **at(port)):
        until(lambda: status(port, "/readyz") == 200)
        requests.patch(
            f"{server.base_url}/accounts/{server.account_id}/queues/{server.queue_id('jobs')}",
            json={"settings": {"delivery_paused": True}},
            headers={"Authorization": f"Bearer {server.token}"},
            timeout=10,
        ).raise_for_status()
        pulls = len(server.requests.of("pull"))
        until(lambda: len(server.requests.of("pull")) > pulls + 2)
        time.sleep(1.5)
        assert status(port) == 200


def test_a_process_whose_connection_is_gone_is_unhealthy(server, port, impatient):
    """Such as a worker that tries to reconnect for ever."""
    with consumer(server, **at(port)):
        until(lambda: status(port) == 200)
    until(lambda: status(port) == 503)
    assert "no connection has consumed" in get(port, "/healthz")[1]
    with consumer(server, **at(port)):
        until(lambda: status(port) == 200)


def test_a_consumer_that_cancels_on_purpose_is_healthy_and_not_ready(server, port, impatient):
    with Connection(server.broker_url, transport_options=at(port)) as connection:
        consuming = consume(connection, Collector(), prefetch_count=1)
        with consuming:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            until(lambda: status(port, "/readyz") == 200)
        until(lambda: status(port, "/readyz") == 503)
        time.sleep(1.5)
        assert status(port) == 200


def test_the_file_is_touched_while_the_process_is_healthy(server, tmp_path, impatient):
    """For probes that cannot do HTTP: they look at its age."""
    file = tmp_path / "healthy"
    with consumer(server, **BRISK, health_file=file):
        until(file.exists)
        os.utime(file, (0, 0))
        until(lambda: file.stat().st_mtime > 0)
        server.faults.hang("pull", times=None)
        until(lambda: not file.exists())
        server.faults.clear()
        until(file.exists)


def test_a_file_that_cannot_be_written_is_said_once(server, tmp_path, caplog):
    with consumer(server, **BRISK, health_file=tmp_path / "missing" / "healthy"):
        until(lambda: "cannot be written" in caplog.text)
        time.sleep(2.5)
    assert caplog.text.count("cannot be written") == 1


@contextlib.contextmanager
def no_threads():
    """The system allows this process no more threads: it has no memory for a stack of this size."""
    threading.stack_size(1 << 47)
    try:
        yield
    finally:
        threading.stack_size(0)


def test_a_probe_that_no_thread_can_answer_ends_no_health_check(server, port, tmp_path):
    """The probe fails at once, and those that follow are answered when threads can start again."""
    file = tmp_path / "healthy"
    with consumer(server, **at(port, health_file=file)):
        until(lambda: status(port) == 200)
        with no_threads():
            began = time.monotonic()
            assert status(port) == 0
            assert time.monotonic() - began < 5  # the client was not left waiting
        os.utime(file, (0, 0))
        until(lambda: status(port) == 200)
        until(lambda: file.stat().st_mtime > 0)


def test_health_checks_start_once_a_thread_can(server, port):
    """The next consumer of the process starts them."""
    with consumer(server, **BRISK):  # its threads run already
        with (
            no_threads(),
            Connection(server.broker_url, transport_options=at(port)) as late,
            consume(late, Collector(), prefetch_count=1),
        ):
            assert status(port) == 0
        with consumer(server, **at(port)):
            until(lambda: status(port) == 200)


def test_two_processes_at_one_address(server, port, tmp_path, caplog, monkeypatch):
    """The second one says so and goes on, and takes the address over when the first one ends."""
    monkeypatch.setattr(service, "BIND_RETRY_SECONDS", 0.1)
    other = subprocess.Popen([sys.executable, "-m", "http.server", "-b", "127.0.0.1", str(port)])
    try:
        until(lambda: status(port))
        with caplog.at_level("INFO"), consumer(server, **at(port)) as connection:
            until(lambda: "cannot be answered" in caplog.text)
            publish(connection, 1)
            drain(connection, 1)
            other.kill()
            other.wait()
            until(lambda: status(port) == 200)
            assert "health checks are answered at" in caplog.text
        assert caplog.text.count("cannot be answered") == 1
    finally:
        other.kill()
        other.wait()


def test_a_forked_child_does_not_hold_the_address(server, port):
    """It would keep the parent's port when the parent has ended."""
    code = f"""
import os, sys, time
import kombu_cfqueues
from kombu import Connection, Queue
with Connection({server.broker_url!r}, transport_options={at(port)!r}) as connection:
    with connection.Consumer(Queue("jobs"), callbacks=[print]):
        try:
            connection.drain_events(timeout=0.5)
        except TimeoutError:
            pass
        if os.fork() == 0:
            time.sleep(60)
        print("forked", flush=True)
        sys.stdin.read()
os._exit(0)
"""
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert parent.stdout.readline() == b"forked\n"
        until(lambda: status(port) == 200)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert status(port) == 0
        with consumer(server, **at(port)):
            until(lambda: status(port) == 200)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdin.close()
        parent.stdout.close()


def test_only_this_machine_is_answered_unless_told_otherwise(server, port):
    with consumer(server, **BRISK, health_address=f":{port}"):
        until(lambda: status(port) == 200)
        listening = subprocess.run(
            ["sh", "-c", "cat /proc/net/tcp"], capture_output=True, text=True, check=True
        ).stdout
        assert f"0100007F:{port:04X} 00000000:0000 0A" in listening
        assert f"00000000:{port:04X} 00000000:0000 0A" not in listening


def test_whoever_waits_for_a_result_answers_nothing(server, port):
    """A web server that uses rpc:// would take the address of the worker on its host."""
    with Connection(server.broker_url, transport_options=at(port)) as connection:
        name = "0c8e4fd0-9f2c-4a64-9d39-5ac1a1a1a1a1"
        with consume(connection, Collector(), queue=name):
            assert status(port) == 0


# Celery workers


def worker_at(port, emulator, folder, pool, **given):
    return Worker(
        emulator,
        folder,
        pool=pool,
        program=IMPATIENT,
        app="healthy",
        options=BRISK,
        environ={"CFQUEUES_HEALTH_ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": f"{HERE}:{ROOT}"},
        **given,
    )


@pytest.mark.parametrize("pool", first_of(SOME_POOLS))
def test_a_worker_tells_its_probe(emulator, tasks, tmp_path, port, pool):
    """Healthy at work, unhealthy while pulls hang, healthy again; and its tasks run."""
    with worker_at(port, emulator, tmp_path, pool) as worker:
        until(lambda: status(port, "/readyz") == 200)
        tasks.note.delay(1)
        until(lambda: worker.values("note") == [1])
        emulator.faults.hang("pull", times=None)
        until(lambda: status(port) == 503)
        emulator.faults.clear()
        until(lambda: status(port) == 200)
        tasks.note.delay(2)
        until(lambda: worker.values("note") == [1, 2])
        assert 'cfqueues_pulled_total{queue="celery"} 2.0' in get(port, "/metrics")[1]
        assert worker.stop() == 0
    assert worker.log.count("this process is unhealthy: queue 'celery' could not be pulled") == 1


def test_a_worker_is_healthy_until_its_last_task_has_ended(emulator, tasks, tmp_path, port):
    """A liveness probe must not kill a worker that finishes its work."""
    with worker_at(port, emulator, tmp_path, "threads") as worker:
        until(lambda: status(port, "/readyz") == 200)
        tasks.nap.delay(1, 4)
        until(lambda: worker.runs("nap"))
        worker.terminate()
        until(lambda: status(port, "/readyz") == 503)
        while not worker.runs("nap ended"):
            found = status(port)
            assert found == 200 or worker.runs("nap ended")
            time.sleep(0.1)
        assert worker.wait() == 0


def test_a_worker_that_cannot_reach_its_broker_is_unhealthy(emulator, tmp_path, port):
    """Celery tries to connect for ever, and answers its probe meanwhile."""
    worker = worker_at(port, emulator, tmp_path, "solo")
    emulator.stop()
    try:
        with contextlib.suppress(AssertionError):
            worker.process = subprocess.Popen(
                worker.command,
                env=worker.environ,
                cwd=HERE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        until(lambda: status(port) == 503)
        assert "no connection has consumed" in get(port, "/healthz")[1]
    finally:
        worker.kill()


def test_a_worker_whose_token_is_revoked_is_unhealthy_until_it_has_stopped(
    emulator, tasks, tmp_path, port
):
    """It stops by itself; while its last task runs, its probe is told."""
    with worker_at(port, emulator, tmp_path, "threads") as worker:
        until(lambda: status(port, "/readyz") == 200)
        tasks.nap.delay(1, 4)
        until(lambda: worker.runs("nap"))
        emulator.faults.error(status=403, code=9109, message="no", times=None)
        until(lambda: status(port) == 503)
        assert not worker.runs("nap ended")
        assert worker.wait() != 0


if MATRIX:  # half a minute

    def test_pulls_that_hang_are_seen_within_30_seconds(emulator, tasks, tmp_path, port):
        """With every default, in an idle worker."""
        worker = Worker(
            emulator,
            tmp_path,
            app="healthy",
            environ={"CFQUEUES_HEALTH_ADDRESS": f"127.0.0.1:{port}"},
        )
        with worker:
            until(lambda: status(port, "/readyz") == 200)
            began = time.monotonic()
            emulator.faults.hang("pull", times=None)
            until(lambda: status(port) == 503)
            assert time.monotonic() - began < 30
            emulator.faults.clear()
            until(lambda: status(port) == 200)


def test_a_worker_of_another_broker_is_left_alone(port, tmp_path):
    code = """
import healthy
from kombu_cfqueues.health import HealthStep, service
healthy.app.conf.update(broker_url="memory://", broker_transport=None)
class Of:
    app = healthy.app
step = object.__new__(HealthStep)
step.start(Of)
assert step._service is None
"""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ
        | {"PYTHONPATH": f"{HERE}:{ROOT}", "BROKER_URL": "memory://", "RUNS": str(tmp_path / "r")},
        check=True,
        cwd=HERE,
    )


def test_importing_the_package_is_enough_for_the_step(tmp_path):
    """And Celery is imported only for it."""
    code = """
import sys
import kombu_cfqueues
kombu_cfqueues.health
assert "celery" not in sys.modules
assert kombu_cfqueues.health.HealthStep.__name__ == "HealthStep"
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
