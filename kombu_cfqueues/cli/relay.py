"""``cfqueues relay``: delivers the spooled messages of this machine, in the foreground."""

from __future__ import annotations

import logging

import click

from ..account import Account
from ..options import Options
from ._broker import takes_broker
from ._help import examples
from ._stop import stop_on_signals


@click.command(epilog=examples("relay", "relay --spool-dir /var/lib/spool --interval 0.1"))
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
    long enough, or where threads cannot run. An outage and its end are logged.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with stop_on_signals() as stop:
        account = Account.open(options)
        try:
            relay = account.publisher.relay
            click.echo(f"Delivering from {relay.path} until Ctrl-C.")
            relay.run(stop, idle_seconds=interval)
        finally:
            account.close()
    click.echo("Stopped.")
