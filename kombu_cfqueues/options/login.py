"""Account id and API token: where they come from, and common mistakes in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, NamedTuple

from .. import limits
from ..errors import ConfigurationError
from .broker_url import BrokerUrl
from .secret import Secret, Token
from .variables import ACCOUNT_VARIABLE, BROKER_VARIABLE, TOKEN_VARIABLE, url_of

_WHERE_IDS_ARE: Final = "which is 32 hex digits (dashboard: account home, 'Copy account ID')"

_NEEDED: Final = (
    "an API token with the permission 'Account > Queues > Edit' (dashboard: My Profile, API Tokens)"
)

_EXAMPLE_VALUE: Final = re.compile(
    r"""<.*> | \[.*\] | \{.*\} | \$.+ | %.+% | \.{3,} | \u2026 | [xX*]{3,}
    | (?:your|insert|enter)[-_ ].* | change[-_ ]?me
    | (?:\w+[-_ ])?(?:account[-_ ]id|api[-_ ]token)""",
    re.IGNORECASE | re.VERBOSE,
)
"""Placeholders that examples contain instead of a value."""


class Login(NamedTuple):
    """Account id and API token, and where each comes from.

    Attributes:
        account_id: The account id.
        account_source: Where it comes from, for an error.
        api_token: The API token.
        token_source: Where it comes from, for an error.
        host: Host of the environment's broker URL, if the token comes from the environment.
        port: Port of that URL.
    """

    account_id: str
    account_source: str
    api_token: Token
    token_source: str
    host: str | None
    port: int | None

    def __repr__(self) -> str:
        return "Login(**)"  # after a mistake in the URL, the account id is the token

    def check(self, *, is_cloudflare: bool) -> None:
        """Refuse what cannot be an account id or an API token.

        Args:
            is_cloudflare: Whether they are for Cloudflare itself.  Other servers, such as the
                emulator, may have accounts and tokens of another form.

        Raises:
            ConfigurationError: The text says what the value is instead, and shows no value.
        """
        account, token = self.account_id, self.api_token
        _check_wrapping("account_id", self.account_source, account)
        if isinstance(token, str):
            _check_wrapping("api_token", self.token_source, token)
        if not is_cloudflare:
            return
        if isinstance(token, str):
            self._check_pair(token)
        if not limits.ID.fullmatch(account):
            raise ConfigurationError(
                # Do not show the account id: after a mistake in the URL, it is the token.
                f"account_id ({self.account_source}) has {len(account)} characters and is not a "
                f"Cloudflare account id, {_WHERE_IDS_ARE}"
            )

    def _check_pair(self, token: str) -> None:
        account = self.account_id
        if limits.ID.fullmatch(token) and not _EXAMPLE_VALUE.fullmatch(account):
            pair = f"account_id ({self.account_source}) and api_token ({self.token_source})"
            raise ConfigurationError(
                f"api_token ({self.token_source}) is an account id: set it to {_NEEDED}"
                if limits.ID.fullmatch(account)
                else f"{pair} are swapped: the token has the form of an account id. Exchange them"
            )
        for name, source, value, what in (
            ("account_id", self.account_source, account, f"your account id, {_WHERE_IDS_ARE}"),
            ("api_token", self.token_source, token, _NEEDED),
        ):
            if _EXAMPLE_VALUE.fullmatch(value):
                raise ConfigurationError(
                    f"{name} ({source}) is a placeholder from an example: replace it with {what}"
                )


def read_login(
    user: str | None,
    password: str | Callable[[], str] | None,
    options: Mapping[str, Any],
    environ: Mapping[str, str],
) -> Login:
    """Return account id and API token: of the URL, else of the options, else of the environment.

    Raises:
        ConfigurationError: One of them is missing, or has the wrong type.
    """
    own_id, own_token = user or options.get("account_id"), password or options.get("api_token")
    # A token goes only to the host that came with it: the environment's URL supplies both.
    url = BrokerUrl() if own_id and own_token else url_of(environ)
    account_id, account_source = _first(
        "account_id", "user name",
        (user, options.get("account_id"), url.user, environ.get(ACCOUNT_VARIABLE)),
        ACCOUNT_VARIABLE,
    )  # fmt: skip
    token, token_source = _first(
        "api_token", "password",
        (password, options.get("api_token"), url.password, environ.get(TOKEN_VARIABLE)),
        TOKEN_VARIABLE,
    )  # fmt: skip
    if not isinstance(account_id, str):
        raise ConfigurationError("account_id must be a string")
    # Hashable, because connections with the same token find their account by it.
    if not (isinstance(token, str) or (callable(token) and isinstance(token, Hashable))):
        raise ConfigurationError(
            "api_token must be a string, or a function or other hashable callable that returns one"
        )
    return Login(
        account_id,
        account_source,
        token if callable(token) else Secret(token),
        token_source,
        None if own_token else url.host,
        None if own_token else url.port,
    )


def _first(name: str, place: str, values: tuple[Any, ...], variable: str) -> tuple[Any, str]:
    """Return the first value that is given, and where it comes from."""
    sources = (
        f"the {place} of the broker URL",
        f"transport_options[{name!r}]",
        f"the {place} of the URL in {BROKER_VARIABLE}",
        variable,
    )
    for value, source in zip(values, sources, strict=True):
        if value:
            return value, source
    raise ConfigurationError(
        f"no {name}: give it as the {place} of the broker URL "
        f"(cfqueues://ACCOUNT_ID:API_TOKEN@/, also in {BROKER_VARIABLE}), as "
        f"transport_options[{name!r}], or in the environment variable {variable}"
    )


def _check_wrapping(name: str, source: str, value: str) -> None:
    """Refuse a value with something around it that does not belong to it."""
    kept = value.strip()
    if re.match(r"bearer\s", kept, re.IGNORECASE):
        what = "begins with 'Bearer', which is not part of the token"
    elif kept[:1] in ("'", '"') or kept[-1:] in ("'", '"'):
        what = "has quotes around it, which are not part of the value (env files keep quotes)"
    elif kept != value:
        what = "has a space or a line break before or after it"
    else:
        return
    raise ConfigurationError(f"{name} ({source}) {what}: remove it")
