"""What was used lately, by key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from .clock import Clock

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, which are forgotten when they were not used for a while.

    Without it, a process that publishes to a reply queue for each request would remember all of
    them.  The caller holds a lock.

    Args:
        seconds: How long a value is kept without use.
        clock: Time.
    """

    def __init__(self, seconds: float, clock: Clock | None = None) -> None:
        self._seconds = seconds
        self._clock = clock or Clock()
        self._values: OrderedDict[K, tuple[V, float]] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of *key*, and make it if there is none."""
        now = self._clock.monotonic()
        found = self._values.pop(key, None)
        value = make() if found is None else found[0]
        self._values[key] = value, now
        while now - next(iter(self._values.values()))[1] > self._seconds:
            self._values.popitem(last=False)
        return value
