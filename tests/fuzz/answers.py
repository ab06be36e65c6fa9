"""What a server, or something in its place, may answer."""

from __future__ import annotations

import json
import time

from kombu_cfqueues.api.client import Client
from kombu_cfqueues.api.requester import Requester
from kombu_cfqueues.api.responses import Response
from kombu_cfqueues.envelope import receive
from kombu_cfqueues.errors import CFQueuesError
from kombu_cfqueues.options import Secret
from kombu_cfqueues.rate_limit import Budget, Limit

SECRET = "s3cret-abcdefghij"
STATUSES = (200, 201, 202, 302, 400, 401, 403, 404, 405, 409, 413, 429, 500, 503)
HEADERS = ("Retry-After", "Ratelimit", "CF-Ray", "Content-Type", "cf-mitigated")
CALLS = 8

QUEUE = {
    "queue_id": "0123456789abcdef" * 2,
    "queue_name": "jobs",
    "settings": {"message_retention_period": 60},
    "consumers": [{"type": "http_pull", "settings": {"max_retries": 3}}],
}
MESSAGE = {"lease_id": "l", "body": "x", "metadata": {"CF-Content-Type": "text"}, "attempts": 1}
RESULTS = [
    [QUEUE],
    QUEUE,
    QUEUE["consumers"],
    {"messages": [MESSAGE], "message_backlog_count": 1},
    {"ackCount": 1, "retryCount": 0, "warnings": {"l": "late"}},
    {"backlog_count": 5},
]
SEEDS = [
    bytes([call, 0, 0]) + b"5\n" + json.dumps({"success": True, "result": result}).encode()
    for call, result in enumerate([*RESULTS, None, None])
] + [
    bytes([0, status, header])
    + b"5\n"
    + json.dumps(
        {"success": False, "errors": [{"code": 10000, "message": f"Bearer {SECRET}"}]}
    ).encode()
    for status in range(len(STATUSES))
    for header in range(len(HEADERS))
]
WORDS = [
    '"success"', "true", "false", '"errors"', '"code"', '"message"', '"result"', '"result_info"',
    '"total_pages"', '"total_count"', '"per_page"', '"messages"', '"lease_id"', '"warnings"',
    '"queue_id"', '"queue_name"', '"settings"', '"message_retention_period"', '"consumers"',
    "10253", "971", "1e999", "NaN", "null", "[]", "{}", "Wed, 21 Oct 2099 07:28:00 GMT",
    '"default";r=1;t=30', '"default";q=1200;w=300', "99999999999999999999",
]  # fmt: skip


class _Answered(Requester):
    """A requester whose requests are all answered with what there is."""

    answer: Response

    def _exchange(self, *args: object, **kwargs: object) -> Response:
        return self.answer


def read(data: bytes) -> None:
    """Call with *data* as the answer: its first bytes say what is called, status and a header."""
    call, status, header = (*data[:3], 0, 0, 0)[:3]
    value, _, body = data[3:].partition(b"\n")
    budget = Budget(Limit(4.0, 60))
    settings = {"connect_timeout": 5, "read_timeout": 10, "permits": budget}
    client = Client("http://localhost", "a", Secret(SECRET), **settings)
    client._requester = requester = _Answered("http://localhost", Secret(SECRET), **settings)
    headers = {HEADERS[header % len(HEADERS)]: value.decode("latin-1")}
    requester.answer = Response(STATUSES[status % len(STATUSES)], headers, body)
    deadline = time.monotonic() + 60
    calls = (
        lambda: client.list_queues(deadline=deadline),
        lambda: client.create_queue("jobs", deadline=deadline),
        lambda: client.list_consumers("q", deadline=deadline),
        lambda: [
            receive(one, "jobs")
            for one in client.pull("q", batch_size=1, visibility_timeout_ms=1000, deadline=deadline)
        ],
        lambda: client.ack("q", acks=["l"], deadline=deadline),
        lambda: client.backlog("q", deadline=deadline),
        lambda: client.push("q", b"{}", deadline=deadline),
        lambda: client.purge("q", deadline=deadline),
    )
    try:
        calls[call % CALLS]()
    except CFQueuesError as error:
        check(error)


def check(error: CFQueuesError) -> None:
    assert SECRET not in f"{error!s} {error!r} {vars(error)!r}"
    assert error.retry_after is None or 0 <= error.retry_after < 1e9
