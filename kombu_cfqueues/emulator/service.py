"""The emulated account: its queues, messages, faults, clock and knobs."""

from __future__ import annotations

from pathlib import Path

from .clock import Clock
from .database import Database
from .faults import Faults
from .knobs import Knobs
from .queues import Queues
from .store import Store


class Service:
    """The state that the API's handlers work on.

    Args:
        account_id: The id of the account.
        path: The database file; None for memory.
        knobs: The initial knobs.
        clock: The clock; tests of the store pass one that stands still.
    """

    def __init__(
        self, account_id: str, path: Path | str | None, knobs: Knobs, clock: Clock | None = None
    ) -> None:
        self.account_id = account_id
        self.clock = clock or Clock()
        self.faults = Faults()
        self.database = Database(path)
        self.queues = Queues(self.database, self.clock)
        self.store = Store(self.database, self.queues, self.clock, knobs)

    @property
    def knobs(self) -> Knobs:
        """The current knobs, which may be replaced as a whole at any time."""
        return self.store.knobs

    @knobs.setter
    def knobs(self, knobs: Knobs) -> None:
        self.store.knobs = knobs

    def close(self) -> None:
        """Close the database."""
        self.database.close()
