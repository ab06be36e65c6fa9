"""``cfqueues spool``: what waits on this machine, since when, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from ..account import open_spool
from ..errors import CFQueuesError
from ..options import Options
from ..spool import QueueState, Refused, Spool
from ._broker import takes_broker


@click.group(invoke_without_command=True, short_help="Show what waits on this machine, and why.")
@takes_broker(token=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def command(context: click.Context, options: Options, as_json: bool) -> None:
    """Show what waits in this machine's spool; retry or drop what was refused."""
    if not Spool.available:
        raise click.ClickException("this system cannot have a spool")
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
@click.option("--all", "everything", is_flag=True, help="Every message that was refused.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_obj
def retry(spool: Spool, messages: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Let refused MESSAGES, named by their ids, be sent again."""
    count = _decide(spool, messages, everything, Spool.retry)
    if as_json:
        click.echo(json.dumps({"retried": count}))
        return
    click.echo(f"{count} wait again; they are sent by the next process that publishes, or relays.")


@command.command()
@click.argument("messages", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every message that was refused.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_obj
def drop(spool: Spool, messages: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Delete refused MESSAGES, named by their ids."""
    count = _decide(spool, messages, everything, Spool.drop)
    click.echo(json.dumps({"dropped": count}) if as_json else f"{count} deleted.")


def _decide(
    spool: Spool,
    messages: tuple[int, ...],
    everything: bool,
    decide: Callable[[Spool, list[int]], int],
) -> int:
    if everything == bool(messages):
        raise click.UsageError("name messages by their ids, or give --all")
    try:
        chosen = [refused.id for refused in spool.refused()] if everything else list(messages)
        return decide(spool, chosen)
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
    click.echo("Every process that uses this file shares one allowance of requests.\n")
    if not queues:
        click.echo("Nothing waits.")
        return
    for queue in queues:
        click.echo(_line(queue))
    for message in refused:
        click.echo(_refusal(message))
    if refused:
        click.echo("\n'cfqueues spool retry ID ...' sends them again, 'drop ID ...' deletes them.")


def _line(queue: QueueState) -> str:
    counts = {
        "waiting": queue.waiting,
        "waiting for their answer": queue.confirmed,
        "on their way": queue.sending,
        "refused": queue.refused,
    }
    parts = [f"{count:,} {words}" for words, count in counts.items() if count]
    parts.append(f"{queue.bytes:,} bytes")
    if queue.oldest_seconds is not None:
        parts.append(f"the oldest for {queue.oldest_seconds:,.0f} s")
    if queue.paused_seconds:
        parts.append(f"paused for {queue.paused_seconds:,.0f} s")
    why = f"\n    {queue.why}" if queue.why else ""
    return f"{queue.queue}: {', '.join(parts)}{why}"


def _refusal(message: Refused) -> str:
    return (
        f"  refused {message.id} ({message.queue}, {message.bytes:,} bytes, "
        f"{message.age_seconds:,.0f} s ago): {message.reason}"
    )
