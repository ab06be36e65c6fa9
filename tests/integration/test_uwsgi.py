"""A site under uWSGI, which forks its workers in C, where Python's fork hooks may not run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.forms import long
from support.processes import ROOT, eventually
from support.tap import Tap

from kombu_cfqueues.emulator import TOKEN, Emulator

from .workers import until

WORKERS = 3
REQUESTS = 24

#: A second token, so that the messages that are posted at once do not wait for the others.
SPOOLER = "spooler"

SITE = """
    import json, os
    from kombu import Connection
    import kombu_cfqueues

    URL, SPOOL_URL, SPOOLING = json.loads(os.environ["SITE"])
    confirming = Connection(URL).Producer()
    spooling = Connection(SPOOL_URL, transport_options=SPOOLING).Producer()

    def publish(number):
        body = [f"pid-{os.getpid()}-", number]
        confirming.publish(body, routing_key="jobs")
        spooling.publish(body, routing_key="spooled")

    # If the master imports this, its sockets and its file exist before it forks.
    publish(-1)

    def application(environ, start_response):
        publish(int(environ["QUERY_STRING"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(os.getpid()).encode()]
"""


def uwsgi_program() -> str:
    """Return the path of uWSGI; skip where it is missing, but not in CI."""
    beside_python = Path(sys.executable).with_name("uwsgi")
    program = str(beside_python) if beside_python.exists() else shutil.which("uwsgi")
    if program is None:
        assert not os.environ.get("CI"), "uWSGI is missing: pip install pyuwsgi"
        pytest.skip("uWSGI is missing: pip install pyuwsgi")
    return program


@contextlib.contextmanager
def uwsgi(folder: Path, *arguments: str, site: list) -> Iterator[str]:
    """Run the site under uWSGI; yield its address; the workers must end by themselves."""
    program = uwsgi_program()
    (folder / "site_of_test.py").write_text(textwrap.dedent(SITE))
    log = folder / "uwsgi.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(program, "--http-socket", f"127.0.0.1:{port}", "--need-app"),
                *("--enable-threads", "--die-on-term", "--processes", str(WORKERS)),
                *("--wsgi-file", "site_of_test.py", "--disable-logging", *arguments),
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "SITE": json.dumps(site)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        ready = "WSGI app 0" if "--lazy-apps" in arguments else "spawned uWSGI worker"
        until(lambda: log.read_text().count(ready) == WORKERS, 60, "the workers have started")
        yield f"http://127.0.0.1:{port}/"
        process.terminate()
        process.wait(60)
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        # Without a master, uWSGI leaves its other workers behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask_until_several_answer(address: str) -> tuple[int, set[str]]:
    """Make requests at the same time; return how many, and the pids of the workers."""

    def ask(number: int) -> str:
        with urllib.request.urlopen(f"{address}?{number}", timeout=60) as answer:
            return answer.read().decode()

    asked, pids = 0, set()
    with ThreadPoolExecutor(WORKERS) as pool:
        while len(pids) < 2 and asked < 2000:  # which worker answers is chance
            pids |= set(pool.map(ask, range(asked, asked + REQUESTS)))
            asked += REQUESTS
    assert len(pids) > 1
    return asked, pids


def pids_by_socket(tap: Tap, server: Emulator) -> list[set[bytes]]:
    """Return, for each connection to the server, the processes that published over it."""
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
    return [pids for pids in users if pids]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--master"],
        long(["--master", "--threads", "4"]),
        long(["--master", "--lazy-apps"]),
        long(["--master", "--lazy-apps", "--threads", "4"]),
        long(["--master", "--py-call-osafterfork"]),
        long([]),
    ],
    ids=lambda arguments: " ".join(arguments) or "without a master",
)
def test_workers_share_no_ids_and_no_sockets(tmp_path: Path, arguments: list[str]) -> None:
    """Each message has an id of its own, arrives, and travels over a socket of its process."""
    spooling = {
        "publish_mode": "spool",
        "request_rate": 20.0,
        "request_burst": 2,
        "spool_dir": str(tmp_path / "spool"),
    }
    with Emulator(latency=0.02, tokens={SPOOLER: "edit"}) as server, Tap(server.port) as tap:
        for queue in ("jobs", "spooled"):
            server.create_queue(queue)
        url = server.broker_url.replace(str(server.port), str(tap.port))
        site = [url, url.replace(TOKEN, SPOOLER), spooling]
        imports = WORKERS if "--lazy-apps" in arguments else 1
        with uwsgi(tmp_path, *arguments, site=site) as address:
            asked, _ = ask_until_several_answer(address)
            assert eventually(lambda: len(server.messages("spooled")) >= asked + imports, 30)
        expected = sorted([*range(asked), *[-1] * imports])
        for queue in ("jobs", "spooled"):
            messages = [json.loads(message.body) for message in server.messages(queue)]
            assert sorted(json.loads(one["body"])[1] for one in messages) == expected, queue
            assert len({one["properties"]["message_id"] for one in messages}) == len(expected)
            assert len({one["properties"]["delivery_tag"] for one in messages}) == len(expected)
        assert all(len(pids) == 1 for pids in pids_by_socket(tap, server))
