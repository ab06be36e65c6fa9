"""JSON for people, made from its text, so that no number and no key changes on the way.

``12345678901234567890`` and ``1.10`` stay what they are; a parser would round the first in a
browser, and the second everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

_PART: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)

_ESCAPES: Final = re.compile(r"\\[^u]|((?:\\u[0-9a-fA-F]{4})+)", re.DOTALL)

_HIDDEN: Final = re.compile(
    "[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Invisible characters, among them those that reorder the text around them."""


def readable(text: str) -> str:
    r"""Return JSON with its ``\u`` escapes as characters, except for invisible ones.

    Args:
        text: JSON, or the beginning of it.
    """
    return _HIDDEN.sub(_escape, _ESCAPES.sub(_unescape, text))


def pretty(text: str) -> str:
    """Return valid JSON in lines, indented by two spaces per level, as ``readable()`` shows it."""
    lines: list[str] = []
    line, depth, previous = "", 0, ""
    for part in _parts(readable(text)):
        if part in "}]":
            depth -= 1
        if previous and (
            (previous in "{[" and part not in "}]")
            or (part in "}]" and previous not in "{[")
            or previous == ","
        ):
            lines.append(line)
            line = "  " * depth
        line += ": " if part == ":" else part
        if part in "{[":
            depth += 1
        previous = part
    return "\n".join([*lines, line])


def elements(text: str) -> list[str]:
    """Return the texts of the elements of a valid JSON array."""
    return [text[start:end].strip() for start, end in _spans(text)]


def members(text: str) -> dict[str, str]:
    """Return the texts of the values of a valid JSON object, by key."""
    found = {}
    for start, end in _spans(text):
        key = _PART.search(text, start)
        if key is not None:
            value = text[text.index(":", key.end()) + 1 : end]
            found[json.loads(key[0])] = value.strip()
    return found


def _parts(text: str) -> Iterator[str]:
    return (match[0] for match in _PART.finditer(text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each part of the outermost array or object begins and ends."""
    depth, start = 0, 0
    for match in _PART.finditer(text):
        part = match[0]
        if part in "{[":
            depth += 1
            start = match.end() if depth == 1 else start
        elif part in "}]":
            depth -= 1
            if depth == 0 and text[start : match.start()].strip():
                yield start, match.start()
        elif part == "," and depth == 1:
            yield start, match.start()
            start = match.end()


def _unescape(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[0]
    # json.dumps escapes again what a string must escape: quotes, backslashes, control characters.
    return json.dumps(json.loads(f'"{match[1]}"'), ensure_ascii=False)[1:-1]


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
