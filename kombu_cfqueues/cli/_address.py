"""``--host`` and ``--port`` of the commands that listen."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def takes_address(port: int) -> Callable[[F], F]:
    """Add the options to a command; *port* is the default port."""

    def add(function: F) -> F:
        ports = click.option(
            "--port",
            type=click.IntRange(0, 65_535),
            default=port,
            show_default=True,
            help="Listen on this port; 0 picks a free port.",
        )
        hosts = click.option(
            "--host", default="127.0.0.1", show_default=True, help="Listen on this address."
        )
        return hosts(ports(function))

    return add


def cannot_listen(command: str, host: str, port: int, error: OSError) -> click.ClickException:
    """Return why *command* cannot listen, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return click.ClickException(
            f"port {port} of {host} is in use, perhaps by another 'cfqueues {command}': choose "
            "another --port, or --port 0 for a free one"
        )
    why = error.strerror or error
    return click.ClickException(
        f"cannot listen on {host}:{port} ({why}): choose another --host or --port"
    )
