"""``cfqueues queues``: list, create, delete, pause, resume and purge queues; their metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from .. import limits
from ..api.models import Backlog, Queue
from ..errors import PermanentError
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._session import Session, opened


@click.group(short_help="List, create, pause, purge and delete queues.")
def command() -> None:
    """Make, look at and look after queues."""


@command.command("list")
@takes_broker(allowance=True)
@click.option("--metrics", is_flag=True, help="With what is in each; one request a queue.")
@console.takes_json
def list_queues(options: Options, metrics: bool, as_json: bool) -> None:
    """List the account's queues, by their names at Cloudflare."""
    with opened(options) as session:
        queues = session.queues()
        measured = {queue.id: _metrics(session, queue) for queue in queues} if metrics else {}
    if as_json:
        console.emit([describe(queue, measured.get(queue.id)) for queue in queues])
    elif not queues:
        click.echo("No queues yet: 'cfqueues queues create NAME' makes one.")
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


@command.command()
@takes_broker(allowance=True)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@console.takes_json
def metrics(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Say what is in each QUEUE, about, as Cloudflare counts it."""
    with opened(options) as session:
        found = [(queue := session.queue(name), _metrics(session, queue)) for name in names]
    if as_json:
        console.emit([{"queue": queue.name, **_measured(measure)} for queue, measure in found])
    else:
        rows = [[queue.name, *metrics_row(measure)] for queue, measure in found]
        console.table(["QUEUE", *METRICS], rows, numbers=METRICS)


@command.command()
@takes_broker(allowance=True)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option(
    "--delay",
    type=click.IntRange(0, limits.DELAY_SECONDS),
    help="Seconds by which each message is delayed that does not say otherwise.",
)
@click.option(
    "--keep",
    type=click.IntRange(60, 1_209_600),
    help="Seconds for which messages are kept.  [Cloudflare: 4 days; free plan 1 day]",
)
@click.option("--pull", is_flag=True, help="Let it be pulled over HTTP, as Celery workers do.")
@click.option("--dead-letter-queue", metavar="QUEUE", help="Where dead messages go; needs --pull.")
@console.takes_json
def create(  # noqa: PLR0917 - one argument an option; Click passes them by name
    options: Options,
    names: tuple[str, ...],
    delay: int | None,
    keep: int | None,
    pull: bool,
    dead_letter_queue: str | None,
    as_json: bool,
) -> None:
    """Create each QUEUE that does not exist."""
    if dead_letter_queue and not pull:
        raise click.UsageError("--dead-letter-queue belongs to the pull consumer: say --pull too")
    given = {"delivery_delay": delay, "message_retention_period": keep}
    settings = {name: value for name, value in given.items() if value is not None}
    made: list[dict[str, Any]] = []
    with opened(options) as session:
        for name in names:
            queue, new = _create(session, name, settings)
            if pull:
                session.pull_consumer(queue, dead_letter_queue=dead_letter_queue)
            made.append({"queue": queue.name, "id": queue.id, "created": new, "pull": pull})
            if not as_json:
                done = "Created" if new else "There is already a"
                also = "; it can be pulled over HTTP" if pull else ""
                click.echo(f"{done} queue {queue.name!r} ({queue.id}){also}.")
                if settings and not new:
                    click.echo("  Its settings are left as they were.")
    if as_json:
        console.emit(made)


@command.command()
@takes_broker(allowance=True)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@console.takes_json
def delete(options: Options, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete each QUEUE and all that is in it."""
    with opened(options) as session:
        queues = [session.queue(name) for name in names]
        for queue in queues:
            if not yes:
                console.confirm(f"Delete queue {_full(session, queue)}?", yes=False)
            session.call(session.client.delete_queue, queue.id)
            if not as_json:
                click.echo(f"Deleted queue {queue.name!r}.")
    if as_json:
        console.emit([{"queue": queue.name, "id": queue.id, "deleted": True} for queue in queues])


@command.command()
@takes_broker(allowance=True)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@console.takes_json
def pause(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Stop delivery of each QUEUE; publishing goes on, and messages expire all the same."""
    _pause(options, names, paused=True, as_json=as_json)


@command.command()
@takes_broker(allowance=True)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@console.takes_json
def resume(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Deliver from each QUEUE again."""
    _pause(options, names, paused=False, as_json=as_json)


@command.command()
@takes_broker(allowance=True)
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@console.takes_json
def purge(options: Options, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete all messages of each QUEUE, delayed ones too; the queue stays.

    It ends some time after the command: what is published meanwhile may survive, what is being
    worked on may still be done.
    """
    with opened(options) as session:
        queues = [session.queue(name) for name in names]
        for queue in queues:
            if not yes:
                console.confirm(f"Delete all messages of queue {_full(session, queue)}?", yes=False)
            session.call(session.client.purge, queue.id)
            if not as_json:
                click.echo(f"Purging queue {queue.name!r}.")
    if as_json:
        console.emit([{"queue": queue.name, "id": queue.id, "purging": True} for queue in queues])


METRICS = ["MESSAGES", "SIZE", "OLDEST"]


def metrics_row(measure: Backlog | None) -> list[str]:
    """The cells of what is in a queue."""
    if measure is None:
        return ["?", "?", "?"]
    age = "-" if not measure.messages else console.span(oldest_seconds(measure))
    return [console.amount(measure.messages), console.size(measure.bytes), age]


def oldest_seconds(measure: Backlog) -> float | None:
    """Age of the oldest message, by this machine's clock."""
    return None if measure.oldest_ms is None else max(0.0, time.time() - measure.oldest_ms / 1000)


def consumer_words(consumers: tuple[Mapping[str, Any], ...]) -> str:
    """Who consumes a queue, in a few words."""
    words = []
    for consumer in consumers:
        kind, settings = consumer.get("type"), consumer.get("settings")
        if kind == "worker":
            script = consumer.get("script_name") or consumer.get("script") or "?"
            words.append(f"Worker {script}")
        elif kind == "http_pull":
            retries = settings.get("max_retries") if isinstance(settings, Mapping) else None
            words.append("pull" if retries is None else f"pull, {retries} retries")
        else:
            words.append(str(kind))
        dead = consumer.get("dead_letter_queue")
        if dead:
            words[-1] += f", dead letters to {dead}"
    return "; ".join(words) or "none"


def describe(queue: Queue, measure: Backlog | None = None) -> dict[str, Any]:
    """A queue for programs."""
    return {
        "queue": queue.name,
        "id": queue.id,
        "paused": queue.paused,
        "retention_seconds": queue.retention_seconds,
        "consumers": [dict(consumer) for consumer in queue.consumers],
        **({} if measure is None else _measured(measure)),
    }


def _measured(measure: Backlog | None) -> dict[str, Any]:
    if measure is None:
        measure = Backlog(None, None, None)
    return {
        "messages": measure.messages,
        "bytes": measure.bytes,
        "oldest_seconds": oldest_seconds(measure),
    }


def _row(queue: Queue) -> list[str]:
    delivery = {None: "?", True: "paused", False: "on"}[queue.paused]
    return [
        queue.name,
        consumer_words(queue.consumers),
        delivery,
        console.span(queue.retention_seconds),
    ]


def _metrics(session: Session, queue: Queue) -> Backlog | None:
    """What is in the queue; None if this token may not know."""
    try:
        return session.call(session.client.backlog, queue.id)
    except PermanentError:
        return None


def _full(session: Session, queue: Queue) -> str:
    measure = _metrics(session, queue)
    count = measure.messages if measure else None
    return f"{queue.name!r}, which holds about {console.amount(count)} messages"


def _create(session: Session, name: str, settings: Mapping[str, int]) -> tuple[Queue, bool]:
    found = session.find(name)
    if found is not None:
        return found, False
    return session.call(session.client.create_queue, session.title(name), settings=settings), True


def _pause(options: Options, names: tuple[str, ...], *, paused: bool, as_json: bool) -> None:
    with opened(options) as session:
        queues = [session.queue(name) for name in names]
        for queue in queues:
            session.call(session.client.pause_delivery, queue, paused=paused)
            if not as_json:
                click.echo(f"{'Paused' if paused else 'Resumed'} delivery from {queue.name!r}.")
    if as_json:
        console.emit([{"queue": queue.name, "id": queue.id, "paused": paused} for queue in queues])
