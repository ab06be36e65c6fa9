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
            missing = (error.name or "").partition(".")[0]
            extra = _EXTRAS.get(missing)
            if extra is None:
                raise
            return _missing(cmd_name, missing, extra)
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is no Click command")
        return command


def _missing(name: str, package: str, extra: str) -> click.Command:
    """What stands for a command that lacks a package, so that --help still lists the others."""
    remedy = f"pip install 'kombu-cfqueues[{extra}]'"

    @click.command(
        name,
        short_help=f"Not installed: {remedy}",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def missing() -> None:
        raise click.ClickException(f"cfqueues {name} needs {package}: {remedy}")

    return missing


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
