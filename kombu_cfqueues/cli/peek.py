"""``cfqueues peek``: what the messages of a queue say."""

from __future__ import annotations

from typing import Any, Final

import click

from .. import limits
from ..api.models import Queue
from ..errors import CFQueuesError, PullNotEnabled
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._messages import COLUMNS, by_age, row, show
from ._session import Session, opened

LEASE_SECONDS: Final = 60.0
"""Lease of what ``--pull`` looks at, should it be killed before it gives that back."""


@click.command(short_help="Show messages without consuming them.")
@takes_broker(allowance=True)
@click.argument("queue")
@click.option(
    "--number",
    "-n",
    type=click.IntRange(1, limits.PULL_MESSAGES),
    default=10,
    show_default=True,
    help="Most messages.",
)
@click.option(
    "--pull",
    is_flag=True,
    help="Pull the messages and give them back. Each has then one delivery more, which counts "
    "towards max_retries, and is away from its consumers for a moment.",
)
@console.takes_json
def command(options: Options, queue: str, number: int, pull: bool, as_json: bool) -> None:
    """Show what messages of QUEUE say: of Celery tasks their name, id and arguments.

    Nothing is consumed: the messages are looked at without a lease, and their count of deliveries
    stays as it is. Only those are seen that could be delivered now; not delayed ones, nor those
    that a consumer has.
    """
    with opened(options) as session:
        found = session.queue(queue)
        raws = (_pull if pull else look)(session, found, number)
    shown = [show(raw, queue) for raw in by_age(raws)]
    if as_json:
        for one in shown:
            console.emit(one.value(), lines=True)
    elif shown:
        console.table(COLUMNS, [row(one) for one in shown], numbers=COLUMNS[:2])
    else:
        click.echo(f"No message of queue {queue!r} can be delivered now.")


def look(session: Session, queue: Queue, most: int) -> list[dict[str, Any]]:
    """Messages of the queue, which stay as they are.

    Raises:
        CFQueuesError: What the request raised; it says so if the API cannot show messages.
    """
    try:
        return session.call(session.client.peek, queue.id, batch_size=most)
    except CFQueuesError as error:
        # The route is in Cloudflare's SDK and not in its documentation.
        if error.status in (404, 405) and error.code not in (10104, 11000):
            raise CFQueuesError(
                f"this API cannot show messages of queue {queue.name!r} without leasing them: "
                "'cfqueues peek --pull' pulls them and gives them back, at the price of one "
                "delivery of each"
            ) from error
        raise


def _pull(session: Session, queue: Queue, most: int) -> list[dict[str, Any]]:
    consumers = session.call(session.client.list_consumers, queue.id)
    if not any(consumer.get("type") == "http_pull" for consumer in consumers):
        # One could be made; but whoever only looks may not decide who consumes a queue.
        raise PullNotEnabled(
            f"queue {queue.name!r} has no pull consumer: leave --pull out, or make one with "
            f"'cfqueues queues create {queue.name} --pull'"
        )
    consumer = session.pull_consumer(queue)
    raws = session.pull(queue, most, lease_seconds=LEASE_SECONDS)
    if raws:
        session.give_back(queue, consumer, raws)
    return raws
