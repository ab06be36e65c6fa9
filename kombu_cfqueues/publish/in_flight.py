"""The requests of this process that are in flight, counted for each queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..waiting_room import Claim, Kind


class InFlight:
    """Requests in flight, by the number of their claim.

    An interrupted thread may leave its request behind, so each request stops counting at a fixed
    time.  Each access is a single step and needs no lock.

    Args:
        limits: Maximum number of requests in flight to one queue, by the kind of the caller.
    """

    def __init__(self, limits: Mapping[Kind, int]) -> None:
        self._limits = limits
        self._flights: dict[int, _Posted] = {}

    def add(self, claim: Claim, *, over_at: float) -> None:
        """Count the request of *claim* until `remove`, or until *over_at* (monotonic seconds)."""
        self._flights[claim.number] = _Posted(claim.address.name, over_at)

    def remove(self, number: int) -> None:
        """Stop counting the request of claim *number*."""
        self._flights.pop(number, None)

    def full_queues(self, kind: Kind, now: float) -> list[str]:
        """Return the names of the queues to which a caller of *kind* may not post now."""
        limit = self._limits[kind]
        if len(self._flights) < limit:
            return []
        counts: dict[str, int] = {}
        for flight in list(self._flights.values()):
            if flight.over_at > now:
                counts[flight.queue] = counts.get(flight.queue, 0) + 1
        return [name for name, count in counts.items() if count >= limit]


class _Posted(NamedTuple):
    queue: str
    over_at: float
