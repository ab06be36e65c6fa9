"""``cfqueues doctor``: reports what is wrong, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..errors import CFQueuesError
from ..options import Options
from . import _console as console
from ._broker import RawOptions, takes_broker
from ._celery_app import PUBLISHING_THREADS, Application, load
from ._celery_settings import examine_application, has_our_broker
from ._checks import Check, examine
from ._commands import in_one_line
from ._completion import queue_argument
from ._help import examples
from ._session import open_session
from ._settle import Fact, Probe, Stopped
from ._stop import stop_on_signals

_LABELS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM", "unknown": "unknown"}
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "unknown": "dim"}


@click.command(
    epilog=examples(
        "doctor", "doctor mails", "doctor -A project", "doctor --spool-dir /var/lib/spool"
    )
)
@takes_broker(allowance=True, raw=True)
@queue_argument("names", metavar="[QUEUE]...", nargs=-1)
@click.option(
    "--settle",
    is_flag=True,
    help="Find out how the API behaves where sources disagree, with a temporary queue and about "
    "40 requests.",
)
@click.option(
    "--app",
    "-A",
    metavar="APP",
    help="Check the settings of this Celery application, named as for 'celery -A', and use its "
    "broker URL and transport options.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="With --app: assume that this many threads of a process publish at the same time.  "
    f"[default: {PUBLISHING_THREADS}]",
)
@console.takes_json
def command(
    raw_options: RawOptions,
    names: tuple[str, ...],
    *,
    settle: bool,
    app: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check settings, network, token, request allowance and each QUEUE; say what to do.

    Makes about six requests and changes nothing. The exit status is 1 if there is a problem.
    """
    if settle:
        if names:
            raise click.UsageError("--settle uses a temporary queue: leave the queue names out")
        if app:
            raise click.UsageError("--settle asks an account and not an application: leave -A out")
        _print_facts(raw_options.read(), as_json=as_json)
        return
    if threads and not app:
        raise click.UsageError("--threads needs --app")
    found = _examine_with(app, raw_options, names, threads) if app else examine(raw_options, names)
    _print_checks(found, as_json=as_json)


def _examine_with(
    app: str, raw_options: RawOptions, names: tuple[str, ...], threads: int | None
) -> Iterator[Check]:
    """Check the settings of a Celery application, and then the account of its broker URL."""
    application = Application.of(load(app), raw_options.options, threads)
    yield from examine_application(application)
    if raw_options.source == "--broker":
        yield from examine(raw_options._replace(options=application.raw_options.options), names)
    elif has_our_broker(application):
        yield from examine(application.raw_options, names)


def _print_checks(found: Iterator[Check], *, as_json: bool) -> None:
    """Print each result when it is known, and end with the exit status."""
    checks = []
    for check in found:
        checks.append(check)
        if not as_json:
            _print_check(check)
    problems = sum(check.verdict == "problem" for check in checks)
    warnings = sum(check.verdict == "warning" for check in checks)
    if as_json:
        console.emit({"ok": not problems, "checks": [check._asdict() for check in checks]})
    else:
        click.echo(_summary(problems, warnings))
    sys.exit(1 if problems else 0)


def _print_facts(options: Options, *, as_json: bool) -> None:
    """Find out and print the facts; the temporary queue is deleted in any case."""
    found: list[Fact] = []
    failure = ""
    with open_session(options) as session, stop_on_signals() as stop:
        probe = Probe(session, stop)
        terminal = console.terminal(err=True)
        try:
            with terminal.status(f"Asking the API with queue {probe.name} ...") as status:
                for fact in probe.facts():
                    found.append(fact)
                    status.update(f"{len(found)} facts found, last {fact.name}")
        except CFQueuesError as error:
            failure = in_one_line(error)
        except (Stopped, KeyboardInterrupt):
            failure = "stopped by a signal before it was done"
        finally:
            left = probe.clean()
    if as_json:
        facts = [fact._asdict() for fact in found]
        console.emit({"facts": facts, "failure": failure or None, "left": left})
    else:
        click.echo()
        console.table(
            ["FACT", "ANSWER", "QUESTION", "EVIDENCE"],
            [[fact.name, fact.answer, fact.question, fact.evidence] for fact in found],
        )
    for text in left:
        click.echo(f"Error: could not delete queue {text}", err=True)
    if failure:
        raise click.ClickException(failure)
    if left:
        sys.exit(1)


def _print_check(check: Check) -> None:
    terminal = console.terminal()
    label, text = _LABELS[check.verdict], console.clean(check.text)
    if not terminal.is_terminal:
        click.echo(f"{label:<8} {check.name}: {text}")
        return
    line = Table.grid(padding=(0, 1))
    line.add_column(width=8)
    line.add_column(overflow="fold")
    line.add_row(Text(label, _STYLES[check.verdict]), Text(f"{check.name}: {text}"))
    terminal.print(Padding(line, 0))


def _summary(problems: int, warnings: int) -> str:
    if not problems and not warnings:
        return "No problems found."
    parts = [
        console.plural(count, thing)
        for count, thing in ((problems, "problem"), (warnings, "warning"))
        if count
    ]
    return ", ".join(parts) + "."
