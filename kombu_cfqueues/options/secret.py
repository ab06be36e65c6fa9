"""The API token, or a URL with a password, as a value that no log shows and no pickle holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from .. import limits
from .host import may_be_secret


class Secret(str):
    """A string whose ``repr`` is masked, so that logs of local variables do not show it.

    Pickling it raises a TypeError.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**'"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API token or a password cannot be pickled: each process reads its own")


Token = Secret | Callable[[], str]

ControlUrl = Secret | Callable[[], str]
"""The URL of a control broker, which may hold a password; a callable returns it at each connect."""


SECRET_OPTIONS: Final = ("api_token", "budget_url", "control_url")
"""Transport options that are secret, or may hold a password."""


def shown_option(name: str, value: object) -> object:
    """Return the value of a transport option as it may be shown, and as JSON can hold it."""
    if value is None:
        return None
    is_token_by_mistake = (name == "account_id" and not limits.ID.fullmatch(str(value))) or (
        name == "base_url" and may_be_secret(str(value))
    )
    if name in SECRET_OPTIONS or callable(value) or is_token_by_mistake:
        return "**"
    return value


def is_missing(given: object) -> bool:
    """Whether a callable ``api_token`` returned no token, as from a file that is being written."""
    return given is None or (isinstance(given, str) and not given.strip())
