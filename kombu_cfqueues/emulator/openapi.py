"""The OpenAPI 3.1 description of the emulator's API, for people, generators and fuzzers.

The emulator serves it at ``/_emulator/openapi.json``.  It describes the request and the responses
of each route, with the limits that the emulator enforces.  If a knob changes a response, the
description allows every position of the knob.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from . import limits

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_QUEUES: Final = "/client/v4/accounts/{account_id}/queues"
_QUEUE: Final = _QUEUES + "/{queue_id}"
_CONSUMER: Final = _QUEUE + "/consumers/{consumer_id}"

# Any route may refuse a request for its credentials, its size, its path or the request limit.
_COMMON_STATUSES: Final = (400, 401, 403, 404, 413, 429)


def describe() -> Schema:
    """Return the description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cloudflare Queues, emulated",
            "version": "4",
            "description": "The HTTP API of Cloudflare Queues as the emulator serves it.",
        },
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _SCHEMAS,
        },
        "paths": _paths(),
    }


def _paths() -> Schema:
    paths: Schema = {}
    for (method, path), route in _ROUTES.items():
        paths.setdefault(path, {"parameters": _parameters(path)})[method.lower()] = route
    return paths


def _parameters(path: str) -> list[Schema]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": _ID} for name in names]


_ID: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}


def _object(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    return schema


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _number(low: int, high: int) -> Schema:
    # The API accepts fractions and truncates them.
    return {"type": "number", "minimum": low, "maximum": high}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_DELAY: Final = _number(0, limits.DELAY_SECONDS)
_NAME: Final[Schema] = {
    "type": "string",
    "pattern": "^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$",
    "maxLength": limits.NAME_CHARACTERS,
}
_JURISDICTION: Final[Schema] = {"enum": ["eu", "us", "fedramp"]}

_QUEUE_SETTINGS: Final = _object(
    delivery_delay=_DELAY,
    delivery_paused={"type": "boolean"},
    message_retention_period=_number(limits.RETENTION_MIN_SECONDS, limits.RETENTION_MAX_SECONDS),
)

_COMMON_SETTINGS: Final = {
    "batch_size": _number(1, limits.PULL_MESSAGES),
    "max_retries": _number(0, limits.MAX_RETRIES),
    "retry_delay": _DELAY,
}

_NEW_CONSUMER: Final[Schema] = {
    "oneOf": [
        _object(
            ("type",),
            type={"const": "http_pull"},
            dead_letter_queue={"anyOf": [_NAME, {"const": ""}]},
            settings=_object(
                (),
                **_COMMON_SETTINGS,
                visibility_timeout_ms=_number(0, limits.VISIBILITY_TIMEOUT_MS),
            ),
        ),
        _object(
            ("type", "script_name"),
            type={"const": "worker"},
            script_name={"type": "string", "minLength": 1},
            dead_letter_queue={"anyOf": [_NAME, {"const": ""}]},
            settings=_object(
                (),
                **_COMMON_SETTINGS,
                max_concurrency=_or_null(_number(1, limits.WORKER_CONCURRENCY)),
                max_wait_time_ms=_number(0, limits.WORKER_MAX_WAIT_MS),
            ),
        ),
    ]
}

# The single publish route refuses a number or a string under "json", as people observed, unless the
# knob `strict_json_body` is off; the batch route accepts any JSON.
_MESSAGE: Final[Schema] = {
    "oneOf": [
        _object(
            ("body", "content_type"),
            body=_TEXT,
            content_type={"const": "text"},
            delay_seconds=_DELAY,
        ),
        _object(
            ("body",),
            body={"type": ["object", "array"]},
            content_type={"const": "json"},
            delay_seconds=_DELAY,
        ),
    ]
}
_BATCHED: Final[Schema] = {
    "oneOf": [
        _MESSAGE["oneOf"][0],
        _object(("body",), body={}, content_type={"const": "json"}, delay_seconds=_DELAY),
    ]
}
_LEASE: Final = _object(("lease_id",), lease_id=_TEXT)
_RETRY: Final = _object(("lease_id",), lease_id=_TEXT, delay_seconds=_DELAY)
_VISIBILITY: Final = _number(0, limits.VISIBILITY_TIMEOUT_MS)
_WARNINGS: Final[Schema] = {
    "anyOf": [{"type": "object", "additionalProperties": _TEXT}, _array(_TEXT), {"type": "null"}]
}

_SCHEMAS: Final[Schema] = {
    "Error": _object(
        ("code", "message"),
        code={"type": "integer"},
        message=_TEXT,
        error_chain=_array(_object(("code", "message"), code={"type": "integer"}, message=_TEXT)),
    ),
    "Refusal": _object(
        ("success", "errors", "messages", "result"),
        success={"const": False},
        errors=_array(_ref("Error")),
        messages=_array(_TEXT),
        result={"type": "null"},
    ),
    "Metrics": _object(
        ("backlog_count", "backlog_bytes", "oldest_message_timestamp_ms"),
        backlog_count=_COUNT,
        backlog_bytes=_COUNT,
        oldest_message_timestamp_ms=_COUNT,
    ),
    "Queue": _object(
        ("queue_id", "queue_name", "created_on", "modified_on", "consumers", "settings"),
        queue_id=_TEXT,
        queue_name=_NAME,
        created_on=_TEXT,
        modified_on=_TEXT,
        jurisdiction=_JURISDICTION,
        producers=_array({"type": "object"}),
        producers_total_count=_COUNT,
        consumers=_array(_ref("Consumer")),
        consumers_total_count=_COUNT,
        settings=_QUEUE_SETTINGS,
    ),
    "Consumer": _object(
        ("consumer_id", "created_on", "queue_name", "type", "dead_letter_queue", "settings"),
        consumer_id=_TEXT,
        created_on=_TEXT,
        queue_name=_NAME,
        type={"enum": ["http_pull", "worker"]},
        script_name=_TEXT,
        script=_TEXT,
        dead_letter_queue=_TEXT,
        settings={"type": "object"},
    ),
    "Message": _object(
        ("id", "body", "attempts", "timestamp_ms", "metadata"),
        id=_TEXT,
        body=_TEXT,
        attempts=_COUNT,
        timestamp_ms=_COUNT,
        metadata={"type": "object", "additionalProperties": _TEXT},
        lease_id=_TEXT,
        ref=_TEXT,
    ),
    "ResultInfo": _object(
        ("page", "per_page", "count", "total_count", "total_pages"),
        page=_COUNT,
        per_page=_COUNT,
        count=_COUNT,
        total_count=_COUNT,
        total_pages=_COUNT,
    ),
}


def _route(
    name: str,
    summary: str,
    result: Schema | None,
    *,
    body: Schema | None = None,
    query: Mapping[str, Schema] | None = None,
    statuses: tuple[int, ...] = (),
    listed: bool = False,
) -> Schema:
    """Describe a route: its request, and the ``result`` in its envelope, if it has one."""
    envelope = _object(
        ("success", "errors", "messages"),
        success={"const": True},
        errors=_array(_ref("Error"), maxItems=0),
        messages=_array(_TEXT),
    )
    if result is not None:
        envelope["properties"]["result"] = result
    if listed:
        envelope["properties"]["result_info"] = _ref("ResultInfo")
        envelope["required"] += ["result", "result_info"]
    refusal = {
        "description": "Refused",
        "content": {"application/json": {"schema": _ref("Refusal")}},
    }
    described: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {
                "description": "Done",
                "content": {"application/json": {"schema": envelope}},
            },
            **{str(status): refusal for status in sorted({*_COMMON_STATUSES, *statuses})},
        },
    }
    if body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    if query:
        described["parameters"] = [
            {"name": name, "in": "query", "schema": schema} for name, schema in query.items()
        ]
    return described


_PUBLISHED: Final = _or_null(_object(metadata=_object(metrics=_ref("Metrics"))))
_PAGE: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
_PURGE: Final[Schema] = {
    "anyOf": [_ref("Queue"), _object(("started_at",), started_at=_TEXT, complete=_TEXT)]
}

_ROUTES: Final[dict[tuple[str, str], Schema]] = {
    ("GET", _QUEUES): _route(
        "list",
        "List queues: a page of all, or those with a name",
        _array(_ref("Queue")),
        query={"page": _PAGE, "name": _TEXT},
        listed=True,
    ),
    ("POST", _QUEUES): _route(
        "create",
        "Create a queue",
        _ref("Queue"),
        body=_object(
            ("queue_name",),
            queue_name=_NAME,
            jurisdiction=_JURISDICTION,
            settings=_QUEUE_SETTINGS,
        ),
        statuses=(409,),
    ),
    ("GET", _QUEUE): _route("get", "Show a queue", _ref("Queue")),
    ("PUT", _QUEUE): _route(
        "update",
        "Replace a queue's settings; what is not sent returns to its default",
        _ref("Queue"),
        body=_object(queue_name=_NAME, settings=_QUEUE_SETTINGS),
        statuses=(409,),
    ),
    ("PATCH", _QUEUE): _route(
        "edit",
        "Change a queue's settings",
        _ref("Queue"),
        body=_object(queue_name=_NAME, settings=_QUEUE_SETTINGS),
        statuses=(409,),
    ),
    ("DELETE", _QUEUE): _route("delete", "Delete a queue with its consumers and messages", None),
    ("GET", f"{_QUEUE}/metrics"): _route("metrics", "Measure the backlog", _ref("Metrics")),
    ("GET", f"{_QUEUE}/purge"): _route(
        "purge_status",
        "Show the latest purge",
        _object(("started_at", "completed"), started_at=_TEXT, completed=_TEXT),
    ),
    ("POST", f"{_QUEUE}/purge"): _route(
        "purge",
        "Delete all messages",
        _PURGE,
        body=_object(("delete_messages_permanently",), delete_messages_permanently={"const": True}),
    ),
    ("GET", f"{_QUEUE}/consumers"): _route(
        "list_consumers", "List a queue's consumers", _array(_ref("Consumer"))
    ),
    ("POST", f"{_QUEUE}/consumers"): _route(
        "create_consumer",
        "Create a consumer",
        _ref("Consumer"),
        body=_NEW_CONSUMER,
        statuses=(409,),
    ),
    ("GET", _CONSUMER): _route("get_consumer", "Show a consumer", _ref("Consumer")),
    ("PUT", _CONSUMER): _route(
        "update_consumer",
        "Replace a consumer, or create the first one",
        _ref("Consumer"),
        body=_NEW_CONSUMER,
        statuses=(409,),
    ),
    ("DELETE", _CONSUMER): _route("delete_consumer", "Delete a consumer", {"type": "null"}),
    ("POST", f"{_QUEUE}/messages"): _route(
        "push", "Publish one message", _PUBLISHED, body=_MESSAGE
    ),
    ("POST", f"{_QUEUE}/messages/batch"): _route(
        "batch",
        "Publish messages, all or none",
        _PUBLISHED,
        body=_object(
            ("messages",),
            messages=_array(_BATCHED, minItems=1, maxItems=limits.BATCH_MESSAGES),
            delay_seconds=_DELAY,
        ),
    ),
    ("POST", f"{_QUEUE}/messages/pull"): _route(
        "pull",
        "Lease messages",
        _object(
            ("messages",),
            message_backlog_count=_COUNT,
            metadata=_object(metrics=_ref("Metrics")),
            messages=_array(_ref("Message")),
        ),
        body=_object(
            batch_size=_number(1, limits.PULL_MESSAGES), visibility_timeout_ms=_VISIBILITY
        ),
        statuses=(405, 409),
    ),
    ("POST", f"{_QUEUE}/messages/ack"): _route(
        "ack",
        "Settle leases: acknowledge or retry their messages",
        _object(ackCount=_COUNT, retryCount=_COUNT, warnings=_WARNINGS),
        body=_object(acks=_array(_LEASE, maxItems=100), retries=_array(_RETRY, maxItems=100)),
        statuses=(405,),
    ),
    ("POST", f"{_QUEUE}/messages/extend"): _route(
        "extend",
        "Extend leases; 404 unless the knob `extend` is on",
        _object(leases={"type": "object", "additionalProperties": _TEXT}, warnings=_WARNINGS),
        body=_object(extend=_array(_LEASE, maxItems=100), visibility_timeout_ms=_VISIBILITY),
        statuses=(405,),
    ),
    ("POST", f"{_QUEUE}/messages/peek"): _route(
        "peek",
        "Show messages without leasing them",
        _object(("messages",), messages=_array(_ref("Message"))),
        body=_object(batch_size=_number(1, limits.PULL_MESSAGES)),
    ),
    ("POST", f"{_QUEUE}/messages/purge"): _route(
        "purge_refs",
        "Delete peeked messages",
        _object(("errors", "warnings"), errors=_array({"type": "object"}), warnings=_WARNINGS),
        body=_object(
            ("refs",),
            refs=_array(_object(("ref",), ref=_TEXT), maxItems=limits.PULL_MESSAGES),
        ),
    ),
}
