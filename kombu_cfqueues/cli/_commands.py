"""The ``cfqueues`` command group, whose subcommands are imported when they are called."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Final

import click

from .. import __version__
from ..errors import CFQueuesError
from ..runtime.extras import install_command
from ._help import examples
from ._options import takes_broker_before

_HELP: Final = {
    "demo": "Publish and consume on an emulator, without an account.",
    "doctor": "Find out what is wrong, and what to do about it.",
    "emulator": "Serve Cloudflare's Queues API on this machine.",
    "exporter": "Export backlogs to Prometheus and KEDA.",
    "peek": "Show messages without consuming them.",
    "publish": "Publish messages from arguments, a file or a pipe.",
    "pull": "Take messages out of a queue, into a file.",
    "queues": "List, create, change, purge and delete queues.",
    "redrive": "Move dead letters back to their queue.",
    "relay": "Deliver the messages that are spooled on this machine.",
    "spool": "Show the messages that wait on this machine, and why.",
    "tail": "Show messages as they arrive.",
    "top": "Watch queues live.",
}
"""Short help of the commands.  It is here so that ``cfqueues --help`` imports none of them."""

_PACKAGES: Final = {
    "cli": ("rich",),
    "emulator": ("httptools", "starlette", "uvicorn"),
    "exporter": ("prometheus_client", "rich"),
}
"""The extras of this package, and the optional packages that each installs."""

_EXTRAS: Final = {
    "demo": "emulator",
    "emulator": "emulator",
    "exporter": "exporter",
    "relay": "",
}
"""The extra that a command needs, if it is not ``cli``."""


class _Commands(click.Group):
    """Imports a subcommand's module on demand, and prints its failure as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CFQueuesError as error:
            raise click.ClickException(in_one_line(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_HELP)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _short_help(name)) for name in self.list_commands(ctx)])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        try:
            module = importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            for extra, packages in _PACKAGES.items():
                if missing in packages:
                    return _missing(cmd_name, missing, extra)
            raise
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is not a Click command")
        return command


def _short_help(name: str) -> str:
    extra = _EXTRAS.get(name, "cli")
    if all(importlib.util.find_spec(package) for package in _PACKAGES.get(extra, ())):
        return _HELP[name]
    return f"Not installed: {_remedy(extra)}"


def _remedy(extra: str) -> str:
    return install_command(extra, next(iter(_PACKAGES.get(extra, ("click",)))))


def _missing(name: str, package: str, extra: str) -> click.Command:
    """Return a placeholder for a command that lacks a package."""

    @click.command(
        name,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def missing() -> None:
        raise click.ClickException(f"cfqueues {name} needs {package}: {_remedy(extra)}")

    return missing


def in_one_line(error: CFQueuesError) -> str:
    """Return the text of a failure on one line, with the time to wait before a retry."""
    text = " ".join(str(error).split())
    if not error.retry_after:
        return text
    return f"{text.rstrip('.')}. Try again in {error.retry_after:,.0f} s."


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples("demo", "doctor", "queues list", "peek mails"),
)
@takes_broker_before
@click.version_option(__version__)
def commands() -> None:
    """Inspect, operate and try out Cloudflare Queues for Kombu and Celery.

    The options below may also stand after the name of a command, if it uses an account.

    Exit status: 0 success, 1 failure or problem found, 2 usage error.
    """
