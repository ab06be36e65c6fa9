"""``cfqueues spool``: shows which messages wait on this machine, for how long, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from ..account import open_spool
from ..errors import CFQueuesError
from ..options import Options
from ..spool import QueueState, Refused, Spool
from . import _console as console
from ._broker import takes_broker


@click.group(invoke_without_command=True)
@takes_broker(token=False)
@console.takes_json
@click.pass_context
def command(context: click.Context, options: Options, as_json: bool) -> None:
    """Show the messages in this machine's spool; retry or drop those that were refused."""
    if not Spool.available:
        raise click.ClickException("this system has no file locks, so it cannot have a spool")
    spool = open_spool(options)
    context.obj = spool
    if context.invoked_subcommand is None:
        try:
            _show(spool, as_json=as_json)
        except CFQueuesError as error:
            raise click.ClickException(str(error)) from error
        finally:
            spool.close()


@command.command()
@click.argument("messages", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Retry every refused message.")
@console.takes_json
@click.pass_obj
def retry(spool: Spool, messages: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Send the refused messages with the ids MESSAGES again."""
    count = _apply(spool, messages, everything, Spool.retry)
    if as_json:
        click.echo(json.dumps({"retried": count}))
        return
    waiting = console.plural(count, "message")
    click.echo(f"{waiting} will be sent again by the next process that publishes or relays.")


@command.command()
@click.argument("messages", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Drop every refused message.")
@console.takes_json
@click.pass_obj
def drop(spool: Spool, messages: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Delete the refused messages with the ids MESSAGES."""
    count = _apply(spool, messages, everything, Spool.drop)
    deleted = f"Deleted {console.plural(count, 'message')}."
    click.echo(json.dumps({"dropped": count}) if as_json else deleted)


def _apply(
    spool: Spool,
    messages: tuple[int, ...],
    everything: bool,
    change: Callable[[Spool, list[int]], int],
) -> int:
    if everything == bool(messages):
        raise click.UsageError("give the ids of messages, or --all")
    try:
        chosen = [refused.id for refused in spool.refused()] if everything else list(messages)
        return change(spool, chosen)
    except CFQueuesError as error:
        raise click.ClickException(str(error)) from error
    finally:
        spool.close()


def _show(spool: Spool, *, as_json: bool) -> None:
    queues, refused = spool.queues(), spool.refused()
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
