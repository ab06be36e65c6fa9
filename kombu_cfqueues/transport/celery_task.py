"""Whether a message is a task as Celery writes it.

Celery's worker takes the types of a task's headers for granted, and ends over a wrong one; the
message comes again, and ends the next worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from kombu.message import Message


def is_sound(message: Message) -> bool:
    """Whether the types of *message* are what Celery's protocol 2 says of a Python task.

    Of such a message a worker can make something; where it does not, the fault is elsewhere.
    """
    if message.headers.get("lang") != "py":
        return False
    headers_fit = all(fits(message.headers.get(name)) for name, fits in _HEADERS.items())
    return headers_fit and _is_body(_decoded(message))


def _decoded(message: Message) -> Any:
    try:
        return message.payload
    # Each serializer has errors of its own.  What cannot be read is no task.
    except Exception:  # noqa: BLE001
        return None


def _is_body(body: Any) -> bool:
    if not isinstance(body, (list, tuple)) or len(body) != 3:
        return False
    args, kwargs, embedded = body
    return (
        isinstance(args, (list, tuple))
        and isinstance(kwargs, Mapping)
        and (
            embedded is None
            or (
                isinstance(embedded, Mapping)
                and all(fits(embedded.get(name)) for name, fits in _EMBEDDED.items())
            )
        )
    )


def _either(*types: type) -> Callable[[Any], bool]:
    return lambda value: value is None or isinstance(value, types)


def _is_time(value: Any) -> bool:
    return value is None or (isinstance(value, (str, datetime)) and bool(value))


def _is_limit(value: Any) -> bool:
    if value is None:
        return True
    number = _either(int, float)
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(number, value))


def _are_texts(value: Any) -> bool:
    return value is None or (
        isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    )


def _are_stamps(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(isinstance(one, (str, int, float)) or _are_texts(one) for one in value.values())
    )


# As in docs.celeryq.dev, "Message Protocol", version 2, and celery/app/amqp.py, as_task_v2.
_HEADERS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "task": lambda value: isinstance(value, str),
    "id": lambda value: isinstance(value, str),
    "eta": _is_time,
    "expires": _is_time,
    "group": _either(str),
    "group_index": _either(int),
    "ignore_result": _either(bool),
    "origin": _either(str),
    "parent_id": _either(str),
    "replaced_task_nesting": _either(int),
    "retries": _either(int),
    "root_id": _either(str),
    "shadow": _either(str),
    "stamped_headers": _are_texts,
    "stamps": _are_stamps,
    "timelimit": _is_limit,
}
_EMBEDDED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "callbacks": _either(list, tuple),
    "chain": _either(list, tuple),
    "chord": _either(dict),
    "errbacks": _either(list, tuple),
}
