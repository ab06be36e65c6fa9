"""The log of the API's requests, for tests and for the page."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, overload

_MAX_REQUESTS: Final = 10_000
"""Number of requests that the log keeps."""

_MAX_BYTES: Final = 32_000_000
"""Total size of the request bodies that the log keeps."""

_MAX_ANSWER_BYTES: Final = 65_536
"""The log keeps the beginning of a response that is larger than this."""

_MAX_ANSWERS_BYTES: Final = 16_000_000
"""Total size of the responses that the log keeps; the oldest are dropped first."""


@dataclass(slots=True)
class LoggedAnswer:
    """A response.

    Attributes:
        headers: Its headers.
        body: The beginning of its body, at most 64 KB; None once the log has dropped it.
        size: The size of the whole body.
    """

    headers: dict[str, str]
    body: bytes | None
    size: int


@dataclass(slots=True)
class LoggedRequest:
    """One request.

    Attributes:
        method: ``GET``, ``POST``, …
        path: The path, without the query.
        query: The raw query, without the question mark.
        headers: By lower-case name; the last value of a repeated header.
        body: The raw body.
        time: Time of arrival in seconds since the epoch, by the machine's own clock.
        route: The route of the path (``push``, ``batch``, ``pull``, …); "" if it has none.
        status: The status of the response; None until it is sent, and for ever if a fault
            suppresses it.
        queue_id: The queue's id in the path, valid or not; "" if the path has none.
        code: The first error code of the response; None if it has none.
        seconds: Duration, including latency from faults; None while the request runs.
        fault: The kind of the fault that replaced the response; "" if none did.
        client: The client's address; "" if unknown.
        answer: The response; None until it is sent, and for ever if a fault suppresses it.
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
    client: str = ""
    answer: LoggedAnswer | None = field(default=None, repr=False)

    @property
    def attempt(self) -> int:
        """Number of earlier attempts, from the SDK's header ``x-stainless-retry-count``."""
        count = self.headers.get("x-stainless-retry-count", "0")
        return int(count) if count.isdecimal() else 0


class RequestLog:
    """The latest requests, the oldest first: at most 10,000, with at most 32 MB of bodies.

    It behaves like a list.  Any thread may read it while requests arrive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: deque[LoggedRequest] = deque()  # guarded by _lock
        self._bytes = 0  # guarded by _lock
        self._total = 0  # guarded by _lock
        self._answers: deque[LoggedAnswer] = deque()  # those with a body; guarded by _lock
        self._answers_bytes = 0  # guarded by _lock

    @property
    def total(self) -> int:
        """Number of requests so far, including those that the log no longer keeps."""
        return self._total

    def append(self, request: LoggedRequest) -> None:
        """Add *request*, and drop the oldest requests beyond the limits."""
        with self._lock:
            self._requests.append(request)
            self._total += 1
            self._bytes += len(request.body)
            while len(self._requests) > _MAX_REQUESTS or self._bytes > _MAX_BYTES:
                self._bytes -= len(self._requests.popleft().body)

    def keep_answer(self, request: LoggedRequest, headers: dict[str, str], body: bytes) -> None:
        """Keep the response to *request*, and drop the oldest responses beyond the limit."""
        request.answer = answer = LoggedAnswer(headers, body[:_MAX_ANSWER_BYTES], len(body))
        with self._lock:
            self._answers.append(answer)
            self._answers_bytes += min(len(body), _MAX_ANSWER_BYTES)
            while self._answers_bytes > _MAX_ANSWERS_BYTES or len(self._answers) > _MAX_REQUESTS:
                oldest = self._answers.popleft()
                self._answers_bytes -= len(oldest.body or b"")
                oldest.body = None

    def latest(self, number: int) -> list[tuple[int, LoggedRequest]]:
        """Return the latest *number* requests, each with its number from 1, the oldest first."""
        with self._lock:
            latest = list(self._requests)[-number:]
            return list(enumerate(latest, self._total - len(latest) + 1))

    def numbered(self, number: int) -> LoggedRequest | None:
        """Return the request with this number; None if the log does not hold it."""
        with self._lock:
            index = number - 1 - (self._total - len(self._requests))
            return self._requests[index] if 0 <= index < len(self._requests) else None

    def clear(self) -> None:
        """Drop all requests."""
        with self._lock:
            self._requests.clear()
            self._bytes = 0
            self._answers.clear()
            self._answers_bytes = 0

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
