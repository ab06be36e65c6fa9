"""Forks, threads and ends of processes, as servers and people make them: each a small real program.

No socket is used by two processes, nothing waits for a lock of the other side of a fork, and what
the spool has accepted arrives.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.processes import ROOT, Script, eventually
from support.tap import Tap

from kombu_cfqueues.emulator import Emulator

from .workers import Worker, until


@pytest.fixture
def server():
    with Emulator(latency=0.02) as emulator:
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

    URL, OPTIONS, SPOOLING = json.loads(os.environ["SITE"])
    confirming = Connection(URL, transport_options=OPTIONS)
    spooling = Connection(URL, transport_options=SPOOLING)

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
def gunicorn(folder, *arguments: str, site: list):
    """Run it on a free port; yield its address; it has to end well."""
    (folder / "site_of_test.py").write_text(textwrap.dedent(SITE))
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


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_workers_of_a_preloaded_site_publish_each_over_sockets_of_its_own(
    server, spooling, tmp_path, kind
):
    """``gunicorn --preload``: the master has published before it forks."""
    pytest.importorskip("gunicorn")
    options = ["--preload", "--worker-class", kind]
    options += ["--threads", "4"] if kind == "gthread" else []
    with Tap(server.port) as tap:
        url = server.broker_url.replace(str(server.port), str(tap.port))
        asked, pids = 0, set()

        def ask(number: int) -> str:
            with urllib.request.urlopen(f"{address}?{number}", timeout=60) as answer:
                return answer.read().decode()

        with (
            gunicorn(tmp_path, *options, site=[url, {}, spooling]) as address,
            ThreadPoolExecutor(16) as pool,
        ):
            # Who answers is chance; four of four takes some tries.
            while len(pids) < 4 and asked < 2000:
                pids |= set(pool.map(ask, range(asked + 1, asked + 41)))
                asked += 40
        assert len(pids) == 4
        with relay(url, spooling):
            assert eventually(lambda: len(bodies(server, "spooled")) > asked, 30)
    for queue in ("jobs", "spooled"):
        assert sorted(number for _, number in bodies(server, queue)) == list(range(asked + 1))
    users = [set(re.findall(rb"pid-\d+-", sent)) for sent in confirmed(tap, server)]
    assert sum(map(bool, users)) >= 5  # the master's and four workers'
    assert max(map(len, users)) == 1


def confirmed(tap, server) -> list[bytes]:
    """What went over each connection to the queue whose messages their own process posts."""
    path = f"/queues/{server.queue_id('jobs')}/messages".encode()
    return [
        b"".join(request for request in bytes(sent).split(b"POST ")[1:] if path in request[:200])
        for sent in tap.sent
    ]
