"""What the transport must know about Celery's messages and queues.

Remote control and events:
    Celery declares queues such as ``celery@host.celery.pidbox`` and ``celeryev.<id>``, even if
    nothing can be broadcast.  They must not cost a request: see `is_control_queue`.
Results over ``rpc://``:
    Each process that waits for a result consumes a queue of its own: see `is_result_queue`.
Dropped tasks:
    A worker that reconnects or stops drops the tasks that it has not started.  Before Celery 5.7 it
    keeps references to them forever: see `forget_dropped_tasks`.  A prefork pool also drops some
    that it has started: see `keep_started_tasks`.
Malformed tasks:
    Celery's worker does not check the types of a task's headers, and stops when one is wrong.  The
    message is then redelivered, and stops the next worker: see `stops_worker`.
Messages that cannot be decoded:
    Celery's worker acknowledges them like tasks, which would delete them: see `decoding_error`.
Failures of tasks:
    Celery's worker rejects a message without naming the exception: see `note_failures`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from kombu.message import Message

from ..envelope import new_id
from ..errors import ConfigurationError

RESULT_QUEUE_HINT: Final = (
    "Celery's rpc:// result backend seems to be in use: each process that waits for results "
    "creates, polls and deletes a queue of its own, and the requests for it come out of the "
    "allowance that publishing needs; a result backend such as Redis or a database needs none"
)

CONTROL_HINT: Final = (
    "Celery's remote control and task events reach nobody, because Cloudflare Queues cannot "
    "broadcast: inspect and ping get no answer, control and revoke have no effect, and event "
    "monitors such as Flower see nothing; to use them, set control_url to a broker that can "
    "broadcast"
)

_NOTES: Final = "_notes_failures_for_kombu_cfqueues"

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_control_queue(queue: str) -> bool:
    """Whether Celery uses the queue for remote control or events.

    Raises:
        ConfigurationError: *queue* is not a string.
    """
    if not isinstance(queue, str):
        raise ConfigurationError(f"the name of a queue must be a string, and {queue!r} is not")
    return queue.endswith(".pidbox") or queue == "celeryev" or queue.startswith("celeryev.")


def is_control_exchange(exchange: str) -> bool:
    """Whether Celery publishes remote control or events to the exchange."""
    return exchange == "celeryev" or exchange.endswith(".pidbox")


def is_renamed_event_exchange(exchange: str) -> bool:
    """Whether a Celery application of this process sends its events to the exchange.

    The application's setting ``event_exchange`` can rename ``celeryev``.
    """
    state = sys.modules.get("celery._state")
    active: Callable[[], Any] = getattr(state, "_get_active_apps", tuple)
    # Reading the setting would configure an application that is not configured yet.
    return any(app.configured and app.conf.event_exchange == exchange for app in list(active()))


def asks_for_control(exchange: str, routing_key: str) -> bool:
    """Whether the user, and not Celery by itself, publishes remote control or events.

    A worker always sends events about itself, and events about tasks only if it is told to.
    """
    return exchange.endswith(".pidbox") or routing_key.startswith("task.")


def is_event(message: Mapping[str, Any]) -> bool:
    """Whether Celery's event dispatcher made the message: its only header is ``hostname``."""
    headers = message.get("headers")
    return isinstance(headers, Mapping) and set(headers) - {"compression"} == {"hostname"}


def is_result_queue(queue: str) -> bool:
    """Whether the name is that of a result queue of ``rpc://``: a UUID."""
    return _UUID.fullmatch(queue) is not None


def is_task_predicate(error: BaseException) -> bool:
    """Whether a Celery task raises *error* to end on purpose: Retry, Ignore or Reject."""
    exceptions = sys.modules.get("celery.exceptions")  # not imported: Celery may not be installed
    return exceptions is not None and isinstance(error, exceptions.TaskPredicate)


def stops_worker(callback: Callable[..., Any], message: Message) -> bool:
    """Whether an exception of *callback* means that a Celery worker cannot process *message*.

    False if *callback* belongs to the application and not to a Celery worker.  Also False if the
    message is a valid task: then the fault is not in the message.
    """
    return is_worker(callback) and not is_valid_task(message)


def is_worker(callback: Callable[..., Any]) -> bool:
    """Whether *callback* belongs to a Celery worker, and not to the application."""
    handler = getattr(getattr(callback, "__self__", None), "on_message", None)
    return getattr(handler, "__module__", None) == "celery.worker.consumer.consumer"


def decoding_error(message: Message, callback: Callable[..., Any]) -> BaseException | None:
    """Return why the worker of *callback* cannot decompress or decode the body; None if it can.

    A content type that the worker does not accept is an error too.  The worker decodes every
    message in the same way, and then uses this result.
    """
    if message.errors:
        error = message.errors[0][1]
        return error if isinstance(error, BaseException) else ValueError(str(error))
    message.accept = getattr(callback, "__self__").accept  # noqa: B009  see `is_worker`
    try:
        message.payload  # noqa: B018
    # Each serializer has its own errors.
    except Exception as failure:  # noqa: BLE001
        return failure
    return None


def worker_name(callback: Callable[..., Any]) -> str:
    """Return the name of the worker of *callback*, such as ``celery@host``."""
    worker = getattr(getattr(callback, "__self__", None), "on_decode_error", None)
    return str(getattr(getattr(worker, "__self__", None), "hostname", None) or "")


def note_failures() -> None:
    """Have Celery's worker tell a message why its task failed, before the worker rejects it.

    A rejection does not name the exception.  This replaces a method of Celery's class ``Request``,
    because no hook works in each pool and for each task: a prefork pool sends its failure signals
    in the child, and not in the process that rejects; a bootstep does not see single tasks; and
    an application may choose the class ``Task.Request`` of each of its tasks.
    """
    request = sys.modules.get("celery.worker.request")
    kind = getattr(request, "Request", None)
    if kind is None or hasattr(kind.on_failure, _NOTES):
        return
    on_failure = kind.on_failure

    @functools.wraps(on_failure)
    def noting(self: Any, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        note = getattr(getattr(self, "_message", None), "note_failure", None)
        if note is not None:  # a message of ours
            error: Any = exc_info.exception
            if type(error).__name__ == "ExceptionWithTraceback":  # billiard's, from a child
                error = error.exc
            note(error)
        return on_failure(self, exc_info, *args, **kwargs)

    setattr(noting, _NOTES, True)
    kind.on_failure = noting


def headers_for_worker(headers: Mapping[str, Any], message_id: Any) -> dict[str, Any]:
    """Return *headers* as a worker needs them to tell a task from another message.

    A task without an id stops a worker, and so does one whose name is not a string.  Only a
    worker gets these headers: to an application, ``task`` and ``id`` may mean something else.

    Args:
        headers: The headers of a message for a worker.
        message_id: Cloudflare's id of the message.
    """
    fit = dict(headers)
    if "task" in fit:
        if not isinstance(fit["task"], str):
            del fit["task"]
        elif not isinstance(fit.get("id"), str):
            fit["id"] = str(message_id or new_id())
    return fit


def is_valid_task(message: Message) -> bool:
    """Whether the types in *message* are those of a Python task in Celery's protocol 2."""
    if message.headers.get("lang") != "py":
        return False
    headers_fit = all(fits(message.headers.get(name)) for name, fits in _HEADERS.items())
    return headers_fit and _is_body(_decoded(message))


def _decoded(message: Message) -> Any:
    try:
        return message.payload
    # Each serializer has its own errors.  A body that cannot be decoded is not a task.
    except Exception:  # noqa: BLE001
        return None


def _is_body(body: Any) -> bool:
    if not isinstance(body, (list, tuple)) or len(body) != 3:
        return False
    args, kwargs, embedded = body
    return (
        isinstance(args, (list, tuple)) and isinstance(kwargs, Mapping) and _is_embedded(embedded)
    )


def _is_embedded(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(fits(value.get(name)) for name, fits in _EMBEDDED.items())
    )


def _none_or(*types: type) -> Callable[[Any], bool]:
    return lambda value: value is None or isinstance(value, types)


def _is_time(value: Any) -> bool:
    return value is None or (isinstance(value, (str, datetime)) and bool(value))


def _is_limit(value: Any) -> bool:
    if value is None:
        return True
    number = _none_or(int, float)
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(number, value))


def _are_texts(value: Any) -> bool:
    return value is None or (
        isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    )


def _are_stamps(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(isinstance(item, (str, int, float)) or _are_texts(item) for item in value.values())
    )


# Source: docs.celeryq.dev, "Message Protocol", version 2, and celery/app/amqp.py, as_task_v2.
_HEADERS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "task": lambda value: isinstance(value, str),
    "id": lambda value: isinstance(value, str),
    "eta": _is_time,
    "expires": _is_time,
    "group": _none_or(str),
    "group_index": _none_or(int),
    "ignore_result": _none_or(bool),
    "origin": _none_or(str),
    "parent_id": _none_or(str),
    "replaced_task_nesting": _none_or(int),
    "retries": _none_or(int),
    "root_id": _none_or(str),
    "shadow": _none_or(str),
    "stamped_headers": _are_texts,
    "stamps": _are_stamps,
    "timelimit": _is_limit,
}
_EMBEDDED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "callbacks": _none_or(list, tuple),
    "chain": _none_or(list, tuple),
    "chord": _none_or(dict),
    "errbacks": _none_or(list, tuple),
}


def forget_dropped_tasks() -> None:
    """Let the messages of tasks that a worker has dropped be garbage-collected.

    Celery 5.5 and 5.6 try to forget these tasks, but look for them by the wrong key.
    """
    state = sys.modules.get("celery.worker.state")
    if state is None:
        return
    for task_id, request in list(state.requests.items()):
        if request not in state.reserved_requests and request not in state.active_requests:
            state.requests.pop(task_id, None)


def keep_started_tasks(callback: Callable[..., Any]) -> None:
    """Have a worker's prefork pool remember what its children run, even when it drops tasks.

    At a reconnect and at a stop, the pool also forgets a job that it has written to a child and
    that the child has not confirmed yet; Celery 5.5 forgets all jobs at a reconnect.  These jobs
    still run, but their messages would not be acknowledged.

    Args:
        callback: A worker's callback: see `is_worker`.
    """
    worker = getattr(getattr(callback, "__self__", None), "on_decode_error", None)
    pool: Any = getattr(getattr(worker, "__self__", None), "pool", None)
    flush: Any = getattr(pool, "flush", None)
    if hasattr(getattr(flush, "__self__", None), "_cache"):
        pool.flush = functools.partial(_flush, flush)


def _flush(flush: Callable[[], Any]) -> None:
    """Call *flush* of a pool, and put back the jobs that a child has."""
    cache: dict[int, Any] = flush.__self__._cache  # type: ignore[attr-defined]
    started = {key: job for key, job in cache.items() if job._accepted or job._write_to}
    try:
        flush()
    finally:
        cache.update((key, job) for key, job in started.items() if not job.ready())
