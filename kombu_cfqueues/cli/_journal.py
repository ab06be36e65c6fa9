"""Which lines of a source are published, kept in a file: a run goes on where one ended."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import click

from ._lines import Lines


class Journal:
    """The lines that are left, and what tells that the source is still the same.

    Args:
        path: The file; None: nothing is kept.
        lines: What is to be done where the file says nothing yet; None: everything.

    Attributes:
        left: Lines that are not accepted yet.
        last: The last line that was accepted; 0 before the first.

    Raises:
        click.ClickException: The file cannot be read, or is no such file.
    """

    def __init__(self, path: Path | None, lines: Lines | None) -> None:
        self._path = path
        self._digest = ""
        self.left = lines or Lines()
        self.last = 0
        if path is not None and path.exists():
            if lines is not None:
                raise click.UsageError(f"--lines and {path}, which says other lines: leave one out")
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            kept = json.loads(path.read_text())
            self.left = Lines(kept["left"])
            self.last, self._digest = int(kept["last"]), str(kept["digest"])
        except OSError as error:
            raise click.ClickException(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise click.ClickException(
                f"{path} is not what 'cfqueues publish --state' writes: name another file"
            ) from error

    def check(self, number: int, line: bytes) -> None:
        """Make sure that a line that was published is the one that it was.

        Raises:
            click.ClickException: It is another one.
        """
        if number == self.last and self._digest and _digest(line) != self._digest:
            raise click.ClickException(
                f"line {number:,} is not the one that was published: this is another source; "
                f"remove {self._path} to begin anew"
            )

    def accepted(self, numbers: list[int], last_line: bytes) -> None:
        """Keep that these lines are in the queue; the last of them is *last_line*.

        Raises:
            click.ClickException: The file cannot be written.
        """
        for number in numbers:
            self.left.remove(number)
        if numbers and numbers[-1] > self.last:
            self.last, self._digest = numbers[-1], _digest(last_line)
        if self._path is None:
            return
        kept = {"left": str(self.left), "last": self.last, "digest": self._digest}
        new = self._path.with_name(self._path.name + ".new")
        try:
            new.write_text(json.dumps(kept) + "\n")
            os.replace(new, self._path)  # noqa: PTH105  never half of it
        except OSError as error:
            raise click.ClickException(
                f"{self._path} cannot be written: {error.strerror}"
            ) from error


def _digest(line: bytes) -> str:
    return hashlib.sha256(line.rstrip(b"\r\n")).hexdigest()[:16]
