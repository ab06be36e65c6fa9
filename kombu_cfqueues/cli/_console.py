"""The output of commands: tables and lines for people, JSON for programs.

If the output is not a terminal, it is plain lines that are never wrapped, so that grep works on it.
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
"""Spaces between two columns."""

MIN_TEXT_WIDTH: Final = 10
"""Characters to which a column of text may be narrowed on a small terminal."""

takes_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def terminal(*, err: bool = False) -> Console:
    """Return the terminal, in colour if it supports colours and NO_COLOR is not set."""
    # Rich must not colour or interpret the text by itself: it comes from messages.
    return Console(file=sys.stderr if err else sys.stdout, highlight=False, markup=False)


def emit(value: Any, *, lines: bool = False) -> None:
    """Print JSON: indented, or with *lines* on one line, as an element of a stream."""
    click.echo(json.dumps(value, indent=None if lines else 2, ensure_ascii=False, default=str))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()
) -> None:
    """Print a table, fitted to the width of a terminal; if there is none, one line per row.

    Args:
        columns: Titles of the columns.
        rows: The cells of each row.
        numbers: Titles of the columns to align right.
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
    """Return the table for Rich, with as many of the first columns as fit into *width*."""
    drawn = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold")
    shown, left = 0, width
    for index, title in enumerate(columns):
        natural = max(len(title), *(len(row[index]) for row in rows), 1)
        # Text can be wrapped, numbers cannot.
        left -= GAP + (
            natural if title in numbers else min(natural, max(len(title), MIN_TEXT_WIDTH))
        )
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
    """Escape control characters, because the text comes from anyone who may publish."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def number(count: int | None) -> str:
    """Format a count with separators; an unknown one is a question mark."""
    return "?" if count is None else f"{count:,}"


def plural(count: int, thing: str) -> str:
    """Format a count and its noun: ``1 message``, ``2 messages``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def size(count: int | None) -> str:
    """Format a size in bytes with the unit that suits it."""
    if count is None:
        return "?"
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):  # noqa: B007  used after the loop
        if value < 1000:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Format a duration in its two largest units: ``4 min 5 s``."""
    if seconds is None:
        return "?"
    left = max(0, round(seconds))
    parts: list[str] = []
    for name, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def confirm(question: str) -> None:
    """Ask the user to confirm what cannot be undone.

    Raises:
        click.UsageError: Standard input is not a terminal.
        click.Abort: The user declined.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(
            "cannot ask for confirmation, because standard input is not a terminal: add --yes"
        )
    click.confirm(question, abort=True, err=True)
