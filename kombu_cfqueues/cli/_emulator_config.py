"""The option ``--config`` of ``cfqueues emulator``: a file with settings."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from ..emulator.config import Config, load

_OPTIONS = {"account_id": "account"}
"""Settings whose option has another name."""


def _read(context: click.Context, parameter: click.Parameter, value: Path | None) -> Config:
    if value is None:
        return Config()
    try:
        config = load(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    # Options on the command line override the file.
    context.default_map = {
        _OPTIONS.get(name, name): str(setting) if name == "latency" else setting
        for name, setting in config.server.items()
    }
    return config


takes_config: Final = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,  # before the options whose defaults it sets
    callback=_read,
    help="Read queues, consumers, knobs, faults and options from this TOML file, or queues from a "
    "wrangler.jsonc. Options of the command override those of the file.",
)
"""Adds the option to a command, which gets a `Config` as ``config``."""
