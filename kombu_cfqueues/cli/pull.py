"""``cfqueues pull``: takes messages out of a queue, into a file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .. import limits
from ..api.models import PullConsumer, Queue
from ..errors import CFQueuesError
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._commands import in_one_line
from ._completion import queue_argument
from ._help import examples
from ._messages import decode
from ._paths import FilePath
from ._pulls import MAX_HELD, RUN_LEASE_SECONDS, pulls
from ._session import Session, open_session
from ._stop import Stop, stop_on_signals
from .peek import existing_pull_consumer


@click.command(
    epilog=examples(
        "pull mails-dead --ack --to dead.jsonl",
        "pull mails --keep --to copy.jsonl -n 500",
    )
)
@takes_broker(allowance=True)
@queue_argument("queue")
@click.option(
    "--ack/--keep",
    "acks",
    default=None,
    help="Acknowledge the messages, which deletes them from the queue; or give them back.",
)
@click.option("--to", type=FilePath(), required=True, help="Append the messages to this file.")
@click.option(
    "--number",
    "-n",
    type=click.IntRange(min=1),
    help="Maximum number of messages.  [default: until the queue has no more; with --keep, "
    f"{MAX_HELD:,}]",
)
@console.takes_json
def command(
    options: Options, queue: str, *, acks: bool | None, to: Path, number: int | None, as_json: bool
) -> None:
    """Write messages of QUEUE to a file, as JSON lines.

    A line has what 'cfqueues peek --json' shows and, in "raw", body and metadata as they were
    pulled. A message is acknowledged once its line is on the disk. So none is lost; if an
    acknowledgement fails, messages are in the file and in the queue.

    With --keep, each message counts one more delivery, and consumers do not get it until the end.
    """
    if acks is None:
        raise click.UsageError("choose what happens to the messages in the queue: --ack or --keep")
    with open_session(options) as session, stop_on_signals() as stop:
        found = session.queue(queue)
        consumer = existing_pull_consumer(session, found)
        run = Run(session, found, consumer, acks=acks, stop=stop)
        with _appended(to) as descriptor:
            run.pull(descriptor, number or (sys.maxsize if acks else MAX_HELD))
    if as_json:
        console.emit(run.as_json() | {"file": str(to.absolute())})
    else:
        verb = "acknowledged them" if acks else "gave them back"
        click.echo(f"Wrote {console.plural(run.written, 'message')} to {to}, and {verb}.")
    if run.failure:
        raise click.ClickException(run.failure)
    if stop.requested:
        sys.exit(1)


class Run:
    """Pulls messages, writes them, and then settles them.

    Args:
        session: The account.
        queue: Where to pull.
        consumer: Its pull consumer.
        acks: Whether to acknowledge; if not, the messages are given back at the end.
        stop: Whether to stop.

    Attributes:
        written: Number of messages that are in the file.
        failure: Why the run ended early; "" if it did not.
    """

    def __init__(
        self, session: Session, queue: Queue, consumer: PullConsumer, *, acks: bool, stop: Stop
    ) -> None:
        self.written = 0
        self.failure = ""
        self._session = session
        self._queue = queue
        self._consumer = consumer
        self._acks = acks
        self._stop = stop
        self._held: list[Mapping[str, Any]] = []

    def pull(self, descriptor: int, limit: int) -> None:
        """Write up to *limit* messages to an open file."""
        try:
            for raws in pulls(self._session, self._queue, self._stop, lambda: limit - self.written):
                self._held += raws  # until they are on the disk
                _write(descriptor, raws, self._queue.name)
                self.written += len(raws)
                if self._acks:
                    self._held = []
                    self._session.ack(self._queue, raws)
        except CFQueuesError as error:
            self.failure = in_one_line(error)
        except OSError as error:
            self.failure = f"the file cannot be written: {error.strerror}"
        finally:
            self._give_back()

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON object, for programs."""
        return {
            "queue": self._queue.name,
            "written": self.written,
            "acknowledged": self._acks,
            "failure": self.failure or None,
        }

    def _give_back(self) -> None:
        for start in range(0, len(self._held), limits.BATCH_MESSAGES):
            part = self._held[start : start + limits.BATCH_MESSAGES]
            try:
                self._session.give_back(self._queue, self._consumer, part)
            except CFQueuesError as error:
                left = len(self._held) - start
                self.failure = self.failure or (
                    f"{console.plural(left, 'message')} could not be given back; the lease ends in "
                    f"{console.duration(RUN_LEASE_SECONDS)}: {in_one_line(error)}"
                )
                return


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, raws: Sequence[Mapping[str, Any]], queue: str) -> None:
    """Write messages as lines; return once they are on the disk."""
    lines = []
    for raw in raws:
        as_pulled = {"body": raw.get("body"), "metadata": raw.get("metadata")}
        line = decode(raw, queue).as_json() | {"raw": as_pulled}
        lines.append(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    data = "".join(lines).encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
