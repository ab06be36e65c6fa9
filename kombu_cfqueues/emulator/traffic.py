"""The message routes: publish, pull, settle, peek."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from . import fields, limits
from .answers import MISSING, Answer, Json, Refusal, success
from .call import Call
from .queues import Consumer, Queue
from .store import Delivery, Draft, Settled

_bad_message: Final = fields.with_code(10203)
_bad_batch_delay: Final = fields.with_code(10202)
_bad_batch: Final = fields.with_code(10013)
_bad_schema: Final = fields.with_code(10207)
_bad_json: Final = fields.with_code(10208)
_bad_pull: Final = fields.with_code(10026)

_rng: Final = random.Random()  # noqa: S311 - chooses an encoding


def push(call: Call) -> Answer:
    """``POST …/messages``: publish one message."""
    queue = call.queue()
    sent = fields.parse(call.body, _bad_json)
    if not isinstance(sent, dict):
        raise _bad_schema(f"Expected object, received {fields.kind_of(sent)}")
    if call.knobs.strict_json_body and sent.get("content_type", "json") == "json":
        body = sent.get("body", {})
        if not isinstance(body, dict | list):
            raise _bad_schema(f"body: Expected object, received {fields.kind_of(body)}")
    draft = _draft(call, sent, queue.delivery_delay)
    return _publish(call, queue, [draft])


def batch(call: Call) -> Answer:
    """``POST …/messages/batch``: publish 1 to 100 messages, all or none."""
    queue = call.queue()
    sent = fields.parse(call.body, _bad_json)
    if not isinstance(sent, dict) or not isinstance(sent.get("messages"), list):
        raise _bad_batch("messages: Expected array")
    messages = sent["messages"]
    if not messages:
        raise Refusal(400, int(call.knobs.empty_batch_code), "A batch has at least one message")
    if len(messages) > limits.BATCH_MESSAGES:
        raise Refusal(400, 10206, f"A batch has at most {limits.BATCH_MESSAGES} messages")
    delay = fields.number(sent, "delay_seconds", 0, limits.DELAY_SECONDS, _bad_batch_delay)
    if delay is None:
        delay = queue.delivery_delay
    drafts = []
    for message in messages:
        if not isinstance(message, dict):
            raise _bad_schema(f"messages: Expected object, received {fields.kind_of(message)}")
        drafts.append(_draft(call, message, delay))
    size = sum(len(draft.body) + call.knobs.metadata_bytes for draft in drafts)
    if size > call.knobs.max_batch_bytes:
        raise Refusal(
            call.knobs.too_large_status,
            10205,
            f"The batch has {size} bytes; the limit is {call.knobs.max_batch_bytes}",
        )
    return _publish(call, queue, drafts)


def pull(call: Call) -> Answer:
    """``POST …/messages/pull``: lease messages."""
    queue = call.queue()
    consumer = _pull_consumer(call, queue)
    sent = fields.parse_object(call.body, _bad_pull)
    size = fields.number(sent, "batch_size", 1, limits.PULL_MESSAGES, _bad_pull)
    if size is None:
        size = _default_size(call, consumer)
    visibility_ms = _visibility(call, sent)
    if visibility_ms is None:
        visibility_ms = consumer.visibility_timeout_ms
    if call.change.max_messages is not None:
        size = min(size, call.change.max_messages)
    deliveries = call.service.store.pull(
        queue, size, visibility_ms, duplicate=call.change.duplicate
    )
    metrics = asdict(call.service.store.metrics(queue))
    return success(
        {
            "message_backlog_count": metrics["backlog_count"],
            "metadata": {"metrics": metrics},
            "messages": [_delivery_as_json(call, delivery, "lease_id") for delivery in deliveries],
        }
    )


def ack(call: Call) -> Answer:
    """``POST …/messages/ack``: settle leases."""
    queue = call.queue()
    _pull_consumer(call, queue)
    sent = fields.parse_object(call.body, _bad_pull)
    acks = [_lease_id(item) for item in fields.objects(sent, "acks", _bad_pull)]
    retries = [
        (
            _lease_id(item),
            fields.number(item, "delay_seconds", 0, limits.DELAY_SECONDS, _bad_pull),
        )
        for item in fields.objects(sent, "retries", _bad_pull)
    ]
    _check_leases(call, [*acks, *(lease_id for lease_id, _ in retries)])
    return success(_ack_result(call, call.service.store.settle(queue, acks, retries)))


def extend(call: Call) -> Answer:
    """``POST …/messages/extend``: extend leases without another attempt."""
    if not call.knobs.extend:
        raise Refusal(404, 7003, "Could not route to the path", (7000, "No route for that URI"))
    queue = call.queue()
    consumer = _pull_consumer(call, queue)
    sent = fields.parse_object(call.body, _bad_pull)
    lease_ids = [_lease_id(item) for item in fields.objects(sent, "extend", _bad_pull)]
    _check_leases(call, lease_ids)
    visibility_ms = _visibility(call, sent)
    if visibility_ms is None:
        visibility_ms = consumer.visibility_timeout_ms
    renewed, warnings = call.service.store.extend(queue, lease_ids, visibility_ms)
    # No source describes this result; ours maps the old lease ids to the new ones.
    return success({"leases": renewed, "warnings": warnings})


def peek(call: Call) -> Answer:
    """``POST …/messages/peek``: show messages without leasing them."""
    queue = call.queue()
    sent = fields.parse_object(call.body, _bad_pull)
    size = fields.number(sent, "batch_size", 1, limits.PULL_MESSAGES, _bad_pull)
    deliveries = call.service.store.peek(queue, size or limits.PULL_MESSAGES_DEFAULT)
    return success(
        {"messages": [_delivery_as_json(call, delivery, "ref") for delivery in deliveries]}
    )


def purge_refs(call: Call) -> Answer:
    """``POST …/messages/purge``: delete peeked messages."""
    queue = call.queue()
    sent = fields.parse_object(call.body, _bad_pull)
    if "refs" not in sent:
        raise _bad_pull("refs is required")
    refs = []
    for item in fields.objects(sent, "refs", _bad_pull):
        ref = fields.string(item, "ref", _bad_pull)
        if ref is None:
            raise _bad_pull("ref is required")
        refs.append(ref)
    if len(refs) > limits.PULL_MESSAGES:
        raise _bad_pull(f"refs has at most {limits.PULL_MESSAGES} entries")
    return success({"errors": [], "warnings": call.service.store.purge_refs(queue, refs)})


# --- publishing


def _draft(call: Call, sent: Mapping[str, Json], default_delay: int) -> Draft:
    """Return the checked message.  Its own delay overrides *default_delay*."""
    content_type = sent.get("content_type", "json")
    if content_type not in ("json", "text"):
        raise _bad_message('content_type must be "json" or "text"')
    if "body" not in sent:
        raise _bad_schema("body: Required")
    delay = fields.number(sent, "delay_seconds", 0, limits.DELAY_SECONDS, _bad_message)
    value = sent["body"]
    if content_type == "json":
        try:
            body = json.dumps(
                value, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            ).encode()
        except (ValueError, RecursionError) as error:  # 1e999, or too deeply nested
            raise _bad_schema("body: cannot be written as JSON") from error
    elif isinstance(value, str):
        body = value.encode()
    else:
        raise _bad_schema(f"body: Expected string, received {fields.kind_of(value)}")
    size = len(body) + call.knobs.metadata_bytes
    if size > limits.MESSAGE_BYTES:
        raise Refusal(
            call.knobs.too_large_status,
            10204,
            f"The message has {size} bytes; the limit is {limits.MESSAGE_BYTES}",
        )
    call.service.faults.check_message(value)
    return Draft(body, content_type, default_delay if delay is None else delay)


def _publish(call: Call, queue: Queue, drafts: list[Draft]) -> Answer:
    if queue.backlog_bytes + sum(len(d.body) for d in drafts) > call.knobs.max_backlog_bytes:
        raise Refusal(429, 10251, "The queue is full", headers=_queue_retry_after(call))
    call.service.store.add(queue, drafts, late=call.change.late_seconds)
    if call.knobs.push_result == "metrics":
        return success({"metadata": {"metrics": asdict(call.service.store.metrics(queue))}})
    return success(None if call.knobs.push_result == "null" else MISSING)


# --- pulling


def _pull_consumer(call: Call, queue: Queue) -> Consumer:
    """Return the queue's ``http_pull`` consumer.

    Raises:
        Refusal: The queue has no such consumer, or it is not in effect yet (405), or the queue is
            paused and this is a pull (409, or 429 with 10252).
    """
    consumer = queue.pull_consumer()
    enabled = consumer is not None and call.service.clock.now_ms() >= (
        consumer.created_ms + call.knobs.pull_enable_delay * 1000
    )
    if consumer is None or not enabled:
        raise Refusal(405, 0, "The queue is not enabled for HTTP pull")
    if queue.delivery_paused and call.route.name == "pull":
        if call.knobs.paused_pull == "409":
            raise Refusal(409, 0, "queue_delivery_paused")
        raise Refusal(429, 10252, "The queue is disabled", headers=_queue_retry_after(call))
    return consumer


def _default_size(call: Call, consumer: Consumer) -> int:
    size = None
    if call.knobs.pull_default_size == "consumer":
        size = consumer.settings.get("batch_size")
    return int(size or limits.PULL_MESSAGES_DEFAULT)


def _visibility(call: Call, sent: Mapping[str, Json]) -> int | None:
    names = ["visibility_timeout_ms"]
    if call.knobs.visibility_alias:
        names.append("visibility_timeout")
    for name in names:
        if name in sent:
            return fields.number(
                sent,
                name,
                call.knobs.min_visibility_ms,
                limits.VISIBILITY_TIMEOUT_MS,
                _bad_pull,
            )
    return None


def _delivery_as_json(call: Call, delivery: Delivery, handle: str) -> dict[str, Any]:
    metadata = {"CF-Content-Type": delivery.content_type, "CF-sourceMessageSource": "api"}
    if delivery.delay_seconds:
        metadata["CF-msg-delay-secs"] = str(delivery.delay_seconds)
    return {
        "id": delivery.id,
        "body": _body(call, delivery),
        "attempts": delivery.attempts - 1 + call.knobs.first_attempt,
        "timestamp_ms": delivery.timestamp_ms,
        "metadata": metadata,
        handle: delivery.handle,
    }


def _body(call: Call, delivery: Delivery) -> str:
    if delivery.content_type == "json":
        encoding = call.knobs.json_pull_encoding
        if encoding == "base64" or (encoding == "mixed" and _rng.random() < 0.5):
            return base64.b64encode(delivery.body).decode()
    return delivery.body.decode()


# --- settling


def _lease_id(sent: Mapping[str, Json]) -> str:
    lease_id = fields.string(sent, "lease_id", _bad_pull)
    if lease_id is None:
        raise _bad_pull("lease_id: Required")
    return lease_id


def _check_leases(call: Call, lease_ids: Iterable[str]) -> None:
    lease_ids = list(lease_ids)
    if len(lease_ids) > call.knobs.max_leases_per_ack:
        raise _bad_pull(f"a request has at most {call.knobs.max_leases_per_ack} leases")
    if call.knobs.unknown_lease == "reject":
        for lease_id in lease_ids:
            if not call.service.store.knows(lease_id):
                raise _bad_pull("a lease_id is unknown")


def _ack_result(call: Call, settled: Settled) -> Json:
    form = call.knobs.ack_result
    result: dict[str, Json] = {}
    if form != "no_counts":
        result = {"ackCount": settled.acked, "retryCount": settled.retried}
    result["warnings"] = settled.warnings
    if form == "warnings_list":
        result["warnings"] = list(settled.warnings.values())
    elif form == "warnings_null" and not settled.warnings:
        result["warnings"] = None
    return result


def _queue_retry_after(call: Call) -> dict[str, str]:
    seconds = call.knobs.queue_429_retry_after
    return {} if seconds is None else {"Retry-After": str(seconds)}
