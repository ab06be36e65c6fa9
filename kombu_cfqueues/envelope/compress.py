"""Compresses the body of a message that is too large for Cloudflare, as Kombu does.

Kombu's own header ``compression`` marks the body, so every Kombu consumer, every Celery worker and
``celery.js`` decompress it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, Final

from ..options import Options

MAX_UNCOMPRESSED_BYTES: Final = 16 << 20
"""Maximum size of a body that is compressed to fit.  ``celery.js`` decompresses no larger ones, so
that a small message cannot fill the memory of a Worker; a Kombu consumer stops at 64 MiB."""

_ZLIB: Final = "application/x-gzip"  # Kombu's name for it


def compressed(message: Mapping[str, Any], options: Options) -> tuple[Mapping[str, Any], str]:
    """Return *message* with a compressed body, and ``""``; or *message* and why it has none.

    Args:
        message: Kombu's dictionary.  It is not changed.
        options: ``body_format`` and ``compress_large`` are used.
    """
    headers = message.get("headers") or {}
    if options.body_format != "kombu":
        return message, "a body in the format 'plain' has no header to mark it as compressed"
    if headers.get("compression"):
        return message, f"its body is compressed already ({headers['compression']})"
    if not options.compress_large:
        return message, "the option compress_large is off"
    body = _body_of(message)
    if len(body) > MAX_UNCOMPRESSED_BYTES:
        return message, (
            f"its body of {len(body):,} bytes was not compressed, because consumers decompress at "
            f"most {MAX_UNCOMPRESSED_BYTES:,} bytes"
        )
    properties = {**(message.get("properties") or {}), "body_encoding": "base64"}
    return {
        **message,
        "body": base64.b64encode(zlib.compress(body)).decode(),
        "headers": {**headers, "compression": _ZLIB},
        "properties": properties,
    }, ""


def _body_of(message: Mapping[str, Any]) -> bytes:
    body = message.get("body")
    if not isinstance(body, str):
        return b""
    encoding = (message.get("properties") or {}).get("body_encoding")
    return base64.b64decode(body) if encoding == "base64" else body.encode()
