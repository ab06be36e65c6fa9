"""How commands are told which account, and which spool."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

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
)

_ALLOWANCE = (
    click.option("--request-rate", type=float, help="As in the application's options."),
    click.option("--request-burst", type=int, help="As in the application's options."),
)


def takes_broker(
    *, allowance: bool = False, token: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command's function *options*, made from the options of the command line.

    Args:
        allowance: Whether the command makes requests, and so has to know how many may leave.
        token: Whether it needs the API token.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(broker: str, spool_dir: str | None, base_url: str | None, **rest: Any) -> None:
            given: dict[str, Any] = {"spool_dir": spool_dir, "base_url": base_url}
            if allowance:
                for name in ("request_rate", "request_burst"):
                    given[name] = rest.pop(name)
            given = {name: value for name, value in given.items() if value is not None}
            function(options=read(broker, given, token=token), **rest)

        for option in reversed((*_OPTIONS, *(_ALLOWANCE if allowance else ()))):
            command = option(command)
        return command

    return decorate


def read(broker: str, given: dict[str, Any], *, token: bool) -> Options:
    """The settings that a broker URL and options of the command line mean.

    Raises:
        click.ClickException: They are wrong; the text says why.
    """
    environ = dict(os.environ)
    if not token:
        environ.setdefault(TOKEN_VARIABLE, Secret("not needed"))
    try:
        url = parse_url(broker)
        if url["transport"] != "cfqueues":
            raise click.ClickException("the broker URL does not begin with cfqueues://")
        return Options.read(
            host=url["hostname"],
            port=url["port"],
            user=url["userid"],
            password=url["password"],
            virtual_host=url["virtual_host"],
            transport_options=given,
            environ=environ,
        )
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        # Not its text, which may hold the URL, and so the token.
        raise click.ClickException("the broker URL cannot be read") from error
