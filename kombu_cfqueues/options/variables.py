"""The environment variables, and what they supply where the broker URL lacks something."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from ..errors import ConfigurationError
from .broker_url import BrokerUrl

BROKER_VARIABLE: Final = "CFQUEUES_BROKER_URL"
ACCOUNT_VARIABLE: Final = "CLOUDFLARE_ACCOUNT_ID"
TOKEN_VARIABLE: Final = "CLOUDFLARE_API_TOKEN"  # noqa: S105  the variable's name, not a token
BUDGET_VARIABLE: Final = "CFQUEUES_BUDGET_URL"
CONTROL_VARIABLE: Final = "CFQUEUES_CONTROL_URL"
HEALTH_VARIABLE: Final = "CFQUEUES_HEALTH_ADDRESS"


def url_of(environ: Mapping[str, str]) -> BrokerUrl:
    """Return the broker URL of the environment, without any part if it is not set.

    Raises:
        ConfigurationError: It cannot be read, or has a path.
    """
    text = environ.get(BROKER_VARIABLE, "")
    if not text:
        return BrokerUrl()
    url = BrokerUrl.parse(text.split(";")[0])
    fault = url.fault or (
        "the broker URL has a path: remove it" if url.virtual_host not in ("", "/") else ""
    )
    if fault:
        raise ConfigurationError(f"{fault} (see {BROKER_VARIABLE})")
    return url


def place_of(environ: Mapping[str, str] = os.environ) -> tuple[str | None, int | None]:
    """Return host and port of the environment's broker URL, for display.  Never raises."""
    try:
        url = url_of(environ)
    except ConfigurationError:
        return None, None
    return url.host, url.port
