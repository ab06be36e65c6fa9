"""Why an application gave up a message, as the dead letter records it."""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_TEXT_CHARACTERS: Final = 500
"""Maximum length of an exception's text in a dead letter, which may be near the size limit."""

UNDECODABLE: Final = "undecodable"
"""The reason of a message whose body its consumer could not decode."""


class Cause(NamedTuple):
    """Why a message is given up, as far as the library was told.

    Attributes:
        exception: Name of the exception's class, with its module unless it is built in; ``""`` if
            there was none.
        text: The exception's text, cut to `MAX_TEXT_CHARACTERS`.
        hostname: Name of the worker; ``""`` if the application is not a Celery worker.
        reason: Why, in one word; ``""`` if the code that dead-letters it knows why.
    """

    exception: str = ""
    text: str = ""
    hostname: str = ""
    reason: str = ""

    @classmethod
    def of(cls, error: BaseException | None, *, hostname: str = "", reason: str = "") -> Cause:
        """Return the cause for *error*.  Never raises."""
        error = _reason_of_rejection(error)
        if error is None:
            return cls(hostname=hostname, reason=reason)
        try:
            text = str(error).encode("utf-8", "replace").decode()  # no lone surrogates
        # The exception is the application's, and its `__str__` may raise anything.
        except Exception:  # noqa: BLE001
            text = ""
        if len(text) > MAX_TEXT_CHARACTERS:
            text = text[: MAX_TEXT_CHARACTERS - 3] + "..."
        return cls(_class_name(error), text, hostname, reason)


def _reason_of_rejection(error: BaseException | None) -> BaseException | None:
    """Return the exception that Celery's ``Reject`` was raised for, else *error*."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, BaseException) else error


def _class_name(error: BaseException) -> str:
    # A child of a prefork pool wraps an exception that it cannot pickle; the wrapper has its names.
    module = getattr(error, "exc_module", None) or type(error).__module__
    name = getattr(error, "exc_cls_name", None) or type(error).__qualname__
    return str(name) if module == "builtins" else f"{module}.{name}"
