"""Settings of Kombu's other transports that have no effect here, and what to use instead.

Applications that move from Redis, SQS or RabbitMQ often keep these settings.  A warning says that
they have no effect.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from ..errors import ConfigurationError
from ..runtime.once import Once

logger = logging.getLogger(__name__)

_NO_FANOUT: Final = "Cloudflare Queues cannot broadcast; see control_url"
_NO_PRIORITY: Final = "Cloudflare Queues has no priorities: use one queue for each priority"
_NO_REDIS: Final = "there is no Redis connection"
_NO_AWS: Final = "there is no AWS account"
_NO_COPY: Final = "an unsettled message stays at Cloudflare, leased for visibility_timeout seconds"
_DEAD_LETTERS: Final = "use the transport option dead_letter_queue"
_RETENTION: Final = (
    "set the retention of the queue in Cloudflare's dashboard, or publish with expiration"
)
_NO_LENGTH: Final = "only Cloudflare's own limits bound the length of a queue"

FOREIGN_OPTIONS: Final[Mapping[str, str]] = {
    # Redis
    "ack_emulation": _NO_COPY,
    "fanout_patterns": _NO_FANOUT,
    "fanout_prefix": _NO_FANOUT,
    "health_check_interval": _NO_REDIS,
    "master_name": _NO_REDIS,
    "max_connections": "use max_in_flight for requests at one time",
    "priority_steps": _NO_PRIORITY,
    "queue_order_strategy": "the queue that is due first is pulled first",
    "retry_on_timeout": "failed requests are retried for at most publish_timeout seconds",
    "sep": _NO_PRIORITY,
    "sentinel_kwargs": _NO_REDIS,
    "socket_connect_timeout": "use connect_timeout",
    "socket_keepalive": _NO_REDIS,
    "socket_keepalive_options": _NO_REDIS,
    "socket_timeout": "use read_timeout for an answer, and publish_timeout for a whole publish",
    "unacked_index_key": _NO_COPY,
    "unacked_key": _NO_COPY,
    "unacked_mutex_expire": _NO_COPY,
    "unacked_mutex_key": _NO_COPY,
    "unacked_restore_interval": _NO_COPY,
    "unacked_restore_limit": _NO_COPY,
    # SQS
    "backoff_policy": "a retry has the delay that the task gives it",
    "backoff_tasks": "a retry has the delay that the task gives it",
    "client-config": "use connect_timeout and read_timeout",
    "endpoint_url": "use base_url",
    "is_secure": "https is used, except for this machine: see allow_insecure_http",
    "port": "use base_url, or a port in the broker URL",
    "predefined_exchanges": _NO_FANOUT,
    "predefined_queues": "use queues, which maps names to queue ids; create_missing_queues=False",
    "queue_tags": _NO_AWS,
    "region": "choose a queue's jurisdiction when you create it in Cloudflare's dashboard",
    "regioninfo": _NO_AWS,
    "sqs-creation-attributes": "set attributes of a queue in Cloudflare's dashboard",
    "sqs_base64_encoding": "use content_type and body_format",
    "sts_role_arn": _NO_AWS,
    "sts_token_timeout": _NO_AWS,
    "supports_fanout": _NO_FANOUT,
    "wait_time_seconds": (
        "Cloudflare has no long poll: use polling_interval and max_polling_interval"
    ),
    # RabbitMQ
    "confirm_publish": "every publish is confirmed, unless publish_mode is 'spool'",
    "login_method": "use api_token",
}
"""Transport options by name."""

QUEUE_ARGUMENTS: Final[Mapping[str, str]] = {
    "x-consumer-timeout": "use the transport option visibility_timeout",
    "x-dead-letter-exchange": _DEAD_LETTERS,
    "x-dead-letter-routing-key": _DEAD_LETTERS,
    "x-delivery-limit": "use the transport option consumer_max_retries",
    "x-expires": "delete the queue when it is no longer used, or declare it with auto_delete",
    "x-max-length": _NO_LENGTH,
    "x-max-length-bytes": _NO_LENGTH,
    "x-max-priority": _NO_PRIORITY,
    "x-message-ttl": _RETENTION,
    "x-overflow": _NO_LENGTH,
    "x-single-active-consumer": "every consumer of a queue gets messages",
}
"""Arguments of queues by RabbitMQ's names."""

_logged: Final = Once()


def refuse_prefix(given: Mapping[str, object]) -> None:
    """Refuse the option that keeps applications apart in Redis.

    Raises:
        ConfigurationError: It is set.  Without it, applications that it separates would share their
            queues.
    """
    if given.get("global_keyprefix"):
        raise ConfigurationError(
            "global_keyprefix is an option of Redis and has no effect here, so applications that "
            "it keeps apart would share their queues: use queue_name_prefix"
        )


def log_options(names: Iterable[str]) -> None:
    """Log once each transport option that has no effect."""
    for name in sorted(set(names) & set(FOREIGN_OPTIONS)):
        if _logged.is_new(name):
            logger.warning("transport option %r has no effect: %s", name, FOREIGN_OPTIONS[name])


def log_queue_arguments(queue: str, arguments: Iterable[str]) -> None:
    """Log once each argument of a queue that has no effect, with the first queue that has it."""
    for name in sorted(set(arguments) & set(QUEUE_ARGUMENTS)):
        if _logged.is_new(name):
            logger.warning(
                "argument %r of queue %r has no effect, here and in other queues: %s",
                name,
                queue,
                QUEUE_ARGUMENTS[name],
            )
