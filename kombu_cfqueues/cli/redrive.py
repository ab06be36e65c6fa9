"""``cfqueues redrive``: dead letters back to the queue in which they died."""

from __future__ import annotations

import fnmatch
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from .. import envelope, limits
from ..api.models import PullConsumer, Queue
from ..errors import CFQueuesError, MessageTooLarge, QueueNotFound
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._commands import in_words
from ._messages import COLUMNS, Shown, by_age, row, show
from ._meter import Meter
from ._session import Session, opened
from ._stop import Stop, listening
from .peek import look

LEASE_SECONDS: Final = 1800.0
"""Lease of what is pulled: what stays behind must not come again before the end."""

MOST_HELD: Final = 10_000
"""So many messages that stay behind are kept from coming again; then the command ends."""

EMPTY_PULLS: Final = 3
"""A pull may bring nothing although there is something; so many in a row are believed."""

EMPTY_PAUSE: Final = 0.25

Raw = Mapping[str, Any]


class Filter:
    """Which messages are meant.

    Args:
        task: Pattern of the Celery task's name, as of a file's; None: any message.
        match: Regular expression that is found in what 'peek' shows; None: any message.
    """

    def __init__(self, task: str | None, match: str | None) -> None:
        self._task = task
        try:
            self._match = re.compile(match) if match is not None else None
        except re.error as error:
            raise click.UsageError(f"--match is a regular expression: {error}") from error

    def takes(self, shown: Shown) -> bool:
        """Whether the message is meant."""
        if self._task is not None and not fnmatch.fnmatchcase(shown.task or "", self._task):
            return False
        return self._match is None or bool(self._match.search(shown.words()))


@click.command(short_help="Move dead letters back to their queue.")
@takes_broker(allowance=True)
@click.argument("dead")
@click.option(
    "--to",
    metavar="QUEUE",
    help="Where they go.  [default: the queue whose dead letters go to DEAD]",
)
@click.option("--task", metavar="PATTERN", help="Only Celery tasks of such a name: shop.mail.*")
@click.option("--match", metavar="REGEX", help="Only messages in whose 'peek' line this is found.")
@click.option("--limit", type=click.IntRange(min=1), help="Most messages.")
@click.option("--dry-run", is_flag=True, help="Show which of up to 100 would go; nothing changes.")
@console.takes_json
def command(  # noqa: PLR0917 - one argument an option; Click passes them by name
    options: Options,
    dead: str,
    to: str | None,
    task: str | None,
    match: str | None,
    limit: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move messages from dead-letter queue DEAD back to the queue in which they died.

    Each is published where it goes, and only then acknowledged in DEAD. So nothing is lost whenever
    this ends; if it is killed, up to 100 messages may be in both queues. What stays behind (it does
    not match, or is refused) is given back when this ends, and has one delivery more.
    """
    wanted = Filter(task, match)
    with opened(options) as session, listening() as stop:
        source = session.queue(dead)
        target = session.queue(to) if to is not None else _origin(session, source)
        if target.id == source.id:
            raise click.UsageError(f"the messages are in {target.name!r} already")
        if dry_run:
            _show(session, source, target, wanted, as_json=as_json)
            return
        if not source.consumers and not as_json:
            click.echo(f"Queue {dead!r} gets a pull consumer, by which it can be read.")
        total = session.call(session.client.backlog, source.id).messages
        most = min(total or 0, limit or sys.maxsize)
        with Meter("messages", most or None, quiet=as_json) as meter:
            move = Move(session, source, target, wanted, meter=meter, stop=stop)
            move.run(limit or sys.maxsize)
    if as_json:
        console.emit(move.value())
    else:
        _tell(move)
    if move.failure or stop.wanted:
        sys.exit(1)


class Move:
    """Moves messages from *source* to *target*.

    Attributes:
        moved: Messages that are in the target, and acknowledged.
        doubled: Messages that are in the target and could not be acknowledged.
        kept: Messages that stay in the source.
        failure: Why it ended too early; "" if it did not.
    """

    def __init__(
        self,
        session: Session,
        source: Queue,
        target: Queue,
        wanted: Filter,
        *,
        meter: Meter,
        stop: Stop,
    ) -> None:
        self.source = source
        self.target = target
        self.moved = 0
        self.doubled = 0
        self.kept = 0
        self.failure = ""
        self._session = session
        self._wanted = wanted
        self._meter = meter
        self._stop = stop
        self._held: list[Raw] = []

    def run(self, limit: int) -> None:
        """Move up to *limit* messages; what was pulled and stays is given back in any case."""
        consumer = self._session.pull_consumer(self.source)
        until = time.monotonic() + LEASE_SECONDS / 2
        empty = 0
        try:
            while empty < EMPTY_PULLS and self.moved < limit and not self._is_over(until):
                most = min(limits.PULL_MESSAGES, limit - self.moved)
                raws = self._session.pull(self.source, most, lease_seconds=LEASE_SECONDS)
                if raws:
                    empty = 0
                    self._take(raws)
                else:
                    empty += 1
                    self._stop.wait(EMPTY_PAUSE)
        except CFQueuesError as error:
            self.failure = in_words(error)
        finally:
            self.kept = len(self._held)
            self._give_back(consumer)

    def value(self) -> dict[str, Any]:
        """What became of it, for programs."""
        return {
            "from": self.source.name,
            "to": self.target.name,
            "moved": self.moved,
            "in_both": self.doubled,
            "kept": self.kept,
            "failure": self.failure or None,
        }

    def _is_over(self, until: float) -> bool:
        if not self.failure and len(self._held) >= MOST_HELD:
            self.failure = f"{MOST_HELD:,} messages that stay behind are enough for one run"
        if not self.failure and self._held and time.monotonic() > until:
            self.failure = "what stays behind would soon come again: run it once more"
        return bool(self.failure) or self._stop.wanted

    def _take(self, raws: Sequence[Raw]) -> None:
        """Publish what is wanted, then acknowledge it; hold the rest until the end."""
        # Held from the first, so that whatever happens on the way gives them back.
        self._held += raws
        packed = []
        for raw in raws:
            if self._wanted.takes(show(raw, self.source.name)):
                try:
                    packed.append((raw, envelope.repack(raw)))
                except MessageTooLarge as error:
                    self._meter.say(f"Message {raw.get('id')} stays: {in_words(error)}")
        if not packed:
            return
        outcomes = self._session.publish(self.target, [one for _, one in packed])
        done = [raw for (raw, _), error in zip(packed, outcomes, strict=True) if error is None]
        failures = [error for error in outcomes if error is not None]
        if failures:
            self.failure = in_words(failures[0])
        self._let_go(done)
        try:
            self._session.ack(self.source, done)
        except CFQueuesError:
            self.doubled += len(done)
            raise
        self.moved += len(done)
        self._meter.advance(len(done), len(done))

    def _let_go(self, done: Sequence[Raw]) -> None:
        """What is in the target must not be given back as if it were not."""
        leases = {raw["lease_id"] for raw in done}
        self._held = [raw for raw in self._held if raw["lease_id"] not in leases]

    def _give_back(self, consumer: PullConsumer) -> None:
        if not self._held:
            return
        try:
            self._session.give_back(self.source, consumer, self._held)
        except CFQueuesError as error:
            self.failure = self.failure or (
                f"{console.plural(self.kept, 'message')} could not be given back, and will come "
                f"when the lease of {console.span(LEASE_SECONDS)} is over: {in_words(error)}"
            )


def _origin(session: Session, dead: Queue) -> Queue:
    """The queue whose dead letters go to *dead*."""
    found = [
        queue
        for queue in session.queues()
        if any(consumer.get("dead_letter_queue") == dead.name for consumer in queue.consumers)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise QueueNotFound(f"no queue has {dead.name!r} for its dead letters: say --to QUEUE")
    names = ", ".join(queue.name for queue in found)
    raise click.UsageError(f"{names} have {dead.name!r} for their dead letters: say --to QUEUE")


def _show(session: Session, source: Queue, target: Queue, wanted: Filter, *, as_json: bool) -> None:
    seen = [show(raw, source.name) for raw in by_age(look(session, source, limits.PULL_MESSAGES))]
    chosen = [one for one in seen if wanted.takes(one)]
    if as_json:
        for one in chosen:
            console.emit(one.value(), lines=True)
        return
    if chosen:
        console.table(COLUMNS, [row(one) for one in chosen], numbers=COLUMNS[:2])
        click.echo()
    total = session.call(session.client.backlog, source.id).messages
    click.echo(
        f"{len(chosen):,} of {console.plural(len(seen), 'message')} that can be seen would go "
        f"from {source.name!r} to {target.name!r}; the queue holds about {console.amount(total)}."
    )


def _tell(move: Move) -> None:
    click.echo(
        f"Moved {console.plural(move.moved, 'message')} from {move.source.name!r} to "
        f"{move.target.name!r}."
    )
    if move.kept:
        click.echo(f"{console.plural(move.kept, 'message')} stayed in {move.source.name!r}.")
    if move.doubled:
        click.echo(
            f"{console.plural(move.doubled, 'message')} may be in both: published, and their "
            "acknowledgement failed."
        )
    if move.failure:
        click.echo(f"Error: {move.failure}", err=True)
