"""Cloudflare's numbers, each with its source.

Nothing else in the package states a number of Cloudflare's.  The pages are those of
https://developers.cloudflare.com/queues/ and https://developers.cloudflare.com/fundamentals/api/.
"""

from __future__ import annotations

from typing import Final

API_BASE_URL: Final = "https://api.cloudflare.com/client/v4"
"""Where the HTTP API is served (API reference)."""

API_PATH: Final = "/client/v4"
"""The path below a host at which the API is served, there and on hosts that stand in for it."""

MESSAGE_BYTES: Final = 128_000
"""Most bytes of one message (queues/platform/limits: "128 KB", about 100 of them metadata)."""

MESSAGE_METADATA_BYTES: Final = 100
"""Bytes of a message that Cloudflare uses itself (queues/platform/limits: "~100 bytes")."""

BODY_BYTES: Final = MESSAGE_BYTES - MESSAGE_METADATA_BYTES
"""Most UTF-8 bytes of a body that we send: the two numbers above."""

BATCH_MESSAGES: Final = 100
"""Most messages of one publishing request (queues/platform/limits)."""

BATCH_BYTES: Final = 250_000
"""Most bytes of one publishing request.  The limit is 256 KB (queues/platform/limits); the
difference leaves room for 100 bytes of metadata a message, should they be counted."""

DELAY_SECONDS: Final = 86_400
"""Longest delay of a message, a retry or a queue (queues/platform/limits: 24 hours)."""

RETENTION_SECONDS: Final = 345_600
"""How long a queue keeps messages unless set otherwise (queues/platform/limits: 4 days)."""

PULL_MESSAGES: Final = 100
"""Most messages of one pull (queues/configuration/pull-consumers)."""

VISIBILITY_TIMEOUT_SECONDS: Final = 43_200
"""Longest lease of a pulled message (queues/platform/limits: 12 hours)."""

MAX_RETRIES: Final = 100
"""Most deliveries of a message that a consumer may ask for (queues/platform/limits)."""

MAX_RETRIES_DEFAULT: Final = 3
"""The same of a consumer that was made without (queues/configuration/configure-queues)."""

QUEUE_NAME_CHARACTERS: Final = 63
"""Longest name of a queue: letters, digits and dashes (queues/platform/limits)."""

REQUESTS_PER_WINDOW: Final = 1_200
"""Requests that one token may make in a window (fundamentals/api/reference/limits)."""

WINDOW_SECONDS: Final = 300
"""The window of ``REQUESTS_PER_WINDOW``, and how long every call is blocked once it is passed
(fundamentals/api/reference/limits)."""
