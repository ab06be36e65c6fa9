"""``cfqueues emulator``: Cloudflare's Queues API on this machine."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ..emulator import ACCOUNT_ID, TOKEN, Emulator, Knobs
from ..emulator.fault_orders import seconds_of
from ..emulator.knobs import positions


@click.command(short_help="Serve Cloudflare's Queues API on this machine.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8787, show_default=True, help="Port; 0 takes a free one.")
@click.option("--account", default=ACCOUNT_ID, show_default=True, help="Id of the account.")
@click.option(
    "--token", default=TOKEN, show_default=True, help="API token; your own beyond loopback."
)
@click.option(
    "--db",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that keeps the queues; without it they end with the command.",
)
@click.option(
    "--rate-limit",
    type=click.IntRange(min=0),
    help="Requests a token may make in 5 minutes; Cloudflare allows 1200.  [default: no limit]",
)
@click.option(
    "--latency",
    default="0",
    show_default=True,
    help="Seconds each request takes, or a range: 0.1-2.",
)
@click.option(
    "--knob",
    "knobs",
    multiple=True,
    metavar="NAME=VALUE",
    help="How it behaves where nobody knows how Cloudflare does: json_pull_encoding=plain.",
)
@click.option(
    "--fault",
    "orders",
    multiple=True,
    metavar="FAULT",
    help='What is to go wrong: "error push status=503 times=3".',
)
@click.option("--json", "as_json", is_flag=True, help="Say where it is as JSON, in a line.")
def command(  # noqa: PLR0917 - one argument an option; Click passes them by name
    host: str,
    port: int,
    account: str,
    token: str,
    db: Path | None,
    rate_limit: int | None,
    latency: str,
    knobs: tuple[str, ...],
    orders: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve Cloudflare's Queues API on this machine until Ctrl-C."""
    stopped = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()

    # Before the emulator starts, so that no signal finds it half-way.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    turned = _knobs(knobs)
    if rate_limit is not None:
        turned["rate_limit"] = rate_limit
    try:
        emulator = Emulator(
            host,
            port,
            account_id=account,
            token=token,
            db=db,
            latency=_seconds(latency),
            **turned,
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    try:
        for order in orders:
            emulator.order_fault(order)
        emulator.start()
    except ValueError as error:
        emulator.stop()
        raise click.ClickException(f"--fault: {error}") from error
    except OSError as error:
        emulator.stop()
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from error
    with emulator:
        click.echo(json.dumps(_place(emulator)) if as_json else _welcome(emulator))
        stopped.wait()
    if not as_json:
        click.echo("Stopped.")


def _seconds(text: str) -> float | tuple[float, float]:
    try:
        return seconds_of(text)
    except ValueError as error:
        raise click.ClickException(f"--latency is a time or a range, not {text!r}") from error


def _knobs(given: tuple[str, ...]) -> dict[str, Any]:
    """Read ``name=value`` pairs; what is neither a number nor a boolean is text."""
    known = {knob.name for knob in fields(Knobs)}
    knobs: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name not in known:
            raise click.ClickException(f"--knob is NAME=VALUE; names: {', '.join(sorted(known))}")
        texts = [position for position in positions(name) if isinstance(position, str)]
        if value in texts:  # "5" and "409" are texts
            knobs[name] = value
            continue
        try:
            knobs[name] = json.loads(value.lower())
        except ValueError:
            knobs[name] = value
    return knobs


def _place(emulator: Emulator) -> dict[str, Any]:
    return {
        "broker_url": emulator.broker_url,
        "base_url": emulator.base_url,
        "page_url": emulator.page_url,
        "account_id": emulator.account_id,
        "token": emulator.token,
        "port": emulator.port,
    }


def _welcome(emulator: Emulator) -> str:
    queues = f"{emulator.base_url}/accounts/{emulator.account_id}/queues"
    bearer = f'-H "Authorization: Bearer {emulator.token}"'
    return f"""\
Cloudflare Queues emulator, until Ctrl-C.

Queues, messages and requests, live:
  {emulator.page_url}

Broker URL for Kombu and Celery:
  {emulator.broker_url}

Make a queue, and publish to it by its queue_id:
  curl -XPOST {bearer} "{queues}" --data '{{ "queue_name": "jobs" }}'
  curl -XPOST {bearer} "{queues}/<queue_id>/messages" \\
    --data '{{ "body": {{ "greeting": "hello" }} }}'
"""
