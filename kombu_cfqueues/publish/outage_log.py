"""Logs once that spooled messages cannot be delivered, and once that they can be again."""

from __future__ import annotations

import logging
import time
from typing import Final

from ..errors import AuthenticationFailed, ConnectionFailed, PermissionDenied, ServerError
from ..runtime.clock import Clock
from .sender import Pause

logger = logging.getLogger(__name__)

SILENT_SECONDS: Final = 1.0
"""How long an outage lasts before it is logged.  Most failures pass sooner."""

_OUTAGES: Final = (ConnectionFailed, ServerError, AuthenticationFailed, PermissionDenied)
"""Errors that concern every queue.  The spool records an error of one queue in that queue's row,
and `StopLog` logs a 429."""


class OutageLog:
    """Follows the pauses of a process that empties the spool.  Only one thread may use it.

    Args:
        clock: Tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None  # the first failure, in monotonic seconds
        self._is_logged = False

    def note(self, pause: Pause | None) -> None:
        """Note why no message can be posted; None if nothing prevents it."""
        if pause is None or not isinstance(pause.why, _OUTAGES):
            self._end()
            return
        now = self._clock.monotonic()
        if self._since is None:
            self._since = pause.since
        if not self._is_logged and now - self._since >= SILENT_SECONDS:
            self._is_logged = True
            began = time.localtime(time.time() - (now - self._since))
            logger.warning(
                "spooled messages have not been delivered since %s; they stay on the disk and are "
                "retried: %s",
                time.strftime("%H:%M:%S", began),
                pause.why,
            )

    def _end(self) -> None:
        if self._is_logged and self._since is not None:
            seconds = self._clock.monotonic() - self._since
            logger.info("the API answers again after %.0f s; delivering spooled messages", seconds)
        self._since, self._is_logged = None, False
