"""A request that a caller waits for, with what the control broker said."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..runtime.clock import Clock
from ..runtime.flag import Flag
from .link import Link


class Request:
    """Something that the owner thread does for a caller, at most once.

    Args:
        act: What to do.
        what: Its description, for the log, if nobody waits for it.

    Attributes:
        what: The same.
        is_begun: Whether it may have had an effect.  The broker's lock guards this and
            `is_withdrawn`.
        is_done: Whether `result` or `error` is set.
        is_withdrawn: Whether the caller has given up; it is not begun any more.
        result: What *act* returned.
        error: What *act* raised.
    """

    def __init__(self, act: Callable[[Link], Any], what: str = "") -> None:
        self._act = act
        self.what = what
        self._flag = Flag(Clock())
        self.is_begun = self.is_done = self.is_withdrawn = False
        self.result: Any = None
        self.error: Exception | None = None

    def perform(self, link: Link) -> None:
        """Do it.  Runs in the owner thread.

        Raises:
            Exception: What *act* raised; the caller is told.
        """
        try:
            self.result = self._act(link)
        except Exception as error:
            self.error = error
            raise
        finally:
            self.is_done = True
            self._flag.set()

    def wait(self, deadline: float) -> bool:
        """Block until it is done, or until *deadline* (monotonic seconds); return whether it is."""
        while not self.is_done:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._flag.wait(left)
        return self.is_done
