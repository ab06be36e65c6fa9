"""``cfqueues publish``: publishes messages from arguments, a file or a pipe, in full requests."""

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
from ..retry import Backoff
from . import _console as console
from ._broker import takes_broker
from ._commands import in_one_line
from ._completion import queue_argument
from ._compose import Composer
from ._help import examples
from ._journal import Journal
from ._lines import Lines
from ._meter import Meter
from ._paths import FilePath
from ._session import Session, open_session
from ._source import Line, Source
from ._stop import Stop, stop_on_signals

PUBLISH_BACKOFF: Final = Backoff(first_seconds=0.5, longest_seconds=5.0)
"""Pauses between the tries of a batch.  The longest is also the longest time to notice the end of
an outage."""


@dataclass
class Batch:
    """Lines that are published in one request."""

    lines: list[Line] = field(default_factory=list)
    messages: list[Packed] = field(default_factory=list)
    size: int = 0

    def has_room_for(self, packed: Packed) -> bool:
        """Return whether the message fits into the same request."""
        return (
            len(self.messages) < limits.BATCH_MESSAGES
            and self.size + packed.size <= limits.BATCH_BYTES
        )

    def add(self, line: Line, packed: Packed) -> None:
        """Add a line and its message."""
        self.lines.append(line)
        self.messages.append(packed)
        self.size += packed.size


@click.command(
    epilog=examples(
        """publish mails '{"to": "ada@example.com"}'""",
        """publish mails --task shop.send_mail '["ada@example.com"]'""",
        "publish events --file lines.jsonl --state lines.state",
        "publish events --text hello",
    )
)
@takes_broker(allowance=True)
@queue_argument("queue")
@click.argument("messages", nargs=-1)
@click.option(
    "--file",
    "source",
    type=click.File("rb"),
    help="Publish the lines of this file; - is standard input.  [default: standard input, if there "
    "are no MESSAGES]",
)
@click.option("--text", is_flag=True, help="Publish messages as plain text instead of JSON.")
@click.option(
    "--task",
    metavar="NAME",
    help="Start a Celery task; each message is an array of arguments, or an object of keyword "
    "arguments.",
)
@click.option(
    "--delay",
    type=click.FloatRange(min=0),
    help="Delay the delivery by this many seconds.  [default: the delay of the queue]",
)
@click.option(
    "--header",
    "headers",
    metavar="NAME=VALUE",
    multiple=True,
    help="Add a header to each message; repeatable.",
)
@click.option(
    "--lines",
    metavar="RANGES",
    help="Publish only these lines, such as 1-9,41201-.  [default: all lines]",
)
@click.option(
    "--state",
    type=FilePath(),
    help="Record in this file which lines are accepted; if it exists, publish only the rest.",
)
@click.option(
    "--skip-invalid",
    is_flag=True,
    help="Skip lines that cannot be published, and print why, instead of stopping.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Give up after this many seconds of transient failures in which no message is accepted.",
)
@console.takes_json
def command(  # noqa: PLR0917  one parameter per option; Click passes them by name
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

    Each message is JSON; empty lines are skipped. Messages have Kombu's format, which Kombu and
    Celery consumers read; -o body_format=plain sends the JSON alone.

    Ctrl-C waits for the requests in flight, then prints which lines are accepted and how to resume.
    No line is lost. Lines are published twice only if a response is lost or the command is killed,
    and then at most a few hundred.
    """
    if messages and source is not None:
        raise click.UsageError("give MESSAGES or --file, not both")
    if task is not None and text:
        raise click.UsageError("the arguments of a --task must be JSON: leave out --text")
    composer = Composer(queue, options, text, task, delay, _read_headers(headers))
    journal = Journal(state, _read_lines(lines))
    with open_session(options) as session, stop_on_signals() as stop:
        found = session.queue(queue)
        lines_in = Source(messages or source or _standard_input(), stop)
        # If the last line is known, progress is counted in lines instead of parts of the source.
        count = journal.left.count()
        total = lines_in.total if count is None else count
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
            run.publish(lines_in, skip_invalid=skip_invalid)
    if as_json:
        console.emit(run.as_json())
    else:
        _print_result(run, state, from_lines=not messages)
    sys.stdout.flush()
    if run.interrupted:
        # The second Ctrl-C stops at once, but Python would wait for the threads that post.
        os._exit(1)
    if not run.is_complete:
        sys.exit(1)


class Run:
    """Publishes lines, with at least two requests in flight, and records the result of each line.

    Args:
        session: The account.
        queue: The target.
        composer: Makes the message of a line.
        journal: The lines that are left.
        meter: Shows the progress.
        stop: Whether to stop.
        patience: Seconds for which transient failures are retried while no message is accepted.

    Attributes:
        accepted: Number of messages that are in the queue.
        skipped: Numbers of the lines that cannot be published.
        failure: Why the run ended before the last line; "" if it did not.
        uncertain: Numbers of the lines that may or may not be in the queue.
        interrupted: Whether the run ended with requests in flight.
        seconds: Duration of the run.
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
        self.interrupted = False
        self.seconds = 0.0
        self._session = session
        self._composer = composer
        self._meter = meter
        self.stop = stop
        self._patience = patience
        self._max_in_flight = max(session.options.max_in_flight, BULK_IN_FLIGHT)
        self._in_flight: deque[tuple[Batch, Future[list[CFQueuesError | None]]]] = deque()
        self._by_line = journal.left.count() is not None
        self._last_wait = ""

    @property
    def is_complete(self) -> bool:
        """Whether every line of the source is in the queue."""
        return not (self.failure or self.skipped or self.stop.requested)

    def publish(self, source: Iterable[Line | None], *, skip_invalid: bool) -> None:
        """Publish the lines that are left, until the source ends, a line fails or a signal."""
        started = time.monotonic()
        senders = ThreadPoolExecutor(self._max_in_flight, "cfqueues-publish")
        try:
            for batch in self._batches(source, skip_invalid=skip_invalid):
                self._in_flight.append((batch, senders.submit(self._post, batch.messages)))
                # One batch more than threads, so that a free thread never waits for a batch.
                while len(self._in_flight) > self._max_in_flight + 1:
                    self._record_oldest()
                if self.stop.requested or self.failure:
                    break
            while self._in_flight:
                self._record_oldest()
        except KeyboardInterrupt:  # the second signal
            self.interrupted = True
            self.failure = "interrupted before every response had arrived"
            self.uncertain += [line.number for batch, _ in self._in_flight for line in batch.lines]
        finally:
            senders.shutdown(wait=False, cancel_futures=True)
            self.seconds = time.monotonic() - started

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON object, for programs."""
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

    def _batches(self, source: Iterable[Line | None], *, skip_invalid: bool) -> Iterator[Batch]:
        """Yield full batches; smaller ones only if the source pauses or ends."""
        batch = Batch()
        for pair in self._messages(source, skip_invalid=skip_invalid):
            if self.stop.requested:
                return
            if batch.lines and not (pair and batch.has_room_for(pair[1])):
                yield batch
                batch = Batch()
            if pair:
                batch.add(*pair)
            while self._in_flight and self._in_flight[0][1].done():
                self._record_oldest()
        if batch.lines and not self.stop.requested:
            yield batch

    def _messages(
        self, source: Iterable[Line | None], *, skip_invalid: bool
    ) -> Iterator[tuple[Line, Packed] | None]:
        """Yield each line that is left and its message; None if the source pauses."""
        for line in source:
            if line is None:
                yield None
            elif line.number not in self.journal.left:
                self.journal.check(line.number, line.data)
                if not self._by_line:
                    self._meter.skip(line.work)
                if self.journal.left.ends_before(line.number):
                    return
            elif not line.data.strip():
                self._skip(line)
            else:
                try:
                    yield line, self._pack(line)
                except (InvalidMessage, MessageTooLarge) as error:
                    why = f"line {line.number:,} cannot be published: {in_one_line(error)}"
                    if not skip_invalid:
                        self.failure = why
                        return
                    self._meter.note(why)
                    self.skipped.append(line.number)
                    self._skip(line)

    def _pack(self, line: Line) -> Packed:
        packed = self._composer.pack(line.data.rstrip(b"\r\n"))
        error = envelope.retention_error(packed, self.queue.name, self.queue.retention_seconds)
        if error is not None:
            raise error
        return packed

    def _skip(self, line: Line) -> None:
        self.journal.left.remove(line.number)
        self._meter.skip(self._work(line))

    def _work(self, line: Line) -> int:
        return 1 if self._by_line else line.work

    def _record_oldest(self) -> None:
        """Wait for the oldest batch in flight, and record the result of each of its lines."""
        batch, future = self._in_flight[0]
        outcomes = future.result()
        self._in_flight.popleft()
        pairs = list(zip(batch.lines, outcomes, strict=True))
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
            if not self.failure and not (self.stop.requested and _is_transient(error)):
                self.failure = f"line {line.number:,} was not accepted: {in_one_line(error)}"

    def _post(self, messages: list[Packed]) -> list[CFQueuesError | None]:
        """Publish a batch from a thread of the pool, and retry its transient failures."""
        outcomes: list[CFQueuesError | None] = [None] * len(messages)
        todo = list(range(len(messages)))
        last_accepted_at, backoff = time.monotonic(), PUBLISH_BACKOFF
        while True:
            sent = self._session.publish(self.queue, [messages[index] for index in todo])
            for index, error in zip(todo, sent, strict=True):
                outcomes[index] = error
            again = [
                index
                for index in todo
                if (error := outcomes[index]) is not None and self._may_be_retried(error)
            ]
            if len(again) < len(todo):
                last_accepted_at = time.monotonic()
            out_of_patience = time.monotonic() - last_accepted_at >= self._patience
            if not again or self.stop.requested or out_of_patience:
                return outcomes
            todo = again
            self._report_wait(outcomes[todo[0]])
            backoff = backoff.after_failure()
            self.stop.wait(backoff.pause_seconds(least=1))

    def _may_be_retried(self, error: CFQueuesError) -> bool:
        certain = error.delivered == "no" or self._session.options.retry_uncertain
        return certain and _is_transient(error)

    def _report_wait(self, error: CFQueuesError | None) -> None:
        text = "" if error is None else str(error)
        if text != self._last_wait:
            self._last_wait = text
            self._meter.note(f"Retrying: {in_one_line(error) if error else text}")


def _is_transient(error: CFQueuesError) -> bool:
    return isinstance(error, (TransientError, PublishTimeout))


def _read_headers(pairs: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--header must be NAME=VALUE, not {pair!r}")
        headers[name] = value
    return headers


def _read_lines(text: str | None) -> Lines | None:
    try:
        return None if text is None else Lines(text)
    except ValueError as error:
        raise click.UsageError(f"--lines must be ranges such as 1-9,41201-: {error}") from error


def _standard_input() -> BinaryIO:
    if sys.stdin.isatty():
        raise click.UsageError("give MESSAGES or --file, or pipe lines into this command")
    return sys.stdin.buffer


def _print_result(run: Run, state: Path | None, *, from_lines: bool) -> None:
    rate = run.accepted / run.seconds if run.seconds else 0.0
    took = f" in {console.duration(run.seconds)}, {rate:,.0f}/s" if run.seconds >= 1 else ""
    click.echo(f"Published {console.plural(run.accepted, 'message')} to {run.queue.name!r}{took}.")
    if run.skipped:
        click.echo(f"Skipped {console.plural(len(run.skipped), 'line')} that cannot be published.")
    if run.failure:
        click.echo(f"Error: {run.failure}", err=True)
    elif run.stop.requested:
        click.echo("Stopped.")
    if run.uncertain:
        click.echo(
            f"{console.plural(len(run.uncertain), 'line')} may or may not have been published: "
            f"{run.uncertain[0]:,} to {run.uncertain[-1]:,}."
        )
    if from_lines and (run.failure or run.stop.requested):
        click.echo(f"The last accepted line is {run.journal.last:,}.")
        how = "run the same command again" if state else f"add --lines {run.journal.left}"
        click.echo(f"To publish the rest, {how}.")
