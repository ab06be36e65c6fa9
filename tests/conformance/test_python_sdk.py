"""Cloudflare's own Python SDK against the emulator."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import cloudflare
import pytest


@pytest.fixture
def client(emulator):
    with cloudflare.Cloudflare(
        api_token=emulator.token, base_url=emulator.base_url, max_retries=0
    ) as running:
        yield running


@pytest.fixture
def account(emulator):
    return {"account_id": emulator.account_id}


@pytest.fixture
def jobs(emulator):
    return emulator.create_queue("jobs", consumer={"type": "http_pull"})


def test_queues(client, account, emulator):
    made = client.queues.create(**account, queue_name="jobs", jurisdiction="eu")
    assert (made.queue_name, made.jurisdiction) == ("jobs", "eu")
    assert made.settings.message_retention_period == 345_600

    edited = client.queues.edit(made.queue_id, **account, settings={"delivery_delay": 5})
    assert edited.settings.delivery_delay == 5
    updated = client.queues.update(made.queue_id, **account, queue_name="work")
    assert (updated.queue_name, updated.settings.delivery_delay) == ("work", 0)
    assert client.queues.get(made.queue_id, **account) == updated
    assert client.queues.list(**account).result == [updated]
    assert client.queues.list(**account, extra_query={"name": "other"}).result == []

    assert client.queues.delete(made.queue_id, **account).success is True
    assert emulator.queue_names() == []


def test_consumers(client, account, emulator):
    queue_id = emulator.create_queue("jobs")
    settings = {"batch_size": 50, "max_retries": 9, "retry_delay": 1, "visibility_timeout_ms": 1000}
    made = client.queues.consumers.create(
        queue_id, **account, type="http_pull", dead_letter_queue="dead", settings=settings
    )
    assert (made.type, made.dead_letter_queue) == ("http_pull", "dead")
    assert made.settings.to_dict() == settings

    read = client.queues.consumers.get(made.consumer_id, **account, queue_id=queue_id)
    assert read == made
    assert list(client.queues.consumers.list(queue_id, **account)) == [made]
    updated = client.queues.consumers.update(
        made.consumer_id, **account, queue_id=queue_id, type="worker", script_name="w"
    )
    assert (updated.type, updated.script_name) == ("worker", "w")
    deleted = client.queues.consumers.delete(made.consumer_id, **account, queue_id=queue_id)
    assert deleted.success is True
    assert emulator.consumers("jobs") == []


def test_messages(client, account, jobs):
    messages = client.queues.messages
    pushed = messages.push(jobs, **account, body="text", content_type="text")
    assert pushed.metadata.metrics.backlog_count == 1
    messages.push(jobs, **account, body={"a": 1}, content_type="json", delay_seconds=0)
    bulk = messages.bulk_push(
        jobs, **account, messages=[{"body": "b", "content_type": "text"}], delay_seconds=0
    )
    assert bulk.metadata.metrics.backlog_count == 3

    pulled = messages.pull(jobs, **account, batch_size=2, visibility_timeout_ms=5000)
    assert pulled.message_backlog_count == 3
    text, structure = pulled.messages
    assert (text.body, text.attempts, text.metadata["CF-Content-Type"]) == ("text", 1, "text")
    assert json.loads(base64.b64decode(structure.body)) == {"a": 1}

    settled = messages.ack(
        jobs,
        **account,
        acks=[{"lease_id": text.lease_id}, {"lease_id": "unknown"}],
        retries=[{"lease_id": structure.lease_id, "delay_seconds": 10}],
    )
    assert (settled.ack_count, settled.retry_count) == (1, 1)
    assert list(settled.warnings) == ["unknown"]
    metrics = client.queues.get_metrics(jobs, **account)
    assert metrics.backlog_count == 2
    assert metrics.oldest_message_timestamp_ms > 0


def test_peek_and_purge(client, account, jobs, emulator):
    for body in ("a", "b", "c"):
        client.queues.messages.push(jobs, **account, body=body, content_type="text")

    [peeked] = client.queues.messages.peek(jobs, **account, batch_size=1).messages
    assert (peeked.body, peeked.attempts) == ("a", 0)
    purged = client.queues.messages.purge(jobs, **account, refs=[{"ref": peeked.ref}])
    assert (purged.errors, purged.warnings) == ([], {})
    assert [message.body for message in emulator.messages("jobs")] == ["b", "c"]

    client.queues.purge.start(jobs, **account, delete_messages_permanently=True)
    assert emulator.messages("jobs") == []
    status = client.queues.purge.status(jobs, **account)
    assert status.completed == "true"
    assert status.started_at


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        (lambda m, **where: m.push(**where), cloudflare.BadRequestError, 10207),
        (lambda m, **where: m.bulk_push(**where, messages=[]), cloudflare.BadRequestError, 10206),
        (lambda m, **where: m.pull(**where, batch_size=101), cloudflare.BadRequestError, 10026),
        (
            lambda m, **where: m.push(**{**where, "queue_id": "0" * 32}, body={}),
            cloudflare.NotFoundError,
            10104,
        ),
    ],
)
def test_refusals_arrive_with_their_codes(client, emulator, call, error, code):
    jobs = emulator.create_queue("jobs", consumer={"type": "http_pull"})
    with pytest.raises(error) as refused:
        call(client.queues.messages, queue_id=jobs, account_id=emulator.account_id)

    assert [one.code for one in refused.value.errors] == [code]


@pytest.mark.parametrize(("token", "code"), [("wrong", 10000), ("viewer", 10106)])
def test_a_token_without_permission_is_refused(emulator, account, jobs, token, code):
    with (
        cloudflare.Cloudflare(api_token=token, base_url=emulator.base_url) as client,
        pytest.raises(cloudflare.PermissionDeniedError) as refused,
    ):
        client.queues.messages.push(jobs, **account, body={})

    assert [one.code for one in refused.value.errors] == [code]


def test_the_sdks_own_retries_can_be_seen(emulator, account, jobs):
    """A response that was lost after the effect makes it publish twice."""
    emulator.faults.lost_response("push")
    with cloudflare.Cloudflare(
        api_token=emulator.token, base_url=emulator.base_url, max_retries=1
    ) as client:
        client.queues.messages.push(jobs, **account, body="x", content_type="text")

    assert [request.attempt for request in emulator.requests] == [0, 1]
    assert [message.body for message in emulator.messages("jobs")] == ["x", "x"]


def test_no_method_of_the_sdks_is_left_out():
    """Each of them stands in this file: a new version of the SDK's fails here first.

    All but those of ``subscriptions``, which concern other products' events and are not emulated.
    """
    here = Path(__file__).read_text()
    called = set(re.findall(r"\.(\w+)\(", here))
    queues = cloudflare.Cloudflare(api_token="t").queues
    resources = [queues, queues.consumers, queues.messages, queues.purge]
    methods = {
        name
        for resource in resources
        for name in vars(type(resource))
        if not name.startswith(("_", "with_")) and not hasattr(getattr(resource, name), "_client")
    }

    assert methods >= {"bulk_push", "peek", "get_metrics", "status"}
    assert methods - called == set()
