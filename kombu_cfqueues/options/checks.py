"""The check of each option: it returns the value with its type, or raises `ConfigurationError`."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Final, cast
from urllib.parse import urlsplit

from .. import limits
from ..errors import ConfigurationError
from ..runtime.once import Once
from ..runtime.paths import is_of_other_system
from .address import HostPort
from .secret import ControlUrl, Secret

logger = logging.getLogger(__name__)

MAX_SECONDS: Final = 1e9
"""Maximum of every timeout, about 30 years.  Sockets and locks refuse longer ones."""


_made_absolute: Final = Once()


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1"):
        return True
    if isinstance(value, str) and value.lower() in ("false", "no", "off", "0"):
        return False
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise ConfigurationError(f"{name} must be true or false, not {value!r}")


def _number(name: str, value: Any, *, minimum: float, maximum: float = math.inf) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (minimum <= number <= maximum) or math.isinf(number):
        bounds = f"from {minimum:g} to {maximum:g}"
        if math.isinf(maximum):
            bounds = f"of at least {minimum:g}"
        raise ConfigurationError(f"{name} must be a number {bounds}, not {value!r}")
    return number


def _integer(name: str, value: Any, *, minimum: int, maximum: float = math.inf) -> int:
    number = _number(name, value, minimum=minimum, maximum=maximum)
    if number != int(number):
        raise ConfigurationError(f"{name} must be a whole number, not {value!r}")
    return int(number)


def seconds(name: str, value: Any, minimum: float = 0.001) -> float:
    """Return *value* as a time in seconds."""
    return _number(name, value, minimum=minimum, maximum=MAX_SECONDS)


def _rate(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value, minimum=0.001)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, not {value!r}")
    return value


def _prefix(name: str, value: Any) -> str:
    prefix = _text(name, value)
    # A prefix with letters outside ASCII is enough: it adds a hash to the name.
    if prefix and prefix.isascii() and not re.search("[A-Za-z0-9]", prefix):
        raise ConfigurationError(
            f"{name} {prefix!r} has no letter or digit. Cloudflare allows only letters, digits and "
            "dashes in a queue's name, so this prefix would have no effect: add a letter or digit"
        )
    return prefix


def _queue_name(name: str, value: Any) -> str:
    queue = _text(name, value)
    if limits.ID.fullmatch(queue):
        raise ConfigurationError(f"{name} must be the name of a queue, and {queue!r} is an id")
    return queue


def _path(name: str, value: Any) -> str:
    try:
        path = os.fsdecode(os.fspath(value))
    except TypeError:
        raise ConfigurationError(f"{name} must be a path, not {value!r}") from None
    if is_of_other_system(path):
        raise ConfigurationError(
            f"{name} {path!r} is a path of Windows, and this is another system: write it with /"
        )
    full = os.path.expanduser(path)  # noqa: PTH111  the option is a text
    if os.path.isabs(full):  # noqa: PTH117
        return full
    # Processes that share the path may run in different folders.
    full = os.path.abspath(full)  # noqa: PTH100
    if _made_absolute.is_new(full):
        logger.warning("%s %r is relative, so %s is used: set an absolute path", name, path, full)
    return full


def _budget_url(name: str, value: Any) -> Secret:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        is_right = parts and parts.scheme in ("redis", "rediss") and parts.hostname
        if is_right and parts and parts.port != 0 and not parts.fragment:
            return Secret(value)
    except ValueError:
        pass
    raise ConfigurationError(
        f"{name} must be the URL of a Redis server, such as redis://:PASSWORD@HOST:6379/0 or "
        "rediss://... (it is not shown, because it may hold a password); percent-encode the "
        "password (urllib.parse.quote(password, safe=''))"
    )


def _control_url(name: str, value: Any) -> ControlUrl:
    if callable(value) and isinstance(value, Hashable):
        return cast("ControlUrl", value)
    scheme, separator, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not (scheme and separator) or "cfqueues" in scheme or (not rest and scheme != "memory"):
        raise ConfigurationError(
            f"{name} must be the URL of a broker that can broadcast, such as "
            "redis://:PASSWORD@HOST:6379/1, amqp://USER:PASSWORD@HOST// or "
            "cfhub://:TOKEN@HOST/NAMESPACE, or a function that returns one (it is not shown, "
            "because it may hold a password); percent-encode the password "
            "(urllib.parse.quote(password, safe=''))"
        )
    return Secret(value)


def _one_of(*allowed: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}; not {value!r}")
        return str(value)

    return check


def _queue_ids(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a dictionary of queue names and queue ids")
    for queue, queue_id in value.items():
        if not (isinstance(queue_id, str) and re.fullmatch(r"[A-Za-z0-9_-]+", queue_id)):
            raise ConfigurationError(
                f"{name}[{queue!r}] must be a Cloudflare queue id (32 hex digits), not {queue_id!r}"
            )
    return {str(queue): queue_id for queue, queue_id in value.items()}


def _lease(name: str, value: Any) -> float:
    try:
        return _number(name, value, minimum=1, maximum=limits.VISIBILITY_TIMEOUT_SECONDS)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error}: Cloudflare's longest lease is 12 hours (a task that takes longer runs "
            "twice; an eta needs no lease, because the queue holds the task)"
        ) from None


_CHECKS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "queues": _queue_ids,
    "queue_name_prefix": _prefix,
    "create_missing_queues": _flag,
    "body_format": _one_of("kombu", "plain"),
    "content_type": _one_of("text", "json"),
    "compress_large": _flag,
    "publish_mode": _one_of("confirm", "spool"),
    "spool_dir": _path,
    "spool_max_bytes": partial(_integer, minimum=1),
    "allow_insecure_http": _flag,
    "unroutable": _one_of("raise", "drop"),
    "publish_timeout": seconds,
    "retry_uncertain": _flag,
    "request_rate": _rate,
    "request_burst": partial(_integer, minimum=1),
    "budget_scope": _one_of("host", "process"),
    "budget_url": _budget_url,
    "max_in_flight": partial(_integer, minimum=1),
    "native_delay": _flag,
    "visibility_timeout": _lease,
    "pull_batch_size": partial(_integer, minimum=1, maximum=limits.PULL_MESSAGES),
    "polling_interval": partial(seconds, minimum=0),
    "max_polling_interval": partial(seconds, minimum=0),
    "control_url": _control_url,
    "doorbell": _one_of("host", "everywhere", "off"),
    "failover_after": seconds,
    "health_address": HostPort.read,
    "health_file": _path,
    "consumer_max_retries": partial(_integer, minimum=0, maximum=limits.MAX_RETRIES),
    "dead_letter_queue": _queue_name,
    "connect_timeout": seconds,
    "read_timeout": seconds,
}

CHECKED: Final = frozenset(_CHECKS)
"""The options that have a check."""


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all options in *given* that have a check.

    None means that an option is not given, except for ``request_rate``, where it means no limit.

    Raises:
        ConfigurationError: A value is wrong; the text names its option.
    """
    return {
        name: check(name, given[name])
        for name, check in _CHECKS.items()
        if name in given and (given[name] is not None or name == "request_rate")
    }
