"""``cfqueues tail``: shows messages of a queue as they arrive."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import click

from .. import limits
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._completion import queue_argument
from ._help import examples
from ._messages import DecodedMessage, by_age, decode, row
from ._session import open_session
from .peek import peek_messages

MAX_REMEMBERED_IDS: Final = 100_000
"""Ids of shown messages that are remembered, so that no message is shown twice."""


@click.command(epilog=examples("tail mails", "tail mails --new --json"))
@takes_broker(allowance=True)
@queue_argument("queue")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Wait this many seconds between two requests. Each request takes part of the shared "
    "allowance.",
)
@click.option("--new", is_flag=True, help="Show only messages that arrive from now on.")
@console.takes_json
def command(options: Options, queue: str, interval: float, new: bool, as_json: bool) -> None:
    """Show messages of QUEUE as they arrive, until Ctrl-C.

    Messages are not consumed, as with 'cfqueues peek'. A message that is published and consumed
    between two requests is not shown, and a request returns at most 100 of the messages that wait.
    """
    seen: OrderedDict[str, None] = OrderedDict()
    first = True
    with open_session(options) as session:
        found = session.queue(queue)
        if not as_json:
            click.echo(f"Watching queue {queue!r} every {interval:g} s until Ctrl-C.", err=True)
        try:
            while True:
                for raw in by_age(peek_messages(session, found, limits.PULL_MESSAGES)):
                    message = decode(raw, queue)
                    if message.id in seen:
                        continue
                    seen[message.id] = None
                    if len(seen) > MAX_REMEMBERED_IDS:
                        seen.popitem(last=False)
                    if not (first and new):
                        _print(message, as_json=as_json)
                first = False
                time.sleep(interval)
        except KeyboardInterrupt:
            pass  # the expected end


def _print(message: DecodedMessage, *, as_json: bool) -> None:
    if as_json:
        console.emit(message.as_json(), lines=True)
        return
    age, tries, text = row(message)
    click.echo(console.clean(f"{age:>8}  {tries:>3}  {text}"))
