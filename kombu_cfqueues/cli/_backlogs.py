"""The backlogs that `cfqueues exporter` shows, read with few requests."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .. import limits
from ..api.models import Backlog, Queue
from ..errors import CFQueuesError, QueueNotFound
from ..metrics import stats
from ._session import Session

LIST_SECONDS: Final = 600.0
"""How long a list of queues is used: a new queue is exported after at most this time."""

STALE_UPDATES: Final = 3
"""A backlog that is older than this many intervals is not shown: an autoscaler must not use it."""

ALLOWANCE_SHARE: Final = 0.25
"""Largest share of the request rate for reading backlogs; publishing needs the rest."""

ALLOWANCE_PER_DAY: Final = limits.REQUESTS_PER_WINDOW / limits.WINDOW_SECONDS * 86_400
"""Requests that Cloudflare allows a token in a day."""


@dataclass
class QueueState:
    """One queue.  Times are seconds of `time.monotonic`, unless they say otherwise.

    Attributes:
        queue: The queue as it was listed.
        backlog: What it held when it was last read; None if it never was.
        read_at: When that was.
        read_time: The same in seconds since the epoch.
        error: Why the last reading failed; None if it succeeded.
    """

    queue: Queue
    backlog: Backlog | None = None
    read_at: float = -math.inf
    read_time: float = 0.0
    error: CFQueuesError | None = None

    def oldest_seconds(self) -> float | None:
        """Age of the oldest message by this machine's clock, 0 without one; None if unknown."""
        backlog = self.backlog
        if backlog is None:
            return None
        if backlog.oldest_ms is None:
            return 0.0 if backlog.messages == 0 else None
        return max(0.0, time.time() - backlog.oldest_ms / 1000)


@dataclass
class Backlogs:
    """The backlogs of an account's queues, as they were last read.

    Args:
        session: The account.
        names: The queues to read; empty for all.
        interval: Seconds between two readings of a queue.

    Attributes:
        failures: How many readings have failed.
    """

    session: Session
    names: Sequence[str]
    interval: float
    failures: int = 0
    _listed_at: float = -math.inf
    _pages: float = 1  # requests that the list took
    _missing: Sequence[str] = ()  # of the names
    _states: dict[str, QueueState] = field(default_factory=dict)  # by name at Cloudflare
    _lock: threading.Lock = field(default_factory=threading.Lock)  # guards _states

    def update(self) -> CFQueuesError | None:
        """Read every queue, with one request each; return the last failure.

        The list of queues is read every 10 minutes, with one request for each page.
        """
        failure = self._list() or self._not_found()
        for state in self.states():
            try:
                backlog = self.session.call(self.session.client.backlog, state.queue.id)
            except CFQueuesError as error:
                failure = state.error = error
                self.failures += 1
                if isinstance(error, QueueNotFound):
                    self._listed_at = -math.inf
                continue
            state.backlog, state.error = backlog, None
            state.read_at, state.read_time = time.monotonic(), time.time()
        return failure

    def states(self) -> list[QueueState]:
        """Return all queues, sorted by name."""
        with self._lock:
            return [self._states[name] for name in sorted(self._states)]

    def state(self, name: str) -> QueueState | None:
        """Return the queue *name*, which may be its name at Cloudflare, or None."""
        with self._lock:
            return self._states.get(name) or self._states.get(self.session.cloudflare_name(name))

    def is_fresh(self, state: QueueState) -> bool:
        """Whether the backlog was read recently enough to be relied on."""
        return time.monotonic() - state.read_at <= STALE_UPDATES * self.pause()

    def pause(self) -> float:
        """Seconds from one update to the next: longer than the interval with very many queues."""
        rate = self.session.options.request_rate
        if rate is None:
            return self.interval
        return max(self.interval, len(self.states()) / (rate * ALLOWANCE_SHARE))

    def requests_per_day(self) -> float:
        """How many requests the exporter makes in a day."""
        count = len(self.states())
        return 86_400 * (count / self.pause() + self._pages / LIST_SECONDS)

    def _list(self) -> CFQueuesError | None:
        if time.monotonic() - self._listed_at < LIST_SECONDS:
            return None
        before_list = stats()["admin_requests"]
        try:
            queues = self.session.queues()
            wanted = {self.session.cloudflare_name(name) for name in self.names}
        except CFQueuesError as error:
            self.failures += 1
            return error
        found: Mapping[str, Queue] = {
            queue.name: queue for queue in queues if not wanted or queue.name in wanted
        }
        with self._lock:
            before = self._states
            self._states = {}
            for name, queue in found.items():
                state = self._states[name] = before.get(name) or QueueState(queue)
                state.queue = queue
        self._pages = max(1, stats()["admin_requests"] - before_list)
        self._missing = sorted(wanted - found.keys())
        if found:  # otherwise list again at the next update: a queue may be created soon
            self._listed_at = time.monotonic()
        return None

    def _not_found(self) -> CFQueuesError | None:
        if not self._missing:
            return None
        name = self._missing[0]
        return QueueNotFound(
            f"queue {name!r} does not exist: create it with 'cfqueues queues create {name}', or "
            "start its consumer"
        )


def as_json(state: QueueState) -> dict[str, Any]:
    """Return a queue as ``/queues/NAME`` shows it."""
    backlog = state.backlog
    return {
        "queue": state.queue.name,
        "messages": None if backlog is None else backlog.messages,
        "bytes": None if backlog is None else backlog.bytes,
        "oldest_seconds": state.oldest_seconds(),
        "paused": state.queue.paused,
        "read_seconds_ago": round(time.monotonic() - state.read_at, 3),
    }
