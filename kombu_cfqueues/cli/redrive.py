"""``cfqueues redrive``: moves dead letters back to the queue that they come from."""

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
from ._commands import in_one_line
from ._completion import QUEUE, queue_argument
from ._help import examples
from ._messages import COLUMNS, DecodedMessage, by_age, decode, row
from ._meter import Meter
from ._pulls import MAX_HELD, RUN_LEASE_SECONDS, pulls
from ._session import Session, open_session
from ._stop import Stop, stop_on_signals
from .peek import peek_messages

GIVE_BACK_SECONDS: Final = RUN_LEASE_SECONDS / 2
"""Longest run while messages are held: the other half of their lease is for returning them."""

Raw = Mapping[str, Any]


class Filter:
    """Selects messages.

    Args:
        task: Shell-style pattern for the name of the Celery task; None selects any message.
        match: Regular expression to find in the line that 'peek' shows; None selects any message.
    """

    def __init__(self, task: str | None, match: str | None) -> None:
        self._task = task
        try:
            self._match = re.compile(match) if match is not None else None
        except re.error as error:
            raise click.UsageError(f"--match is not a valid regular expression: {error}") from error

    def selects(self, message: DecodedMessage) -> bool:
        """Return whether the message is selected."""
        if self._task is not None and not fnmatch.fnmatchcase(message.task or "", self._task):
            return False
        return self._match is None or bool(self._match.search(message.summary()))


@click.command(
    epilog=examples(
        "redrive mails-dead --dry-run",
        "redrive mails-dead --task 'shop.mail.*' --limit 100",
        "redrive mails-dead --to mails-again",
    )
)
@takes_broker(allowance=True)
@queue_argument("dead")
@click.option(
    "--to",
    **QUEUE,
    help="Move the messages to QUEUE.  [default: the queue whose dead letters go to DEAD]",
)
@click.option(
    "--task",
    metavar="PATTERN",
    help="Move only Celery tasks whose name matches, such as shop.mail.*",
)
@click.option("--match", metavar="REGEX", help="Move only messages whose 'peek' line matches.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Maximum number of messages to move.  [default: no limit]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show which of up to 100 messages would move, and change nothing.",
)
@console.takes_json
def command(  # noqa: PLR0917  one parameter per option; Click passes them by name
    options: Options,
    dead: str,
    to: str | None,
    task: str | None,
    match: str | None,
    limit: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move messages from dead-letter queue DEAD back to the queue that they come from.

    Each message is published to its target first, and acknowledged in DEAD afterwards. So no
    message is lost, however the command ends; after a kill, up to 100 messages may be in both
    queues. Messages that do not match or are refused return to DEAD at the end, and count one more
    delivery.
    """
    selection = Filter(task, match)
    with open_session(options) as session, stop_on_signals() as stop:
        source = session.queue(dead)
        target = session.queue(to) if to is not None else _origin(session, source)
        if target.id == source.id:
            raise click.UsageError(
                f"the messages are already in {target.name!r}: name another queue with --to"
            )
        if dry_run:
            _print_dry_run(session, source, target, selection, as_json=as_json)
            return
        if not source.consumers and not as_json:
            click.echo(f"Adding a pull consumer to queue {dead!r}, to read it.")
        total = session.call(session.client.backlog, source.id).messages
        expected = min(total or 0, limit or sys.maxsize)
        with Meter("messages", expected or None, quiet=as_json) as meter:
            move = Move(session, source, target, selection, meter=meter, stop=stop)
            move.run(limit or sys.maxsize)
    if as_json:
        console.emit(move.as_json())
    else:
        _print_result(move)
    if move.failure or stop.requested:
        sys.exit(1)


class Move:
    """Moves messages from *source* to *target*.

    Attributes:
        moved: Messages that are in the target and acknowledged.
        in_both: Messages that are in the target but could not be acknowledged.
        kept: Messages that stay in the source.
        failure: Why the move ended early; "" if it did not.
    """

    def __init__(
        self,
        session: Session,
        source: Queue,
        target: Queue,
        selection: Filter,
        *,
        meter: Meter,
        stop: Stop,
    ) -> None:
        self.source = source
        self.target = target
        self.moved = 0
        self.in_both = 0
        self.kept = 0
        self.failure = ""
        self._session = session
        self._selection = selection
        self._meter = meter
        self._stop = stop
        self._held: list[Raw] = []

    def run(self, limit: int) -> None:
        """Move up to *limit* messages; return the others to the source in any case."""
        consumer = self._session.pull_consumer(self.source)
        give_back_at = time.monotonic() + GIVE_BACK_SECONDS

        def wanted() -> int:
            left = limit - self.moved
            return 0 if left <= 0 or self._is_over(give_back_at) else left

        try:
            for raws in pulls(self._session, self.source, self._stop, wanted):
                self._move(raws)
        except CFQueuesError as error:
            self.failure = in_one_line(error)
        finally:
            self.kept = len(self._held)
            self._give_back(consumer)

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON object, for programs."""
        return {
            "from": self.source.name,
            "to": self.target.name,
            "moved": self.moved,
            "in_both": self.in_both,
            "kept": self.kept,
            "failure": self.failure or None,
        }

    def _is_over(self, give_back_at: float) -> bool:
        if not self.failure and len(self._held) >= MAX_HELD:
            self.failure = (
                f"one run holds no more than {MAX_HELD:,} messages that are not moved, and the "
                "next run may meet the same ones: move those to another queue first, with --to "
                "QUEUE and a --match that selects them"
            )
        if not self.failure and self._held and time.monotonic() > give_back_at:
            self.failure = "the lease of messages not moved expires soon: run the command again"
        return bool(self.failure)

    def _move(self, raws: Sequence[Raw]) -> None:
        """Publish the selected messages, then acknowledge them; hold the rest until the end."""
        # Hold all of them first, so that they are returned whatever fails below.
        self._held += raws
        packed = []
        for raw in raws:
            if self._selection.selects(decode(raw, self.source.name)):
                try:
                    packed.append((raw, envelope.repack(raw, forget_deaths=True)))
                except MessageTooLarge as error:
                    self._meter.note(f"Message {raw.get('id')} is not moved: {in_one_line(error)}")
        if not packed:
            return
        outcomes = self._session.publish(self.target, [message for _, message in packed])
        done = [raw for (raw, _), error in zip(packed, outcomes, strict=True) if error is None]
        failures = [error for error in outcomes if error is not None]
        if failures:
            self.failure = in_one_line(failures[0])
        self._release(done)
        try:
            self._session.ack(self.source, done)
        except CFQueuesError:
            self.in_both += len(done)
            raise
        self.moved += len(done)
        self._meter.advance(len(done), len(done))

    def _release(self, done: Sequence[Raw]) -> None:
        """Stop holding messages that are in the target: returning them would duplicate them."""
        leases = {raw["lease_id"] for raw in done}
        self._held = [raw for raw in self._held if raw["lease_id"] not in leases]

    def _give_back(self, consumer: PullConsumer) -> None:
        if not self._held:
            return
        try:
            self._session.give_back(self.source, consumer, self._held)
        except CFQueuesError as error:
            self.failure = self.failure or (
                f"{console.plural(self.kept, 'message')} could not be returned to "
                f"{self.source.name!r}, and will be redelivered when the lease of "
                f"{console.duration(RUN_LEASE_SECONDS)} expires: {in_one_line(error)}"
            )


def _origin(session: Session, dead: Queue) -> Queue:
    """Return the queue whose dead letters go to *dead*."""
    found = [
        queue
        for queue in session.queues()
        if any(consumer.get("dead_letter_queue") == dead.name for consumer in queue.consumers)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise QueueNotFound(f"no queue sends its dead letters to {dead.name!r}: add --to QUEUE")
    names = ", ".join(queue.name for queue in found)
    raise click.UsageError(f"{names} send their dead letters to {dead.name!r}: add --to QUEUE")


def _print_dry_run(
    session: Session, source: Queue, target: Queue, selection: Filter, *, as_json: bool
) -> None:
    raws = by_age(peek_messages(session, source, limits.PULL_MESSAGES))
    visible = [decode(raw, source.name) for raw in raws]
    selected = [message for message in visible if selection.selects(message)]
    if as_json:
        for message in selected:
            console.emit(message.as_json(), lines=True)
        return
    if selected:
        console.table(COLUMNS, [row(message) for message in selected], numbers=COLUMNS[:2])
        click.echo()
    total = session.call(session.client.backlog, source.id).messages
    click.echo(
        f"{len(selected):,} of {console.plural(len(visible), 'visible message')} would move from "
        f"{source.name!r} to {target.name!r}; the queue holds about {console.number(total)}."
    )


def _print_result(move: Move) -> None:
    click.echo(
        f"Moved {console.plural(move.moved, 'message')} from {move.source.name!r} to "
        f"{move.target.name!r}."
    )
    if move.kept:
        click.echo(f"{console.plural(move.kept, 'message')} stayed in {move.source.name!r}.")
    if move.in_both:
        click.echo(
            f"{console.plural(move.in_both, 'message')} may be in both queues: published, but not "
            "acknowledged."
        )
    if move.failure:
        click.echo(f"Error: {move.failure}", err=True)
