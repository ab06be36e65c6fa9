"""The group of all subcommands, found by looking into the folder."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Final

import click

_EXTRAS: Final = {"starlette": "emulator", "uvicorn": "emulator", "httptools": "emulator"}


class _Commands(click.Group):
    """Imports a subcommand's module when it is named."""

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


@click.command(cls=_Commands)
@click.version_option(package_name="kombu-cfqueues")
def commands() -> None:
    """Cloudflare Queues for Kombu and Celery: local emulator and tools."""
