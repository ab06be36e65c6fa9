"""Temporary refusals: the API sometimes refuses a valid token for a short time.

Several people saw codes 10000 and 10001 for a valid token, mostly during many parallel calls.  If
each counted as a revoked token, workers would stop and publishes would fail.
"""

from __future__ import annotations

import re
import time
from typing import Final

from ..errors import AuthenticationFailed, CFQueuesError, ServerError
from ..options import Secret
from ..runtime.fork import renew_in_child
from ..runtime.locks import new_lock

PASSING_CODES: Final = frozenset({10000, 10001})
"""Codes that the API also gives to a valid token."""

PASSING_SECONDS: Final = 5.0
"""How long these refusals of one kind of request count as temporary if the token has worked."""

FORGOTTEN_SECONDS: Final = 300.0
"""After this time without a refusal, the next one starts a new `PASSING_SECONDS`."""


def is_passing(error: BaseException | None) -> bool:
    """Whether `PassingRefusals` decided that *error* is a temporary refusal of the token.

    Such an error need not be logged: if the refusal does not end, another error follows.
    """
    return isinstance(error, ServerError) and error.code in PASSING_CODES


class PassingRefusals:
    """Decides whether a refusal of the token counts.  Threads may share it."""

    def __init__(self) -> None:
        self._accepted = Secret()  # the token that worked last
        self._is_trusted = False  # another process has used the first token successfully
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Replace the lock: a thread of the parent may have held it."""
        self._lock = new_lock()  # guards _refused
        # Kind of request -> when it was refused first and last (monotonic seconds).
        self._refused: dict[str, tuple[float, float]] = {}

    def accepted(self, token: Secret, method: str, path: str) -> None:
        """Note that the API accepted the token for a request."""
        self._accepted = token
        if self._refused:
            with self._lock:
                self._refused.pop(_kind(method, path), None)

    def trust(self) -> None:
        """Note that the token works, although this process has made no request with it."""
        self._is_trusted = True

    def judge(self, error: CFQueuesError, token: Secret, method: str, path: str) -> CFQueuesError:
        """Return what to raise for *error*: a `ServerError` if another try may succeed.

        Refusals are counted by kind of request: a token may lack the permission for one kind, which
        the API refuses with the same code.
        """
        is_refusal = isinstance(error, AuthenticationFailed) and error.code in PASSING_CODES
        has_worked = token == self._accepted or (self._is_trusted and not self._accepted)
        if not is_refusal or not has_worked:
            return error
        now = time.monotonic()
        with self._lock:
            kind = _kind(method, path)
            first, last = self._refused.get(kind, (now, now))
            if now - last > FORGOTTEN_SECONDS:
                first = now
            self._refused[kind] = first, now
        if now - first > PASSING_SECONDS:
            return error
        return ServerError(
            f"{error} The token has worked before, so this may pass.",
            status=error.status,
            code=error.code,
            ray_id=error.ray_id,
            retry_after=error.retry_after,
        )


def _kind(method: str, path: str) -> str:
    """Return the route of a request, without the queue's id and the query."""
    return method + re.sub(r"^/[^/?]+", "/*", path).partition("?")[0]
