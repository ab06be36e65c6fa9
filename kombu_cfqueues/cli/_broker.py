"""How commands are told which account, which options, and which spool."""

from __future__ import annotations

import difflib
import functools
import json
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, NamedTuple

import click
from kombu.utils.url import parse_url

from ..errors import ConfigurationError
from ..options import TOKEN_VARIABLE, Options, Secret

BROKER_VARIABLE = "CFQUEUES_BROKER_URL"

_OPTIONS = (
    click.option(
        "--broker",
        metavar="URL",
        envvar=BROKER_VARIABLE,
        default="cfqueues://",
        show_default=True,
        help=f"Broker URL of the application; better in {BROKER_VARIABLE}, which ps does not show. "
        "What it lacks is in CLOUDFLARE_ACCOUNT_ID and CLOUDFLARE_API_TOKEN.",
    ),
    click.option("--spool-dir", metavar="DIR", help="As in the application's options."),
    click.option("--base-url", metavar="URL", help="As in the application's options."),
    click.option(
        "--option",
        "-o",
        "others",
        metavar="NAME=VALUE",
        multiple=True,
        help="Any other of the application's transport options: -o queue_name_prefix=shop-",
    ),
)

_ALLOWANCE = (
    click.option("--request-rate", type=float, help="As in the application's options."),
    click.option("--request-burst", type=int, help="As in the application's options."),
)

#: On a command line it would be shown by ps and kept by the shell.
_SECRET: Final = "api_token"  # noqa: S105  the option's name


class Given(NamedTuple):
    """What the command line and the environment say, unread.

    Attributes:
        broker: The broker URL; of a fail-over list, the first is meant.
        options: Transport options.
        token: Whether the API token is needed.
    """

    broker: str
    options: dict[str, Any]
    token: bool

    def read(self) -> Options:
        """The settings that it means.

        Raises:
            ConfigurationError: They are wrong; the text says why.
        """
        environ = dict(os.environ)
        if not self.token:
            environ.setdefault(TOKEN_VARIABLE, Secret("not needed"))
        try:
            url = parse_url(self.broker.split(";")[0])
        except ValueError as error:
            # Not its text, which may hold the URL, and so the token.
            raise ConfigurationError("the broker URL cannot be read") from error
        if url["transport"] != "cfqueues":
            raise ConfigurationError("the broker URL does not begin with cfqueues://")
        return Options.read(
            host=url["hostname"],
            port=url["port"],
            user=url["userid"],
            password=url["password"],
            virtual_host=url["virtual_host"],
            transport_options=self.options,
            environ=environ,
        )


def takes_broker(
    *, allowance: bool = False, token: bool = True, unread: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command's function *options*, made from the options of the command line.

    Args:
        allowance: Whether the command makes requests, and so has to know how many may leave.
        token: Whether it needs the API token.
        unread: Give it *given* instead, which it reads itself.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(
            broker: str,
            spool_dir: str | None,
            base_url: str | None,
            others: tuple[str, ...],
            **rest: Any,
        ) -> None:
            named: dict[str, Any] = {"spool_dir": spool_dir, "base_url": base_url}
            if allowance:
                for name in ("request_rate", "request_burst"):
                    named[name] = rest.pop(name)
            named = {name: value for name, value in named.items() if value is not None}
            given = Given(broker, _read_pairs(others) | named, token)
            if unread:
                function(given=given, **rest)
            else:
                function(options=given.read(), **rest)

        for option in reversed((*_OPTIONS, *(_ALLOWANCE if allowance else ()))):
            command = option(command)
        return command

    return decorate


def _read_pairs(pairs: tuple[str, ...]) -> dict[str, Any]:
    known = sorted({field.name for field in fields(Options)} - {_SECRET})
    given = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name == _SECRET:
            # Not quoted: it holds the token.
            raise click.UsageError("put the API token into CLOUDFLARE_API_TOKEN, which ps hides")
        if not equals or name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"is {close[0]!r} meant?" if close else f"names: {', '.join(known)}"
            raise click.UsageError(f"--option is NAME=VALUE, not {pair!r}; {meant}")
        given[name] = _value(value)
    return given


def _value(text: str) -> Any:
    """A dictionary or null, which text cannot say; all else is read from text by its option."""
    if text.startswith("{") or text == "null":
        try:
            return json.loads(text)
        except ValueError:
            pass  # the option says what it has to be
    return text
