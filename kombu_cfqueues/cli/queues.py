"""``cfqueues queues``: lists, creates, deletes, pauses, resumes, purges and measures queues."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..api.models import Backlog, PullConsumer, Queue
from ..errors import PermanentError
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._completion import QUEUE, queue_argument
from ._help import examples
from ._options import takes_broker_before
from ._queue_settings import differing, in_words, show, takes_delay, takes_keep, update
from ._session import Session, open_session


@click.group(epilog=examples("queues list", "queues create mails --pull", "queues show mails"))
@takes_broker_before
def command() -> None:
    """List, create, show, change, measure, pause, resume, purge and delete queues."""


command.add_command(show)
command.add_command(update)


@command.command("list", epilog=examples("queues list", "queues list --metrics"))
@takes_broker(allowance=True)
@click.option(
    "--metrics",
    is_flag=True,
    help="Show the metrics of each queue too, with one request per queue.",
)
@console.takes_json
def list_queues(options: Options, metrics: bool, as_json: bool) -> None:
    """List the queues of the account, under their names at Cloudflare."""
    with open_session(options) as session:
        queues = session.queues()
        measured = {queue.id: read_backlog(session, queue) for queue in queues} if metrics else {}
    if as_json:
        console.emit([describe(queue, measured.get(queue.id)) for queue in queues])
    elif not queues:
        click.echo("No queues yet. Create one with 'cfqueues queues create NAME'.")
    else:
        titles = ["QUEUE", "CONSUMER", "DELIVERY", "KEPT FOR"]
        rows = [_row(queue) for queue in queues]
        if metrics:
            titles += METRICS
            rows = [
                [*row, *metrics_row(measured[queue.id])]
                for queue, row in zip(queues, rows, strict=True)
            ]
        console.table(titles, rows, numbers=METRICS)


@command.command(epilog=examples("queues metrics mails events"))
@takes_broker(allowance=True)
@queue_argument("names", metavar="QUEUE...", nargs=-1, required=True)
@console.takes_json
def metrics(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Show number, size and age of the messages in each QUEUE.

    The numbers come from Cloudflare and are approximate.
    """
    with open_session(options) as session:
        found = [(queue := session.queue(name), read_backlog(session, queue)) for name in names]
    if as_json:
        console.emit([{"queue": queue.name, **_metrics_json(backlog)} for queue, backlog in found])
    else:
        rows = [[queue.name, *metrics_row(backlog)] for queue, backlog in found]
        console.table(["QUEUE", *METRICS], rows, numbers=METRICS)


@command.command(
    epilog=examples(
        "queues create mails --pull --dead-letter-queue mails-dead",
        "queues create events --keep 86400",
    )
)
@takes_broker(allowance=True)
@queue_argument("names", metavar="QUEUE...", nargs=-1, required=True)
@takes_delay
@takes_keep
@click.option("--pull", is_flag=True, help="Add an HTTP pull consumer, which Celery workers need.")
@click.option("--dead-letter-queue", **QUEUE, help="Move dead letters to QUEUE; requires --pull.")
@console.takes_json
def create(  # noqa: PLR0917  one parameter per option; Click passes them by name
    options: Options,
    names: tuple[str, ...],
    delay: int | None,
    keep: int | None,
    pull: bool,
    dead_letter_queue: str | None,
    as_json: bool,
) -> None:
    """Create each QUEUE that does not exist.

    By default, Cloudflare does not delay messages, and keeps them for 4 days (free plan: 1 day).
    The command fails if a queue or its consumer exists with other settings than the given ones.
    """
    if dead_letter_queue and not pull:
        raise click.UsageError("--dead-letter-queue is a setting of the pull consumer: add --pull")
    given_settings = {"delivery_delay": delay, "message_retention_period": keep}
    settings = {name: value for name, value in given_settings.items() if value is not None}
    results: list[dict[str, Any]] = []
    with open_session(options) as session:
        for name in names:
            queue, new = _create(session, name, settings)
            other = {} if new else differing(session, queue, settings)
            if pull:
                consumer = session.pull_consumer(queue, dead_letter_queue=dead_letter_queue)
                other |= _other_consumer(session, consumer, dead_letter_queue)
            result = {"queue": queue.name, "id": queue.id, "created": new, "pull": pull}
            results.append(result | {"unchanged": other})
            if not as_json:
                _print_created(queue, new=new, pull=pull)
    if as_json:
        console.emit(results)
    _fail_if_unchanged(results)


def _other_consumer(
    session: Session, consumer: PullConsumer, dead_letter_queue: str | None
) -> dict[str, Any]:
    """Return the given dead-letter queue if the consumer, which existed, has another one."""
    if not dead_letter_queue:
        return {}
    wanted = session.cloudflare_name(dead_letter_queue)
    return {} if consumer.dead_letter_queue == wanted else {"dead_letter_queue": wanted}


def _fail_if_unchanged(results: Sequence[Mapping[str, Any]]) -> None:
    ignored = [
        f"queue {result['queue']!r} exists, but not with the given settings "
        f"({in_words(result['unchanged'])}): change it with 'cfqueues queues update'"
        for result in results
        if result["unchanged"]
    ]
    if ignored:
        raise click.ClickException("; ".join(ignored))


def _print_created(queue: Queue, *, new: bool, pull: bool) -> None:
    name = f"queue {queue.name!r} ({queue.id})"
    with_pull = ", with HTTP pull enabled" if pull else ""
    click.echo(f"{'Created' if new else 'There is already a'} {name}{with_pull}.")


@command.command(epilog=examples("queues delete mails", "queues delete mails events --yes"))
@takes_broker(allowance=True)
@queue_argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@console.takes_json
def delete(options: Options, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete each QUEUE and all its messages."""
    with open_session(options) as session:
        queues = [session.queue(name) for name in names]
        for queue in queues:
            if not yes:
                console.confirm(f"Delete queue {_name_and_count(session, queue)}?")
            session.call(session.client.delete_queue, queue.id)
            if not as_json:
                click.echo(f"Deleted queue {queue.name!r}.")
    if as_json:
        console.emit([{"queue": queue.name, "id": queue.id, "deleted": True} for queue in queues])


@command.command(epilog=examples("queues pause mails"))
@takes_broker(allowance=True)
@queue_argument("names", metavar="QUEUE...", nargs=-1, required=True)
@console.takes_json
def pause(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Pause delivery from each QUEUE.

    Messages can still be published, and still expire.
    """
    _pause(options, names, paused=True, as_json=as_json)


@command.command(epilog=examples("queues resume mails"))
@takes_broker(allowance=True)
@queue_argument("names", metavar="QUEUE...", nargs=-1, required=True)
@console.takes_json
def resume(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Resume delivery from each QUEUE."""
    _pause(options, names, paused=False, as_json=as_json)


@command.command(epilog=examples("queues purge mails-dead"))
@takes_broker(allowance=True)
@queue_argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@console.takes_json
def purge(options: Options, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete all messages of each QUEUE, and keep the queue.

    Delayed messages are deleted too. The purge ends some time after the command. Until then,
    published messages may survive, and leased messages may still be processed.
    """
    with open_session(options) as session:
        queues = [session.queue(name) for name in names]
        for queue in queues:
            if not yes:
                console.confirm(f"Delete all messages of queue {_name_and_count(session, queue)}?")
            session.call(session.client.purge, queue.id)
            if not as_json:
                click.echo(f"Started to purge queue {queue.name!r}.")
    if as_json:
        console.emit([{"queue": queue.name, "id": queue.id, "purging": True} for queue in queues])


METRICS = ["MESSAGES", "SIZE", "OLDEST"]


def metrics_row(backlog: Backlog | None) -> list[str]:
    """Return the table cells of a queue's metrics."""
    if backlog is None:
        return ["?", "?", "?"]
    age = "-" if not backlog.messages else console.duration(oldest_seconds(backlog))
    return [console.number(backlog.messages), console.size(backlog.bytes), age]


def oldest_seconds(backlog: Backlog) -> float | None:
    """Return the age of the oldest message, by this machine's clock; None if unknown."""
    return None if backlog.oldest_ms is None else max(0.0, time.time() - backlog.oldest_ms / 1000)


def consumer_summary(consumers: tuple[Mapping[str, Any], ...]) -> str:
    """Return what consumes a queue, in a few words."""
    parts = []
    for consumer in consumers:
        kind, settings = consumer.get("type"), consumer.get("settings")
        if kind == "worker":
            script = consumer.get("script_name") or consumer.get("script") or "?"
            parts.append(f"Worker {script}")
        elif kind == "http_pull":
            retries = settings.get("max_retries") if isinstance(settings, Mapping) else None
            parts.append("pull" if retries is None else f"pull, {retries} retries")
        else:
            parts.append(str(kind))
        dead_letter_queue = consumer.get("dead_letter_queue")
        if dead_letter_queue:
            parts[-1] += f", dead letters to {dead_letter_queue}"
    return "; ".join(parts) or "none"


def describe(queue: Queue, backlog: Backlog | None = None) -> dict[str, Any]:
    """Return a queue, and its metrics if there are any, as a JSON object."""
    return {
        "queue": queue.name,
        "id": queue.id,
        "paused": queue.paused,
        "retention_seconds": queue.retention_seconds,
        "consumers": [dict(consumer) for consumer in queue.consumers],
        **({} if backlog is None else _metrics_json(backlog)),
    }


def _metrics_json(backlog: Backlog | None) -> dict[str, Any]:
    if backlog is None:
        backlog = Backlog(None, None, None)
    return {
        "messages": backlog.messages,
        "bytes": backlog.bytes,
        "oldest_seconds": oldest_seconds(backlog),
    }


def _row(queue: Queue) -> list[str]:
    delivery = {None: "?", True: "paused", False: "on"}[queue.paused]
    return [
        queue.name,
        consumer_summary(queue.consumers),
        delivery,
        console.duration(queue.retention_seconds),
    ]


def read_backlog(session: Session, queue: Queue) -> Backlog | None:
    """Return the queue's metrics; None if the queue is gone or the token lacks the permission."""
    try:
        return session.call(session.client.backlog, queue.id)
    except PermanentError:
        return None


def _name_and_count(session: Session, queue: Queue) -> str:
    backlog = read_backlog(session, queue)
    count = backlog.messages if backlog else None
    return f"{queue.name!r}, which holds about {console.number(count)} messages"


def _create(session: Session, name: str, settings: Mapping[str, int]) -> tuple[Queue, bool]:
    found = session.find(name)
    if found is not None:
        return found, False
    title = session.cloudflare_name(name)
    return session.call(session.client.create_queue, title, settings=settings), True


def _pause(options: Options, names: tuple[str, ...], *, paused: bool, as_json: bool) -> None:
    with open_session(options) as session:
        queues = [session.queue(name) for name in names]
        for queue in queues:
            session.call(session.client.edit_queue, queue, {"delivery_paused": paused})
            if not as_json:
                click.echo(f"{'Paused' if paused else 'Resumed'} delivery from {queue.name!r}.")
    if as_json:
        console.emit([{"queue": queue.name, "id": queue.id, "paused": paused} for queue in queues])
