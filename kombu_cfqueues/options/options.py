"""`Options`: the settings of one connection."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from .. import limits
from ..errors import ConfigurationError
from .address import HostPort
from .secret import ControlUrl, Secret, Token
from .sources import DEFAULT_LONGEST_PAUSE_SECONDS, DEFAULT_REQUEST_BURST, Sources, merge

LOOKUP_PERMITS: Final = 3
"""Maximum requests to find or create a queue or its pull consumer: a look-up, a creation, and one
in reserve."""

ACCOUNT_OPTIONS: Final = (
    "budget_scope",
    "budget_url",
    "connect_timeout",
    "doorbell",
    "max_in_flight",
    "read_timeout",
    "request_burst",
    "request_rate",
    "retry_uncertain",
    "spool_dir",
)
"""Options of an `Account`: the first connection of a process sets them for all connections."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of one connection.  Each field is the transport option of the same name.

    Attributes:
        account_id: The Cloudflare account, 32 hex digits.
        api_token: An API token with the permission *Account > Queues > Edit*, or a callable that
            returns one.  The callable is called for every request, so that tokens can be rotated.
        base_url: Base URL of the API, including ``/client/v4``.
        queues: Kombu's queue name -> Cloudflare's queue id.  These queues are never looked up.
        queue_name_prefix: Put before every queue name.
        create_missing_queues: Whether to create a queue that does not exist.
        body_format: ``"kombu"`` sends the message with its headers and properties, for Kombu and
            Celery consumers.  ``"plain"`` sends only its body, for consumers that do not know
            Kombu.
        content_type: Type of the body at Cloudflare: ``"text"`` or ``"json"``.
        compress_large: Whether to compress the body of a message that is too large otherwise.  Only
            with ``body_format="kombu"``, whose consumers decompress it.
        publish_mode: With ``"confirm"``, `publish` returns when Cloudflare has accepted the
            message.  With ``"spool"``, it returns when the message is on this machine's disk; it is
            delivered later.
        spool_dir: Folder of the spool; None means the user's state folder.
        spool_max_bytes: Maximum bytes that may wait in the spool.
        allow_insecure_http: Whether to allow plain http to another machine.
        unroutable: What happens to a message that no queue is bound for: ``"raise"`` raises
            `InvalidMessage`, ``"drop"`` drops it as AMQP does, and `stats` counts it.
        publish_timeout: Maximum seconds that one `publish` may take, including every retry.
        retry_uncertain: Whether to retry if the message may have arrived, which may duplicate it.
        request_rate: Publishing and admin requests per second; None means no limit.
        request_burst: Requests that may leave at once after a quiet time.
        budget_scope: What shares the allowance: all processes of the ``"host"``, or one
            ``"process"``.
        budget_url: Redis server through which all machines that name it share the allowance; None
            means that each machine has its own.  May hold a password.
        max_in_flight: Maximum number of publishing requests at one time for one queue.
        native_delay: Whether Celery's eta and countdown become the message's delay at Cloudflare.
        visibility_timeout: Seconds for which a pulled message is leased.
        pull_batch_size: Maximum number of messages in one pull.
        polling_interval: Seconds between two pulls of a queue that has just become empty.
        max_polling_interval: Seconds between two pulls of a queue that has long been empty; `read`
            makes it at least as long as ``polling_interval``, unless it is given.
        doorbell: With ``"host"``, a process that publishes wakes the consumers of the queue on this
            machine; with ``"everywhere"`` also those of other machines, through ``control_url``.
            With ``"off"``, it does not, and consumers only poll.
        control_url: URL of the control broker, which reaches all processes at once: for remote
            control, events and fanout exchanges.  A callable returns it at each connect.  None
            means that there is none.
        failover_after: With a list of URLs: seconds after which a consumer leaves a broker that it
            cannot pull from, for the next URL.
        health_address: Where a process that consumes answers health checks; None means nowhere.
        health_file: A file that such a process touches while it is healthy; None means none.
        consumer_max_retries: ``max_retries`` of the pull consumers that the library creates.
        dead_letter_queue: Kombu name of their dead-letter queue; None means no dead-letter queue.
        connect_timeout: Maximum seconds to wait for a TCP and TLS connection.
        read_timeout: Maximum seconds to wait for an answer.
    """

    account_id: str
    api_token: Token = field(repr=False)
    base_url: str = limits.API_BASE_URL
    queues: Mapping[str, str] = field(default_factory=dict)
    queue_name_prefix: str = ""
    create_missing_queues: bool = True
    body_format: Literal["kombu", "plain"] = "kombu"
    content_type: Literal["text", "json"] = "text"
    compress_large: bool = True
    publish_mode: Literal["confirm", "spool"] = "confirm"
    spool_dir: str | None = None
    spool_max_bytes: int = 1 << 30
    allow_insecure_http: bool = False
    unroutable: Literal["raise", "drop"] = "raise"
    publish_timeout: float = 30.0
    retry_uncertain: bool = True
    request_rate: float | None = None
    request_burst: int = DEFAULT_REQUEST_BURST
    budget_scope: Literal["host", "process"] = "host"
    budget_url: Secret | None = None
    max_in_flight: int = 4
    native_delay: bool = True
    visibility_timeout: float = 1800.0
    pull_batch_size: int = limits.PULL_MESSAGES
    polling_interval: float = 1.0
    max_polling_interval: float = DEFAULT_LONGEST_PAUSE_SECONDS
    doorbell: Literal["host", "everywhere", "off"] = "host"
    control_url: ControlUrl | None = field(default=None, repr=False)
    failover_after: float = 60.0
    health_address: HostPort | None = None
    health_file: str | None = None
    consumer_max_retries: int = limits.MAX_RETRIES
    dead_letter_queue: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.max_polling_interval < self.polling_interval:
            raise ConfigurationError(
                f"max_polling_interval ({self.max_polling_interval:g} s) must not be below "
                f"polling_interval ({self.polling_interval:g} s)"
            )
        if self.doorbell == "everywhere" and self.control_url is None:
            raise ConfigurationError(
                'doorbell="everywhere" rings through the control broker, and there is none: set '
                'control_url, or use doorbell="host"'
            )

    @property
    def shares_budget(self) -> bool:
        """Whether the processes of the machine share the allowance, where there is one."""
        return self.budget_scope == "host" or self.budget_url is not None

    @property
    def lookup_seconds(self) -> float:
        """Maximum seconds that a look-up waits for its permits: many at a low rate."""
        return LOOKUP_PERMITS / self.request_rate if self.request_rate else 0.0

    @property
    def host(self) -> str:
        """The host to which requests go."""
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
        """Merge and check the settings of URL, options and environment.  Makes no request.

        Args:
            host: Host of the URL; None and ``""`` mean Cloudflare's API.
            port: Port of the URL.
            user: User name of the URL: the account id.
            password: Password of the URL: the API token.
            virtual_host: Path of the URL; must be ``/`` or empty, as there are no virtual hosts.
            transport_options: Kombu's dictionary; unknown keys are ignored.
            connect_timeout: Kombu's own setting in seconds; the option of that name wins.
            environ: The environment variables.

        Raises:
            ConfigurationError: A setting is missing or wrong; the text names it.
        """
        given = transport_options or {}
        sources = Sources(host, port, user, password, virtual_host, connect_timeout, given, environ)
        try:
            return cls(**merge(sources))
        except ConfigurationError as error:
            # Some error reporters print local variables, and all of these may contain the token.
            del sources, given, user, password, virtual_host, transport_options, environ
            raise error.with_traceback(None) from None
