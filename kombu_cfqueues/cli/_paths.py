"""Files that are named on the command line."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.paths import is_of_other_system


class FilePath(click.Path):
    """The path of a file that need not exist; refuses a Windows path on another system."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path, with ``~`` expanded to the user's home."""
        if is_of_other_system(str(value)):
            self.fail(f"{value!r} is a path of Windows, and this is another system", param, ctx)
        super().convert(str(value), param, ctx)  # fails for a folder
        return Path(str(value)).expanduser()


def absolute(option: str, path: Path | None) -> Path | None:
    """Return *path* as an absolute path; print it if *path* is relative."""
    if path is None or path.is_absolute():
        return path
    click.echo(f"{option} is {path.absolute()}", err=True)
    return path.absolute()
