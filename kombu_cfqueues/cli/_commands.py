"""The group of all subcommands, found by looking into the folder."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any, Final

import click

from .. import __version__
from ..errors import CFQueuesError

_EXTRAS: Final = {
    "httptools": "emulator",
    "rich": "cli",
    "starlette": "emulator",
    "uvicorn": "emulator",
}


class _Commands(click.Group):
    """Imports a subcommand's module when it is named, and says its failures in a line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CFQueuesError as error:
            raise click.ClickException(in_words(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        folder = Path(__file__).parent
        modules = (module.name for module in pkgutil.iter_modules([str(folder)]))
        return sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        try:
            module = importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get(error.name or "")
            if extra is None:
                raise
            raise click.ClickException(
                f"cfqueues {cmd_name} needs {error.name}: pip install 'kombu-cfqueues[{extra}]'"
            ) from error
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is no Click command")
        return command


def in_words(error: CFQueuesError) -> str:
    """A failure in one line; it says what to do, and when."""
    text = " ".join(str(error).split())
    if not error.retry_after:
        return text
    return f"{text.rstrip('.')}. Try again in {error.retry_after:,.0f} s."


@click.command(cls=_Commands)
@click.version_option(__version__)
def commands() -> None:
    """Cloudflare Queues for Kombu and Celery: look into it, mend it, try it out.

    Exit status: 0 all is well, 1 something is not, 2 the command makes no sense as it is written.
    """
