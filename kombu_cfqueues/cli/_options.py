"""The options that name the account, as the help shows them; imports nothing of the library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import click

BROKER_OPTIONS = (
    click.option(
        "--broker",
        metavar="URL",
        help="Use this broker URL, the same as in the application. Prefer a variable: other users "
        "can see a command line with ps. CLOUDFLARE_ACCOUNT_ID and CLOUDFLARE_API_TOKEN supply "
        "what the URL lacks.  [default: CFQUEUES_BROKER_URL, or CELERY_BROKER_URL if it begins "
        "with cfqueues://]",
    ),
    click.option(
        "--spool-dir",
        metavar="DIR",
        help="Set the transport option spool_dir: the folder of the spool.  "
        "[default: the user's state folder]",
    ),
    click.option(
        "--base-url",
        metavar="URL",
        help="Set the transport option base_url: where the API is served.  "
        "[default: the host of the broker URL]",
    ),
    click.option(
        "--option",
        "-o",
        "pairs",
        metavar="NAME=VALUE",
        multiple=True,
        help="Set any other transport option, such as -o queue_name_prefix=shop-; repeatable.",
    ),
)

BROKER_NAMES: Final = frozenset(
    {"broker", "spool_dir", "base_url", "pairs", "request_rate", "request_burst"}
)
"""The parameters that these options set."""


def takes_broker_before(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a group, so that they may stand before the name of its command too."""

    @functools.wraps(function)
    def group(**given: Any) -> None:
        function(**{name: value for name, value in given.items() if name not in BROKER_NAMES})

    for option in reversed(BROKER_OPTIONS):
        group = option(group)
    return group
