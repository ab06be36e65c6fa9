"""Cloudflare's envelope: how every answer looks, the good ones and the refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

Json = Any
"""What ``json.loads`` gives."""

MISSING: Final = object()
"""Stands for a ``result`` that is left out of the envelope, which is not the same as a null."""

_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client: a status, a body, and headers beside those of every answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = _JSON

    def with_headers(self, headers: Mapping[str, str]) -> Answer:
        """Return the same answer with *headers* added."""
        return replace(self, headers={**self.headers, **headers})


def success(result: Json = MISSING, *, result_info: Json = None) -> Answer:
    """Wrap *result*; leave it out to answer without one, as publishing is documented to."""
    envelope: dict[str, Json] = {"success": True, "errors": [], "messages": []}
    if result is not MISSING:
        envelope["result"] = result
    if result_info is not None:
        envelope["result_info"] = result_info
    return Answer(200, _dump(envelope))


class Refusal(Exception):
    """The request is answered with an error.

    Attributes:
        status: HTTP status.
        errors: (code, message) pairs; Cloudflare mostly gives one.
        chain: What stands behind the first error, as authentication has it.
        headers: To be sent with it, such as ``Retry-After``.
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
        """Return it in Cloudflare's envelope."""
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
    """Return a page as Cloudflare's edge writes it when the API behind it does not answer."""
    page = (
        f'<!DOCTYPE html>\n<html lang="en-US"><head><title>{title} | api.cloudflare.com</title>'
        f"</head>\n<body><h1>Error {status}</h1><p>{title}</p><p>Performance &amp; security by "
        "Cloudflare</p></body></html>\n"
    )
    return Answer(status, page.encode(), {}, "text/html; charset=UTF-8")


def _dump(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
