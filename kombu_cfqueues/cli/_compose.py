"""Makes a message from a line of input, in the form in which Kombu or Celery publishes it."""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import envelope
from ..envelope import Packed
from ..errors import InvalidMessage
from ..options import Options


@dataclass(frozen=True)
class Composer:
    """Makes messages for one queue.

    Attributes:
        queue: Kombu's name of the queue.
        options: How messages are packed.
        text: Whether a line is plain text; if not, it is JSON.
        task: Name of a Celery task; a line then holds its arguments.
        delay: Seconds until each message may be delivered; None for the delay of the queue.
        headers: Headers of each message.
    """

    queue: str
    options: Options
    text: bool = False
    task: str | None = None
    delay: float | None = None
    headers: Mapping[str, str] | None = None

    def pack(self, line: bytes) -> Packed:
        """Make the message of one line.

        Raises:
            InvalidMessage: The line is not valid JSON, or does not hold arguments of a task.
            MessageTooLarge: The message is over Cloudflare's limit.
        """
        try:
            body = line.decode()
        except UnicodeDecodeError as error:
            raise InvalidMessage("it is not valid UTF-8") from error
        headers: dict[str, Any] = dict(self.headers or {})
        properties: dict[str, Any] = {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": self.queue},
            "priority": 0,
            "body_encoding": "utf-8",
        }
        if self.delay is not None:
            properties["delay_seconds"] = self.delay
        if self.task is not None:
            arguments = _json(body)
            body, more = _task(self.task, arguments)
            headers |= more
            properties["correlation_id"] = more["id"]
        elif not self.text:
            _json(body)  # only checked: the line is sent as it is
        return envelope.pack(
            {
                "body": body,
                "content-type": "text/plain" if self.text else "application/json",
                "content-encoding": "utf-8",
                "headers": headers,
                "properties": properties,
            },
            self.queue,
            self.options,
        )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# Made once, because making a decoder takes longer than decoding a line.
_decode: Callable[[str], Any] = json.JSONDecoder(parse_constant=_refuse).decode


def _json(text: str) -> Any:
    try:
        return _decode(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        # The line may be from a file that a tool has indented.
        hint = "use --text to publish plain text"
        if _begins_a_value(text):
            hint = "write one value per line, such as with 'jq -c .'"
        raise InvalidMessage(f"it is not valid JSON ({why}); {hint}") from None


def _begins_a_value(text: str) -> bool:
    """Whether *text* is the first line of a JSON value that continues on the next lines."""
    return bool(re.match(r"\s*[\[{]\s*$|\s*[\[{].*[,\[{]\s*$", text))


def _task(name: str, arguments: Any) -> tuple[str, dict[str, Any]]:
    """Return body and headers of a task in Celery's protocol 2 (docs.celeryq.dev, Protocol)."""
    args, kwargs = ([], arguments) if isinstance(arguments, dict) else (arguments, {})
    if not isinstance(args, list):
        raise InvalidMessage(
            "the arguments of a task must be a JSON array, or an object of keyword arguments"
        )
    task_id = str(uuid.uuid4())
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return json.dumps([args, kwargs, embedded], ensure_ascii=False), {
        "lang": "py",
        "task": name,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": repr(tuple(args)),
        "kwargsrepr": repr(kwargs),
        "origin": f"cfqueues{os.getpid()}@{socket.gethostname()}",
    }
