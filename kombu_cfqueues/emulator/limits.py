"""Cloudflare's numbers as the emulator enforces them, each with its source.

They are written down a second time, apart from the client's, on purpose: a number that somebody
misread shows up as a difference between two tables instead of cancelling itself out.

The pages are those of https://developers.cloudflare.com/queues/.
"""

from __future__ import annotations

from typing import Final

MESSAGE_BYTES: Final = 128_000
"""Most bytes of a message, metadata included (platform/limits: 128 KB)."""

METADATA_BYTES: Final = 100
"""What a message's own metadata takes of them (platform/limits: "~100 bytes")."""

BATCH_BYTES: Final = 256_000
"""Most bytes of the messages in one publishing request (platform/limits: 256 KB)."""

BATCH_MESSAGES: Final = 100
"""Most messages in one publishing request (platform/limits)."""

DELAY_SECONDS: Final = 86_400
"""Longest delay of a message, a retry or a queue (platform/limits: 24 hours)."""

PULL_MESSAGES: Final = 100
"""Most messages of one pull (configuration/pull-consumers)."""

PULL_MESSAGES_DEFAULT: Final = 5
"""Messages of a pull that does not say (configuration/pull-consumers)."""

VISIBILITY_TIMEOUT_MS: Final = 43_200_000
"""Longest lease (platform/limits: 12 hours)."""

VISIBILITY_TIMEOUT_DEFAULT_MS: Final = 30_000
"""Lease of a pull that does not say (configuration/pull-consumers: 30 seconds)."""

MAX_RETRIES: Final = 100
"""Most retries that a consumer may ask for (platform/limits)."""

MAX_RETRIES_DEFAULT: Final = 3
"""Retries of a consumer that does not say (configuration/dead-letter-queues)."""

WORKER_BATCH_SIZE_DEFAULT: Final = 10
"""Messages that a Worker consumer gets at once (configuration/batching-retries)."""

WORKER_MAX_WAIT_MS: Final = 60_000
"""Longest wait of a Worker consumer for a full batch (platform/limits: 60 seconds)."""

WORKER_MAX_WAIT_DEFAULT_MS: Final = 5_000
"""The same, unless it says (configuration/batching-retries)."""

WORKER_CONCURRENCY: Final = 250
"""Most invocations of one consumer at once (platform/limits)."""

RETENTION_MIN_SECONDS: Final = 60
"""Shortest retention of a queue (platform/limits)."""

RETENTION_MAX_SECONDS: Final = 1_209_600
"""Longest retention of a queue (platform/limits: 14 days)."""

RETENTION_DEFAULT_SECONDS: Final = 345_600
"""Retention of a queue that does not say (platform/limits: 4 days)."""

BACKLOG_BYTES: Final = 25_000_000_000
"""Most bytes that wait in one queue (platform/limits: 25 GB)."""

NAME_CHARACTERS: Final = 63
"""Longest name of a queue (platform/limits)."""

REQUESTS: Final = 1_200
"""Requests a window and token (developers.cloudflare.com/fundamentals/api/reference/limits)."""

WINDOW_SECONDS: Final = 300
"""That window, and how long a token is blocked once it has passed the limit (same page)."""

REQUEST_BYTES: Final = 4_000_000
"""Most bytes of a request's body.  The emulator's own: a batch of ``BATCH_BYTES`` whose every
character is written as ``\\uXXXX`` takes 1.5 MB, so nothing legitimate comes near."""
