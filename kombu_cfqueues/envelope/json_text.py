"""JSON as text: in Kombu's notation and in plain JSON."""

from __future__ import annotations

import json
from typing import Any, Final

# Kombu's own JSON, so that dates, UUIDs, decimals and bytes in headers survive, as they do on the
# other transports of Kombu.
from kombu.utils.json import JSONEncoder
from kombu.utils.json import loads as kombu_loads

# The encoders are created once: creating one takes longer than encoding a short text.  Without
# check_circular, a value that contains itself ends in a RecursionError; looking for such values
# takes a tenth of the time of each message.
encode_kombu: Final = JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode
"""Encodes a value as JSON, with Kombu's notation for dates, UUIDs, decimals and bytes."""

quote: Final = json.JSONEncoder(ensure_ascii=False).encode
"""Encodes a text as a JSON string."""


class _NotJSON:
    """The type of `NOT_JSON`."""


NOT_JSON: Final = _NotJSON()
"""Stands for the value of a text that is not JSON.  It is not None, which is JSON's null."""


def quote_json(text: str) -> str:
    """Encode a JSON text as a JSON string.

    JSON text contains no control characters, because its encoder has escaped them.  So only
    backslashes and quotes need escaping, which takes a quarter of the time of `quote`.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def loads(text: str) -> Any:
    """Return the value of a JSON text as Kombu reads it, or `NOT_JSON`."""
    # Kombu's reading of `{"__type__": …}` can fail in as many ways as there are types, and on the
    # types of a newer Kombu.  Then plain JSON still has everything that the message contains.
    for read in (kombu_loads, json.loads):
        try:
            return read(text)
        except (  # noqa: PERF203  at most two rounds
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ):
            continue
    return NOT_JSON


def strict_loads(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: *text* is not JSON, or contains NaN or Infinity, which Python reads and JSON
            does not have.
        RecursionError: *text* is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
