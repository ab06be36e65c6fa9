"""A request that a caller waits for, and the error if the control broker does not take it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import ControlUnavailable, PermanentError
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
        is_withdrawn: Whether the caller has given up, so that the request must not begin.
        result: What *act* returned.
        error: What *act* raised.
    """

    def __init__(self, act: Callable[[Link], Any], what: str = "") -> None:
        self._act = act
        self.what = what
        self._flag = Flag(Clock())
        self.is_begun = self.is_done = self.is_withdrawn = False
        self.result: Any = None
        self.error: BaseException | None = None

    def perform(self, link: Link) -> None:
        """Do it.  Runs in the owner thread.

        Raises:
            BaseException: What *act* raised; the caller is told.
        """
        try:
            self.result = self._act(link)
        except BaseException as error:  # a killed greenlet must not look like success
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


def unavailable(
    what: str, seconds: float, error: BaseException | None, failure: str, *, unsure: bool
) -> PermanentError:
    """Return the error for a request that was not done; *error* itself if it is permanent.

    Args:
        what: Its description.
        seconds: How long its caller has waited at most.
        error: What it failed with.
        failure: Why there is no connection; ``""`` if there is one.
        unsure: Whether it may have had an effect.
    """
    if isinstance(error, PermanentError):
        return error
    why = reason(error) if error is not None else failure or "it does not answer"
    raised = ControlUnavailable(
        f"the control broker (control_url) did not take {what} within {seconds:g} s, and "
        f"{'may have received it' if unsure else 'has not received it'}: {why}; tasks are not "
        "affected",
        delivered="unknown" if unsure else "no",
    )
    raised.__cause__ = error
    return raised


def reason(error: BaseException) -> str:
    """Return *error* as text that surely shows no URL."""
    text = str(error)
    shows_url = "://" in text or "@" in text
    return type(error).__name__ if shows_url or not text else f"{type(error).__name__}: {text}"
