"""How long to wait before another try."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from .errors import CFQueuesError, TransientError
from .metrics import metrics
from .runtime.rng import rng

T = TypeVar("T")

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0


def _never(_: TransientError) -> bool:
    return False


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try: exponential, with full jitter.

    Without the jitter, all that failed together would come back together.
    """
    ceiling = FIRST_PAUSE
    while True:
        yield rng.uniform(0, ceiling)
        ceiling = min(2 * ceiling, LONGEST_PAUSE)


def until(
    deadline: float, call: Callable[[], T], give_up: Callable[[TransientError], bool] = _never
) -> T:
    """Call until it does not raise a `TransientError`, or until *deadline* (monotonic seconds).

    Args:
        deadline: Past it, nothing is tried again.
        call: What to try.
        give_up: Whether a failure is to be raised at once instead.

    Raises:
        TransientError: What the last try raised; at once if the next could only be too late.
        PermanentError: What a try raised, at once.

    What is raised has ``delivered="unknown"`` if any try was in doubt, unless *give_up* ended it.
    """
    in_doubt = False
    for pause in pauses():  # pragma: no branch  (it never ends)
        try:
            return call()
        except CFQueuesError as error:
            if isinstance(error, TransientError) and give_up(error):
                raise
            in_doubt = in_doubt or error.delivered == "unknown"
            if in_doubt:
                error.delivered = "unknown"  # this try did not deliver; an earlier one may have
            # Never without a pause: a server may well say 0, or a time that has passed.
            wait = max(pause, error.retry_after or 0.0)
            # Compared this way round, a deadline that is NaN ends it as well.
            if not isinstance(error, TransientError) or not time.monotonic() + wait < deadline:
                raise
            metrics.retried(error)
        time.sleep(wait)
    raise AssertionError("pauses() has no end")
