"""Forks, threads and ends of processes, as servers and people make them: each a small real program.

No socket is used by two processes, nothing waits for a lock of the other side of a fork, and what
the spool has accepted arrives.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from kombu import Connection
from support.forms import long
from support.processes import ROOT, eventually
from support.tap import Tap

from kombu_cfqueues.emulator import TOKEN, Emulator

from .workers import Worker, until

#: A second token: connections with the same one share an allowance, or that there is none.
SPOOLER = "spooler"


@pytest.fixture
def server():
    with Emulator(latency=0.02, tokens={SPOOLER: "edit"}) as emulator:
        emulator.create_queue("jobs")
        emulator.create_queue("spooled")
        yield emulator


@pytest.fixture
def spooling(tmp_path):
    return {
        "publish_mode": "spool",
        "request_rate": 20.0,
        "request_burst": 2,
        "spool_dir": str(tmp_path / "spool"),
    }


def publish_task(connection, name: str, value: int) -> None:
    """As Celery does, from a program that has none."""
    connection.Producer().publish(
        [[value], {}, {}],
        routing_key="celery",
        serializer="json",
        headers={"task": name, "id": f"{name}-{value}", "lang": "py"},
        correlation_id=f"{name}-{value}",
    )


def bodies(server, queue="jobs"):
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages(queue)]


@contextlib.contextmanager
def relay(url, spooling):
    """Delivers what processes that are gone have left on the disk."""
    with subprocess.Popen(
        [
            *(sys.executable, "-c", "from kombu_cfqueues.cli import main; main()", "relay"),
            *("--spool-dir", spooling["spool_dir"], "--request-rate", "20"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CFQUEUES_BROKER_URL": url},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline().startswith(b"Delivering")
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(30) == 0


# -- gunicorn

SITE = """
    import json, os
    from kombu import Connection
    from kombu.pools import producers
    import kombu_cfqueues

    URL, SPOOL_URL, SPOOLING = json.loads(os.environ["SITE"])
    confirming = Connection(URL)
    spooling = Connection(SPOOL_URL, transport_options=SPOOLING)

    def publish(body):
        with producers[confirming].acquire(block=True) as producer:
            producer.publish(body, routing_key="jobs")
        with producers[spooling].acquire(block=True) as producer:
            producer.publish(body, routing_key="spooled")

    # With sockets, a thread and a file open, the master forks.
    publish([f"pid-{os.getpid()}-", 0])

    def site(environ, start_response):
        number = int(environ["QUERY_STRING"])
        publish([f"pid-{os.getpid()}-", number])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(os.getpid()).encode()]
"""


@contextlib.contextmanager
def gunicorn(folder, *arguments: str, site: list, code: str = SITE):
    """Run it on a free port; yield its address; it has to end well."""
    (folder / "site_of_test.py").write_text(textwrap.dedent(code))
    log = folder / "gunicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-m", "gunicorn", "site_of_test:site"),
                *("--bind", "127.0.0.1:0", "--workers", "4", "--no-control-socket", *arguments),
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "SITE": json.dumps(site)},
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: log.read_text().count("Booting worker") == 4, 60, "four workers")
        (port,) = re.findall(r"Listening at: http://127.0.0.1:(\d+)", log.read_text())
        yield f"http://127.0.0.1:{port}/"
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("kind", ["gevent", *map(long, ["sync", "gthread"])])
def test_workers_of_a_preloaded_site_publish_each_over_sockets_of_its_own(
    server, spooling, tmp_path, kind
):
    """``gunicorn --preload``: the master has published before it forks."""
    pytest.importorskip("gunicorn")
    options = ["--preload", "--worker-class", kind]
    options += ["--threads", "4"] if kind == "gthread" else []
    with Tap(server.port) as tap:
        url = through(tap, server)
        asked, pids = 0, set()

        def ask(number: int) -> str:
            with urllib.request.urlopen(f"{address}?{number}", timeout=60) as answer:
                return answer.read().decode()

        with (
            gunicorn(tmp_path, *options, site=[url, for_spool(url), spooling]) as address,
            ThreadPoolExecutor(16) as pool,
        ):
            # Who answers is chance.
            while len(pids) < 2 and asked < 2000:
                pids |= set(pool.map(ask, range(asked + 1, asked + 41)))
                asked += 40
        assert len(pids) > 1
        with relay(for_spool(url), spooling):
            assert eventually(lambda: len(bodies(server, "spooled")) > asked, 30)
    for queue in ("jobs", "spooled"):
        assert sorted(number for _, number in bodies(server, queue)) == list(range(asked + 1))
    assert len(users_of_sockets(tap, server)) > len(pids)  # the master publishes too


def through(tap: Tap, server) -> str:
    return server.broker_url.replace(str(server.port), str(tap.port))


def users_of_sockets(tap: Tap, server) -> set[bytes]:
    """Who has published to the queue whose messages each process posts itself; no two of them over
    one connection.
    """
    path = f"/queues/{server.queue_id('jobs')}/messages".encode()
    users = [
        {
            pid
            for request in bytes(sent).split(b"POST ")[1:]
            if path in request[:200]
            for pid in re.findall(rb"pid-\d+-", request)
        }
        for sent in tap.sent
    ]
    assert max(map(len, users)) == 1
    return set().union(*users)


# -- other ways to fork

PROGRAM = """
    import atexit, contextlib, json, multiprocessing, os, signal, sys, threading, time
    from kombu import Connection
    import kombu_cfqueues
    from kombu_cfqueues.publish import relay

    relay.RELAY_EXIT_SECONDS = 60.0  # not how soon a busy machine delivers is asked here
    URL, SPOOL_URL, SPOOLING = json.loads(os.environ["SITE"])

    class Both:
        \"\"\"Publishes confirmed and spooled, over connections that live with the program.\"\"\"

        def __init__(self):
            self.producers = {
                "jobs": Connection(URL).Producer(),
                "spooled": Connection(SPOOL_URL, transport_options=SPOOLING).Producer(),
            }

        def publish(self, number):
            for queue, producer in self.producers.items():
                producer.publish([f"pid-{os.getpid()}-", number], routing_key=queue)

        def publish_batch(self, numbers):
            for queue, producer in self.producers.items():
                # Kombu before 5.7 has no batches.
                with producer.batch() if hasattr(producer, "batch") else contextlib.nullcontext():
                    for number in numbers:
                        producer.publish([f"pid-{os.getpid()}-", number], routing_key=queue)
"""


def for_spool(url: str) -> str:
    return url.replace(TOKEN, SPOOLER)


def run(folder, code: str, server, spooling, *, tap: Tap | None = None) -> None:
    """Run a program, which has to end well and say nothing."""
    url = through(tap, server) if tap else server.broker_url
    site = [url, for_spool(server.broker_url), spooling]
    program = folder / "program.py"
    program.write_text(textwrap.dedent(PROGRAM) + textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SITE": json.dumps(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def numbers(server, queue: str) -> list[int]:
    return sorted(number for _, number in bodies(server, queue))


def all_arrive(server, spooling, expected: list[int]) -> None:
    """Once where it was confirmed.  What a thread of a process that ends was sending may be sent
    again by the next process."""
    assert numbers(server, "jobs") == expected
    wanted = Counter(expected)
    with relay(for_spool(server.broker_url), spooling):
        assert eventually(lambda: not wanted - Counter(numbers(server, "spooled")), 30)
    assert set(numbers(server, "spooled")) == set(expected)


@pytest.mark.parametrize("method", ["fork", long("spawn")])
def test_children_of_multiprocessing_publish_while_the_parents_threads_do(
    server, spooling, tmp_path, method
):
    """The parent holds every lock there is at some fork or other."""
    code = f"""
        def child(number):
            mine = both if "{method}" == "fork" else Both()
            for n in range(3):
                mine.publish(1000 * number + n)

        if __name__ == "__main__":
            both = Both()
            both.publish(0)
            context = multiprocessing.get_context("{method}")
            over = threading.Event()
            said = []

            def busy():
                mine = Both()
                while not over.is_set():
                    mine.publish(-1)
                    said.append(-1)

            threads = [threading.Thread(target=busy) for _ in range(3)]
            children = [context.Process(target=child, args=(n,)) for n in range(1, 5)]
            # The first two find a connection of the parent idle, the others all of them busy.
            for one in children[:2] + threads + children[2:]:
                one.start()
            for process in children:
                process.join()
            over.set()
            for thread in threads:
                thread.join()
            assert [process.exitcode for process in children] == [0] * 4
            both.publish(10**6 + len(said))
    """
    with Tap(server.port) as tap:
        run(tmp_path, code, server, spooling, tap=tap)
        assert len(users_of_sockets(tap, server)) == 5
    (said,) = [n - 10**6 for n in numbers(server, "jobs") if n >= 10**6]
    expected = [1000 * child + n for child in range(1, 5) for n in range(3)]
    all_arrive(server, spooling, sorted([*[-1] * said, 0, *expected, 10**6 + said]))


def test_what_children_of_a_celery_pool_spool_survives_them(server, spooling, tmp_path):
    """Each child ends after two tasks, without waiting for its thread."""
    # Each runs twice: a retry is published by the child that ran it.  What a child was sending
    # when it ended is sent again, and what the last one left is for the relay.
    expected = Counter(2 * list(range(6)))
    with Worker(server, tmp_path, options=spooling, worker_max_tasks_per_child=2) as worker:
        with Connection(server.broker_url) as connection:
            for value in range(6):
                publish_task(connection, "tasks.flaky", value)
        until(lambda: worker.log.count("retry: Retry in") >= 6, 120)
        with relay(server.broker_url, spooling):
            until(lambda: not expected - Counter(worker.values("flaky")), 120)
        assert worker.stop(60) == 0


# -- the ends of a process


def test_publishing_when_the_interpreter_exits(server, spooling, tmp_path):
    """Registered before and after the first publish: before and after our own last words."""
    code = """
        both = Both()
        atexit.register(lambda: both.publish(1))
        atexit.register(lambda: both.publish_batch(range(10, 20)))
        both.publish(0)
        atexit.register(lambda: both.publish(2))
        atexit.register(lambda: both.publish_batch(range(20, 30)))
    """
    run(tmp_path, code, server, spooling)
    all_arrive(server, spooling, [0, 1, 2, *range(10, 30)])


def test_publishing_for_the_first_time_when_the_interpreter_exits(server, spooling, tmp_path):
    code = """
        both = Both()
        atexit.register(lambda: (both.publish(1), both.publish_batch(range(10, 20))))
    """
    run(tmp_path, code, server, spooling)
    all_arrive(server, spooling, [1, *range(10, 20)])


def test_a_thread_that_outlives_the_main_thread_goes_on_publishing(server, spooling, tmp_path):
    code = """
        both = Both()
        both.publish(0)

        def later():
            threading.main_thread().join()
            for number in range(1, 6):
                both.publish(number)
            both.publish_batch(range(10, 20))

        threading.Thread(target=later).start()
    """
    run(tmp_path, code, server, spooling)
    all_arrive(server, spooling, [*range(6), *range(10, 20)])


SIGNALS = """
    import random
    from kombu_cfqueues.errors import PermanentError

    rng = random.Random(7)
    both, inner = Both(), Both()
    published = {"jobs": 0, "spooled": 0}
    refused = 0

    def handle(*_):
        global refused
        for queue, producer in inner.producers.items():
            try:
                producer.publish(["", -1], routing_key=queue)
                published[queue] += 1
            except PermanentError as error:
                assert error.delivered == "no"
                assert "already publishing" in str(error)
                refused += 1
        # In the middle of something else each time.
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.03))

    inner.publish(-2)
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
"""


def test_a_signal_handler_publishes_if_it_interrupts_no_publish(server, spooling, tmp_path):
    code = (
        SIGNALS
        + """
    for number in range(20):
        time.sleep(0.03)
    while min(published.values()) < 5:
        time.sleep(0.01)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert refused == 0
    both.publish(published["jobs"])
    """
    )
    run(tmp_path, code, server, spooling)
    said = max(numbers(server, "jobs"))
    all_arrive(server, spooling, [-2, *[-1] * said, said])


def test_a_signal_handler_that_interrupts_a_publish_does_not_wait_for_ever(
    server, spooling, tmp_path
):
    """What it wants to publish is refused with a word, and what it interrupts is not disturbed."""
    code = (
        SIGNALS
        + """
    number = 0
    while refused < 10:
        both.publish(number)
        number += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    both.publish(1_000_000)
    """
    )
    run(tmp_path, code, server, spooling)
    found = numbers(server, "jobs")
    last = found[-2]
    assert [n for n in found if n >= 0] == [*range(last + 1), 1_000_000]
    with relay(for_spool(server.broker_url), spooling):
        assert eventually(lambda: 1_000_000 in numbers(server, "spooled"), 30)
        assert eventually(
            lambda: len([n for n in numbers(server, "spooled") if n >= 0]) == last + 2
        )
