"""``cfqueues emulator``: Cloudflare's Queues API on this machine."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

import click

from ..emulator import ACCOUNT_ID, TOKEN, Emulator


@click.command()
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
def command(host: str, port: int, account: str, token: str, db: Path | None) -> None:
    """Serve Cloudflare's Queues API on this machine until Ctrl-C."""
    stopped = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()

    # Before the emulator starts, so that no signal finds it half-way.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        emulator = Emulator(host, port, account_id=account, token=token, db=db)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    try:
        emulator.start()
    except OSError as error:
        emulator.stop()
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from error
    with emulator:
        click.echo(_welcome(emulator))
        stopped.wait()
    click.echo("Stopped.")


def _welcome(emulator: Emulator) -> str:
    queues = f"{emulator.base_url}/accounts/{emulator.account_id}/queues"
    bearer = f'-H "Authorization: Bearer {emulator.token}"'
    return f"""\
Cloudflare Queues emulator, until Ctrl-C.

Broker URL for Kombu and Celery:
  {emulator.broker_url}

Make a queue, and publish to it by its queue_id:
  curl -XPOST {bearer} "{queues}" --data '{{ "queue_name": "jobs" }}'
  curl -XPOST {bearer} "{queues}/<queue_id>/messages" \\
    --data '{{ "body": {{ "greeting": "hello" }} }}'
"""
