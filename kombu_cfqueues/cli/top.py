"""``cfqueues top``: the queues of an account, live."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any, Final

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from ..api.models import Backlog, Queue
from ..errors import PermanentError
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._session import Session, opened
from .queues import METRICS, consumer_words, describe, metrics_row

SHARE: Final = 0.25
"""Of the request allowance, the part that looking may take: publishing needs the rest."""


@dataclass(frozen=True)
class Look:
    """The queues at one moment.

    Attributes:
        at: Seconds of the monotonic clock.
        queues: With what is in each; None where the token may not know.
    """

    at: float
    queues: list[tuple[Queue, Backlog | None]]

    def rates(self, before: Look | None) -> dict[str, float]:
        """By how many messages a second each queue grew, by id, where it is known."""
        if before is None or self.at <= before.at:
            return {}
        earlier = {queue.id: measure for queue, measure in before.queues}
        return {
            queue.id: (now.messages - then.messages) / (self.at - before.at)
            for queue, now in self.queues
            if now is not None
            and now.messages is not None
            and (then := earlier.get(queue.id)) is not None
            and then.messages is not None
        }


@click.command(short_help="Watch queues live.")
@takes_broker(allowance=True)
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2),
    default=5.0,
    show_default=True,
    help="Seconds between two looks, at least: a look is a request for each queue, and takes no "
    "more than a quarter of the request allowance.",
)
@click.option("--number", "-n", type=click.IntRange(min=1), help="End after so many looks.")
@console.takes_json
def command(
    options: Options, names: tuple[str, ...], interval: float, number: int | None, as_json: bool
) -> None:
    """Show each QUEUE, or all, with what is in it, live until Ctrl-C.

    Where the output is no terminal, it is shown once.
    """
    terminal = console.terminal()
    live = terminal.is_terminal and not as_json
    most = number or (None if live or as_json else 1)
    before: Look | None = None
    try:
        screen = Live(console=terminal, auto_refresh=False) if live else None
        with opened(options) as session, screen or contextlib.nullcontext():
            while most is None or most > 0:
                look = _look(session, names)
                if as_json:
                    console.emit(_value(look, before), lines=True)
                elif screen is not None:
                    screen.update(_drawn(look, before, options, terminal.width), refresh=True)
                else:
                    console.table(COLUMNS, _rows(look, before), numbers=NUMBERS)
                before = look
                most = None if most is None else most - 1
                if most != 0:
                    time.sleep(_pause(options, interval, requests=len(look.queues) + 1))
    except KeyboardInterrupt:
        pass  # as the help says


COLUMNS = ["QUEUE", *METRICS, "CHANGE", "CONSUMER", "DELIVERY"]
NUMBERS = [*METRICS, "CHANGE"]


def _pause(options: Options, interval: float, *, requests: int) -> float:
    if options.request_rate is None:
        return interval
    return max(interval, requests / (options.request_rate * SHARE))


def _look(session: Session, names: tuple[str, ...]) -> Look:
    queues = session.queues()
    if names:
        wanted = {session.queue(name).id for name in names}
        queues = [queue for queue in queues if queue.id in wanted]
    return Look(time.monotonic(), [(queue, _measure(session, queue)) for queue in queues])


def _measure(session: Session, queue: Queue) -> Backlog | None:
    try:
        return session.call(session.client.backlog, queue.id)
    except PermanentError:  # deleted since, or this token may not know
        return None


def _rows(look: Look, before: Look | None) -> list[list[str]]:
    rates = look.rates(before)
    return [
        [
            queue.name,
            *metrics_row(measure),
            f"{rates[queue.id]:+,.1f}/s" if queue.id in rates else "",
            consumer_words(queue.consumers),
            {None: "?", True: "paused", False: "on"}[queue.paused],
        ]
        for queue, measure in look.queues
    ]


def _drawn(look: Look, before: Look | None, options: Options, width: int) -> Group:
    count = console.plural(len(look.queues), "queue")
    title = f"{count} at {options.host}, {time.strftime('%H:%M:%S')}"
    return Group(
        Text(title, style="dim"),
        console.grid(COLUMNS, _rows(look, before), numbers=NUMBERS, width=width),
    )


def _value(look: Look, before: Look | None) -> dict[str, Any]:
    rates = look.rates(before)
    return {
        "time": time.time(),
        "queues": [
            {**describe(queue, measure), "messages_per_second": rates.get(queue.id)}
            for queue, measure in look.queues
        ],
    }
