"""Decodes a Celery task, a Kombu message or a Worker's JSON, to show it to people.

Nothing is ever unpickled: of a body that is neither JSON nor text, only the size is shown.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kombu.compression import decompress

from .. import envelope
from . import _console as console


@dataclass(frozen=True)
class DecodedMessage:
    """A decoded message of a queue.

    Attributes:
        id: Cloudflare's id of the message.
        attempts: Deliveries so far; None if unknown.
        timestamp_ms: When it was published, in milliseconds since the epoch; None if unknown.
        task: Name of the Celery task; None if the message is not a task.
        task_id: Id of the task.
        args: Positional arguments of the task; a string if they cannot be decoded.
        kwargs: Keyword arguments of the task; a string if they cannot be decoded.
        content: The JSON value or text of a message that is not a task; None if it is binary.
        headers: The headers, as in Kombu.
        content_type: The content type that the message states.
        bytes: Size of the decoded body.
    """

    id: str
    attempts: int | None
    timestamp_ms: int | None
    task: str | None
    task_id: str | None
    args: Any
    kwargs: Any
    content: Any
    headers: Mapping[str, Any]
    content_type: str | None
    bytes: int

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the message was published, by this machine's clock."""
        return None if self.timestamp_ms is None else time.time() - self.timestamp_ms / 1000

    @property
    def death(self) -> Mapping[str, Any] | None:
        """What the message says of its latest death; None if it is not a dead letter."""
        return next(iter(envelope.deaths_of(self.headers)), None)

    def summary(self) -> str:
        """Return the message on one line, for people."""
        return (
            self._content() if self.death is None else f"{self._content()}  {self._shown_death()}"
        )

    def _shown_death(self) -> str:
        death = self.death or {}
        text = f"died={death.get('reason')} in {death.get('queue')} on {death.get('hostname')}"
        if death.get("exception"):
            text += f": {death['exception']}: {death.get('text')}"
        return " ".join(text.split())

    def _content(self) -> str:
        if self.task is None:
            if self.content is None:
                return f"{self.bytes:,} bytes ({self.content_type or 'unknown'})"
            if isinstance(self.content, str):
                return self.content
            return json.dumps(self.content, ensure_ascii=False, default=str)
        text = f"{self.task}({self._arguments()})  id={self.task_id}"
        eta, retries = self.headers.get("eta"), self.headers.get("retries")
        if eta:
            text += f" eta={eta}"
        if retries:
            text += f" retries={retries}"
        return text

    def as_json(self) -> dict[str, Any]:
        """Return the message as a JSON object, for programs."""
        task = {
            "task": self.task,
            "task_id": self.task_id,
            "args": self.args,
            "kwargs": self.kwargs,
        }
        return {
            "id": self.id,
            "attempts": self.attempts,
            "timestamp_ms": self.timestamp_ms,
            "content_type": self.content_type,
            **(task if self.task is not None else {"content": self.content}),
            "bytes": self.bytes,
            **({} if self.death is None else {"death": dict(self.death)}),
            "headers": dict(self.headers),
        }

    def _arguments(self) -> str:
        parts = []
        if isinstance(self.args, (list, tuple)):
            parts += [repr(one) for one in self.args]
        elif self.args is not None:
            parts.append(f"*{self.args}")
        if isinstance(self.kwargs, Mapping):
            parts += [f"{name}={one!r}" for name, one in self.kwargs.items()]
        elif self.kwargs is not None:
            parts.append(f"**{self.kwargs}")
        return ", ".join(parts)


def decode(raw: Mapping[str, Any], queue: str) -> DecodedMessage:
    """Decode a message of a pull or a peek.  Never raises, whatever the message holds."""
    message = envelope.receive(raw, queue)
    headers = message["headers"]
    data = _data(message)
    content = _content(data)
    task, task_id, args, kwargs = headers.get("task"), headers.get("id"), None, None
    if task is not None:
        if isinstance(content, list) and len(content) >= 2:
            args, kwargs = content[0], content[1]
        else:  # not JSON, so show the description that the publisher sent
            args, kwargs = headers.get("argsrepr", "?"), headers.get("kwargsrepr", "?")
    elif isinstance(content, dict) and isinstance(content.get("task"), str):
        # Celery's protocol 1 has everything in the body.
        task, task_id = content["task"], content.get("id")
        args, kwargs = content.get("args"), content.get("kwargs")
        headers = {name: content.get(name) for name in ("eta", "retries", "expires")} | headers
    attempts, timestamp = raw.get("attempts"), raw.get("timestamp_ms")
    return DecodedMessage(
        id=str(raw.get("id") or "?"),
        attempts=attempts if isinstance(attempts, int) else None,
        timestamp_ms=timestamp if isinstance(timestamp, int) else None,
        task=task,
        task_id=None if task_id is None else str(task_id),
        args=args,
        kwargs=kwargs,
        content=None if task is not None else content,
        headers=headers,
        content_type=message["content-type"],
        bytes=len(data),
    )


MAX_SUMMARY_CHARACTERS: Final = 1000
"""Longest summary of a message in a table; ``--json`` prints all of it."""


def by_age(raws: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort messages, the oldest first, because a queue has no order."""
    return sorted(raws, key=lambda raw: raw.get("timestamp_ms") or 0)


COLUMNS = ["AGE", "TRIES", "MESSAGE"]


def row(message: DecodedMessage) -> list[str]:
    """Return the table cells of a message."""
    tries = "?" if message.attempts is None else str(message.attempts)
    text = message.summary()
    if len(text) > MAX_SUMMARY_CHARACTERS:
        text = f"{text[:MAX_SUMMARY_CHARACTERS]}... ({message.bytes:,} bytes; --json has all)"
    return [console.duration(message.age_seconds), tries, text]


def _data(message: Mapping[str, Any]) -> bytes:
    body = message["body"]
    if body is None:
        return b""
    if message["properties"].get("body_encoding") == "base64":
        data = base64.b64decode(body)
    else:
        data = str(body).encode("utf-8", "replace")
    compression = message["headers"].get("compression")
    return _decompressed(data, compression) if isinstance(compression, str) else data


def _decompressed(data: bytes, compression: str) -> bytes:
    try:
        return bytes(decompress(data, compression))
    # Compression methods, which applications can add to Kombu, may raise anything.  The body is
    # then shown as it came.
    except Exception:  # noqa: BLE001
        return data


def _content(data: bytes) -> Any:
    """Return the JSON value, else the text, else None."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
