"""Pulls a queue until it has no more messages; what happens to these is for the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from .. import limits
from ..api.models import Queue
from ._session import Session
from ._stop import Stop

RUN_LEASE_SECONDS: Final = 1800.0
"""Lease of pulled messages, which must not be redelivered during the run."""

MAX_HELD: Final = 10_000
"""Maximum number of messages that a run holds until its end, to give them back."""

EMPTY_PULLS: Final = 3
"""Empty pulls in a row that end the run.  A single pull may be empty although messages wait."""

EMPTY_PULL_PAUSE_SECONDS: Final = 0.25
"""Pause after an empty pull."""


def pulls(
    session: Session, queue: Queue, stop: Stop, wanted: Callable[[], int]
) -> Iterator[list[dict[str, Any]]]:
    """Yield what each pull returns.

    Args:
        session: The account.
        queue: Where to pull.
        stop: Whether to stop.
        wanted: Returns how many more messages to pull; 0 ends the run.

    Raises:
        CFQueuesError: A pull failed.
    """
    empty = 0
    while empty < EMPTY_PULLS and not stop.requested and (count := wanted()) > 0:
        raws = session.pull(
            queue, min(count, limits.PULL_MESSAGES), lease_seconds=RUN_LEASE_SECONDS
        )
        if raws:
            empty = 0
            yield raws
        else:
            empty += 1
            stop.wait(EMPTY_PULL_PAUSE_SECONDS)
