"""An error as text, so that one process can raise what another was told."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from .. import errors
from ..errors import CFQueuesError

# By name, and only ours: a pickle from a file that others write would run what they like.
_TYPES: Final = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, CFQueuesError)
}


class Outcome(NamedTuple):
    """What became of a confirmed publish that another process posted.

    Attributes:
        message: Its row.
        error: Why it was refused; None: it was accepted.
    """

    message: int
    error: CFQueuesError | None


def dump(error: CFQueuesError) -> str:
    """Return *error* as text."""
    return json.dumps(
        {
            "type": type(error).__name__,
            "text": str(error),
            "status": error.status,
            "code": error.code,
            "ray_id": error.ray_id,
            "retry_after": error.retry_after,
            "delivered": error.delivered,
        }
    )


def load(text: str) -> CFQueuesError:
    """Return the error that `dump` made *text* of."""
    values: dict[str, Any] = json.loads(text)
    kind = _TYPES.get(values.pop("type"), CFQueuesError)
    return kind(values.pop("text"), **values)
