"""The command-line options that name the account, its transport options and the spool."""

from __future__ import annotations

import difflib
import functools
import json
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, NamedTuple

import click

from ..errors import ConfigurationError
from ..options import (
    BROKER_VARIABLE,
    BUDGET_VARIABLE,
    TOKEN_VARIABLE,
    BrokerUrl,
    Options,
    Secret,
    is_ours,
)
from ._options import BROKER_NAMES, BROKER_OPTIONS

CELERY_VARIABLE: Final = "CELERY_BROKER_URL"

_ALLOWANCE = (
    click.option(
        "--request-rate",
        type=float,
        help="Set the transport option request_rate: requests per second.  "
        "[default: 3.7 for Cloudflare's API, else no limit]",
    ),
    click.option(
        "--request-burst",
        type=int,
        help="Set the transport option request_burst: requests that may be sent at once.  "
        f"[default: {Options.request_burst}]",
    ),
)

_SECRETS: Final = {"api_token": TOKEN_VARIABLE, "budget_url": BUDGET_VARIABLE}
"""The options that are refused, and the variable for each: ps would show the value, and the history
of the shell would keep it."""


class RawOptions(NamedTuple):
    """The settings from the command line, not yet checked.

    Attributes:
        broker: The broker URL, or a fail-over list of which the first URL is used.
        options: Transport options.
        token: Whether the command needs the API token.
        source: Where the broker URL comes from, for an error.
    """

    broker: str
    options: dict[str, Any]
    token: bool
    source: str = "--broker"

    def read(self) -> Options:
        """Check the settings, and fill in what the environment supplies.

        Raises:
            ConfigurationError: A setting is wrong or missing; the text says which and why.
        """
        environ = dict(os.environ)
        if not self.token:
            environ.setdefault(TOKEN_VARIABLE, Secret("not needed"))
        url = BrokerUrl.parse(self.broker.split(";")[0])
        if url.fault:
            raise ConfigurationError(f"{url.fault} (see {self.source})")
        return Options.read(
            host=url.host,
            port=url.port,
            user=url.user,
            password=url.password,
            virtual_host=url.virtual_host,
            transport_options=self.options,
            environ=environ,
        )


def takes_broker(
    *, allowance: bool = False, token: bool = True, raw: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options above to a command, and pass its function ``options``, an `Options`.

    Args:
        allowance: Whether the command makes requests, and so takes the options that limit them.
        token: Whether the command needs the API token.
        raw: Whether to pass ``raw_options``, a `RawOptions` that the function reads itself.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            rest = {name: value for name, value in given.items() if name not in BROKER_NAMES}
            raw_options = options_of(click.get_current_context(), token=token, tell=True)
            if raw:
                function(raw_options=raw_options, **rest)
            else:
                function(options=raw_options.read(), **rest)

        for option in reversed((*BROKER_OPTIONS, *(_ALLOWANCE if allowance else ()))):
            command = option(command)
        return command

    return decorate


def options_of(context: click.Context, *, token: bool = True, tell: bool = False) -> RawOptions:
    """Return the settings of a command and of its groups; those of the command come first.

    Args:
        context: The command's.
        token: Whether the command needs the API token.
        tell: Whether to print that the broker URL comes from Celery's variable.

    Raises:
        click.UsageError: A pair of ``--option`` is wrong.
    """
    given: dict[str, Any] = {}
    pairs: tuple[str, ...] = ()
    level: click.Context | None = context
    while level is not None:
        for name in BROKER_NAMES - {"pairs"}:
            if given.get(name) is None:
                given[name] = level.params.get(name)
        pairs = (*(level.params.get("pairs") or ()), *pairs)
        level = level.parent
    url, source = _broker(given.pop("broker"), tell=tell)
    options = _read_pairs(pairs) | {n: value for n, value in given.items() if value is not None}
    return RawOptions(url, options, token, source)


def _broker(given: str | None, *, tell: bool) -> tuple[str, str]:
    """Return the broker URL, and where it comes from."""
    if given is not None:
        return given, "--broker"
    url = os.environ.get(BROKER_VARIABLE)
    if url:
        return url, BROKER_VARIABLE
    url = os.environ.get(CELERY_VARIABLE)
    if is_ours(url):
        if tell:
            click.echo(f"Using the broker URL of {CELERY_VARIABLE}.", err=True)
        return str(url), CELERY_VARIABLE
    return "cfqueues://", BROKER_VARIABLE


def _read_pairs(pairs: tuple[str, ...]) -> dict[str, Any]:
    known = sorted({field.name for field in fields(Options)} - _SECRETS.keys())
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name in _SECRETS:
            # Do not quote the pair: it holds the secret.
            what = "the API token" if name == "api_token" else f"{name}, which may hold a password"
            raise click.UsageError(
                f"--option does not take {what}, which ps would show: set {_SECRETS[name]}"
            )
        if not equals:
            raise click.UsageError(f"--option must be NAME=VALUE, not {pair!r}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"options: {', '.join(known)}"
            raise click.UsageError(f"no transport option is named {name!r}; {hint}")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """Read a dictionary or null; `Options` reads any other value from its text."""
    if text.startswith("{") or text == "null":
        try:
            return json.loads(text)
        except ValueError:
            pass  # `Options` refuses the text, and its error says what the option must be
    return text
