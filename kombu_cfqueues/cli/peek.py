"""``cfqueues peek``: shows messages of a queue."""

from __future__ import annotations

from typing import Any, Final

import click

from .. import limits
from ..api.models import PullConsumer, Queue
from ..errors import CFQueuesError, PullNotEnabled
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._completion import queue_argument
from ._help import examples
from ._messages import COLUMNS, by_age, decode, row
from ._session import Session, open_session

LEASE_SECONDS: Final = 60.0
"""Lease of messages that ``--pull`` pulls.  If it is killed, they are redelivered after it."""


@click.command(epilog=examples("peek mails", "peek mails -n 100 --json"))
@takes_broker(allowance=True)
@queue_argument("queue")
@click.option(
    "--number",
    "-n",
    type=click.IntRange(1, limits.PULL_MESSAGES),
    default=10,
    show_default=True,
    help="Maximum number of messages to show.",
)
@click.option(
    "--pull",
    is_flag=True,
    help="Pull the messages and return them at once. This adds one delivery to each, which counts "
    "towards max_retries, and hides them from consumers for a moment.",
)
@console.takes_json
def command(options: Options, queue: str, number: int, pull: bool, as_json: bool) -> None:
    """Show messages of QUEUE; for Celery tasks, show name, arguments and id.

    Messages are neither consumed nor leased, and the number of their deliveries does not change.
    Only messages that are ready for delivery are shown, not those that are delayed or leased.
    """
    with open_session(options) as session:
        found = session.queue(queue)
        raws = (_pull if pull else peek_messages)(session, found, number)
    messages = [decode(raw, queue) for raw in by_age(raws)]
    if as_json:
        for message in messages:
            console.emit(message.as_json(), lines=True)
    elif messages:
        console.table(COLUMNS, [row(message) for message in messages], numbers=COLUMNS[:2])
    else:
        click.echo(f"No message of queue {queue!r} is ready for delivery.")


def peek_messages(session: Session, queue: Queue, limit: int) -> list[dict[str, Any]]:
    """Return up to *limit* messages of the queue, without leasing them.

    Raises:
        CFQueuesError: The request failed, or the API has no route for this.
    """
    try:
        return session.call(session.client.peek, queue.id, batch_size=limit)
    except CFQueuesError as error:
        # The route is in Cloudflare's SDK and not in its documentation.
        if error.status in (404, 405) and error.code not in (10104, 11000):
            raise CFQueuesError(
                f"this API cannot show messages of queue {queue.name!r} without leasing them: "
                "use 'cfqueues peek --pull', which pulls them and returns them at once, and so "
                "adds one delivery to each"
            ) from error
        raise


def existing_pull_consumer(session: Session, queue: Queue) -> PullConsumer:
    """Return the queue's pull consumer.

    Raises:
        PullNotEnabled: It has none.  None is created: a command that only reads, or has a mistyped
            name, must not change what consumes a queue.
    """
    consumers = session.call(session.client.list_consumers, queue.id)
    consumer = PullConsumer.from_json(consumers)
    if consumer is None:
        raise PullNotEnabled(
            f"queue {queue.name!r} has no pull consumer: look at it with 'cfqueues peek "
            f"{queue.name}', or create one with 'cfqueues queues create {queue.name} --pull'"
        )
    return consumer


def _pull(session: Session, queue: Queue, limit: int) -> list[dict[str, Any]]:
    consumer = existing_pull_consumer(session, queue)
    raws = session.pull(queue, limit, lease_seconds=LEASE_SECONDS)
    if raws:
        session.give_back(queue, consumer, raws)
    return raws
