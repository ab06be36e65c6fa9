"""The file of ``publish --state``: which lines are accepted, so that a later run can resume."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import click

from ._lines import Lines


class Journal:
    """The lines that are left, and a digest that detects that the source is a different one.

    Args:
        path: The file; None to keep nothing.
        lines: The lines to publish if the file does not exist; None for all lines.

    Attributes:
        left: Lines that are not accepted yet.
        last: Number of the last accepted line; 0 before the first.

    Raises:
        click.ClickException: The file cannot be read, or is not a state file.
        click.UsageError: Both *lines* and an existing file name the lines.
    """

    def __init__(self, path: Path | None, lines: Lines | None) -> None:
        self._path = path
        self._digest = ""
        self.left = lines or Lines()
        self.last = 0
        if path is not None and path.exists():
            if lines is not None:
                raise click.UsageError(
                    f"{path} exists and names the lines to publish: leave out --lines or --state"
                )
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text())
            self.left = Lines(state["left"])
            self.last, self._digest = int(state["last"]), str(state["digest"])
        except OSError as error:
            raise click.ClickException(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise click.ClickException(
                f"{path} was not written by 'cfqueues publish --state': name another file"
            ) from error

    def check(self, number: int, line: bytes) -> None:
        """Check a line that an earlier run published against its digest.

        Raises:
            click.ClickException: The line has changed.
        """
        if number == self.last and self._digest and _digest(line) != self._digest:
            raise click.ClickException(
                f"line {number:,} is not the line that was published: this is another source; "
                f"remove {self._path} to start over"
            )

    def accepted(self, numbers: list[int], last_line: bytes) -> None:
        """Record that these lines are in the queue.

        Args:
            numbers: Numbers of the lines, in order.
            last_line: The last of these lines.

        Raises:
            click.ClickException: The file cannot be written.
        """
        for number in numbers:
            self.left.remove(number)
        if numbers and numbers[-1] > self.last:
            self.last, self._digest = numbers[-1], _digest(last_line)
        if self._path is None:
            return
        state = {"left": str(self.left), "last": self.last, "digest": self._digest}
        new = self._path.with_name(self._path.name + ".new")
        try:
            new.write_text(json.dumps(state) + "\n")
            os.replace(new, self._path)  # noqa: PTH105  readers never see half of it
        except OSError as error:
            raise click.ClickException(
                f"{self._path} cannot be written: {error.strerror}"
            ) from error


def _digest(line: bytes) -> str:
    return hashlib.sha256(line.rstrip(b"\r\n")).hexdigest()[:16]
