"""gevent and eventlet that patch a process after it has used the library.

``gunicorn --preload`` imports a site in the master, and each worker patches Python after the fork.
The library's locks are then the system's, and block all greenlets.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
from support.forms import first_of
from support.processes import ROOT, Script, eventually, needs

from kombu_cfqueues.emulator import TOKEN, Emulator

from .test_forks import SPOOLER, gunicorn

REQUESTS = 40

SITE = """
    import json, os, threading, time
    from kombu import Connection, Consumer, Queue
    from kombu.pools import producers
    import concurrent.futures.thread
    import kombu_cfqueues

    URL, SPOOL_URL, SPOOLING = json.loads(os.environ["SITE"])
    confirming = Connection(URL)
    spooling = Connection(SPOOL_URL, transport_options=SPOOLING)

    def publish(number):
        for connection in (confirming, spooling):
            with producers[connection].acquire(block=True) as producer:
                producer.publish(number, routing_key="jobs")
                with kombu_cfqueues.batch(connection):
                    producer.publish(number, routing_key="batched")

    def get():
        with Connection(URL) as connection:
            message = connection.SimpleQueue("work").get(timeout=30)
            message.ack()
            return message.payload

    # The master uses everything, so that each of our objects has locks of the system.
    publish(-1)
    get()

    def site(environ, start_response):
        publish(int(environ["QUERY_STRING"]))
        received = get()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(received).encode()]
"""


@pytest.fixture
def server():
    with Emulator(latency=0.02, tokens={SPOOLER: "edit"}) as emulator:
        for queue in ("jobs", "batched", "work"):
            emulator.create_queue(queue)
        yield emulator


@pytest.fixture
def spooling(tmp_path):
    return {
        "publish_mode": "spool",
        "request_rate": 20.0,
        "request_burst": 2,
        "spool_dir": str(tmp_path / "spool"),
    }


@pytest.mark.long
def test_the_greenlets_of_a_preloaded_worker_publish_and_consume(server, spooling, tmp_path):
    """No greenlet waits for a lock that another greenlet holds while it starts a thread."""
    pytest.importorskip("gunicorn")
    needs("gevent")
    fill(server, REQUESTS + 1)
    url = server.broker_url
    options = ["--preload", "--worker-class", "gevent"]
    site = [url, url.replace(TOKEN, SPOOLER), spooling]
    with (
        gunicorn(tmp_path, *options, site=site, code=SITE) as address,
        ThreadPoolExecutor(20) as pool,
    ):

        def ask(number: int) -> int:
            with urllib.request.urlopen(f"{address}?{number}", timeout=60) as answer:
                return int(answer.read())

        received = list(pool.map(ask, range(REQUESTS)))
        assert eventually(lambda: len(server.messages("jobs")) >= 2 * (REQUESTS + 1), 30)
    assert len(set(received)) == REQUESTS
    for queue in ("jobs", "batched"):
        assert sorted(messages(server, queue)) == sorted(2 * list(range(-1, REQUESTS)))


FORK = """
    import sys
    if os.fork():
        os.wait()
        sys.exit()
"""

GREENLETS = """
    def use(number):
        publish(number)
        print(get(), flush=True)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(60)  # while the spool is emptied
"""

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.parametrize("green", first_of(["gevent", "eventlet"]))
def test_a_child_that_patches_itself_publishes_and_consumes(server, spooling, tmp_path, green):
    """As a server does that forks first, and chooses the kind of its workers then."""
    needs(green)
    if green == "eventlet" and urllib3.__version__ < "2":
        pytest.skip("urllib3 before 2 uses select.poll, which eventlet takes away")
    fill(server, REQUESTS + 1)
    program = tmp_path / "program.py"
    code = textwrap.dedent(SITE) + textwrap.dedent(FORK)
    program.write_text(code + PATCHES[green] + textwrap.dedent(GREENLETS))
    url = server.broker_url
    site = [url, url.replace(TOKEN, SPOOLER), spooling]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SITE": json.dumps(site)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert eventually(lambda: len(messages(server, "batched")) == 2 * (REQUESTS + 1), 30)
            assert eventually(lambda: len(messages(server, "jobs")) == 2 * (REQUESTS + 1), 30)
            received = [int(process.stdout.readline()) for _ in range(REQUESTS)]
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with its child
    assert len(set(received)) == REQUESTS
    assert sorted(messages(server, "jobs")) == sorted(2 * list(range(-1, REQUESTS)))


def messages(server: Emulator, queue: str) -> list[int]:
    return [json.loads(json.loads(one.body)["body"]) for one in server.messages(queue)]


def fill(server: Emulator, count: int) -> None:
    with Script(
        "with connect() as c:\n    p = c.Producer()\n"
        f"    for n in range({count}): p.publish(n, routing_key='work')\n",
        server.broker_url,
        {},
    ) as script:
        script.wait()
