"""Where options come from: the broker URL, ``transport_options`` and the environment.

A setting that the URL lacks is taken from ``transport_options``, then from the URL in the variable
``CFQUEUES_BROKER_URL``, then from the variables ``CLOUDFLARE_ACCOUNT_ID`` and
``CLOUDFLARE_API_TOKEN``.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from .. import limits
from ..errors import ConfigurationError
from ..runtime.once import once
from .base_url import base_url
from .checks import CHECKED, checked, seconds
from .foreign import FOREIGN_OPTIONS, log_options, refuse_prefix
from .login import read_login
from .variables import BUDGET_VARIABLE, CONTROL_VARIABLE, HEALTH_VARIABLE

logger = logging.getLogger(__name__)

API_HOST: Final = urlsplit(limits.API_BASE_URL).hostname

_VARIABLES: Final = (
    ("budget_url", BUDGET_VARIABLE),
    ("control_url", CONTROL_VARIABLE),
    ("health_address", HEALTH_VARIABLE),
)
"""Options that are read from the environment where they are not given."""

REQUEST_RESERVE: Final = 30
"""Requests per window that we leave to the dashboard and other tools that use the same token."""

DEFAULT_REQUEST_BURST: Final = 60
"""Default of ``request_burst``."""

DEFAULT_REQUEST_RATE: Final = (
    limits.REQUESTS_PER_WINDOW - REQUEST_RESERVE - DEFAULT_REQUEST_BURST
) / limits.WINDOW_SECONDS
"""Default of ``request_rate`` for Cloudflare's API, in requests per second.

With it, burst and reserve, at most `limits.REQUESTS_PER_WINDOW` requests leave in any window.
"""

DEFAULT_LONGEST_PAUSE_SECONDS: Final = 10.0
"""Default of ``max_polling_interval``, where ``polling_interval`` is not longer."""

_KNOWN: Final = CHECKED | {"account_id", "api_token", "base_url"}

_KOMBU_OPTIONS: Final = frozenset(
    {
        "body_encoding",
        "deadletter_queue",
        "errback",
        "interval_max",
        "interval_start",
        "interval_step",
        "max_retries",
        "retry_errors",
    }
)
"""Transport options of Kombu: of its virtual transports, and of its retry policy."""

_OPTIONS_OF_A_RATE: Final = frozenset({"budget_scope", "budget_url", "request_burst"})
"""Options that have an effect only with a ``request_rate``."""


def has_control_url(transport_options: Mapping[str, Any] | None) -> bool:
    """Whether a control broker is given, even if its URL is invalid."""
    given = (transport_options or {}).get("control_url")
    return bool(given or os.environ.get(CONTROL_VARIABLE))


class Sources(NamedTuple):
    """All that the user has given, as `Options.read` documents it."""

    host: str | None
    port: int | None
    user: str | None
    password: str | Callable[[], str] | None
    virtual_host: str | None
    connect_timeout: float | None
    transport_options: Mapping[str, Any]
    environ: Mapping[str, str]

    def __repr__(self) -> str:
        return "Sources(**)"  # nearly every field may contain the token


def merge(sources: Sources) -> dict[str, Any]:
    """Return the checked fields of `Options`, without those that have their default.

    Raises:
        ConfigurationError: A setting is missing or wrong; the text names it.
    """
    given = sources.transport_options
    refuse_prefix(given)
    names = frozenset(name for name in given if isinstance(name, str))
    log_options(names)
    _warn_of_misspellings(names - set(FOREIGN_OPTIONS))
    if sources.virtual_host not in (None, "", "/"):
        raise ConfigurationError(
            # Do not show the path: after a mistake, such as a third slash, it contains the token.
            "the broker URL has a path, but Cloudflare Queues has no virtual hosts: write "
            "cfqueues://ACCOUNT_ID:API_TOKEN@/ or cfqueues://ACCOUNT_ID:API_TOKEN@HOST/, and use "
            "queue_name_prefix to keep applications apart"
        )
    values = checked(given)
    _warn_of_shown_passwords(_with_password(given))
    for name, variable in _VARIABLES:
        if name not in values and (value := sources.environ.get(variable)):
            values |= checked({name: value})
    if sources.connect_timeout and "connect_timeout" not in values:
        values["connect_timeout"] = seconds("connect_timeout", sources.connect_timeout)
    login = read_login(sources.user, sources.password, given, sources.environ)
    host, port = sources.host, sources.port
    if not host and given.get("base_url") is None:
        host, port = login.host, login.port
    values["base_url"] = base_url(
        host,
        port,
        given.get("base_url"),
        insecure=values.get("allow_insecure_http", False),
    )
    is_cloudflare = urlsplit(values["base_url"]).hostname == API_HOST
    login.check(is_cloudflare=is_cloudflare)
    values |= {"account_id": login.account_id, "api_token": login.api_token}
    return _completed(values, is_cloudflare=is_cloudflare)


def _completed(values: dict[str, Any], *, is_cloudflare: bool) -> dict[str, Any]:
    """Add the defaults that depend on other options."""
    if is_cloudflare:
        values.setdefault("request_rate", DEFAULT_REQUEST_RATE)
    shortest = values.get("polling_interval", 0.0)
    values.setdefault("max_polling_interval", max(shortest, DEFAULT_LONGEST_PAUSE_SECONDS))
    if values.get("request_rate") is not None:
        values.setdefault("max_in_flight", 1)
    else:
        for name in sorted(_OPTIONS_OF_A_RATE & values.keys()):
            _warn_without_rate(name, urlsplit(values["base_url"]).hostname)
    return values


def _with_password(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that hold a password although their names do not say so."""
    found = []
    for name in ("budget_url", "control_url"):
        url = given.get(name)
        with contextlib.suppress(ValueError):
            if isinstance(url, str) and urlsplit(url).password:
                found.append(name)
    return tuple(found)


@once
def _warn_of_shown_passwords(names: tuple[str, ...]) -> None:
    if "celery" not in sys.modules:
        return
    variables = {"budget_url": BUDGET_VARIABLE, "control_url": CONTROL_VARIABLE}
    for name in names:
        logger.warning(
            "the password in %s (transport_options) is shown by `celery report` and `celery "
            "inspect conf`, which mask only settings whose names say that they are secret: use "
            "the environment variable %s%s",
            name,
            variables[name],
            ", or a function that returns the URL" if name == "control_url" else "",
        )


@once  # for each set of options, and not for each connection
def _warn_of_misspellings(given: frozenset[str]) -> None:
    # Kombu and other software add keys of their own, so an unknown key is not an error.  A key that
    # is similar to one of ours is probably misspelled.
    for name in sorted(given - _KNOWN - _KOMBU_OPTIONS):
        similar = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.85)
        if similar:
            logger.warning(
                "transport option %r is unknown and has no effect: did you mean %r?",
                name,
                similar[0],
            )


@once
def _warn_without_rate(name: str, host: str | None) -> None:
    logger.warning(
        "option %r has no effect, because requests to %s are not limited: set request_rate, or "
        "remove the option",
        name,
        host,
    )
