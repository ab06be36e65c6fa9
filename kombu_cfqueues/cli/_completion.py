"""The names of queues, for the completion of a shell."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from ..errors import CFQueuesError
from ._broker import options_of
from ._session import open_session

Command = TypeVar("Command", bound=Callable[..., Any])

COMPLETION_SECONDS: Final = 2.0
"""Longest wait for names after the Tab key."""


def queue_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the queues of the account whose names begin with *incomplete*; none on any failure.

    Makes one request, for the first page of queues.
    """
    before = logging.root.manager.disable
    logging.disable()  # output would end up in the line that the user types
    try:
        options = options_of(context).read()
        prefix = options.queue_name_prefix
        with open_session(options) as session:
            page = session.client.list_queues(deadline=time.monotonic() + COMPLETION_SECONDS)
    except (CFQueuesError, click.ClickException):
        return []
    finally:
        logging.disable(before)
    names = [queue.name for queue in page.queues if queue.name.startswith(prefix)]
    return [name[len(prefix) :] for name in names if name[len(prefix) :].startswith(incomplete)]


def queue_argument(name: str, **given: Any) -> Callable[[Command], Command]:
    """Return a Click argument that is the name of a queue."""
    return click.argument(name, shell_complete=queue_names, **given)


QUEUE: Final[dict[str, Any]] = {"metavar": "QUEUE", "shell_complete": queue_names}
"""Arguments of a Click option whose value is the name of a queue."""
