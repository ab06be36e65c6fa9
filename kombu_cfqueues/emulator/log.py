"""What was asked of the emulator: the requests so far, for tests and for people who look."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, overload

_MOST_REQUESTS: Final = 10_000
_MOST_BYTES: Final = 32_000_000


@dataclass(slots=True)
class LoggedRequest:
    """One request.

    Attributes:
        method: ``GET``, ``POST``, …
        path: The path, without the query.
        query: The raw query, without the question mark.
        headers: By lower-case name; of a repeated header the last value.
        body: The raw body.
        time: Seconds since the epoch when it had arrived, by the machine's own clock.
        route: What the path means (``push``, ``batch``, ``pull``, …); "" if it means nothing.
        status: The status it was answered with; None while there is no answer, and for good if
            a fault swallowed it.
        queue_id: What the path has in the place of a queue's id; "" if it has none.
        code: The first error code of the answer; None if it had none.
        seconds: How long it took, latency that was ordered included; None while it runs.
        fault: The kind of the fault that spoiled the answer; "" if none did.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str] = field(repr=False)  # holds the token
    body: bytes = field(repr=False)
    time: float
    route: str
    status: int | None = None
    queue_id: str = ""
    code: int | None = None
    seconds: float | None = None
    fault: str = ""

    @property
    def attempt(self) -> int:
        """Earlier tries of the same request, as the header ``x-stainless-retry-count`` counts."""
        count = self.headers.get("x-stainless-retry-count", "0")
        return int(count) if count.isdecimal() else 0


class RequestLog:
    """The latest requests, oldest first: 10,000 of them, or fewer once they hold 32 MB of bodies.

    It reads like a list and may be read from any thread while requests arrive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: deque[LoggedRequest] = deque()  # guarded by _lock
        self._bytes = 0  # guarded by _lock
        self._all = 0  # guarded by _lock

    @property
    def total(self) -> int:
        """Requests so far, the forgotten ones included."""
        return self._all

    def append(self, request: LoggedRequest) -> None:
        """Keep *request*, at the price of the oldest."""
        with self._lock:
            self._requests.append(request)
            self._all += 1
            self._bytes += len(request.body)
            while len(self._requests) > _MOST_REQUESTS or self._bytes > _MOST_BYTES:
                self._bytes -= len(self._requests.popleft().body)

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._requests.clear()
            self._bytes = 0

    def of(self, *routes: str) -> list[LoggedRequest]:
        """Return the requests of these *routes*, as ``requests.of("push", "batch")``."""
        return [request for request in self if request.route in routes]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[LoggedRequest]:
        with self._lock:
            return iter(list(self._requests))

    @overload
    def __getitem__(self, index: int) -> LoggedRequest: ...
    @overload
    def __getitem__(self, index: slice) -> list[LoggedRequest]: ...
    def __getitem__(self, index: int | slice) -> LoggedRequest | list[LoggedRequest]:
        with self._lock:
            return list(self._requests)[index]

    def __repr__(self) -> str:
        return f"<RequestLog of {len(self)} requests>"
