"""A server forks in C, as uWSGI does, and Python's fork hooks do not run.

Whatever the child calls first must find out by itself that it is another process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from kombu import Producer
from support.processes import ROOT

from kombu_cfqueues.emulator import Emulator

SITE = """
import ctypes, json, os, sys, time
from kombu import Connection, Exchange, Producer, Queue
import kombu_cfqueues

URL, OPTIONS, CALL = json.loads(os.environ["SITE"])
site = Connection(URL, transport_options=OPTIONS)
producer = site.Producer()
for queue in ("jobs", "asked"):
    producer.publish("parent", routing_key=queue)  # opens sockets, and the file
open_one = site.SimpleQueue("asked")
assert open_one.get(timeout=20).payload == "parent"

def publish(how=producer):
    how.publish("child", routing_key="jobs")

def in_block():
    with kombu_cfqueues.batch(site):
        publish()

def in_batch():
    with producer.batch():
        publish()

def over_another_connection():
    publish(Connection(URL, transport_options=OPTIONS).Producer())

def spooled():
    options = OPTIONS | {"publish_mode": "spool"}
    publish(Connection(URL, transport_options=options).Producer())
    until = time.monotonic() + 20
    while kombu_cfqueues.stats()["published"] < 1 and time.monotonic() < until:
        time.sleep(0.01)

def declared():
    Queue("other", Exchange("events"), routing_key="x", channel=site.default_channel).declare()
    producer.publish("child", exchange="events", routing_key="x")

def consumed():
    publish(Connection(URL, transport_options=OPTIONS).Producer())
    with Connection(URL, transport_options=OPTIONS) as other:
        queue = other.SimpleQueue("jobs")
        assert {queue.get(timeout=20).payload, queue.get(timeout=20).payload} == {
            "parent", "child"}

def watched():
    file = os.path.join(OPTIONS["spool_dir"], "healthy")
    other = Connection(URL, transport_options=OPTIONS | {"health_file": file})
    publish(other.Producer())
    queue = other.SimpleQueue("jobs")
    queue.get(timeout=20)
    until = time.monotonic() + 20
    while not os.path.exists(file) and time.monotonic() < until:
        time.sleep(0.01)
    os.stat(file)

def closed():
    site.close()
    publish(Connection(URL, transport_options=OPTIONS).Producer())

if ctypes.PyDLL(None).fork() == 0:
    try:
        globals()[CALL]()
        print("ok", flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
os.wait()
os._exit(0)  # what the parent holds is not this test's matter
"""

NO_BATCHES = pytest.mark.skipif(
    not hasattr(Producer, "batch"), reason="Producer.batch() came with Kombu 5.7"
)

CALLS = [
    "publish", "in_block", pytest.param("in_batch", marks=NO_BATCHES), "over_another_connection",
    "spooled", "declared", "consumed", "watched", "closed",
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_the_first_call_in_a_child_that_was_forked_unnoticed(tmp_path, call):
    with Emulator(latency=0.02) as server:
        server.create_queue("jobs")
        options = {"spool_dir": str(tmp_path), "request_rate": 50.0, "request_burst": 50}
        site = json.dumps([server.broker_url, options, call])
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SITE)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "SITE": site},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ended.stdout == "ok\n", ended.stdout + ended.stderr
        queue = "other" if call == "declared" else "jobs"
        bodies = [json.loads(one.body)["body"] for one in server.messages(queue)]
        assert call in {"consumed", "watched"} or "child" in bodies
