"""The admin routes: queues and their consumers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

from . import fields, limits
from .answers import Answer, Json, Refusal, success
from .call import Call
from .queues import Consumer, Queue, timestamp

_bad_name: Final = fields.with_code(11003)
_bad_queue_settings: Final = fields.with_code(100128)
_bad_consumer: Final = fields.with_code(10026)
_bad_consumer_settings: Final = fields.with_code(100127)
_bad_body: Final = fields.with_code(10026)

_JURISDICTIONS: Final = ("eu", "us", "fedramp")


def list_queues(call: Call) -> Answer:
    """``GET /queues``: list a page of all queues, or of those that ``name=`` selects."""
    names = {value for key, value in call.query if key == "name"}
    queues = list(call.service.queues)
    if names and call.knobs.list_name_filter != "ignored":
        queues = [queue for queue in queues if _matches(queue.name, names, call)]
    page, size = _page(call), call.knobs.list_page_size
    shown = queues[(page - 1) * size : page * size]
    info = {
        "page": page,
        "per_page": size,
        "count": len(shown),
        "total_count": len(queues),
        "total_pages": -(-len(queues) // size),
    }
    return success([queue.as_json() for queue in shown], result_info=info)


def create(call: Call) -> Answer:
    """``POST /queues``: create a queue."""
    body = fields.parse_object(call.body, _bad_body)
    name = _name(call, body)
    if name is None:
        raise _bad_name("queue_name is required")
    jurisdiction = _jurisdiction(body)
    settings = queue_settings(body)
    return success(call.service.queues.create(name, jurisdiction, settings).as_json())


def get(call: Call) -> Answer:
    """``GET /queues/{queue_id}``: show a queue."""
    return success(call.queue().as_json())


def update(call: Call) -> Answer:
    """``PUT /queues/{queue_id}``: reset settings that are not sent to their defaults."""
    defaults = {
        "delivery_delay": 0,
        "delivery_paused": False,
        "message_retention_period": limits.RETENTION_DEFAULT_SECONDS,
    }
    return _change(call, defaults)


def edit(call: Call) -> Answer:
    """``PATCH /queues/{queue_id}``: keep settings that are not sent."""
    return _change(call, {})


def delete(call: Call) -> Answer:
    """``DELETE /queues/{queue_id}``: delete a queue with its consumers and messages."""
    call.service.queues.delete(call.queue())
    return success()


def metrics(call: Call) -> Answer:
    """``GET /queues/{queue_id}/metrics``: measure the backlog."""
    return success(asdict(call.service.store.metrics(call.queue())))


def purge(call: Call) -> Answer:
    """``POST /queues/{queue_id}/purge``: delete all messages, if the body confirms it."""
    queue = call.queue()
    body = fields.parse_object(call.body, _bad_body)
    if fields.boolean(body, "delete_messages_permanently", _bad_body) is not True:
        raise _bad_body("delete_messages_permanently must be true")
    call.service.store.purge(queue)
    if call.knobs.purge_result == "queue":
        return success(queue.as_json())
    return success({"started_at": timestamp(queue.purged_ms or 0), "complete": _purged(queue)})


def purge_status(call: Call) -> Answer:
    """``GET /queues/{queue_id}/purge``: show the latest purge."""
    queue = call.queue()
    call.service.store.counts(queue)  # carries out a purge that is due
    if queue.purged_ms is None:
        return success({"started_at": "", "completed": ""})
    return success({"started_at": timestamp(queue.purged_ms), "completed": _purged(queue)})


def list_consumers(call: Call) -> Answer:
    """``GET /queues/{queue_id}/consumers``: list a queue's consumers."""
    return success(call.queue().as_json()["consumers"])


def create_consumer(call: Call) -> Answer:
    """``POST /queues/{queue_id}/consumers``: create a consumer."""
    queue = call.queue()
    sent = fields.parse_object(call.body, _bad_consumer)
    consumer = new_consumer(call.service.clock.now_ms(), sent)
    return success(_add_consumer(call, queue, consumer))


def get_consumer(call: Call) -> Answer:
    """``GET /queues/{queue_id}/consumers/{consumer_id}``: show a consumer."""
    queue = call.queue()
    return success(queue.consumer_as_json(_consumer(call, queue)))


def update_consumer(call: Call) -> Answer:
    """``PUT /queues/{queue_id}/consumers/{consumer_id}``: replace it, or create the first one."""
    queue = call.queue()
    sent = fields.parse_object(call.body, _bad_consumer)
    consumer = new_consumer(call.service.clock.now_ms(), sent)
    if not queue.consumers:
        return success(_add_consumer(call, queue, consumer))
    old = _consumer(call, queue)
    consumer.id, consumer.created_ms = old.id, old.created_ms
    call.service.queues.put_consumer(queue, consumer)
    return success(queue.consumer_as_json(consumer))


def delete_consumer(call: Call) -> Answer:
    """``DELETE /queues/{queue_id}/consumers/{consumer_id}``: delete a consumer."""
    queue = call.queue()
    call.service.queues.delete_consumer(queue, _consumer(call, queue))
    return success(None)


# --- reading a request


def queue_settings(body: Mapping[str, Json]) -> dict[str, Any]:
    """Check the ``settings`` of a queue and return those that were sent.

    Raises:
        Refusal: A setting is invalid (100128).
    """
    sent = body.get("settings", {})
    if not isinstance(sent, dict):
        raise _bad_queue_settings(f"settings: Expected object, received {fields.kind_of(sent)}")
    settings = {
        "delivery_delay": fields.number(
            sent, "delivery_delay", 0, limits.DELAY_SECONDS, _bad_queue_settings
        ),
        "delivery_paused": fields.boolean(sent, "delivery_paused", _bad_queue_settings),
        "message_retention_period": fields.number(
            sent,
            "message_retention_period",
            limits.RETENTION_MIN_SECONDS,
            limits.RETENTION_MAX_SECONDS,
            _bad_queue_settings,
        ),
    }
    return {name: value for name, value in settings.items() if value is not None}


def new_consumer(now_ms: int, body: Mapping[str, Json]) -> Consumer:
    """Return the consumer that *body* describes, with a new id.

    Raises:
        Refusal: The description is invalid (10026), or a setting is (100127).
    """
    kind = fields.string(body, "type", _bad_consumer)
    if kind is None or kind not in _SETTINGS:
        raise _bad_consumer('type is "http_pull" or "worker"')
    dead_letter_queue = fields.string(body, "dead_letter_queue", _bad_consumer) or ""
    if dead_letter_queue and not fields.is_name(dead_letter_queue):
        raise _bad_name("dead_letter_queue is not a valid queue name")
    script = None
    if kind == "worker":
        # wrangler sends it as "script".
        script = fields.string(body, "script_name", _bad_consumer) or fields.string(
            body, "script", _bad_consumer
        )
        if not script:
            raise _bad_consumer("script_name is required")
    sent = body.get("settings", {})
    if not isinstance(sent, dict):
        raise _bad_consumer_settings(f"settings: Expected object, received {fields.kind_of(sent)}")
    settings = {name: check(sent, name) for name, check in _SETTINGS[kind].items() if name in sent}
    return Consumer(secrets.token_hex(16), now_ms, kind, script, dead_letter_queue, settings)


@contextmanager
def refusals_as_value_errors() -> Iterator[None]:
    """Raise a ``ValueError`` wherever the API would refuse."""
    try:
        yield
    except Refusal as refusal:
        raise ValueError(str(refusal)) from refusal


def check_name(name: str) -> None:
    """Check that a queue may have this name.

    Raises:
        Refusal: It may not (11003).
    """
    if not fields.is_name(name):
        raise _bad_name(
            "A queue name has 1 to 63 letters, digits and dashes, and no dash at either end"
        )


def _between(low: int, high: int) -> Callable[[Mapping[str, Json], str], Any]:
    def check(sent: Mapping[str, Json], name: str) -> int | None:
        return fields.number(sent, name, low, high, _bad_consumer_settings)

    return check


def _concurrency(sent: Mapping[str, Json], name: str) -> int | None:
    if sent[name] is None:  # null means the platform's maximum
        return None
    return fields.number(sent, name, 1, limits.WORKER_CONCURRENCY, _bad_consumer_settings)


_COMMON: Final = {
    "batch_size": _between(1, limits.PULL_MESSAGES),
    "max_retries": _between(0, limits.MAX_RETRIES),
    "retry_delay": _between(0, limits.DELAY_SECONDS),
}
_SETTINGS: Final[dict[str, dict[str, Callable[[Mapping[str, Json], str], Any]]]] = {
    "http_pull": {
        **_COMMON,
        "visibility_timeout_ms": _between(0, limits.VISIBILITY_TIMEOUT_MS),
    },
    "worker": {
        **_COMMON,
        "max_concurrency": _concurrency,
        "max_wait_time_ms": _between(0, limits.WORKER_MAX_WAIT_MS),
    },
}


def _page(call: Call) -> int:
    text = next((value for key, value in call.query if key == "page"), "1")
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise _bad_body("page must be a number of at least 1")
    return int(text)


def _matches(name: str, wanted: set[str], call: Call) -> bool:
    if call.knobs.fold_names:
        name, wanted = name.lower(), {each.lower() for each in wanted}
    if call.knobs.list_name_filter == "prefix":
        return name.startswith(tuple(wanted))
    return name in wanted


def _name(call: Call, body: Mapping[str, Json], owner: Queue | None = None) -> str | None:
    """Return the name that was sent, if it is free or already belongs to *owner*."""
    name = fields.string(body, "queue_name", _bad_name)
    if name is None:
        return None
    check_name(name)
    if call.service.queues.named(name, fold=call.knobs.fold_names) not in (None, owner):
        raise Refusal(409, 11009, f"Queue name '{name}' is already taken")
    return name


def _jurisdiction(body: Mapping[str, Json]) -> str | None:
    jurisdiction = fields.string(body, "jurisdiction", _bad_body)
    if jurisdiction is not None and jurisdiction not in _JURISDICTIONS:
        raise _bad_body(f"jurisdiction must be one of {', '.join(_JURISDICTIONS)}")
    return jurisdiction


def _purged(queue: Queue) -> str:
    # The SDK's types have a string here, not a boolean.
    return "true" if queue.purge_due_ms is None else "false"


def _change(call: Call, defaults: Mapping[str, Any]) -> Answer:
    queue = call.queue()
    body = fields.parse_object(call.body, _bad_body)
    name = _name(call, body, queue)
    if name not in (None, queue.name) and not call.knobs.allow_rename:
        raise _bad_queue_settings("A queue cannot be renamed")
    jurisdiction = _jurisdiction(body)
    if jurisdiction not in (None, queue.jurisdiction):
        raise _bad_queue_settings("A queue's jurisdiction cannot change after its creation")
    settings = {**defaults, **queue_settings(body)}
    queue.name = name or queue.name
    for setting, value in settings.items():
        setattr(queue, setting, value)
    call.service.queues.save(queue)
    return success(queue.as_json())


def _add_consumer(call: Call, queue: Queue, consumer: Consumer) -> Json:
    if len(queue.consumers) >= call.knobs.max_consumers:
        raise Refusal(409, 11004, f"Queue '{queue.name}' already has a consumer")
    call.service.queues.put_consumer(queue, consumer)
    return queue.consumer_as_json(consumer)


def _consumer(call: Call, queue: Queue) -> Consumer:
    consumer = queue.consumers.get(call.found.consumer_id)
    if consumer is None:
        # No source names a code for this case; 7003 is the API's code for an invalid id in a path.
        raise Refusal(
            404, 7003, "No consumer with that id; perhaps your object identifier is invalid?"
        )
    return consumer
