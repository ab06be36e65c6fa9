"""``cfqueues exporter``: backlogs for Prometheus and KEDA."""

from __future__ import annotations

import sys

import click

from ..errors import CFQueuesError
from ..options import HostPort, Options
from . import _console as console
from ._address import cannot_listen, takes_address
from ._backlogs import ALLOWANCE_PER_DAY, Backlogs
from ._broker import takes_broker
from ._commands import in_one_line
from ._exporter_server import ExporterServer
from ._help import examples
from ._session import open_session
from ._stop import Stop, stop_on_signals


@click.command(epilog=examples("exporter", "exporter mails reports --interval 60"))
@takes_broker(allowance=True)
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@takes_address(port=9811)
@click.option(
    "--interval",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="Read each queue once per this many seconds, with one request. Readings use at most a "
    "quarter of the request rate, so with very many queues they take longer.",
)
def command(
    options: Options, names: tuple[str, ...], host: str, port: int, interval: float
) -> None:
    """Export the backlog of each QUEUE, or of all queues, until Ctrl-C.

    /metrics has messages, bytes and age of the oldest message for Prometheus; /queues/QUEUE has
    the same as JSON, for KEDA's metrics-api scaler. Requests of Prometheus and KEDA are answered
    from the last reading. There is no login: listen only where you trust the network.
    """
    with stop_on_signals() as stop, open_session(options) as session:
        backlogs = Backlogs(session, names, interval)
        failure = backlogs.update()
        try:
            server = ExporterServer(HostPort(host, port), backlogs)
        except OSError as error:
            raise cannot_listen("exporter", host, port, error) from error
        server.start()
        click.echo(_greeting(server, backlogs))
        _keep_up(backlogs, stop, failure)
        server.shutdown()
        server.server_close()
    sys.exit(0)


def _keep_up(backlogs: Backlogs, stop: Stop, failure: CFQueuesError | None) -> None:
    """Update until the command is told to stop; print when updates begin to fail and recover."""
    failed = False
    while True:
        if failure is not None and not failed:
            click.echo(f"Reading failed, trying again: {in_one_line(failure)}", err=True)
        elif failure is None and failed:
            click.echo("Every queue is read again.", err=True)
        failed = failure is not None
        if stop.wait(backlogs.pause()):
            return
        failure = backlogs.update()


def _greeting(server: ExporterServer, backlogs: Backlogs) -> str:
    count = console.plural(len(backlogs.states()), "queue")
    per_day = backlogs.requests_per_day()
    return (
        f"Exporting {count} at http://{server.listens_at}/metrics, read every "
        f"{backlogs.pause():g} s: {per_day:,.0f} requests per day, "
        f"{per_day / ALLOWANCE_PER_DAY:.1%} of the allowance of a token."
    )
