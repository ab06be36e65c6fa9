"""``cfqueues relay``: delivers the spooled messages of this machine, in the foreground."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

import click

from ..account import Account
from ..errors import CFQueuesError
from ..options import Options
from ._broker import takes_broker


@click.command()
@takes_broker(allowance=True)
@click.option(
    "--interval",
    type=click.FloatRange(0.01, 60),
    default=0.5,
    show_default=True,
    help="Wait this many seconds between two checks of an empty spool.",
)
def command(options: Options, interval: float) -> None:
    """Deliver the messages that are spooled on this machine, until SIGTERM or Ctrl-C.

    Every process that spools also delivers. Run a relay on a machine where no such process lives
    long enough, or where threads cannot run.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stopped = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    account = Account.open(options)
    try:
        relay = account.publisher.relay
        click.echo(f"Delivering from {relay.path} until Ctrl-C.")
        relay.run(stopped, idle_seconds=interval)
    except CFQueuesError as error:
        raise click.ClickException(str(error)) from error
    finally:
        account.close()
    click.echo("Stopped.")
