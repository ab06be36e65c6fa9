"""What was used recently, by key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from .clock import Clock
from .fork import renew_in_child
from .locks import new_reentrant_lock

K = TypeVar("K")
V = TypeVar("V")

RECENT_SECONDS: Final = 3_600.0
"""How long an entry is kept without use, if its table has more than `KEPT` entries."""

KEPT: Final = 1_000
"""A table with at most this many entries forgets nothing, so a process with fewer queues looks each
one up only once."""


class Recent(Generic[K, V]):
    """A table that forgets the entries that were not used for a while.  Threads may share it.

    Otherwise a process that publishes to a new reply queue for each request would remember all of
    those queues.

    Args:
        clock: Tells the time.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        # Value and last use (monotonic seconds); the longest unused first.
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()  # guarded by _lock
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Keep the entries, but replace the lock: a thread of the parent may have held it."""
        # Held only for an access.  Reentrant, because a signal handler may publish.
        self._lock = new_reentrant_lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """Return the value of *key*, which counts as a use; None if there is none."""
        if key not in self._entries:
            return None
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._use(key, found[0])
            return found[0]

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of *key*, and make it if there is none; *make* does not block."""
        with self._lock:
            found = self._entries.get(key)
            value = make() if found is None else found[0]
            self._use(key, value)
            return value

    def put(self, key: K, value: V) -> None:
        """Set the value of *key*."""
        with self._lock:
            self._use(key, value)

    def pop(self, key: K) -> None:
        """Forget *key*, if it is there."""
        with self._lock:
            self._entries.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """Return all keys and values, which does not count as a use."""
        with self._lock:
            return [(key, value) for key, (value, _) in self._entries.items()]

    def _use(self, key: K, value: V) -> None:
        """Note a use, and forget what is unused for too long.  The caller holds the lock."""
        now = self._clock.monotonic()
        self._entries[key] = value, now
        self._entries.move_to_end(key)
        while len(self._entries) > KEPT:
            _, last_use = next(iter(self._entries.values()))
            if now - last_use <= RECENT_SECONDS:
                break
            self._entries.popitem(last=False)
