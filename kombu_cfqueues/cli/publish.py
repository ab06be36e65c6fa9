"""``cfqueues publish``: messages from arguments, a file or a pipe, in full requests."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from .. import envelope, limits
from ..api.models import Queue
from ..envelope import Packed
from ..errors import CFQueuesError, InvalidMessage, MessageTooLarge, PublishTimeout, TransientError
from ..options import Options
from ..publish.group_commit import BULK_IN_FLIGHT
from . import _console as console
from ._broker import takes_broker
from ._commands import in_words
from ._compose import Composer
from ._journal import Journal
from ._lines import Lines
from ._meter import Meter
from ._session import Session, opened
from ._source import Line, Source
from ._stop import Stop, listening

LONGEST_PAUSE: Final = 5.0
"""Seconds between two looks whether what failed, and may pass, has passed."""


@dataclass
class Request:
    """Lines that leave together."""

    lines: list[Line] = field(default_factory=list)
    messages: list[Packed] = field(default_factory=list)
    size: int = 0

    def has_room_for(self, packed: Packed) -> bool:
        """Whether one more fits into a request."""
        return (
            len(self.messages) < limits.BATCH_MESSAGES
            and self.size + packed.size <= limits.BATCH_BYTES
        )

    def add(self, line: Line, packed: Packed) -> None:
        """Take one more."""
        self.lines.append(line)
        self.messages.append(packed)
        self.size += packed.size


@click.command(short_help="Publish messages from arguments, a file or a pipe.")
@takes_broker(allowance=True)
@click.argument("queue")
@click.argument("messages", nargs=-1)
@click.option(
    "--file",
    "source",
    type=click.File("rb"),
    help="Publish the lines of this file; - is standard input, which is read too if there are "
    "no MESSAGES.",
)
@click.option("--text", is_flag=True, help="A message is text as it stands, rather than JSON.")
@click.option(
    "--task",
    metavar="NAME",
    help="Start a Celery task: a message is its arguments, an array or an object.",
)
@click.option("--delay", type=click.FloatRange(min=0), help="Seconds until they are delivered.")
@click.option("--header", "headers", metavar="NAME=VALUE", multiple=True, help="Of each message.")
@click.option("--lines", metavar="RANGES", help="Only these lines: 1-9,41201-")
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep in this file which lines were accepted, and go on from there if it exists.",
)
@click.option(
    "--skip-invalid", is_flag=True, help="Go on past lines that can be no message; name them."
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to go on trying while nothing is accepted, for a reason that may pass.",
)
@console.takes_json
def command(  # noqa: PLR0917 - one argument an option; Click passes them by name
    options: Options,
    queue: str,
    messages: tuple[str, ...],
    source: BinaryIO | None,
    text: bool,
    task: str | None,
    delay: float | None,
    headers: tuple[str, ...],
    lines: str | None,
    state: Path | None,
    skip_invalid: bool,
    patience: float,
    as_json: bool,
) -> None:
    """Publish MESSAGES, or the lines of a file or of standard input, to QUEUE.

    A message is JSON; an empty line is none. It is published as Kombu does it, so Kombu and Celery
    consumers can read it; -o body_format=plain sends the JSON alone.

    Ctrl-C ends it well: what has left is waited for, and the output says which lines are accepted
    and how to go on. Nothing is lost and nothing doubled then. Only where an answer is lost, or the
    command is killed, up to a few hundred lines may be published twice.
    """
    if messages and source is not None:
        raise click.UsageError("give MESSAGES or --file, not both")
    if task is not None and text:
        raise click.UsageError("the arguments of a --task are JSON: leave --text out")
    composer = Composer(queue, options, text, task, delay, _read_headers(headers))
    journal = Journal(state, _read_lines(lines))
    with opened(options) as session, listening() as stop:
        found = session.queue(queue)
        given = Source(messages or source or _standard_input(), stop)
        # Where the last line is known, the source's size says nothing of how far it is.
        most = journal.left.count()
        total = given.total if most is None else most
        with Meter("messages", total, quiet=as_json) as meter:
            run = Run(
                session,
                found,
                composer=composer,
                journal=journal,
                meter=meter,
                stop=stop,
                patience=patience,
            )
            run.publish(given, skip_invalid=skip_invalid)
    if as_json:
        console.emit(run.value())
    else:
        _tell(run, state, from_lines=not messages)
    sys.stdout.flush()
    if run.cut_off:
        # Python would wait for the threads that post; whoever asked twice does not want to.
        os._exit(1)
    if not run.is_complete:
        sys.exit(1)


class Run:
    """Publishes lines, two requests and more at a time, and knows what became of each.

    Args:
        session: The account.
        queue: Where to.
        composer: Makes messages of lines.
        journal: Which lines are left.
        meter: Shows how far it is.
        stop: Says when to end.
        patience: Seconds to go on while nothing is accepted.

    Attributes:
        accepted: Messages that are in the queue.
        skipped: Lines that can be no message.
        failure: Why it ended before the last line; "" if it did not.
        uncertain: Lines of which nobody knows.
        cut_off: Whether it was ended before all answers had come.
    """

    def __init__(
        self,
        session: Session,
        queue: Queue,
        *,
        composer: Composer,
        journal: Journal,
        meter: Meter,
        stop: Stop,
        patience: float,
    ) -> None:
        self.queue = queue
        self.journal = journal
        self.accepted = 0
        self.skipped: list[int] = []
        self.failure = ""
        self.uncertain: list[int] = []
        self.cut_off = False
        self.seconds = 0.0
        self._session = session
        self._composer = composer
        self._meter = meter
        self.stop = stop
        self._patience = patience
        self._most = max(session.options.max_in_flight, BULK_IN_FLIGHT)
        self._leaving: deque[tuple[Request, Future[list[CFQueuesError | None]]]] = deque()
        self._by_line = journal.left.count() is not None
        self._told = ""

    @property
    def is_complete(self) -> bool:
        """Whether every line is in the queue."""
        return not (self.failure or self.skipped or self.stop.wanted)

    def publish(self, source: Iterable[Line | None], *, skip_invalid: bool) -> None:
        """Publish the lines that are left, until the source ends, or one fails."""
        began = time.monotonic()
        senders = ThreadPoolExecutor(self._most, "cfqueues-publish")
        try:
            for request in self._requests(source, skip_invalid=skip_invalid):
                self._leaving.append((request, senders.submit(self._post, request.messages)))
                # One more than can be on its way, so that the next is ready when a sender is.
                while len(self._leaving) > self._most + 1:
                    self._settle()
                if self.stop.wanted or self.failure:
                    break
            while self._leaving:
                self._settle()
        except KeyboardInterrupt:  # the second one
            self.cut_off = True
            self.failure = "it was ended before all answers had come"
            self.uncertain += [line.number for one, _ in self._leaving for line in one.lines]
        finally:
            senders.shutdown(wait=False, cancel_futures=True)
            self.seconds = time.monotonic() - began

    def value(self) -> dict[str, Any]:
        """What became of it, for programs."""
        return {
            "queue": self.queue.name,
            "accepted": self.accepted,
            "last_accepted_line": self.journal.last,
            "left": str(self.journal.left),
            "complete": self.is_complete,
            "failure": self.failure or None,
            "skipped": self.skipped,
            "uncertain": self.uncertain,
            "seconds": round(self.seconds, 3),
        }

    def _requests(self, source: Iterable[Line | None], *, skip_invalid: bool) -> Iterator[Request]:
        """Full ones; others where the source has no more, or none just now."""
        request = Request()
        for pair in self._messages(source, skip_invalid=skip_invalid):
            if self.stop.wanted:
                return
            if request.lines and not (pair and request.has_room_for(pair[1])):
                yield request
                request = Request()
            if pair:
                request.add(*pair)
            while self._leaving and self._leaving[0][1].done():
                self._settle()
        if request.lines and not self.stop.wanted:
            yield request

    def _messages(
        self, source: Iterable[Line | None], *, skip_invalid: bool
    ) -> Iterator[tuple[Line, Packed] | None]:
        """The lines that are left, with what is sent for each; None: the source pauses."""
        for line in source:
            if line is None:
                yield None
            elif line.number not in self.journal.left:
                self.journal.check(line.number, line.data)
                if not self._by_line:
                    self._meter.skip(line.work)
                if self.journal.left.is_over(line.number):
                    return
            elif not line.data.strip():
                self._pass_over(line)
            else:
                try:
                    yield line, self._pack(line)
                except (InvalidMessage, MessageTooLarge) as error:
                    why = f"line {line.number:,} can be no message: {in_words(error)}"
                    if not skip_invalid:
                        self.failure = why
                        return
                    self._meter.say(why)
                    self.skipped.append(line.number)
                    self._pass_over(line)

    def _pack(self, line: Line) -> Packed:
        packed = self._composer.pack(line.data.rstrip(b"\r\n"))
        never = envelope.outlived(packed, self.queue.name, self.queue.retention_seconds)
        if never is not None:
            raise never
        return packed

    def _pass_over(self, line: Line) -> None:
        self.journal.left.remove(line.number)
        self._meter.skip(self._work(line))

    def _work(self, line: Line) -> int:
        return 1 if self._by_line else line.work

    def _settle(self) -> None:
        """Wait for the oldest request, and keep what became of it."""
        request, sent = self._leaving[0]
        outcomes = sent.result()
        self._leaving.popleft()
        pairs = list(zip(request.lines, outcomes, strict=True))
        done = [line for line, error in pairs if error is None]
        if done:
            self.accepted += len(done)
            self.journal.accepted([line.number for line in done], done[-1].data)
            self._meter.advance(len(done), sum(map(self._work, done)))
        for line, error in pairs:
            if error is None:
                continue
            if error.delivered == "unknown":
                self.uncertain.append(line.number)
            if not self.failure and not (self.stop.wanted and _may_pass(error)):
                self.failure = f"line {line.number:,} was not accepted: {in_words(error)}"

    def _post(self, messages: list[Packed]) -> list[CFQueuesError | None]:
        """Post a request, in a sender's thread, until nothing in it can be helped by waiting."""
        outcomes: list[CFQueuesError | None] = [None] * len(messages)
        todo = list(range(len(messages)))
        since, pause = time.monotonic(), 0.5
        while True:
            sent = self._session.publish(self.queue, [messages[place] for place in todo])
            for place, error in zip(todo, sent, strict=True):
                outcomes[place] = error
            again = [
                place
                for place in todo
                if (error := outcomes[place]) is not None and self._is_worth_another(error)
            ]
            if len(again) < len(todo):
                since = time.monotonic()
            if not again or self.stop.wanted or time.monotonic() - since >= self._patience:
                return outcomes
            todo = again
            self._tell_of_wait(outcomes[todo[0]])
            self.stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _is_worth_another(self, error: CFQueuesError) -> bool:
        certain = error.delivered == "no" or self._session.options.retry_uncertain
        return certain and _may_pass(error)

    def _tell_of_wait(self, error: CFQueuesError | None) -> None:
        text = "" if error is None else str(error)
        if text != self._told:
            self._told = text
            self._meter.say(f"Waiting: {in_words(error) if error else text}")


def _may_pass(error: CFQueuesError) -> bool:
    return isinstance(error, (TransientError, PublishTimeout))


def _read_headers(pairs: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--header is NAME=VALUE, not {pair!r}")
        headers[name] = value
    return headers


def _read_lines(text: str | None) -> Lines | None:
    try:
        return None if text is None else Lines(text)
    except ValueError as error:
        raise click.UsageError(f"--lines is like 1-9,41201-: {error}") from error


def _standard_input() -> BinaryIO:
    if sys.stdin.isatty():
        raise click.UsageError("give MESSAGES or --file, or pipe lines into the command")
    return sys.stdin.buffer


def _tell(run: Run, state: Path | None, *, from_lines: bool) -> None:
    rate = run.accepted / run.seconds if run.seconds else 0.0
    took = f" in {console.span(run.seconds)}, {rate:,.0f}/s" if run.seconds >= 1 else ""
    click.echo(f"Published {console.plural(run.accepted, 'message')} to {run.queue.name!r}{took}.")
    if run.skipped:
        click.echo(f"Skipped {console.plural(len(run.skipped), 'line')} that can be no message.")
    if run.failure:
        click.echo(f"Error: {run.failure}", err=True)
    elif run.stop.wanted:
        click.echo("Stopped.")
    if run.uncertain:
        click.echo(
            f"Of {console.plural(len(run.uncertain), 'line')} it is not known whether they "
            f"arrived: {run.uncertain[0]:,} to {run.uncertain[-1]:,}."
        )
    if from_lines and (run.failure or run.stop.wanted):
        click.echo(f"The last accepted line is {run.journal.last:,}.")
        how = "the same command" if state else f"--lines {run.journal.left}"
        click.echo(f"To go on with the rest: {how}.")
