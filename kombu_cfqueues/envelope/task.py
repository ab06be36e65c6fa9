"""Which messages are Celery's tasks: the headers of all others belong to the application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MARKS: Final = ("lang", "task", "id")


def is_task(headers: Mapping[str, Any] | None) -> bool:
    """Whether *headers* are those of a task in Celery's protocol 2, of any client's language.

    All clients write `_MARKS` (docs.celeryq.dev, "Message Protocol").  An application may use
    ``task``, ``id`` or ``eta`` alone for anything.
    """
    if not headers:
        return False
    for name in _MARKS:
        value = headers.get(name)
        if not value or not isinstance(value, str):
            return False
    return True
