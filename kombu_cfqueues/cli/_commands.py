"""The ``cfqueues`` command group, which finds its subcommands by listing this folder."""

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
"""Optional packages, and the extra of this package that installs each."""


class _Commands(click.Group):
    """Imports a subcommand's module on demand, and prints its failure as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CFQueuesError as error:
            raise click.ClickException(in_one_line(error)) from error

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
            raise TypeError(f"{module.__name__}.command is not a Click command")
        return command


def _missing(name: str, package: str, extra: str) -> click.Command:
    """Return a placeholder for a command that lacks a package, so that --help still works."""
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


def in_one_line(error: CFQueuesError) -> str:
    """Return the text of a failure on one line, with the time to wait before a retry."""
    text = " ".join(str(error).split())
    if not error.retry_after:
        return text
    return f"{text.rstrip('.')}. Try again in {error.retry_after:,.0f} s."


@click.command(cls=_Commands)
@click.version_option(__version__)
def commands() -> None:
    """Inspect, operate and try out Cloudflare Queues for Kombu and Celery.

    Exit status: 0 success, 1 failure or problem found, 2 usage error.
    """
