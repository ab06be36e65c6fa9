"""Cloudflare's envelope, which wraps every result and every refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

Json = Any
"""A value that ``json.loads`` returns."""

MISSING: Final = object()
"""Stands for a ``result`` that the envelope omits, which differs from a null result."""

_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response: a status, a body, and headers in addition to those of every response."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = _JSON

    def with_headers(self, headers: Mapping[str, str]) -> Answer:
        """Return the same answer with *headers* added."""
        return replace(self, headers={**self.headers, **headers})


def success(result: Json = MISSING, *, result_info: Json = None) -> Answer:
    """Wrap *result*; without it, the envelope has no ``result``, as documented for publishing."""
    envelope: dict[str, Json] = {"success": True, "errors": [], "messages": []}
    if result is not MISSING:
        envelope["result"] = result
    if result_info is not None:
        envelope["result_info"] = result_info
    return Answer(200, _dump(envelope))


class Refusal(Exception):
    """The API answers the request with an error.

    Attributes:
        status: HTTP status.
        errors: (code, message) pairs; Cloudflare mostly sends one.
        chain: (code, message) pairs for the ``error_chain`` of the first error, as in
            authentication errors.
        headers: Headers to send with it, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        code: int,
        message: str,
        *more: tuple[int, str],
        chain: tuple[tuple[int, str], ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.errors = ((code, message), *more)
        self.chain = chain
        self.headers = headers or {}

    def answer(self) -> Answer:
        """Return the error in Cloudflare's envelope."""
        errors: list[dict[str, Json]] = [
            {"code": code, "message": message} for code, message in self.errors
        ]
        if self.chain:
            errors[0]["error_chain"] = [
                {"code": code, "message": message} for code, message in self.chain
            ]
        body = {"success": False, "errors": errors, "messages": [], "result": None}
        return Answer(self.status, _dump(body), self.headers)


def html_page(status: int, title: str) -> Answer:
    """Return the error page of Cloudflare's edge when the API behind it does not answer."""
    page = (
        f'<!DOCTYPE html>\n<html lang="en-US"><head><title>{title} | api.cloudflare.com</title>'
        f"</head>\n<body><h1>Error {status}</h1><p>{title}</p><p>Performance &amp; security by "
        "Cloudflare</p></body></html>\n"
    )
    return Answer(status, page.encode(), {}, "text/html; charset=UTF-8")


def _dump(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
