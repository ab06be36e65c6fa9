"""``cfqueues emulator``: serves Cloudflare's Queues API on this machine."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from ..emulator import ACCOUNT_ID, TOKEN, Emulator, Knobs
from ..emulator.config import Config
from ..emulator.fault_orders import seconds_of
from ..emulator.knobs import positions as knob_positions
from ..emulator.snippets import TOKEN_VARIABLE
from ._address import cannot_listen, takes_address
from ._emulator_config import takes_config
from ._emulator_messages import export_command, import_command
from ._help import examples
from ._paths import FilePath, absolute
from ._stop import stop_on_signals


@click.group(
    invoke_without_command=True,
    epilog=examples(
        "emulator",
        "emulator --port 0 --json",
        "emulator --db queues.db --rate-limit 1200",
        'emulator --fault "error push status=503 times=3"',
    ),
)
@takes_config
@takes_address(port=8787)
@click.option("--account", default=ACCOUNT_ID, show_default=True, help="Set the id of the account.")
@click.option(
    "--token",
    default=TOKEN,
    envvar=TOKEN_VARIABLE,
    show_default=True,
    help="Set the API token; required if --host is not a loopback address. Prefer the variable "
    f"{TOKEN_VARIABLE}: other users can see a command line with ps.",
)
@click.option(
    "--db",
    type=FilePath(),
    help="Keep the queues in this file.  [default: in memory, until the command ends]",
)
@click.option(
    "--rate-limit",
    type=click.IntRange(min=0),
    help="Allow each token this many requests in 5 minutes; Cloudflare's limit is 1200.  "
    "[default: no limit]",
)
@click.option(
    "--latency",
    default="0",
    show_default=True,
    help="Delay each request by this many seconds, or by a range such as 0.1-2.",
)
@click.option(
    "--knob",
    "knobs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Choose a behaviour where that of Cloudflare is unknown, such as "
    "json_pull_encoding=plain; repeatable.",
)
@click.option(
    "--fault",
    "orders",
    multiple=True,
    metavar="FAULT",
    help='Inject a fault, such as "error push status=503 times=3"; repeatable.',
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print URLs, account and token as one line of JSON."
)
@click.pass_context
def command(  # noqa: PLR0917  one parameter per option; Click passes them by name
    context: click.Context,
    config: Config,
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
    if context.invoked_subcommand is not None:
        return
    positions = {**config.knobs, **_read_knobs(knobs)}
    if rate_limit is not None:
        positions["rate_limit"] = rate_limit
    given: dict[str, Any] = {"account_id": account, "token": token}
    given |= {"latency": _read_latency(latency), "db": absolute("--db", db), **positions}
    # Installed before the emulator starts, so that no signal interrupts its start.
    with stop_on_signals() as stop:
        try:
            emulator = Emulator(host, port, **given)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        _configure(emulator, config)
        _start(emulator, orders)
        with emulator:
            click.echo(json.dumps(_location(emulator)) if as_json else _welcome(emulator))
            stop.wait_for_signal()
    if not as_json:
        click.echo("Stopped.")


command.add_command(export_command)
command.add_command(import_command)


def _configure(emulator: Emulator, config: Config) -> None:
    try:
        config.apply(emulator)
    except ValueError as error:
        emulator.stop()
        raise click.UsageError(f"--config: {error}") from error


def _start(emulator: Emulator, orders: tuple[str, ...]) -> None:
    try:
        for order in orders:
            emulator.order_fault(order)
        emulator.start()
    except ValueError as error:
        emulator.stop()
        raise click.UsageError(f"--fault: {error}") from error
    except OSError as error:
        emulator.stop()
        raise cannot_listen("emulator", emulator.host, emulator.port, error) from error


def _read_latency(text: str) -> float | tuple[float, float]:
    try:
        return seconds_of(text)
    except ValueError as error:
        raise click.UsageError(
            f"--latency must be seconds or a range such as 0.1-2, not {text!r}"
        ) from error


def _read_knobs(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read ``name=value`` pairs; a value that is neither a number nor a boolean is text."""
    known = {knob.name for knob in fields(Knobs)}
    knobs: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--knob must be NAME=VALUE, not {pair!r}")
        if name not in known:
            raise click.UsageError(f"no knob is named {name!r}; knobs: {', '.join(sorted(known))}")
        texts = [position for position in knob_positions(name) if isinstance(position, str)]
        if value in texts:  # such as "5" and "409", which look like numbers
            knobs[name] = value
            continue
        try:
            knobs[name] = json.loads(value.lower())
        except (ValueError, RecursionError):
            knobs[name] = value
    return knobs


def _location(emulator: Emulator) -> dict[str, Any]:
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
Cloudflare Queues emulator. Ctrl-C stops it.

Page with live queues, messages and requests:
  {emulator.page_url}

Broker URL for Kombu, Celery and the cfqueues command:
  export CFQUEUES_BROKER_URL={emulator.broker_url}
{_elsewhere(emulator)}
Create a queue, and publish to it by its queue_id:
  curl -XPOST {bearer} "{queues}" --data '{{ "queue_name": "jobs" }}'
  curl -XPOST {bearer} "{queues}/<queue_id>/messages" \\
    --data '{{ "body": {{ "greeting": "hello" }} }}'
"""


def _elsewhere(emulator: Emulator) -> str:
    """Return how other machines and containers reach an emulator that listens for them."""
    if emulator.is_private:
        return ""
    login = f"{emulator.account_id}:{quote(emulator.token, safe='')}"
    return f"""
On other machines and in other containers, replace HOST with this machine's name or address:
  export CFQUEUES_BROKER_URL=cfqueues://{login}@HOST:{emulator.port}/
and set the transport option allow_insecure_http=True (command: -o allow_insecure_http=true).
If HOST has a dot and is not a private address, also set base_url="http://HOST:{emulator.port}".
"""
