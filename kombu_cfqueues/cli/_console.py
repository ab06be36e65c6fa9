"""What commands print: tables and lines for people, JSON for programs.

Where the output is no terminal it is plain lines, never wrapped, so that they can be searched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP: Final = 2
"""Blanks between two columns."""

FOLDED: Final = 10
"""A column of words is not folded to less."""

takes_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def terminal(*, err: bool = False) -> Console:
    """The terminal, with colours if it has them and NO_COLOR is not set."""
    # Nothing is found in the text and coloured by itself: it comes out of queues.
    return Console(file=sys.stderr if err else sys.stdout, highlight=False, markup=False)


def emit(value: Any, *, lines: bool = False) -> None:
    """Print JSON: indented, or one *lines* of a stream."""
    click.echo(json.dumps(value, indent=None if lines else 2, ensure_ascii=False, default=str))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()
) -> None:
    """Print a table; on a terminal it fits, elsewhere a row is a line.

    Args:
        columns: Their titles.
        rows: Their cells.
        numbers: Titles of the columns that are right-aligned.
    """
    rows = [[clean(cell) for cell in row] for row in rows]
    console = terminal()
    if console.is_terminal:
        console.print(grid(columns, rows, numbers=numbers, width=console.width))
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if title in numbers else cell.ljust(width)
            for title, cell, width in zip(columns, row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def grid(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    width: int,
) -> Table:
    """The same as a thing that Rich can draw: the first of its columns that fit into *width*."""
    drawn = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold")
    shown, left = 0, width
    for place, title in enumerate(columns):
        natural = max(len(title), *(len(row[place]) for row in rows), 1)
        # Words can be folded, numbers cannot.
        left -= GAP + (natural if title in numbers else min(natural, max(len(title), FOLDED)))
        if left < -GAP and shown >= 2:
            break
        drawn.add_column(
            title,
            justify="right" if title in numbers else "left",
            no_wrap=title in numbers,
            overflow="fold",
        )
        shown += 1
    for row in rows:
        drawn.add_row(*(Text(clean(cell)) for cell in row[:shown]))
    return drawn


def clean(text: str) -> str:
    """*text* without what a terminal would obey: it comes from whoever may publish."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def amount(count: int | None) -> str:
    """A number with separators; a question mark for one that is not known."""
    return "?" if count is None else f"{count:,}"


def plural(count: int, thing: str) -> str:
    """``1 message``, ``2 messages``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def size(count: int | None) -> str:
    """Bytes in the unit that fits."""
    if count is None:
        return "?"
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):  # noqa: B007  the last one is kept
        if amount < 1000:
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def span(seconds: float | None) -> str:
    """A time in its two largest units."""
    if seconds is None:
        return "?"
    left = max(0, round(seconds))
    parts: list[str] = []
    for name, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone, unless *yes* was said already.

    Raises:
        click.UsageError: Nobody can be asked.
        click.Abort: The answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: say --yes")
    click.confirm(question, abort=True, err=True)
