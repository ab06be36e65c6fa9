"""Whether the server answers the requests of one kind for one queue."""

from __future__ import annotations

import time
from http import HTTPStatus

from ..errors import CFQueuesError, PermanentError, QueueDisabled, TransientError


class Pulse:
    """Whether requests of one kind for one queue are answered.

    Times are seconds of `time.monotonic`.  The owner's lock guards all of it.

    Attributes:
        answered_at: When a request was last answered; None if none was.
        unanswered_since: When the first request after the last answer left; None if none has left
            since.
        error: What the last request failed with; None if it was answered.
    """

    def __init__(self) -> None:
        self.answered_at: float | None = None
        self.unanswered_since: float | None = None
        self.error: CFQueuesError | None = None

    def asked(self) -> None:
        """Note that a request leaves."""
        if self.unanswered_since is None:
            self.unanswered_since = time.monotonic()

    def concluded(self, error: CFQueuesError | None) -> None:
        """Note how a request ended."""
        if error is None or _is_answer(error):
            self.answered_at = time.monotonic()
            self.unanswered_since = self.error = None
        else:
            self.error = error

    def silence(self, now: float) -> float:
        """How long requests have not been answered, in seconds."""
        return 0.0 if self.unanswered_since is None else now - self.unanswered_since

    @property
    def is_refused(self) -> bool:
        """Whether the last request failed with an error that another try does not repair."""
        return isinstance(self.error, PermanentError)

    def copy(self) -> Pulse:
        """Return a copy for a thread that does not hold the lock."""
        copied = Pulse()
        copied.__dict__.update(self.__dict__)
        return copied


def _is_answer(error: CFQueuesError) -> bool:
    """Whether *error* says that the queue is paused, or that a new consumer is not yet in force."""
    if isinstance(error, QueueDisabled):
        return True
    return isinstance(error, TransientError) and error.status == HTTPStatus.METHOD_NOT_ALLOWED
