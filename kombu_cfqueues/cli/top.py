"""``cfqueues top``: shows the queues of an account, live."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import click
from rich.console import Group
from rich.live import Live
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from ..api.models import Backlog, Queue
from ..errors import TransientError
from ..options import Options
from ..spool import LearnedShare
from . import _console as console
from ._backlogs import ALLOWANCE_SHARE
from ._broker import takes_broker
from ._commands import in_one_line
from ._completion import queue_argument
from ._help import examples
from ._session import Session, open_session
from ._share import in_short, share_if_readable
from .queues import METRICS, consumer_summary, describe, metrics_row, read_backlog


@dataclass(frozen=True)
class Snapshot:
    """The queues at one moment.

    Attributes:
        taken_at: Seconds of the monotonic clock.
        time: Seconds since the epoch.
        queues: Each queue and its metrics, None if unknown.
        share: What this machine has learned of its share of the token; None if it uses all.
    """

    taken_at: float
    time: float
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


@dataclass(frozen=True)
class Outage:
    """The time for which the API has not answered, as far as is known.

    Attributes:
        since: When the first update failed, in seconds since the epoch.
        why: Why the latest one failed.
    """

    since: float
    why: str

    def text(self, snapshot: Snapshot) -> str:
        """Return the text to print with the numbers of *snapshot*."""
        return (
            f"Reading the queues has failed since {_clock(self.since)}: {self.why} "
            f"The numbers are from {_clock(snapshot.time)}, "
            f"{console.duration(time.time() - snapshot.time)} ago."
        )


@click.command(epilog=examples("top", "top mails events --interval 2", "top --json -n 10"))
@takes_broker(allowance=True)
@queue_argument("names", metavar="[QUEUE]...", nargs=-1)
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

    If the output is not a terminal, the queues are shown once. While the API does not answer, the
    last numbers stay, dimmed and with their time.
    """
    terminal = console.terminal()
    live = terminal.is_terminal and not as_json
    updates_left = number or (None if live or as_json else 1)
    try:
        screen = Live(console=terminal, auto_refresh=False) if live else None
        with open_session(options) as session, screen or contextlib.nullcontext():
            show = _Json() if as_json else _Plain() if screen is None else _Screen(screen, options)
            watch = Watch(session, names)
            while updates_left is None or updates_left > 0:
                watch.update()
                show(watch)
                updates_left = None if updates_left is None else updates_left - 1
                if updates_left != 0:
                    requests = len(watch.snapshot.queues) + 1
                    time.sleep(_pause(options, interval, requests=requests))
    except KeyboardInterrupt:
        pass  # the expected end


class Watch:
    """Reads the queues again and again; keeps the last numbers while the API does not answer.

    The first reading retries, and its failure is raised.

    Args:
        session: The account.
        names: The queues; none for all.

    Attributes:
        snapshot: The last numbers.
        rates: By queue id, the messages per second by which each queue grew; empty if unknown.
        outage: Why the numbers are old; None if they are current.
        over: The outage that the last update ended; None if it ended none.
    """

    snapshot: Snapshot

    def __init__(self, session: Session, names: tuple[str, ...]) -> None:
        self._session = session
        self._names = names
        self.rates: dict[str, float] = {}
        self.outage: Outage | None = None
        self.over: Outage | None = None

    def update(self) -> None:
        """Read the queues.

        Raises:
            CFQueuesError: The first reading failed, or a later one with a permanent error.
        """
        before = self.snapshot if self._session.retries is False else None
        self.over = None
        try:
            self.snapshot = _take_snapshot(self._session, self._names)
        except TransientError as error:
            if before is None:
                raise
            since = time.time() if self.outage is None else self.outage.since
            self.outage, self.rates = Outage(since, in_one_line(error)), {}
            return
        self.rates = {} if self.outage else self.snapshot.rates(before)
        self.over, self.outage = self.outage, None
        self._session.retries = False


TOP_COLUMNS = ["QUEUE", *METRICS, "CHANGE", "CONSUMER", "DELIVERY"]
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
    return Snapshot(time.monotonic(), time.time(), read, share_if_readable(session.options))


def _rows(watch: Watch) -> list[list[str]]:
    rates = watch.rates
    return [
        [
            queue.name,
            *metrics_row(backlog),
            f"{rates[queue.id]:+,.1f}/s" if queue.id in rates else "",
            consumer_summary(queue.consumers),
            {None: "?", True: "paused", False: "on"}[queue.paused],
        ]
        for queue, backlog in watch.snapshot.queues
    ]


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _back(outage: Outage) -> str:
    return f"The API answers again, after {console.duration(time.time() - outage.since)}."


class _Plain:
    """Prints a table for each update; prints the start and end of an outage to stderr, once."""

    def __init__(self) -> None:
        self._is_told = False

    def __call__(self, watch: Watch) -> None:
        if watch.outage is not None:
            if not self._is_told:
                click.echo(watch.outage.text(watch.snapshot), err=True)
            self._is_told = True
            return
        self._is_told = False
        if watch.over is not None:
            click.echo(_back(watch.over), err=True)
        if watch.snapshot.share is not None:
            click.echo(f"Note: {in_short(watch.snapshot.share)}", err=True)
        console.table(TOP_COLUMNS, _rows(watch), numbers=NUMBERS)


class _Json:
    """Prints an object for each update."""

    def __call__(self, watch: Watch) -> None:
        snapshot, outage = watch.snapshot, watch.outage
        value = {
            "time": time.time(),
            "read_at": snapshot.time,
            "error": None if outage is None else outage.why,
            "unreachable_since": None if outage is None else outage.since,
            "share": 1.0 if snapshot.share is None else snapshot.share.part,
            "queues": [
                {**describe(queue, backlog), "messages_per_second": watch.rates.get(queue.id)}
                for queue, backlog in snapshot.queues
            ],
        }
        console.emit(value, lines=True)


class _Screen:
    """Draws each update on a terminal."""

    def __init__(self, screen: Live, options: Options) -> None:
        self._screen = screen
        self._host = options.host

    def __call__(self, watch: Watch) -> None:
        snapshot, outage = watch.snapshot, watch.outage
        count = console.plural(len(snapshot.queues), "queue")
        title = f"{count} at {self._host}, {_clock(snapshot.time)}"
        if snapshot.share is not None:
            title += f"; {in_short(snapshot.share)}"
        if watch.over is not None:
            title += f". {_back(watch.over)}"
        width = self._screen.console.width
        table = console.grid(TOP_COLUMNS, _rows(watch), numbers=NUMBERS, width=width)
        lines: list[Text | Table | Styled] = [Text(title, style="dim"), table]
        if outage is not None:
            told = Text(console.clean(outage.text(snapshot)), style="bold red")
            lines[1:] = [told, Styled(table, "dim")]
        self._screen.update(Group(*lines), refresh=True)
