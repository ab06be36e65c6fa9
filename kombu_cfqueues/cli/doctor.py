"""``cfqueues doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

import sys

import click
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..errors import CFQueuesError
from ..options import Options
from . import _console as console
from ._broker import Given, takes_broker
from ._checks import Check, examine
from ._commands import in_words
from ._session import opened
from ._settle import Fact, Settle, Stopped
from ._stop import listening

_WORDS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM", "unknown": "unknown"}
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "unknown": "dim"}


@click.command(short_help="Find out what is wrong, and what to do.")
@takes_broker(allowance=True, unread=True)
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@click.option(
    "--settle",
    is_flag=True,
    help="Find out, with a queue made for it and deleted again, what is disputed about the API. "
    "Some 40 requests.",
)
@console.takes_json
def command(given: Given, names: tuple[str, ...], settle: bool, as_json: bool) -> None:
    """Check settings, network, token, allowance, and each QUEUE; say what to do.

    Half a dozen requests; nothing is changed. Exit status 1 if there is a problem.
    """
    if settle:
        if names:
            raise click.UsageError("--settle has a queue of its own: name none")
        _settle(given.read(), as_json=as_json)
        return
    checks = []
    for check in examine(given, names):
        checks.append(check)
        if not as_json:
            _tell(check)
    problems = sum(check.verdict == "problem" for check in checks)
    warnings = sum(check.verdict == "warning" for check in checks)
    if as_json:
        console.emit({"ok": not problems, "checks": [check._asdict() for check in checks]})
    else:
        click.echo(_summary(problems, warnings))
    sys.exit(1 if problems else 0)


def _settle(options: Options, *, as_json: bool) -> None:
    """Find out the facts, and delete the queue whatever happens."""
    found: list[Fact] = []
    failure = ""
    with opened(options) as session, listening() as stop:
        settle = Settle(session, stop)
        terminal = console.terminal(err=True)
        try:
            with terminal.status(f"Asking, with queue {settle.name} ...") as status:
                for fact in settle.facts():
                    found.append(fact)
                    status.update(f"{len(found)} found out: {fact.name}")
        except CFQueuesError as error:
            failure = in_words(error)
        except (Stopped, KeyboardInterrupt):
            failure = "it was stopped"
        finally:
            left = settle.clean()
    if as_json:
        facts = [fact._asdict() for fact in found]
        console.emit({"facts": facts, "failure": failure or None, "left": left})
    else:
        click.echo()
        console.table(
            ["FACT", "HERE", "QUESTION", "EVIDENCE"],
            [[fact.name, fact.answer, fact.question, fact.evidence] for fact in found],
        )
    for text in left:
        click.echo(f"Error: not deleted: {text}", err=True)
    if failure:
        raise click.ClickException(failure)
    if left:
        sys.exit(1)


def _tell(check: Check) -> None:
    terminal = console.terminal()
    word, text = _WORDS[check.verdict], console.clean(check.text)
    if not terminal.is_terminal:
        click.echo(f"{word:<8} {check.name}: {text}")
        return
    line = Table.grid(padding=(0, 1))
    line.add_column(width=8)
    line.add_column(overflow="fold")
    line.add_row(Text(word, _STYLES[check.verdict]), Text(f"{check.name}: {text}"))
    terminal.print(Padding(line, 0))


def _summary(problems: int, warnings: int) -> str:
    if not problems and not warnings:
        return "All is well."
    parts = [
        console.plural(count, thing)
        for count, thing in ((problems, "problem"), (warnings, "warning"))
        if count
    ]
    return ", ".join(parts) + "."
