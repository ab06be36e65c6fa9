"""What every contender publishes: 1 KB of JSON with a number in it that no other message has."""

from __future__ import annotations

import itertools
import json
import re

BYTES = 1024
"""Size of the body as JSON."""

NUMBER = re.compile(rb"number#(\d{9})#")
"""Finds the messages of a request, whatever is wrapped around them."""

_TEXT = ("The quick brown fox jumps over the lazy dog. " * 25)[: BYTES - 39]
_numbers = itertools.count()


def body() -> dict[str, str]:
    """The next message."""
    return {"id": f"number#{next(_numbers):09d}#", "text": _TEXT}


def text() -> str:
    """The next message, as JSON of `BYTES` bytes."""
    return json.dumps(body())
