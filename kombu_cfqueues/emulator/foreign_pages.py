"""Requests of web pages that do not belong to the emulator.

A browser on this machine can send them here with the emulator's default token, which everybody
knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit


def why_foreign(headers: Mapping[str, str]) -> str | None:
    """Return why a request is considered foreign; None if it is not.

    Args:
        headers: The request's headers, by lower-case name.
    """
    # A foreign host name may resolve to loopback (DNS rebinding): the browser would then treat the
    # emulator as part of the foreign site.
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not (host == "localhost" or host.endswith(".localhost") or _is_address(host)):
        return "its host is neither an IP address nor localhost"
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") or (
        origin is not None and urlsplit(origin).netloc != headers.get("host")
    ):
        return "it comes from a web page of another site"
    return None


def _is_address(host: str) -> bool:
    """Tell whether *host* is an IP address, which needs no DNS."""
    return ":" in host or host.replace(".", "").isdecimal()
