"""Several machines with one token: what a block of it teaches each, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import requests
from kombu import Connection
from support.forms import first_of
from support.processes import Script
from support.scripted import Api, Failure, ScriptedServer

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
    url = f"{server.base_url}/accounts/{server.account_id}/queues"
    header = {"Authorization": f"Bearer {server.token}"}
    return [requests.get(url, headers=header, timeout=10).status_code for _ in range(number)]


@pytest.fixture
def options(server, tmp_path, request):
    given = dict(getattr(request, "param", {}))
    if "queues" in given:
        given["queues"] = {"jobs": server.queue_id("jobs")}
    return {"spool_dir": str(tmp_path / "spool"), "publish_timeout": 30, **given}


@pytest.mark.parametrize("options", MODES.values(), ids=MODES, indirect=True)
@pytest.mark.parametrize(
    "code", first_of([PUBLISH, CELERY, BATCH]), ids=["kombu", "celery", "batch"]
)
def test_a_process_that_starts_in_a_block_fails_at_once_and_says_for_how_long(
    server, options, code
):
    """The block outlasts its publish: nobody waits for what cannot be, and the time is told."""
    assert spend(server, LIMIT + 1)[-1] == 429
    with Script(code, server.broker_url, options) as process:
        ((seconds, error, text, _),) = process.wait()
    assert error != "published"
    assert seconds < 5.5, f"Kombu's pauses, or a wait in vain: {text}"
    left = [int(number) for number in re.findall(r"(\d+) s\b", text)]
    assert any(250 < number <= 300 for number in left), text
    assert server.token not in text


# -- what is said of it

PUBLISH_AND_LOG = """
import logging
class Says(logging.Handler):
    def emit(self, record):
        if record.name.startswith("kombu_cfqueues") and record.levelno >= logging.INFO:
            print(json.dumps([record.levelname, record.getMessage()]), flush=True)
logging.getLogger("kombu_cfqueues").setLevel(logging.INFO)
logging.getLogger("kombu_cfqueues").addHandler(Says())
from kombu.exceptions import OperationalError
import kombu_cfqueues.account
print(json.dumps(["ready", ""]), flush=True)
sys.stdin.readline()
connection = connect()
for _ in range(10):
    try:
        connection.Producer().publish("x", routing_key="jobs")
    except OperationalError:
        pass
print(json.dumps(["stats", kombu_cfqueues.stats()]), flush=True)
sys.stdin.readline()
published = 0
while published < 3:
    try:
        connection.Producer().publish("x", routing_key="jobs")
        published += 1
    except OperationalError:
        time.sleep(0.1)
print(json.dumps(["over", ""]), flush=True)
"""


def told(process, last):
    """What a process says until the line *last*, and that line."""
    lines = [process.line()]
    while lines[-1][0] != last:
        lines.append(process.line())
    return lines[:-1], lines[-1][1]


def test_each_process_that_publishes_has_one_warning_and_one_line_at_the_end(tmp_path):
    """The second process was told nothing by the API: it reads of the block in the file."""
    options = {"spool_dir": str(tmp_path / "spool"), "request_rate": 400.0, "publish_timeout": 0.5}
    api, answers = Api(["jobs"]), [Failure(429, 971, Retry_After="5")]
    with (
        ScriptedServer(
            otherwise=lambda r: answers.pop() if answers and "/messages" in r.path else api(r)
        ) as server,
        Script(PUBLISH_AND_LOG, server.broker_url, options) as first,
        Script(PUBLISH_AND_LOG, server.broker_url, options) as second,
    ):
        for process in (first, second):
            told(process, "ready")
        for process in (first, second):
            process.go()
            lines, stats = told(process, "stats")
            (text,) = [text for level, text in lines if level == "WARNING"]
            assert re.search(r"for \d s; messages wait; about \d of the 1,200 requests", text)
            assert "at most 10 requests per second from now on" in text
            for way_out in ("token for each", "budget_url", "gateway"):
                assert way_out in text
            assert (stats["share"], stats["blocks"]) == (0.025, 1)
        ends = []
        for process in (first, second):
            process.go()
            ends.append(told(process, "over")[0])
    for lines in ends:
        assert [level for level, text in lines if "is over" in text] == ["INFO"]


SPOOL_AND_LOG = (
    PUBLISH_AND_LOG.partition("connection = connect()")[0]
    + """
connect().Producer().publish("x", routing_key="jobs")
sys.stdin.readline()
"""
)


def test_each_process_that_spools_has_one_warning_and_one_line_at_the_end(tmp_path):
    """One of them empties the spool, and the other only keeps its messages there."""
    options = {"spool_dir": str(tmp_path / "spool"), "request_rate": 400.0}
    api, answers = Api(["jobs"]), [Failure(429, 971, Retry_After="4")]
    with (
        ScriptedServer(
            otherwise=lambda r: answers.pop() if answers and "/messages" in r.path else api(r)
        ) as server,
        Script(SPOOL_AND_LOG, server.broker_url, options | {"publish_mode": "spool"}) as first,
        Script(SPOOL_AND_LOG, server.broker_url, options | {"publish_mode": "spool"}) as second,
    ):
        for process in (first, second):
            told(process, "ready")
            process.go()
            assert "messages wait; about" in told(process, "WARNING")[1]
        for process in (first, second):
            lines, end = told(process, "INFO")
            assert lines == []
            assert "messages leave again" in end


# -- pods


@pytest.mark.parametrize(
    ("given", "warns"),
    [
        ({}, True),
        ({"request_rate": 0.5}, False),
        ({"spool_dir": "here"}, False),
    ],
)
def test_a_pod_that_shares_its_token_is_told_so_once(server, caplog, monkeypatch, given, warns):
    """Its disk ends with it, and what it has learned, too."""
    server.knobs = replace(server.knobs, rate_limit=None)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    options = {"request_rate": 3.7, "budget_scope": "process", **given}
    with Connection(server.broker_url, transport_options=options) as connection:
        for _ in range(2):
            connection.Producer().publish("x", routing_key="jobs")
    texts = [record.getMessage() for record in caplog.records if "pod" in record.getMessage()]
    assert len(texts) == warns
    for text in texts:
        for way_out in ("budget_url", "request_rate", "spool_dir", "gateway"):
            assert way_out in text
