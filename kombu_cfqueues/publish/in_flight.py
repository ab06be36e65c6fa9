"""The requests of this process that are on their way."""

from __future__ import annotations

from typing import NamedTuple

from ..waiting_room import Claim


class InFlight:
    """Requests on their way, by the number of their claim.

    A thread that is interrupted may leave its request behind.  So each has a time at which it is
    over, whatever became of its thread.  Each access is a single step, so there is no lock.
    """

    def __init__(self) -> None:
        self._flights: dict[int, _Flight] = {}

    def add(self, claim: Claim, *, over_at: float) -> None:
        """Count the request of *claim* until `remove`, or until *over_at* (monotonic seconds)."""
        self._flights[claim.number] = _Flight(claim.address.name, over_at)

    def remove(self, number: int) -> None:
        """Count the request of claim *number* no more."""
        self._flights.pop(number, None)

    def busy(self, most: int, now: float) -> list[str]:
        """Return the names of the queues for which *most* requests are on their way."""
        counts: dict[str, int] = {}
        for flight in list(self._flights.values()):
            if flight.over_at > now:
                counts[flight.queue] = counts.get(flight.queue, 0) + 1
        return [name for name, count in counts.items() if count >= most]


class _Flight(NamedTuple):
    queue: str
    over_at: float
