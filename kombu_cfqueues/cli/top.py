"""``cfqueues top``: shows the queues of an account, live."""

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
from ..options import Options
from ..spool import LearnedShare
from . import _console as console
from ._broker import takes_broker
from ._session import Session, open_session
from ._share import in_short, share_if_readable
from .queues import METRICS, consumer_summary, describe, metrics_row, read_backlog

ALLOWANCE_SHARE: Final = 0.25
"""Largest share of the request rate that this command takes; publishing needs the rest."""


@dataclass(frozen=True)
class Snapshot:
    """The queues at one moment.

    Attributes:
        taken_at: Seconds of the monotonic clock.
        queues: Each queue and its metrics, None if unknown.
        share: What this machine has learned of its share of the token; None if it uses all.
    """

    taken_at: float
    queues: list[tuple[Queue, Backlog | None]]
    share: LearnedShare | None = None

    def rates(self, previous: Snapshot | None) -> dict[str, float]:
        """Return, by queue id, the messages per second by which each queue grew, if known."""
        if previous is None or self.taken_at <= previous.taken_at:
            return {}
        earlier = {queue.id: backlog for queue, backlog in previous.queues}
        return {
            queue.id: (now.messages - then.messages) / (self.taken_at - previous.taken_at)
            for queue, now in self.queues
            if now is not None
            and now.messages is not None
            and (then := earlier.get(queue.id)) is not None
            and then.messages is not None
        }


@click.command()
@takes_broker(allowance=True)
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2),
    default=5.0,
    show_default=True,
    help="Wait at least this many seconds between two updates. An update makes one request per "
    "queue; updates take at most a quarter of the request rate.",
)
@click.option(
    "--number",
    "-n",
    type=click.IntRange(min=1),
    help="Stop after this many updates.  [default: no limit on a terminal or with --json, else 1]",
)
@console.takes_json
def command(
    options: Options, names: tuple[str, ...], interval: float, number: int | None, as_json: bool
) -> None:
    """Show the metrics of each QUEUE, or of all queues, live until Ctrl-C.

    If the output is not a terminal, the queues are shown once.
    """
    terminal = console.terminal()
    live = terminal.is_terminal and not as_json
    updates_left = number or (None if live or as_json else 1)
    previous: Snapshot | None = None
    try:
        screen = Live(console=terminal, auto_refresh=False) if live else None
        with open_session(options) as session, screen or contextlib.nullcontext():
            while updates_left is None or updates_left > 0:
                snapshot = _take_snapshot(session, names)
                if as_json:
                    console.emit(_as_json(snapshot, previous), lines=True)
                elif screen is not None:
                    drawn = _drawn(snapshot, previous, options, terminal.width)
                    screen.update(drawn, refresh=True)
                else:
                    if snapshot.share is not None:
                        click.echo(f"Note: {in_short(snapshot.share)}", err=True)
                    console.table(COLUMNS, _rows(snapshot, previous), numbers=NUMBERS)
                previous = snapshot
                updates_left = None if updates_left is None else updates_left - 1
                if updates_left != 0:
                    time.sleep(_pause(options, interval, requests=len(snapshot.queues) + 1))
    except KeyboardInterrupt:
        pass  # the expected end


COLUMNS = ["QUEUE", *METRICS, "CHANGE", "CONSUMER", "DELIVERY"]
NUMBERS = [*METRICS, "CHANGE"]


def _pause(options: Options, interval: float, *, requests: int) -> float:
    """Return the seconds until the next update, which makes *requests* requests."""
    if options.request_rate is None:
        return interval
    return max(interval, requests / (options.request_rate * ALLOWANCE_SHARE))


def _take_snapshot(session: Session, names: tuple[str, ...]) -> Snapshot:
    queues = session.queues()
    if names:
        wanted = {session.queue(name).id for name in names}
        queues = [queue for queue in queues if queue.id in wanted]
    read = [(queue, read_backlog(session, queue)) for queue in queues]
    return Snapshot(time.monotonic(), read, share_if_readable(session.options))


def _rows(snapshot: Snapshot, previous: Snapshot | None) -> list[list[str]]:
    rates = snapshot.rates(previous)
    return [
        [
            queue.name,
            *metrics_row(backlog),
            f"{rates[queue.id]:+,.1f}/s" if queue.id in rates else "",
            consumer_summary(queue.consumers),
            {None: "?", True: "paused", False: "on"}[queue.paused],
        ]
        for queue, backlog in snapshot.queues
    ]


def _drawn(snapshot: Snapshot, previous: Snapshot | None, options: Options, width: int) -> Group:
    count = console.plural(len(snapshot.queues), "queue")
    title = f"{count} at {options.host}, {time.strftime('%H:%M:%S')}"
    if snapshot.share is not None:
        title += f"; {in_short(snapshot.share)}"
    return Group(
        Text(title, style="dim"),
        console.grid(COLUMNS, _rows(snapshot, previous), numbers=NUMBERS, width=width),
    )


def _as_json(snapshot: Snapshot, previous: Snapshot | None) -> dict[str, Any]:
    rates = snapshot.rates(previous)
    return {
        "time": time.time(),
        "share": 1.0 if snapshot.share is None else snapshot.share.part,
        "queues": [
            {**describe(queue, backlog), "messages_per_second": rates.get(queue.id)}
            for queue, backlog in snapshot.queues
        ],
    }
