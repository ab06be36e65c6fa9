"""Parsing of requests: JSON, and the fields in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from .answers import Json, Refusal

_ID: Final = re.compile(r"[0-9a-f]{32}")
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

Refuse = Callable[[str], Refusal]
"""Makes a refusal with the route's code from a message."""


def with_code(code: int, status: int = 400) -> Refuse:
    """Return a function that makes refusals with *code* and *status*."""
    return lambda message: Refusal(status, code, message)


def parse(body: bytes, refuse: Refuse) -> Json:
    """Decode JSON strictly: no NaN, no lone surrogates, nothing after the value."""
    try:
        value = json.loads(body.decode(), parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate does not encode
    except (ValueError, RecursionError) as error:
        raise refuse("the body is not valid JSON") from error
    return value


def parse_object(body: bytes, refuse: Refuse) -> dict[str, Json]:
    """Decode a JSON object."""
    value = parse(body, refuse)
    if not isinstance(value, dict):
        raise refuse(f"Expected object, received {kind_of(value)}")
    return value


def number(
    fields: Mapping[str, Json], name: str, low: int, high: int, refuse: Refuse
) -> int | None:
    """Return a number from *low* to *high*; None if it was not sent.

    Fractions are truncated: the SDK's types allow them, and miniflare truncates them.
    """
    if name not in fields:
        return None
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(f"{name}: Expected number, received {kind_of(value)}")
    if not low <= value <= high:
        raise refuse(f"{name} must be from {low} to {high}, not {_shorten(value)}")
    return int(value)


def boolean(fields: Mapping[str, Json], name: str, refuse: Refuse) -> bool | None:
    """Return a boolean; None if it was not sent."""
    if name not in fields:
        return None
    value = fields[name]
    if not isinstance(value, bool):
        raise refuse(f"{name}: Expected boolean, received {kind_of(value)}")
    return value


def string(fields: Mapping[str, Json], name: str, refuse: Refuse) -> str | None:
    """Return a string; None if it was not sent."""
    if name not in fields:
        return None
    value = fields[name]
    if not isinstance(value, str):
        raise refuse(f"{name}: Expected string, received {kind_of(value)}")
    return value


def objects(fields: Mapping[str, Json], name: str, refuse: Refuse) -> list[dict[str, Any]]:
    """Return a list of objects; an empty list if it was not sent."""
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise refuse(f"{name}: Expected array, received {kind_of(value)}")
    for item in value:
        if not isinstance(item, dict):
            raise refuse(f"{name}: Expected object, received {kind_of(item)}")
    return value


def is_id(text: str) -> bool:
    """Tell whether *text* has the form of Cloudflare's ids."""
    return _ID.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Tell whether a queue may have that name."""
    return _NAME.fullmatch(text) is not None


def kind_of(value: Json) -> str:
    """Return JSON's name for the type of *value*."""
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "number"


def _shorten(value: float) -> str:
    try:
        text = str(value)
    except ValueError:  # an integer beyond Python's limit for text
        return "a number of thousands of digits"
    return text if len(text) <= 24 else text[:24] + "…"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")
