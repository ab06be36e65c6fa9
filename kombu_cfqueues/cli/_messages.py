"""Messages for people: what a Celery task, a Kombu message or a Worker's JSON says.

Nothing is ever unpickled: a body that is no JSON and no text is shown as so many bytes.
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
class Shown:
    """A message of a queue, decoded.

    Attributes:
        id: Cloudflare's id of the message.
        attempts: Deliveries so far; None if the answer did not say.
        timestamp_ms: When it was published, in milliseconds since the epoch; None if unknown.
        task: Name of the Celery task; None if it is none.
        task_id: The task's id.
        args: The task's positional arguments; a text where they cannot be decoded.
        kwargs: The task's keyword arguments; a text where they cannot be decoded.
        content: What a message that is no task holds: a JSON value or a text; None of bytes.
        headers: As Kombu has them.
        content_type: What the body says that it is.
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
        """Since it was published, by this machine's clock."""
        return None if self.timestamp_ms is None else time.time() - self.timestamp_ms / 1000

    def words(self) -> str:
        """What it says, in one line."""
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

    def value(self) -> dict[str, Any]:
        """The same for programs."""
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


def show(raw: Mapping[str, Any], queue: str) -> Shown:
    """Decode what a pull or a peek brought; whatever it is, this does not fail."""
    message = envelope.receive(raw, queue)
    headers = message["headers"]
    data = _data(message)
    content = _content(data)
    task, task_id, args, kwargs = headers.get("task"), headers.get("id"), None, None
    if task is not None:
        if isinstance(content, list) and len(content) >= 2:
            args, kwargs = content[0], content[1]
        else:  # not JSON: what the publisher said of it
            args, kwargs = headers.get("argsrepr", "?"), headers.get("kwargsrepr", "?")
    elif isinstance(content, dict) and isinstance(content.get("task"), str):
        # Celery's first protocol has all of it in the body.
        task, task_id = content["task"], content.get("id")
        args, kwargs = content.get("args"), content.get("kwargs")
        headers = {name: content.get(name) for name in ("eta", "retries", "expires")} | headers
    attempts, timestamp = raw.get("attempts"), raw.get("timestamp_ms")
    return Shown(
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


MOST_SHOWN: Final = 1000
"""So many characters of a message are shown to people."""


def by_age(raws: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The oldest first: a queue has no order."""
    return sorted(raws, key=lambda raw: raw.get("timestamp_ms") or 0)


COLUMNS = ["AGE", "TRIES", "MESSAGE"]


def row(shown: Shown) -> list[str]:
    """The cells of a message in a table."""
    tries = "?" if shown.attempts is None else str(shown.attempts)
    words = shown.words()
    if len(words) > MOST_SHOWN:
        words = f"{words[:MOST_SHOWN]}... ({shown.bytes:,} bytes; --json has all)"
    return [console.span(shown.age_seconds), tries, words]


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
    # Each method of compression, and there may be more than Kombu's own, raises what it likes; the
    # body is then shown as it came.
    except Exception:  # noqa: BLE001
        return data


def _content(data: bytes) -> Any:
    """A JSON value, else a text, else None."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
