"""``cfqueues queues show`` and ``update``: the settings of queues and of their consumers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from .. import limits
from ..api.models import Queue, mapping, objects
from ..errors import CFQueuesError
from ..options import Options
from . import _console as console
from ._broker import takes_broker
from ._completion import QUEUE, queue_argument
from ._help import examples
from ._session import Session, open_session

takes_delay: Final = click.option(
    "--delay",
    type=click.IntRange(0, limits.DELAY_SECONDS),
    help="Delay messages by this many seconds, unless they have a delay of their own.",
)
takes_keep: Final = click.option(
    "--keep",
    type=click.IntRange(limits.MIN_RETENTION_SECONDS, limits.MAX_RETENTION_SECONDS),
    help="Delete messages after this many seconds.",
)

_LABELS: Final = {
    "delivery_delay": "delay",
    "message_retention_period": "kept for",
    "delivery_paused": "paused",
    "max_retries": "max retries",
    "retry_delay": "retry delay",
    "visibility_timeout_ms": "lease",
    "dead_letter_queue": "dead letters to",
    "batch_size": "batch size",
    "max_concurrency": "max concurrency",
    "max_wait_time_ms": "max wait",
}
"""Names of the settings of queues and consumers, as they are printed."""


@click.command(epilog=examples("queues show mails", "queues show mails --json"))
@takes_broker(allowance=True)
@queue_argument("names", metavar="QUEUE...", nargs=-1, required=True)
@console.takes_json
def show(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Show the id, the settings and the consumers of each QUEUE."""
    with open_session(options) as session:
        found = [_read(session, session.queue(name)) for name in names]
    if as_json:
        console.emit(found)
        return
    for queue in found:
        _print(queue)


@click.command(
    epilog=examples(
        "queues update mails --keep 86400 --delay 5",
        "queues update mails --pause",
        "queues update mails --max-retries 100 --dead-letter-queue mails-dead",
    )
)
@takes_broker(allowance=True)
@queue_argument("names", metavar="QUEUE...", nargs=-1, required=True)
@takes_delay
@takes_keep
@click.option("--pause/--resume", "paused", default=None, help="Pause or resume delivery.")
@click.option(
    "--max-retries",
    type=click.IntRange(0, limits.MAX_RETRIES),
    help="Delete or dead-letter a message after this many retries.",
)
@click.option(
    "--retry-delay",
    type=click.IntRange(0, limits.DELAY_SECONDS),
    help="Delay messages that the consumer retries by this many seconds.",
)
@click.option(
    "--lease",
    type=click.IntRange(1, limits.VISIBILITY_TIMEOUT_SECONDS),
    help="Lease messages for this many seconds, unless a pull asks for another time.",
)
@click.option(
    "--dead-letter-queue",
    **QUEUE,
    help='Move dead letters of the consumer to QUEUE; "" for no queue.',
)
@console.takes_json
def update(
    options: Options,
    names: tuple[str, ...],
    *,
    delay: int | None,
    keep: int | None,
    paused: bool | None,
    max_retries: int | None,
    retry_delay: int | None,
    lease: int | None,
    dead_letter_queue: str | None,
    as_json: bool,
) -> None:
    """Change settings of each QUEUE and of its consumer; the others stay as they are."""
    settings = _given(delivery_delay=delay, message_retention_period=keep, delivery_paused=paused)
    consumer = _given(max_retries=max_retries, retry_delay=retry_delay)
    if lease is not None:
        consumer["visibility_timeout_ms"] = 1000 * lease
    if not settings and not consumer and dead_letter_queue is None:
        raise click.UsageError("name a setting to change, such as --keep 86400")
    with open_session(options) as session:
        queues = [session.queue(name) for name in names]
        if dead_letter_queue is not None:  # "" for none
            consumer["dead_letter_queue"] = dead_letter_queue and session.cloudflare_name(
                dead_letter_queue
            )
        changed = [
            _new_consumer(session, queue, consumer) if consumer else None for queue in queues
        ]
        for queue, new in zip(queues, changed, strict=True):
            if settings:
                session.call(session.client.edit_queue, queue, settings)
            if new is not None:
                session.call(session.client.replace_consumer, queue.id, new.pop("id"), new)
            if not as_json:
                click.echo(f"Changed queue {queue.name!r}: {in_words(settings | consumer)}.")
    if as_json:
        given = {"settings": settings, "consumer": consumer}
        console.emit([{"queue": queue.name, "id": queue.id, **given} for queue in queues])


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings of a queue or of its consumer, as people read them."""
    return ", ".join(
        f"{_LABELS.get(name, name)} {_value(name, settings[name])}" for name in settings
    )


def differing(session: Session, queue: Queue, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the *wanted* settings that the queue does not have."""
    settings = mapping(_read(session, queue).get("settings"))
    return {name: value for name, value in wanted.items() if settings.get(name) != value}


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _read(session: Session, queue: Queue) -> Mapping[str, Any]:
    """Return the API's JSON object of a queue."""
    return session.call(session.client.read_queue, queue.id)


def _new_consumer(session: Session, queue: Queue, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the consumer of *queue* with *changes*, as the API takes it, and its ``id``.

    Raises:
        CFQueuesError: The queue has no consumer, or several, or one that lacks the setting.
    """
    consumers = session.call(session.client.list_consumers, queue.id)
    if len(consumers) != 1:
        many = "no consumer" if not consumers else f"{len(consumers)} consumers"
        hint = f": create one with 'cfqueues queues create {queue.name} --pull'"
        raise CFQueuesError(f"queue {queue.name!r} has {many}{'' if consumers else hint}")
    [old] = consumers
    if "visibility_timeout_ms" in changes and old.get("type") != "http_pull":
        raise CFQueuesError(f"queue {queue.name!r} is consumed by a Worker, which has no --lease")
    settings = {**mapping(old.get("settings")), **changes}
    dead_letter_queue = settings.pop("dead_letter_queue", old.get("dead_letter_queue"))
    new = {"id": str(old.get("consumer_id")), "type": old.get("type"), "settings": settings}
    if dead_letter_queue:
        new["dead_letter_queue"] = dead_letter_queue
    script = old.get("script_name") or old.get("script")
    return new | ({"script_name": script} if script else {})


def _print(queue: Mapping[str, Any]) -> None:
    click.echo(f"{queue.get('queue_name')}")
    lines = {"id": queue.get("queue_id"), "created": queue.get("created_on")}
    lines |= {_LABELS.get(name, name): _value(name, value)
              for name, value in mapping(queue.get("settings")).items()}  # fmt: skip
    for name, value in lines.items():
        click.echo(f"  {name + ':':<18} {console.clean(str(value))}")
    consumers = objects(queue.get("consumers"))
    for consumer in consumers:
        kind = consumer.get("script_name") or consumer.get("script")
        text = f"Worker {kind}" if kind else "pull" if consumer.get("type") == "http_pull" else "?"
        settings = dict(mapping(consumer.get("settings")))
        if consumer.get("dead_letter_queue"):
            settings["dead_letter_queue"] = consumer["dead_letter_queue"]
        click.echo(console.clean(f"  {'consumer:':<18} {text}, {in_words(settings)}"))
    if not consumers:
        click.echo(f"  {'consumer:':<18} none")


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("_ms"):
        return console.duration(value / 1000)
    if isinstance(value, int) and name in (
        "delivery_delay",
        "message_retention_period",
        "retry_delay",
    ):
        return console.duration(value)
    return "none" if value in ("", None) else str(value)
