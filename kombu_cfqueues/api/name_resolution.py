"""Finds the addresses of a host, and gives up in time.

``socket.getaddrinfo`` has no timeout.  Where the name servers do not answer, it blocks for as long
as the system's resolver is configured to try, which may be minutes.
"""

from __future__ import annotations

import contextlib
import copy
import ipaddress
import socket
import sys
from collections.abc import Callable, Hashable
from typing import Any, cast

from urllib3.util.connection import allowed_gai_family

from ..runtime.flag import Event
from ..runtime.fork import renew_in_child
from ..runtime.threads import start_thread


class NameResolver:
    """Resolves names in threads, so that its callers need not wait for the system's resolver.

    There is at most one thread for each name and port: callers share what it finds.
    """

    def __init__(self) -> None:
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget the parent's threads."""
        self._lookups: dict[Hashable, _Lookup] = {}

    def addresses(self, host: str, port: int, timeout: float) -> list[str]:
        """Return the addresses of *host*, without duplicates; block for *timeout* seconds at most.

        Raises:
            OSError: The name has no address, or the name servers did not answer in time.
            UnicodeError: *host* cannot be the name of a host.
        """
        family = allowed_gai_family()

        def resolve() -> list[str]:
            found = _getaddrinfo(host, port, family)
            return list(dict.fromkeys(cast("str", address[0]) for *_, address in found))

        if _is_address(host):
            return resolve()  # asks no name server
        # Each step is one operation on a dictionary.  At worst, two threads look the name up.
        key = (host, port, family)
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = _Lookup(resolve, lambda: self._lookups.pop(key, None))
            lookup.start()
        return lookup.wait(timeout)


class _Lookup:
    """One call of the system's resolver, in a thread of its own."""

    def __init__(self, resolve: Callable[[], list[str]], on_end: Callable[[], object]) -> None:
        self._resolve = resolve
        self._on_end = on_end
        self._ended = Event()
        self._found: list[str] = []
        self._error: Exception | None = OSError("the thread that looked up the host was stopped")

    def start(self) -> None:
        if start_thread("cfqueues-resolve", self._run) is not None:
            self._run()

    def wait(self, timeout: float) -> list[str]:
        if not self._ended.wait(timeout):
            text = f"the name servers did not answer within {timeout:.3g} s"
            raise socket.gaierror(socket.EAI_AGAIN, text)
        if self._error is not None:
            raise copy.copy(self._error)
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._resolve()
            self._error = None
        except Exception as error:  # noqa: BLE001  raised again in the threads that wait
            self._error = error
        finally:
            self._on_end()
            self._ended.set()


def _getaddrinfo(host: str, port: int, family: int) -> list[Any]:
    """As ``socket.getaddrinfo``, also where no thread can start any more.

    gevent asks the system's resolver in a thread, even for a numeric address.  Python 3.12 starts
    no thread once the interpreter is exiting, and only then can a greenlet not start one.
    """
    try:
        return list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
    except RuntimeError:
        gevent = sys.modules.get("gevent")
        if gevent is None:
            raise
        from gevent.resolver.blocking import Resolver  # type: ignore[import-untyped]  # noqa: PLC0415

        # For all greenlets: whoever connects then asks gevent again, with the address.
        gevent.get_hub().resolver = Resolver()
        return list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host.partition("%")[0]))
    return False


names = NameResolver()
"""The resolver of this process."""
