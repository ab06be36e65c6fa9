"""All errors of this package.

::

    CFQueuesError
      TransientError              a retry may succeed; Kombu reconnects; also kombu's
                                  OperationalError
        ConnectionFailed            no answer: DNS, TCP, TLS, a proxy, a lost response, a timeout
          NothingListens            the API's host is this machine, and nothing listens there
        ServerError                 the server failed: 5xx, an HTML error page, invalid JSON
        RateLimited                 the allowance of the token or of the queue is used up
        QueueFull                   the queue's backlog has reached its limit
        QueueDisabled               the queue accepts no messages until it is enabled again
      PublishTimeout              ``publish_timeout`` passed; also kombu's OperationalError
      PermanentError              a retry would fail as well
        AuthenticationFailed        the API token is malformed, unknown or revoked
        PermissionDenied            the API token lacks a permission
        QueueNotFound               the queue does not exist, and may not be created
        MessageTooLarge             the message is larger than 128 KB, even compressed
        InvalidMessage              the message cannot be sent as it is
        PlanLimitReached            the account's plan allows no more operations today
        PullNotEnabled              the queue has no consumer that may pull over HTTP
        QueueNameConflict           two queue names translate to one name at Cloudflare
        SpoolFull                   the spool has reached ``spool_max_bytes``, or its disk is full
        SpoolUnavailable            no folder of this machine can hold the spool
        ControlUnavailable          the control broker did not take a request
        ConfigurationError          an option, the URL or the environment is wrong
    BatchPublishError             some messages of a batch were not accepted; kombu's KombuError,
                                  and its BatchPublishError from Kombu 5.7 on

Kombu sees the two families as ``Transport.connection_errors`` (transient) and
``Transport.channel_errors`` (permanent).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple

from kombu import exceptions

Delivered = Literal["no", "unknown"]


class Scope(Enum):
    """What the API stops when it says that a limit is reached."""

    QUEUE = auto()
    """Publishing to one queue, which is overloaded, full or disabled."""
    PUBLISHING = auto()
    """Publishing to any queue of the account, whose plan allows no more operations today."""
    EVERYTHING = auto()
    """Every call of the token."""


LIMIT_CODES: Final[Mapping[int, Scope]] = {
    971: Scope.EVERYTHING,
    6100: Scope.EVERYTHING,
    10429: Scope.EVERYTHING,
    10250: Scope.QUEUE,
    10251: Scope.QUEUE,
    10252: Scope.QUEUE,
    10253: Scope.PUBLISHING,
}
"""Cloudflare's codes for a limit that is reached.  They come with status 429; the first three have
also been seen with 200 and 500."""


class CFQueuesError(Exception):
    """A call of Cloudflare Queues failed, or was refused before it left this process.

    The text never contains the API token.

    Args:
        message: What happened, to which queue, and what to do about it.

    Attributes:
        status: HTTP status of the answer; None if there was no answer.
        code: Cloudflare's error code; None if the answer had none.
        ray_id: Cloudflare's id of the request, which its support asks for; None if unknown.
        retry_after: Seconds until a retry can succeed; None if unknown.
        delivered: ``"no"`` if certainly no message arrived.  ``"unknown"`` if the request left and
            its answer was lost, so that the message may or may not be in the queue.
    """

    # Only one positional argument, because Celery pickles errors: pickle calls the class with
    # `args`, and then sets the attributes from `__dict__`.
    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: int | None = None,
        ray_id: str | None = None,
        retry_after: float | None = None,
        delivered: Delivered = "no",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.ray_id = ray_id
        self.retry_after = retry_after
        self.delivered = delivered

    @property
    def stops(self) -> Scope | None:
        """What the API has stopped with this answer; None if nothing.

        The code decides, whatever the status: see `LIMIT_CODES`.  A 429 with any other code, or
        without one, stops everything.
        """
        if self.code is not None and self.code in LIMIT_CODES:
            return LIMIT_CODES[self.code]
        return Scope.EVERYTHING if self.status == HTTPStatus.TOO_MANY_REQUESTS else None

    @property
    def is_block(self) -> bool:
        """Whether the API itself says that the token is over its limit.

        A 429 without the API's code may come from a gateway or a proxy.
        """
        return self.code is not None and LIMIT_CODES.get(self.code) is Scope.EVERYTHING


class TransientError(CFQueuesError, exceptions.OperationalError):
    """A retry may succeed.

    Kombu raises an `OperationalError` when its retries are used up.  As this is one, Kombu raises
    it unchanged, with `delivered` and the other attributes.
    """


class ConnectionFailed(TransientError):
    """No answer came, because of DNS, TCP, TLS, a proxy, a lost response or a timeout."""


class NothingListens(ConnectionFailed):
    """The API's host is this machine, and nothing listens there: start ``cfqueues emulator``."""


class ServerError(TransientError):
    """The server failed: its answer was a 5xx, an HTML page, or invalid JSON."""


class RateLimited(TransientError):
    """The API refused the request, or our own allowance lets no request leave in time."""


class QueueFull(TransientError):
    """The queue's backlog has reached Cloudflare's limit.  Consume messages to make room."""


class QueueDisabled(TransientError):
    """The queue accepts no messages until somebody enables it again."""


class PublishTimeout(CFQueuesError, exceptions.OperationalError):
    """Cloudflare did not accept the message within ``publish_timeout``.

    The last failure is this error's ``__cause__``.  ``delivered`` says whether the message may
    have arrived nevertheless.
    """


class PermanentError(CFQueuesError):
    """A retry would fail as well."""


class AuthenticationFailed(PermanentError):
    """The API token is malformed, unknown or revoked."""


class PermissionDenied(PermanentError):
    """The API token is valid, but lacks a permission."""


class QueueNotFound(PermanentError):
    """The queue does not exist, and may not be created."""


class MessageTooLarge(PermanentError):
    """The message is larger than Cloudflare's limit for one message."""


class InvalidMessage(PermanentError):
    """The message cannot be sent: its content or delay is invalid, or no queue is bound for it."""


class PlanLimitReached(PermanentError):
    """The account's plan allows no more operations today."""


class PullNotEnabled(PermanentError):
    """The queue has no consumer that may pull over HTTP."""


class QueueNameConflict(PermanentError):
    """Two queue names of this process translate to one name at Cloudflare."""


class SpoolFull(PermanentError):
    """The spool has reached ``spool_max_bytes``, or the disk that holds it is full."""


class SpoolUnavailable(PermanentError):
    """No folder of this machine can hold the spool."""


class ControlUnavailable(PermanentError):
    """The control broker (``control_url``) did not take a request for remote control.

    Kombu and Celery do not retry it.  Tasks are not affected: they go to Cloudflare.
    """


class ConfigurationError(PermanentError):
    """An option, the URL or the environment is wrong or missing."""


# Kombu before 5.7 has no batches, and so no error for them.
_KombuBatchError: type[Exception] = getattr(exceptions, "BatchPublishError", exceptions.KombuError)


class Outcome(NamedTuple):
    """The result of one message of a batch.

    Attributes:
        queue: Kombu's name of the queue.
        message: The message: Kombu's dictionary, or only its body with ``body_format="plain"``.
        error: Why the message was refused, or may not have arrived; None if it was accepted.
    """

    queue: str
    message: Any
    error: CFQueuesError | None


class BatchPublishError(_KombuBatchError):  # type: ignore[misc, valid-type]
    """Some messages of a batch were not accepted.  No request of the batch is still running.

    It does not list messages of earlier flushes, which succeeded.

    Attributes:
        delivered: ``"no"`` if certainly no message arrived, otherwise ``"unknown"``.
        accepted: An `Outcome` for each message that is in its queue.
        refused: An `Outcome` for each message that is certainly not in its queue.
        uncertain: An `Outcome` for each message whose answer was lost.  Publishing such a message
            again may duplicate it.
    """

    def __init__(self, text: str, outcomes: tuple[Outcome, ...] = ()) -> None:
        super().__init__(text, outcomes)
        self.accepted = [outcome for outcome in outcomes if outcome.error is None]
        self.refused = [o for o in outcomes if o.error and o.error.delivered == "no"]
        self.uncertain = [o for o in outcomes if o.error and o.error.delivered == "unknown"]

    @property
    def delivered(self) -> Delivered:  # noqa: D102  see the class
        return "unknown" if self.accepted or self.uncertain else "no"

    def __str__(self) -> str:
        return str(self.args[0])


def copy_of(error: CFQueuesError) -> CFQueuesError:
    """Return a copy of *error*, because callers that raise the same one would mix its traceback."""
    copy: CFQueuesError = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    copy.__traceback__ = error.__traceback__
    return copy


def as_text(error: CFQueuesError) -> str:
    """Return *error* as JSON, from which another process can recreate it with `from_text`."""
    attributes = ("status", "code", "ray_id", "retry_after", "delivered")
    values = {name: getattr(error, name) for name in attributes}
    return json.dumps({"type": type(error).__name__, "text": str(error)} | values)


def from_text(text: str) -> CFQueuesError:
    """Return the error that `as_text` wrote as *text*.

    The class is found by its name, and must be one of ours.  A pickle would run any code that
    another program wrote into the file.
    """
    values: dict[str, Any] = json.loads(text)
    kind = globals().get(values.pop("type"))
    if not (isinstance(kind, type) and issubclass(kind, CFQueuesError)):
        kind = CFQueuesError
    return kind(values.pop("text"), **values)
