"""Where the library listens, as ``HOST:PORT``: this machine only, unless a host is given."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ..errors import ConfigurationError
from .host import netloc

LOOPBACK: Final = "127.0.0.1"
"""The host of an address without one, which no other machine can reach."""


class HostPort(NamedTuple):
    """A TCP address to listen on.

    Attributes:
        host: Name or IP address; ``0.0.0.0`` and ``::`` mean all addresses of this machine.
        port: 0 lets the system choose one.
    """

    host: str
    port: int

    def __str__(self) -> str:
        name = netloc(self.host, None)
        return f"{name}:{self.port}"

    @classmethod
    def read(cls, name: str, value: Any) -> HostPort:
        """Return ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT`` or ``PORT`` in its parts.

        Args:
            name: The option that has the value, for the error.
            value: What the user gave.

        Raises:
            ConfigurationError: *value* is none of these.
        """
        host, _, port = str(value).rpartition(":")
        is_ipv6 = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if is_ipv6 else host
        is_right = port.isascii() and port.isdigit() and int(port) < 65536
        if not is_right or (":" in host) != is_ipv6 or set(host) & set("/@ []"):
            raise ConfigurationError(
                f"{name} must look like '127.0.0.1:9810', '[::1]:9810' or ':9810' (this machine "
                f"only), not {value!r}"
            )
        return cls(host or LOOPBACK, int(port))
