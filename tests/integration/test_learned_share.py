"""Several machines with one token: what a block of it teaches each, and what is said of it."""

from __future__ import annotations

import re

import pytest
import requests
from support.processes import Script

from kombu_cfqueues.emulator import Emulator

LIMIT = 25

PUBLISH = """
from kombu.exceptions import OperationalError
began = time.monotonic()
try:
    with connect() as connection:
        connection.Producer().publish("x", routing_key="jobs")
    told = ["published", ""]
except OperationalError as error:
    told = [type(error).__name__, str(error)]
print(json.dumps([time.monotonic() - began, *told, kombu_cfqueues.stats()]), flush=True)
"""

CELERY = """
from celery import Celery
from kombu.exceptions import OperationalError
app = Celery(broker=URL)
app.conf.broker_transport_options = OPTIONS
@app.task(name="add")
def add(): ...
began = time.monotonic()
try:
    add.apply_async(queue="jobs")
    told = ["published", ""]
except OperationalError as error:
    told = [type(error).__name__, str(error)]
print(json.dumps([time.monotonic() - began, *told, kombu_cfqueues.stats()]), flush=True)
"""

BATCH = """
from kombu_cfqueues import batch
from kombu_cfqueues.errors import BatchPublishError
connection = connect()
began = time.monotonic()
try:
    with batch(connection):
        connection.Producer().publish("x", routing_key="jobs")
    told = ["published", ""]
except Exception as error:
    told = [type(error).__name__, str(error)]
print(json.dumps([time.monotonic() - began, *told, kombu_cfqueues.stats()]), flush=True)
"""

MODES = {
    "the machine's allowance": {"request_rate": 3.7},
    "the process's": {"request_rate": 3.7, "budget_scope": "process"},
    "no limit": {},
    "no limit, and the id is given": {"queues": {"jobs": ""}},
}


@pytest.fixture
def server():
    """A server that lets a few requests pass, as Cloudflare does with 1,200."""
    with Emulator(rate_limit=LIMIT) as emulator:
        emulator.create_queue("jobs")
        yield emulator


def spend(server, number):
    """Another tool makes requests with the token."""
    url = f"{server.base_url}/client/v4/accounts/{server.account_id}/queues"
    header = {"Authorization": f"Bearer {server.token}"}
    return [requests.get(url, headers=header, timeout=10).status_code for _ in range(number)]


@pytest.fixture
def options(server, tmp_path, request):
    given = dict(getattr(request, "param", {}))
    if "queues" in given:
        given["queues"] = {"jobs": server.queue_id("jobs")}
    return {"spool_dir": str(tmp_path / "spool"), "publish_timeout": 30, **given}


@pytest.mark.parametrize("options", MODES.values(), ids=MODES, indirect=True)
@pytest.mark.parametrize("code", [PUBLISH, CELERY, BATCH], ids=["kombu", "celery", "batch"])
def test_a_process_that_starts_in_a_block_fails_at_once_and_says_for_how_long(
    server, options, code
):
    """The block outlasts its publish: nobody waits for what cannot be, and the time is told."""
    assert spend(server, LIMIT + 1)[-1] == 429
    with Script(code, server.broker_url, options) as process:
        ((seconds, error, text, _),) = process.wait()
    assert error != "published"
    assert seconds < 4, f"Kombu's pauses, or a wait in vain: {text}"
    left = [int(number) for number in re.findall(r"(\d+) s\b", text)]
    assert any(250 < number <= 300 for number in left), text
    assert server.token not in text
