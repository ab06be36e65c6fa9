"""``cfqueues spool``: shows which messages wait on this machine, for how long, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..account import open_spool
from ..options import Options
from ..spool import Listing, QueueState, Refused, Spool
from . import _console as console
from ._broker import RawOptions, takes_broker
from ._help import examples


@click.group(
    invoke_without_command=True,
    epilog=examples("spool", "spool --spool-dir /var/lib/spool --json", "spool retry --all"),
)
@takes_broker(token=False, raw=True)
@console.takes_json
@click.pass_context
def command(context: click.Context, raw_options: RawOptions, as_json: bool) -> None:
    """Show the messages in this machine's spool; retry or drop those that were refused."""
    if context.invoked_subcommand is None:
        with _opened(raw_options.read()) as spool:
            _show(spool, as_json=as_json)


@command.command(epilog=examples("spool retry 7 8", "spool retry --all"))
@takes_broker(token=False)
@click.argument("messages", metavar="[ID]...", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Retry every refused message.")
@console.takes_json
def retry(options: Options, messages: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Send the refused messages with these IDs again."""
    count = _apply(options, messages, everything, Listing.retry)
    if as_json:
        click.echo(json.dumps({"retried": count}))
        return
    waiting = console.plural(count, "message")
    click.echo(f"{waiting} will be sent again by the next process that publishes or relays.")


@command.command(epilog=examples("spool drop 7", "spool drop --all"))
@takes_broker(token=False)
@click.argument("messages", metavar="[ID]...", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Drop every refused message.")
@console.takes_json
def drop(options: Options, messages: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Delete the refused messages with these IDs."""
    count = _apply(options, messages, everything, Listing.drop)
    deleted = f"Deleted {console.plural(count, 'message')}."
    click.echo(json.dumps({"dropped": count}) if as_json else deleted)


def _apply(
    options: Options,
    messages: tuple[int, ...],
    everything: bool,
    change: Callable[[Listing, list[int]], int],
) -> int:
    if everything == bool(messages):
        raise click.UsageError("give the ids of messages, or --all")
    with _opened(options) as spool:
        refused = {message.id for message in spool.listing.refused()}
        unknown = sorted(set(messages) - refused)
        if unknown:
            ids = ", ".join(map(str, unknown))
            raise click.ClickException(
                f"no refused message has the id {ids}, and nothing was changed: see 'cfqueues "
                "spool'"
            )
        return change(spool.listing, sorted(refused if everything else set(messages)))


@contextmanager
def _opened(options: Options) -> Iterator[Spool]:
    """Open the spool for a block."""
    if not Spool.available:
        raise click.ClickException("this system has no file locks, so it cannot have a spool")
    spool = open_spool(options)
    try:
        yield spool
    finally:
        spool.close()


def _show(spool: Spool, *, as_json: bool) -> None:
    queues, refused = spool.listing.queues(), spool.listing.refused()
    if as_json:
        shown: dict[str, Any] = {
            "file": str(spool.path),
            "queues": [queue._asdict() for queue in queues],
            "refused": [message._asdict() for message in refused],
        }
        click.echo(json.dumps(shown, indent=2))
        return
    click.echo(f"Spool: {spool.path}")
    click.echo("All processes that use this file share one request allowance.\n")
    if not queues:
        click.echo("No messages wait.")
        return
    for queue in queues:
        click.echo(_queue_line(queue))
    for message in refused:
        click.echo(_refused_line(message))
    if refused:
        click.echo(
            "\nSend them with 'cfqueues spool retry ID ...', or delete them with 'drop ID ...'."
        )


def _queue_line(queue: QueueState) -> str:
    counts = {
        "waiting": queue.waiting,
        "waiting for confirmation": queue.confirmed,
        "being sent": queue.sending,
        "refused": queue.refused,
    }
    parts = [f"{count:,} {state}" for state, count in counts.items() if count]
    parts.append(f"{queue.bytes:,} bytes")
    if queue.oldest_seconds is not None:
        parts.append(f"the oldest for {queue.oldest_seconds:,.0f} s")
    if queue.paused_seconds:
        parts.append(f"paused for {queue.paused_seconds:,.0f} s")
    why = f"\n    {queue.why}" if queue.why else ""
    return f"{queue.queue}: {', '.join(parts)}{why}"


def _refused_line(message: Refused) -> str:
    return (
        f"  refused {message.id} ({message.queue}, {message.bytes:,} bytes, "
        f"{message.age_seconds:,.0f} s ago): {message.reason}"
    )
