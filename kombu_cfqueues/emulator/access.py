"""API tokens and their permissions."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Final, Literal

from .answers import Refusal
from .routes import Route

Permission = Literal["edit", "read"]
"""*Queues Edit*, or *Queues Read*."""

TOKEN: Final = "emulator-token"  # noqa: S105 - no secret: it opens a server on loopback
"""The default token, which has every permission."""

_BEARER: Final = re.compile(r"Bearer ([\x21-\x7e]+)", re.IGNORECASE)


class Access:
    """The tokens that the emulator accepts.

    Args:
        tokens: The permission of each token.

    Raises:
        ValueError: A header cannot carry a token, or a permission does not exist.
    """

    def __init__(self, tokens: Mapping[str, Permission]) -> None:
        for token, permission in tokens.items():
            if not re.fullmatch(r"[\x21-\x7e]+", token):
                raise ValueError("a token consists of visible ASCII characters without spaces")
            if permission not in ("edit", "read"):
                raise ValueError(f'a token\'s permission is "edit" or "read", not {permission!r}')
        self._tokens = dict(tokens)

    @property
    def is_public(self) -> bool:
        """Whether the default token, which everybody knows, is among the tokens."""
        return TOKEN in self._tokens

    def __repr__(self) -> str:
        return f"<Access of {len(self._tokens)} tokens>"

    def identify(self, headers: Mapping[str, str], bad_token: str) -> str:
        """Return the token of a request.

        Args:
            headers: The request's headers, by lower-case name.
            bad_token: Status and code for an unknown token, as in the knob of that name.

        Raises:
            Refusal: The token is missing, malformed or unknown.
        """
        given = _token_of(headers)
        # Compare with every token, in constant time: an emulator on a network must not help to
        # guess one.
        known = [t for t in self._tokens if hmac.compare_digest(t.encode(), given.encode())]
        if not known:
            status, code = map(int, bad_token.split("/"))
            raise Refusal(status, code, "Authentication error")
        return known[0]

    @property
    def tokens(self) -> list[str]:
        """All tokens, in their order."""
        return list(self._tokens)

    def label(self, token: str) -> str:
        """Return a name for *token*, which must be known, that does not show it."""
        if token == TOKEN:
            return "the default token"
        number = self.tokens.index(token) + 1
        return f"token {number} of {len(self._tokens)} ({self._tokens[token]})"

    def label_of(self, headers: Mapping[str, str]) -> str:
        """Return the name of the token of a request; "" if the request has no valid one."""
        try:
            return self.label(self.identify(headers, "401/10000"))
        except Refusal:
            return ""

    def may_edit(self, token: str) -> bool:
        """Tell whether *token*, which must be known, has the permission *Queues Edit*."""
        return self._tokens[token] == "edit"

    def check(self, token: str, route: Route) -> None:
        """Check that *token* may use *route*.

        Raises:
            Refusal: The token lacks the permission (10106 on message routes, 10000 elsewhere).
        """
        if route.edits and not self.may_edit(token):
            if route.kind == "message":
                raise Refusal(
                    403, 10106, "Unauthorized: the token lacks the permission Queues Edit"
                )
            raise Refusal(403, 10000, "Authentication error")


def _token_of(headers: Mapping[str, str]) -> str:
    """Return the bearer token, or the key of the older pair of headers."""
    if "authorization" in headers:
        bearer = _BEARER.fullmatch(headers["authorization"])
        if bearer is None:
            raise _malformed(6111, "Invalid format for Authorization header")
        return bearer[1]
    if "x-auth-key" in headers or "x-auth-email" in headers:
        key = headers.get("x-auth-key", "")
        if "x-auth-email" not in headers or not re.fullmatch(r"[\x21-\x7e]+", key):
            raise _malformed(6103, "Invalid format for X-Auth-Key header")
        return key
    # Several people report this answer from other parts of the API.
    raise Refusal(400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")


def _malformed(code: int, message: str) -> Refusal:
    return Refusal(400, 6003, "Invalid request headers", chain=((code, message),))
