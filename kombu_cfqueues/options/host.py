"""What a host name is, which host is this machine, and what may be a secret instead of a host."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

SECRET_CHARACTERS: Final = 30
"""A part of a host name that is this long is not shown: it may be an API token, of 40 characters or
more.  A host name that is this long and has no dot is refused."""

_HOST: Final = re.compile(r"\w([\w.-]*\w)?\.?")

_LONG_PART: Final = re.compile(rf"[\w-]{{{SECRET_CHARACTERS},}}")


def is_host(host: str) -> bool:
    """Return whether *host* is an IP address, or looks like a host name and not like a token."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _HOST.fullmatch(host) is not None and ("." in host or len(host) < SECRET_CHARACTERS)
    return True


def may_be_secret(text: str) -> bool:
    """Return whether part of *text*, such as a host or a URL, is as long as an API token."""
    return _LONG_PART.search(text) is not None


def is_loopback(host: str) -> bool:
    """Return whether *host* is this machine, so that plain http does not expose the token.

    A client that connects to the unspecified address (``0.0.0.0``, ``::``) reaches this machine.
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def is_private(host: str) -> bool:
    """Return whether *host* is a private address, or a name without a dot such as a container's."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


def netloc(host: str, port: int | None) -> str:
    """Return host and port as they are written in a URL."""
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name
