"""``cfqueues tail``: shows messages of a queue as they come."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import click

from .. import limits
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._messages import by_age, row, show
from ._session import opened
from .peek import look

MOST_KNOWN: Final = 100_000
"""So many ids are remembered, lest a message be shown twice."""


@click.command(short_help="Show messages as they come.")
@takes_broker(allowance=True)
@click.argument("queue")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two looks. Each is a request of the shared allowance.",
)
@click.option("--new", is_flag=True, help="Not those that are there already.")
@console.takes_json
def command(options: Options, queue: str, interval: float, new: bool, as_json: bool) -> None:
    """Show messages of QUEUE as they come, until Ctrl-C.

    Nothing is consumed, as with 'cfqueues peek'. So a message is missed that is published and
    consumed between two looks, and where more than 100 wait, a look sees 100 of them.
    """
    known: OrderedDict[str, None] = OrderedDict()
    first = True
    with opened(options) as session:
        found = session.queue(queue)
        if not as_json:
            click.echo(f"Looking at queue {queue!r} every {interval:g} s until Ctrl-C.", err=True)
        try:
            while True:
                for raw in by_age(look(session, found, limits.PULL_MESSAGES)):
                    shown = show(raw, queue)
                    if shown.id in known:
                        continue
                    known[shown.id] = None
                    if len(known) > MOST_KNOWN:
                        known.popitem(last=False)
                    if first and new:
                        continue
                    if as_json:
                        console.emit(shown.value(), lines=True)
                    else:
                        age, tries, words = row(shown)
                        click.echo(console.clean(f"{age:>8}  {tries:>3}  {words}"))
                first = False
                time.sleep(interval)
        except KeyboardInterrupt:
            pass  # as the help says
