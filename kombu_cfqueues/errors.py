"""Everything that can go wrong, as types to catch.

::

    CFQueuesError
      TransientError              another try may succeed; Kombu reconnects
        ConnectionFailed            no answer: DNS, TCP, TLS, a proxy, a lost response, a timeout
        ServerError                 the server failed: 5xx, an HTML error page, broken JSON
        RateLimited                 429: the token's allowance, or the queue's, is used up
        QueueFull                   the queue's backlog has reached its limit
        QueueDisabled               the queue takes no messages until it is enabled again
      PublishTimeout              ``publish_timeout`` passed; also kombu's OperationalError
      PermanentError              another try would fail as well
        AuthenticationFailed        the API token is malformed, unknown or revoked
        PermissionDenied            the API token lacks a permission
        QueueNotFound               no such queue, and it was not to be created
        MessageTooLarge             the message is over 128 KB
        InvalidMessage              the message cannot be sent as it is
        PlanLimitReached            the account's plan allows no more today
        PullNotEnabled              the queue has no consumer that may pull over HTTP
        QueueNameConflict           two names of this process meet on one queue
        SpoolFull                   the spool has reached ``spool_max_bytes``, or its disk is full
        SpoolUnavailable            no place on this machine can hold the spool
        ConfigurationError          an option, the URL or the environment is wrong

Kombu sees the two families as ``Transport.connection_errors`` (transient) and
``Transport.channel_errors`` (permanent).
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from kombu import exceptions

Delivered = Literal["no", "unknown"]


class CFQueuesError(Exception):
    """Cloudflare Queues, or the way to it, refused.  The text never holds the token.

    Args:
        message: What happened, to which queue, and what to do about it.

    Attributes:
        status: HTTP status of the answer; None if there was none.
        code: Cloudflare's error code; None if the answer had none.
        ray_id: The request's id at Cloudflare, which its support asks for; None if unknown.
        retry_after: Seconds until another try can succeed; None if unknown.
        delivered: ``"no"``: surely no message got through.  ``"unknown"``: the request left and
            its answer was lost, so the message may or may not be in the queue.
    """

    # One positional argument: pickle calls the class with `args` and then sets the attributes
    # from `__dict__`; Celery carries errors between processes that way.
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


class TransientError(CFQueuesError):
    """Another try may succeed."""


class ConnectionFailed(TransientError):
    """No answer came: DNS, TCP, TLS, a proxy, a lost response or a timeout."""


class ServerError(TransientError):
    """The server failed to answer as the API does: a 5xx, an HTML page, broken JSON."""


class RateLimited(TransientError):
    """No request may leave now: HTTP 429, or our own allowance has none before the deadline."""


class QueueFull(TransientError):
    """The queue's backlog has reached Cloudflare's limit; nothing more fits until some is read."""


class QueueDisabled(TransientError):
    """The queue takes no messages until somebody enables it again."""


class PublishTimeout(CFQueuesError, exceptions.OperationalError):
    """The message could not be handed over within ``publish_timeout``.

    The last failure is this error's ``__cause__``; ``delivered`` says whether the message may
    have arrived all the same.
    """


class PermanentError(CFQueuesError):
    """Another try would fail as well."""


class AuthenticationFailed(PermanentError):
    """The API token is malformed, unknown or revoked."""


class PermissionDenied(PermanentError):
    """The API token is valid, and lacks a permission."""


class QueueNotFound(PermanentError):
    """There is no such queue, and it was not to be created."""


class MessageTooLarge(PermanentError):
    """The message is over the limit of one message."""


class InvalidMessage(PermanentError):
    """The message cannot be sent as it is: its content, its delay, or nowhere to go."""


class PlanLimitReached(PermanentError):
    """The account's plan allows no more operations today."""


class PullNotEnabled(PermanentError):
    """The queue has no consumer that may pull over HTTP."""


class QueueNameConflict(PermanentError):
    """Two queue names of this process are translated to one name at Cloudflare."""


class SpoolFull(PermanentError):
    """The spool has reached ``spool_max_bytes``, or the disk that holds it is full."""


class SpoolUnavailable(PermanentError):
    """No place on this machine can hold the spool."""


class ConfigurationError(PermanentError):
    """An option, the URL or the environment is wrong or missing."""


# Kombu before 5.7 has no batches, and so no such error.
_KombuBatchError: type[Exception] = getattr(exceptions, "BatchPublishError", exceptions.KombuError)


class Outcome(NamedTuple):
    """What became of one message of a batch.

    Attributes:
        queue: Kombu's name of the queue.
        message: What was to be sent: Kombu's dictionary, or a bare body (``body_format="plain"``).
        error: Why it is not known to be accepted; None: it is.
    """

    queue: str
    message: Any
    error: CFQueuesError | None


class BatchPublishError(_KombuBatchError):  # type: ignore[misc, valid-type]
    """Some messages of a batch were not accepted.  None of it is still on its way.

    Messages of earlier flushes, which succeeded, are not listed.

    Attributes:
        accepted: Messages that are in their queue.
        refused: Messages that surely are not.
        uncertain: Messages whose answer was lost: publishing them again may duplicate them.
    """

    def __init__(self, text: str, outcomes: tuple[Outcome, ...] = ()) -> None:
        super().__init__(text, outcomes)
        self.accepted = [outcome for outcome in outcomes if outcome.error is None]
        self.refused = [o for o in outcomes if o.error and o.error.delivered == "no"]
        self.uncertain = [o for o in outcomes if o.error and o.error.delivered == "unknown"]

    def __str__(self) -> str:
        return str(self.args[0])


def copy_of(error: CFQueuesError) -> CFQueuesError:
    """Return *error* for one of several callers: each adds to its traceback by raising it."""
    copy: CFQueuesError = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    copy.__traceback__ = error.__traceback__
    return copy


def as_text(error: CFQueuesError) -> str:
    """Return *error* in a form from which another process can make it again."""
    kept = ("status", "code", "ray_id", "retry_after", "delivered")
    values = {name: getattr(error, name) for name in kept}
    return json.dumps({"type": type(error).__name__, "text": str(error)} | values)


def from_text(text: str) -> CFQueuesError:
    """Return the error of which `as_text` made *text*.

    By the name of its class, and only one of ours: a pickle from a file that others write would
    run what they like.
    """
    values: dict[str, Any] = json.loads(text)
    kind = globals().get(values.pop("type"))
    if not (isinstance(kind, type) and issubclass(kind, CFQueuesError)):
        kind = CFQueuesError
    return kind(values.pop("text"), **values)
