"""Cloudflare's limits as the emulator enforces them, each with its source.

This table is deliberately separate from the client's: a misread number shows up as a difference
between the two tables, while a shared mistake would go unnoticed.

The sources are pages of https://developers.cloudflare.com/queues/.
"""

from __future__ import annotations

from typing import Final

MESSAGE_BYTES: Final = 128_000
"""Maximum size of a message, metadata included (platform/limits: 128 KB)."""

METADATA_BYTES: Final = 100
"""Size of a message's metadata (platform/limits: "~100 bytes")."""

BATCH_BYTES: Final = 256_000
"""Maximum total size of the messages in one publish request (platform/limits: 256 KB)."""

BATCH_MESSAGES: Final = 100
"""Maximum number of messages in one publish request (platform/limits)."""

DELAY_SECONDS: Final = 86_400
"""Maximum delay of a message, a retry or a queue (platform/limits: 24 hours)."""

PULL_MESSAGES: Final = 100
"""Maximum batch size of a pull (configuration/pull-consumers)."""

PULL_MESSAGES_DEFAULT: Final = 5
"""Default batch size of a pull (configuration/pull-consumers)."""

VISIBILITY_TIMEOUT_MS: Final = 43_200_000
"""Maximum visibility timeout (platform/limits: 12 hours)."""

VISIBILITY_TIMEOUT_DEFAULT_MS: Final = 30_000
"""Default visibility timeout (configuration/pull-consumers: 30 seconds)."""

MAX_RETRIES: Final = 100
"""Maximum ``max_retries`` of a consumer (platform/limits)."""

MAX_RETRIES_DEFAULT: Final = 3
"""Default ``max_retries`` of a consumer (configuration/dead-letter-queues)."""

WORKER_BATCH_SIZE_DEFAULT: Final = 10
"""Default batch size of a Worker consumer (configuration/batching-retries)."""

WORKER_MAX_WAIT_MS: Final = 60_000
"""Maximum wait of a Worker consumer for a full batch (platform/limits: 60 seconds)."""

WORKER_MAX_WAIT_DEFAULT_MS: Final = 5_000
"""Default wait of a Worker consumer for a full batch (configuration/batching-retries)."""

WORKER_CONCURRENCY: Final = 250
"""Maximum number of concurrent invocations of a Worker consumer (platform/limits)."""

RETENTION_MIN_SECONDS: Final = 60
"""Minimum retention of a queue (platform/limits)."""

RETENTION_MAX_SECONDS: Final = 1_209_600
"""Maximum retention of a queue (platform/limits: 14 days)."""

RETENTION_DEFAULT_SECONDS: Final = 345_600
"""Default retention of a queue (platform/limits: 4 days)."""

BACKLOG_BYTES: Final = 25_000_000_000
"""Maximum size of a queue's backlog (platform/limits: 25 GB)."""

NAME_CHARACTERS: Final = 63
"""Maximum length of a queue's name (platform/limits)."""

REQUESTS: Final = 1_200
"""Maximum number of requests per window and token.

Source: https://developers.cloudflare.com/fundamentals/api/reference/limits."""

WINDOW_SECONDS: Final = 300
"""Length of that window, and of the block once a token exceeds the limit (same page)."""

REQUEST_BYTES: Final = 4_000_000
"""Maximum size of a request's body.

This limit is the emulator's own: a batch of ``BATCH_BYTES`` in which every character is written as
``\\uXXXX`` takes 1.5 MB, so no legitimate request comes near it."""
