"""How long to wait before another try."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from .errors import TransientError

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
        yield random.uniform(0, ceiling)  # noqa: S311  no secret depends on it
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
    """
    for pause in pauses():  # pragma: no branch  (it never ends)
        try:
            return call()
        except TransientError as error:
            wait = pause if error.retry_after is None else error.retry_after
            if give_up(error) or time.monotonic() + wait >= deadline:
                raise
        time.sleep(wait)
    raise AssertionError("pauses() has no end")
