"""Cloudflare's numbers, each with its source.

No other file of the library contains a number of Cloudflare's.  The pages are below
https://developers.cloudflare.com/queues/ and https://developers.cloudflare.com/fundamentals/api/.
"""

from __future__ import annotations

import re
from typing import Final

API_BASE_URL: Final = "https://api.cloudflare.com/client/v4"
"""Base URL of the HTTP API (API reference)."""

API_PATH: Final = "/client/v4"
"""Path of the API, at Cloudflare and on hosts that stand in for it."""

ID: Final = re.compile(r"[0-9a-fA-F]{32}")
"""The id of an account, a queue or a consumer.  The API returns lower case."""

MESSAGE_BYTES: Final = 128_000
"""Maximum size of one message (queues/platform/limits: "128 KB", including ~100 of metadata)."""

MESSAGE_METADATA_BYTES: Final = 100
"""Bytes of a message that Cloudflare uses for metadata (queues/platform/limits: "~100 bytes")."""

BODY_BYTES: Final = MESSAGE_BYTES - MESSAGE_METADATA_BYTES
"""Maximum UTF-8 bytes of a body that we send, so that body and metadata fit."""

BATCH_MESSAGES: Final = 100
"""Maximum number of messages in one publishing request (queues/platform/limits)."""

BATCH_BYTES: Final = 250_000
"""Maximum bytes of one publishing request.  Cloudflare's limit is 256 KB (queues/platform/limits).
The difference leaves room for 100 bytes of metadata per message, in case they count."""

DELAY_SECONDS: Final = 86_400
"""Maximum delay of a message, a retry or a queue (queues/platform/limits: 24 hours)."""

MIN_RETENTION_SECONDS: Final = 60
"""Minimum time for which a queue can keep a message (queues/platform/limits)."""

MAX_RETENTION_SECONDS: Final = 1_209_600
"""Maximum time for which a queue can keep a message (queues/platform/limits: 14 days)."""

PULL_MESSAGES: Final = 100
"""Maximum number of messages in one pull (queues/configuration/pull-consumers)."""

VISIBILITY_TIMEOUT_SECONDS: Final = 43_200
"""Maximum lease of a pulled message (queues/platform/limits: 12 hours)."""

MAX_RETRIES: Final = 100
"""Maximum value of a consumer's ``max_retries`` (queues/platform/limits)."""

MAX_RETRIES_DEFAULT: Final = 3
"""Default of a consumer's ``max_retries`` (queues/configuration/configure-queues)."""

QUEUE_NAME_CHARACTERS: Final = 63
"""Maximum length of a queue's name: letters, digits and dashes (queues/platform/limits)."""

REQUESTS_PER_WINDOW: Final = 1_200
"""Requests that one token may make per window (fundamentals/api/reference/limits)."""

WINDOW_SECONDS: Final = 300
"""Length of the window of `REQUESTS_PER_WINDOW`.  Cloudflare also blocks every call of a token for
this time after the token exceeded the limit (fundamentals/api/reference/limits)."""
