"""Whatever is sent, the answer is a documented refusal: no 500, no crash, no hang.

Every field of every route, in turn, of each wrong kind; then requests that are broken below JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket

import pytest
import requests

from kombu_cfqueues.emulator import Emulator

CONSUMER = {
    "type": "http_pull",
    "dead_letter_queue": "dead",
    "settings": {
        "batch_size": 1,
        "max_retries": 1,
        "retry_delay": 1,
        "visibility_timeout_ms": 1000,
    },
}
WORKER = {
    "type": "worker",
    "script_name": "w",
    "settings": {"max_concurrency": 1, "max_wait_time_ms": 1, "batch_size": 1},
}
SETTINGS = {"delivery_delay": 1, "delivery_paused": False, "message_retention_period": 60}
CONSOLE = "/_emulator"

# A good request of each route that takes a body.
REQUESTS = {
    "create": ("POST", "", {"queue_name": "q", "jurisdiction": "eu", "settings": SETTINGS}),
    "update": ("PUT", "/QUEUE", {"queue_name": "r", "jurisdiction": "eu", "settings": SETTINGS}),
    "edit": ("PATCH", "/QUEUE", {"queue_name": "r", "settings": SETTINGS}),
    "purge": ("POST", "/QUEUE/purge", {"delete_messages_permanently": True}),
    "create_consumer": ("POST", "/QUEUE/consumers", CONSUMER),
    "create_worker": ("POST", "/QUEUE/consumers", WORKER),
    "update_consumer": ("PUT", "/QUEUE/consumers/CONSUMER", CONSUMER),
    "push": ("POST", "/QUEUE/messages", {"body": "", "content_type": "text", "delay_seconds": 1}),
    "batch": (
        "POST",
        "/QUEUE/messages/batch",
        {
            "messages": [{"body": "", "content_type": "text", "delay_seconds": 1}],
            "delay_seconds": 1,
        },
    ),
    "pull": ("POST", "/QUEUE/messages/pull", {"batch_size": 1, "visibility_timeout_ms": 1000}),
    "ack": (
        "POST",
        "/QUEUE/messages/ack",
        {"acks": [{"lease_id": "x"}], "retries": [{"lease_id": "x", "delay_seconds": 1}]},
    ),
    "extend": (
        "POST",
        "/QUEUE/messages/extend",
        {"extend": [{"lease_id": "x"}], "visibility_timeout_ms": 1000},
    ),
    "peek": ("POST", "/QUEUE/messages/peek", {"batch_size": 1}),
    "purge_refs": ("POST", "/QUEUE/messages/purge", {"refs": [{"ref": "x"}]}),
    "console_queue": (
        "POST",
        f"{CONSOLE}/queues",
        {"name": "n", "consumer": CONSUMER, "settings": SETTINGS},
    ),
    "console_publish": (
        "POST",
        f"{CONSOLE}/queues/QUEUE/messages",
        {"kind": "celery", "task": "t", "args": [1], "kwargs": {"a": 1}, "delay_seconds": 1},
    ),
    "console_text": (
        "POST",
        f"{CONSOLE}/queues/QUEUE/messages",
        {"kind": "text", "body": "b", "delay_seconds": 1},
    ),
    "console_retry": ("POST", f"{CONSOLE}/queues/QUEUE/retry", {"numbers": [1]}),
    "console_delete": ("POST", f"{CONSOLE}/queues/QUEUE/delete", {"numbers": [1]}),
    "console_pause": ("POST", f"{CONSOLE}/queues/QUEUE/pause", {"paused": True}),
    "console_fault": (
        "POST",
        f"{CONSOLE}/faults",
        {
            "kind": "error",
            "routes": ["metrics"],
            "status": 500,
            "code": 1,
            "message": "m",
            "retry_after": 1,
            "after_effect": True,
            "times": 1,
        },
    ),
    "console_latency": (
        "POST",
        f"{CONSOLE}/faults",
        {"kind": "latency", "routes": ["metrics"], "seconds": [0, 0.1], "times": 1},
    ),
    "console_clock": ("POST", f"{CONSOLE}/clock", {"advance": 0}),
    "console_knobs": ("PATCH", f"{CONSOLE}/knobs", {"rate_limit": None, "first_attempt": 1}),
}

DEEP: list = []
for _ in range(500):
    DEEP = [DEEP]

WRONG = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**6,
    2**63,
    10**400,
    1e308,
    -1e308,
    "",
    "5",
    "x" * 200_000,
    "\u0000\r\n\u202e\ufffd😀",
    "' OR 1=1; DROP TABLE messages; --",
    [],
    [None],
    [[]],
    {},
    {"": None},
    {"lease_id": "x"},
    DEEP,
    "QUEUE",
]
RAW = [
    "",
    "nonsense",
    "[]",
    "null",
    "5",
    '"text"',
    "{",
    '{"a":}',
    '{"a": NaN}',
    '{"a": -Infinity}',
    '{"body": 1e999}',
    '{"a": "\\ud800"}',
    "\ufeff{}",
    '{"a": 1}{"b": 2}',
    "[" * 100_000,
    '{"a":' * 50_000,
    b"\xff\xfe",
    b"\x00",
    '{"body": ' + "9" * 5_000 + "}",
]


def paths_of(value, path=()):
    """Yield the way to each field of a body, and to each item of a list in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from paths_of(inner, (*path, key))


def replaced(value, path, by):
    """Return a copy with the field at *path* exchanged, or left out if *by* is Ellipsis."""
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    inner = replaced(copy[path[0]], path[1:], by)
    if inner is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = inner
    return copy


@pytest.fixture(scope="module")
def server():
    with Emulator(extend=True, list_page_size=5) as running:
        yield running


@pytest.fixture
def send(server, caplog):
    """Send a request; whatever it is, the answer is a good one or a refusal with its codes."""
    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {server.token}"
    session.headers["Content-Type"] = "application/json"

    def call(method, path, body):
        if "jobs" not in server.queue_names():
            server.create_queue("jobs", consumer={"type": "http_pull"})
        consumers = server.consumers("jobs")
        filled = path.replace("QUEUE", server.queue_id("jobs")).replace(
            "CONSUMER", consumers[0].id if consumers else "0" * 32
        )
        if filled.startswith(CONSOLE):
            url = server.page_url.rstrip("/") + filled
        else:
            url = f"{server.base_url}/accounts/{server.account_id}/queues{filled}"
        if not isinstance(body, str | bytes):
            body = json.dumps(body)
        body = body.encode() if isinstance(body, str) else body
        answer = session.request(method, url, data=body, timeout=10)
        shown = f"{method} {path} {body[:200]!r}: {answer.status_code} {answer.text[:200]}"
        assert answer.status_code in (200, 400, 404, 405, 409, 413), shown
        envelope = answer.json()
        if filled.startswith(CONSOLE):
            assert answer.ok or envelope["error"], shown
        elif not answer.ok:
            assert envelope["success"] is False, shown
            assert all(isinstance(error["code"], int) for error in envelope["errors"]), shown
        return answer

    yield call
    session.close()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("route", REQUESTS)
def test_every_field_of_every_wrong_kind(send, server, route):
    method, path, good = REQUESTS[route]
    for field in paths_of(good):
        for wrong in [*WRONG, ...]:
            send(method, path, replaced(good, field, wrong))
            server.faults.clear()
    assert send("GET", "", b"").status_code == 200


@pytest.mark.parametrize("route", REQUESTS)
def test_every_route_with_a_body_that_is_none(send, route):
    method, path, _ = REQUESTS[route]
    for raw in RAW:
        send(method, path, raw)


@pytest.mark.parametrize("name", ["page", "name", "per_page"])
@pytest.mark.parametrize(
    "value", ["", "0", "-1", "1.5", "9" * 40, "%00", "%F0%9F%98%80", "%ff", "x" * 5000, "a=b&"]
)
def test_every_query(send, name, value):
    send("GET", f"?{name}={value}", b"")


@pytest.mark.parametrize(
    "part", ["%00", "%ff", "..", "%2e%2e", "%2F", "a" * 5000, "%0A", "'", "%F0%9F%98%80", " "]
)
def test_every_id_in_a_path(send, part):
    for path in (f"/{part}", f"/{part}/messages", f"/QUEUE/{part}", f"/QUEUE/consumers/{part}"):
        send("GET", path, b"")
        send("POST", path, b"{}")


def test_10_mb_are_refused(send):
    assert send("POST", "/QUEUE/messages", b" " * 10_000_000).status_code == 413
    assert send("POST", f"{CONSOLE}/faults", b" " * 10_000_000).status_code == 413


HEAD = "POST /client/v4/accounts/{account}/queues/{queue}/messages HTTP/1.1\r\nHost: localhost\r\n"
AUTHORIZED = HEAD + "Authorization: Bearer {token}\r\n"


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        (AUTHORIZED, b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        (AUTHORIZED, b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n"),
        (AUTHORIZED, b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n"),
        (AUTHORIZED, b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n{}\r\n"),
        (AUTHORIZED, b"Content-Length: -5\r\n\r\n{}"),
        (AUTHORIZED, b"Content-Length: five\r\n\r\n{}"),
        (AUTHORIZED, b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        (AUTHORIZED, b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"),
        (AUTHORIZED, b"X-Null: \x00\r\n\r\n"),
        (AUTHORIZED, b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n"),
        ("", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"),
        ("", b"GET / HTTP/9.9\r\n\r\n"),
        ("", b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ],
)
def test_broken_http_is_refused_or_cut_off(server, send, head, sent):
    """And nobody else notices."""
    if "jobs" not in server.queue_names():
        server.create_queue("jobs", consumer={"type": "http_pull"})
    line = head.format(
        account=server.account_id, queue=server.queue_id("jobs"), token=server.token
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(line + sent)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = connection.recv(1000)
        except ConnectionResetError:
            answer = b""
    assert answer == b"" or answer.split()[1] in (b"400", b"404", b"413"), answer
    assert send("GET", "", b"").status_code == 200


def test_a_body_that_stops_half_way_is_no_message(server, send):
    before = len(server.messages("jobs"))
    line = AUTHORIZED.format(
        account=server.account_id, queue=server.queue_id("jobs"), token=server.token
    ).encode()
    for rest in (
        b'Content-Length: 100\r\n\r\n{"body": {}}',
        b'Transfer-Encoding: chunked\r\n\r\nC\r\n{"body": {}}\r\n',
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(line + rest)
    assert send("GET", "", b"").status_code == 200
    assert len(server.messages("jobs")) == before


def test_1000_connections_at_once_are_all_served(server, send):
    """As many clients that each keep a connection, and a request on each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4_096 if hard == resource.RLIM_INFINITY else min(4_096, hard)
    if wanted < 2_200:
        pytest.skip("needs 2,200 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    request = (
        f"GET /client/v4/accounts/{server.account_id}/queues HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {server.token}\r\n\r\n"
    ).encode()

    async def one(barrier):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await barrier.wait()
        writer.write(request)
        answer = await reader.readline()
        writer.close()
        return answer

    async def everyone():
        gate = asyncio.Event()
        tasks = [asyncio.create_task(one(gate)) for _ in range(1000)]
        await asyncio.sleep(0.5)
        gate.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), 30)

    try:
        answers = asyncio.run(everyone())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answers == [b"HTTP/1.1 200 OK\r\n"] * 1000
