"""What the user wants: URL, ``transport_options`` and environment as one frozen value.

A part that the URL leaves out is taken from ``transport_options``, then from the environment.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import logging
import math
import os
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from . import limits
from .errors import ConfigurationError

logger = logging.getLogger(__name__)

#: Some 30 years.  Sockets and locks refuse to wait much longer, with errors of their own.
MOST_SECONDS = 1e9

ACCOUNT_VARIABLE = "CLOUDFLARE_ACCOUNT_ID"
TOKEN_VARIABLE = "CLOUDFLARE_API_TOKEN"  # noqa: S105  the variable's name, not a token

#: Virtual transports take these from ``transport_options``, and Kombu's retry policy puts the rest
#: there: known names that are not ours, so no slips of the pen.
KOMBU_OPTIONS = frozenset(
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


class Secret(str):
    """A text that every ``repr``, and so every log of local variables, masks; none is pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**'"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API token is not pickled: another process reads its own")


Token = Secret | Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of one connection.  Each field is an option of the same name.

    Attributes:
        account_id: The Cloudflare account, 32 hex digits.
        api_token: An API token with the permission *Account > Queues > Edit*, or a callable that
            returns one; it is called for every request, so that tokens can be rotated.
        base_url: Where the API is served, up to and with ``/client/v4``.
        queues: Kombu's queue name -> Cloudflare's queue id.  These are never looked up.
        queue_name_prefix: Put before every queue name.
        create_missing_queues: Create a queue that does not exist, rather than fail.
        body_format: ``"kombu"``: the message with its headers and properties, for Kombu and Celery
            consumers.  ``"plain"``: only its body, for consumers that know nothing of Kombu.
        content_type: How the body is typed at Cloudflare: ``"text"`` or ``"json"``.
        publish_mode: ``"confirm"``: `publish` returns when Cloudflare has accepted the message.
            ``"spool"``: when it is on this machine's disk, from where it is delivered.
        spool_dir: Folder of the spool; None: the user's state folder.
        spool_max_bytes: Most bytes that may wait in the spool.
        allow_insecure_http: Allow plain http to a host that is not this machine.
        publish_timeout: Most seconds that one `publish` may take, every retry included.
        retry_uncertain: Retry when it is unknown whether the message arrived; may duplicate it.
        request_rate: Publishing and admin requests a second; None: no limit.
        request_burst: Requests that may leave at once after a quiet time.
        budget_scope: Who shares the allowance: ``"host"`` or ``"process"``.
        max_in_flight: Publishing requests at once for one queue.
        native_delay: Turn Celery's eta and countdown into the queue's own delay.
        visibility_timeout: Seconds for which a pulled message is leased.
        pull_batch_size: Most messages of one pull.
        polling_interval: Seconds between two pulls of a queue that has just become empty.
        max_polling_interval: Seconds between two pulls of a queue that has long been empty.
        consumer_max_retries: ``max_retries`` of the pull consumers that we create.
        dead_letter_queue: Kombu name of their dead-letter queue; None: none.
        connect_timeout: Most seconds to wait for a TCP and TLS connection.
        read_timeout: Most seconds to wait for an answer.
    """

    account_id: str
    api_token: Token = field(repr=False)
    base_url: str = limits.API_BASE_URL
    queues: Mapping[str, str] = field(default_factory=dict)
    queue_name_prefix: str = ""
    create_missing_queues: bool = True
    body_format: Literal["kombu", "plain"] = "kombu"
    content_type: Literal["text", "json"] = "text"
    publish_mode: Literal["confirm", "spool"] = "confirm"
    spool_dir: str | None = None
    spool_max_bytes: int = 1 << 30
    allow_insecure_http: bool = False
    publish_timeout: float = 30.0
    retry_uncertain: bool = True
    request_rate: float | None = None
    request_burst: int = 60
    budget_scope: Literal["host", "process"] = "host"
    max_in_flight: int = 4
    native_delay: bool = True
    visibility_timeout: float = 1800.0
    pull_batch_size: int = limits.PULL_MESSAGES
    polling_interval: float = 1.0
    max_polling_interval: float = 10.0
    consumer_max_retries: int = limits.MAX_RETRIES
    dead_letter_queue: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 10.0

    @property
    def host(self) -> str:
        """The host that requests go to."""
        return urlsplit(self.base_url).hostname or ""

    @classmethod
    def read(
        cls,
        *,
        host: str | None = None,
        port: int | None = None,
        user: str | None = None,
        password: str | Callable[[], str] | None = None,
        virtual_host: str | None = None,
        transport_options: Mapping[str, Any] | None = None,
        connect_timeout: float | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Options:
        """Merge and check what URL, options and environment say.

        Args:
            host: The URL's host; None or ``""``: Cloudflare's API.
            port: The URL's port.
            user: The URL's user name: the account id.
            password: The URL's password: the API token.
            virtual_host: The URL's path; there are no virtual hosts, so only ``/`` will do.
            transport_options: Kombu's dictionary; unknown keys are left alone.
            connect_timeout: Kombu's own setting, in seconds; an option of that name wins.
            environ: The environment.

        Raises:
            ConfigurationError: Something is missing or wrong; the text names it.
        """
        try:
            return _read(
                dict(transport_options or {}),
                environ,
                host=host,
                port=port,
                user=user,
                password=password,
                virtual_host=virtual_host,
                connect_timeout=connect_timeout,
            )
        except ConfigurationError as error:
            # Some reporters of errors print local variables, and all these may hold the token.
            del user, password, virtual_host, transport_options, environ
            raise error.with_traceback(None) from None


#: Options that belong to an `Account`: its first connection of a process sets them for all.
ACCOUNT_OPTIONS = (
    "budget_scope",
    "connect_timeout",
    "max_in_flight",
    "read_timeout",
    "request_burst",
    "request_rate",
    "retry_uncertain",
    "spool_dir",
)


def shown_place(
    host: str | None, port: int | None, transport_options: Mapping[str, Any] | None
) -> str:
    """Where requests go, as host or host:port for display; never raises.

    Args:
        host: The URL's host; None or ``""``: it has none.
        port: The URL's port.
        transport_options: For ``base_url``.
    """
    if host:
        return _netloc(host, port)
    base_url = (transport_options or {}).get("base_url")
    try:
        parts = urlsplit(base_url if isinstance(base_url, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    return _netloc(host, port) if host else urlsplit(limits.API_BASE_URL).netloc


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine, so that plain http shows the token to nobody else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(
    given: dict[str, Any],
    environ: Mapping[str, str],
    *,
    host: str | None,
    port: int | None,
    user: str | None,
    password: str | Callable[[], str] | None,
    virtual_host: str | None,
    connect_timeout: float | None,
) -> Options:
    _warn_of_slips(frozenset(name for name in given if isinstance(name, str)))
    if virtual_host not in (None, "", "/"):
        raise ConfigurationError(
            # Not the text: after a slip, such as a third slash before it, it holds the token.
            "the broker URL has a path, and Cloudflare Queues has no virtual hosts: it must look "
            "like cfqueues://ACCOUNT_ID:API_TOKEN@/ or cfqueues://ACCOUNT_ID:API_TOKEN@HOST/; use "
            "queue_name_prefix to keep applications apart"
        )
    values: dict[str, Any] = {
        name: _CHECKS[name](name, given[name])
        for name in _CHECKS
        if name in given and not (given[name] is None and name in _NONE_IS_UNSET)
    }
    if connect_timeout and "connect_timeout" not in values:
        values["connect_timeout"] = _seconds("connect_timeout", connect_timeout)
    insecure = values.get("allow_insecure_http", False)
    values["base_url"] = _base_url(host, port, given.get("base_url"), insecure=insecure)
    values["account_id"] = user or given.get("account_id") or environ.get(ACCOUNT_VARIABLE)
    token = password or given.get("api_token") or environ.get(TOKEN_VARIABLE)
    for name, value, place, variable in (
        ("account_id", values["account_id"], "user name", ACCOUNT_VARIABLE),
        ("api_token", token, "password", TOKEN_VARIABLE),
    ):
        if not value:
            raise ConfigurationError(
                f"no {name}: give it as the {place} of the broker URL "
                f"(cfqueues://ACCOUNT_ID:API_TOKEN@/), as transport_options[{name!r}], or in "
                f"the environment variable {variable}"
            )
    if not isinstance(values["account_id"], str):
        raise ConfigurationError("account_id must be a string")
    # Hashable, because connections with the same token find what they share by it.
    if not (isinstance(token, str) or (callable(token) and isinstance(token, Hashable))):
        raise ConfigurationError(
            "api_token must be a string, or a function or other hashable callable that returns one"
        )
    values["api_token"] = token if callable(token) else Secret(token)
    return _complete(values)


def _complete(values: dict[str, Any]) -> Options:
    """Fill in the defaults that depend on other options, and check options against each other."""
    api_host = urlsplit(limits.API_BASE_URL).hostname
    to_cloudflare = urlsplit(values["base_url"]).hostname == api_host
    account = values["account_id"]
    if to_cloudflare:
        if not re.fullmatch(r"[0-9a-fA-F]{32}", account):
            raise ConfigurationError(
                # Not the text: in a URL with a slip it is the token.
                f"account_id (the user name of the broker URL) has {len(account)} characters and "
                "is no Cloudflare account id, which is 32 hex digits (dashboard: account home, "
                "'Copy account ID')"
            )
        # rate * 300 + burst = 1,170: 30 below Cloudflare's limit, for the dashboard and other
        # tools that share the token's allowance.
        values.setdefault("request_rate", 3.7)
    if values.get("request_rate") is not None:
        values.setdefault("max_in_flight", 1)
    options = Options(**values)
    if options.max_polling_interval < options.polling_interval:
        raise ConfigurationError(
            f"max_polling_interval ({options.max_polling_interval:g} s) is below "
            f"polling_interval ({options.polling_interval:g} s)"
        )
    return options


def _base_url(host: str | None, port: int | None, option: Any, *, insecure: bool) -> str:
    """Where the API is: the URL's host first, else the option, else Cloudflare."""
    if option is not None:
        parts = _split(option)
        # The option completes a URL with the same host: its scheme and path are what a URL
        # cannot say, its port what this one does not.  Another host in the URL wins, so that
        # fail-over lists can use the option.
        if not host or (host.lower() == parts.hostname and port in (None, parts.port)):
            _demand_https(parts.scheme, parts.hostname, insecure=insecure)
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or limits.API_PATH}"
    if not host:
        return limits.API_BASE_URL
    scheme = "http" if is_loopback(host) else "https"
    return f"{scheme}://{_netloc(host, port)}{limits.API_PATH}"


def _split(base_url: Any) -> Any:
    try:
        parts = urlsplit(base_url if isinstance(base_url, str) else "")
        well_formed = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, well_formed = urlsplit(""), False
    if parts.username or parts.password:
        raise ConfigurationError("base_url holds a user or password; use account_id and api_token")
    if not well_formed or parts.query or parts.fragment:
        # A text with these may hold a secret.
        shown = "what was given" if set("@?#") & set(str(base_url)) else repr(base_url)
        raise ConfigurationError(
            f"base_url must look like 'https://host' or 'https://host/client/v4', not {shown}"
        )
    return parts


def _demand_https(scheme: str, host: str, *, insecure: bool) -> None:
    if scheme == "https" or is_loopback(host):
        return
    if not insecure:
        raise ConfigurationError(
            f"base_url asks for plain http to {host}, which would show the API token to everyone "
            "on the way: use https, or set allow_insecure_http=True if that network is yours"
        )
    logger.warning("the API token travels unencrypted to %s (allow_insecure_http is set)", host)


def _netloc(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1"):
        return True
    if isinstance(value, str) and value.lower() in ("false", "no", "off", "0"):
        return False
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise ConfigurationError(f"{name} must be true or false, not {value!r}")


def _number(name: str, value: Any, *, least: float, most: float = math.inf) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (least <= number <= most) or math.isinf(number):
        bounds = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
        raise ConfigurationError(f"{name} must be a number, {bounds}; not {value!r}")
    return number


def _integer(name: str, value: Any, *, least: int, most: float = math.inf) -> int:
    number = _number(name, value, least=least, most=most)
    if number != int(number):
        raise ConfigurationError(f"{name} must be a whole number, not {value!r}")
    return int(number)


def _seconds(name: str, value: Any, least: float = 0.001) -> float:
    return _number(name, value, least=least, most=MOST_SECONDS)


def _rate(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value, least=0.001)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, not {value!r}")
    return value


def _path(name: str, value: Any) -> str:
    try:
        return str(os.fspath(value))
    except TypeError:
        raise ConfigurationError(f"{name} must be a path, not {value!r}") from None


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


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "queues": _queue_ids,
    "queue_name_prefix": _text,
    "create_missing_queues": _flag,
    "body_format": _one_of("kombu", "plain"),
    "content_type": _one_of("text", "json"),
    "publish_mode": _one_of("confirm", "spool"),
    "spool_dir": _path,
    "spool_max_bytes": functools.partial(_integer, least=1),
    "allow_insecure_http": _flag,
    "publish_timeout": _seconds,
    "retry_uncertain": _flag,
    "request_rate": _rate,
    "request_burst": functools.partial(_integer, least=1),
    "budget_scope": _one_of("host", "process"),
    "max_in_flight": functools.partial(_integer, least=1),
    "native_delay": _flag,
    "visibility_timeout": functools.partial(
        _number, least=1, most=limits.VISIBILITY_TIMEOUT_SECONDS
    ),
    "pull_batch_size": functools.partial(_integer, least=1, most=limits.PULL_MESSAGES),
    "polling_interval": functools.partial(_seconds, least=0),
    "max_polling_interval": functools.partial(_seconds, least=0),
    "consumer_max_retries": functools.partial(_integer, least=0, most=limits.MAX_RETRIES),
    "dead_letter_queue": _text,
    "connect_timeout": _seconds,
    "read_timeout": _seconds,
}

#: For these, None says something: no limit.
_NONE_IS_UNSET = frozenset(_CHECKS) - {"request_rate"}


@functools.lru_cache(maxsize=256)  # said once for each set of options, not by each connection
def _warn_of_slips(given: frozenset[str]) -> None:
    known = {option.name for option in fields(Options)}
    for name in sorted(given - known - KOMBU_OPTIONS):
        # Kombu and others add keys of their own, so an unknown one is no error; one that is almost
        # ours is probably meant to be.
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if close:
            logger.warning(
                "transport option %r is unknown and has no effect: is %r meant?", name, close[0]
            )
