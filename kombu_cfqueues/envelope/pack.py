"""Out: Kombu's message as a fragment of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import limits
from ..errors import InvalidMessage, MessageTooLarge
from ..options import Options
from ..runtime.rng import new_id
from .compress import compressed
from .json_text import encode_kombu, quote, quote_json, strict_loads
from .packed import Packed
from .times import delayed_until, eta_of


def pack(message: Mapping[str, Any], queue: str, options: Options) -> Packed:
    """Encode *message* for Cloudflare, and check it against the limits.  Makes no request.

    Args:
        message: Kombu's dictionary: ``body``, ``content-type``, ``content-encoding``, ``headers``,
            ``properties``.  It is not changed.
        queue: Kombu's name of the queue, for the texts of errors.
        options: ``body_format``, ``compress_large``, ``content_type`` and ``native_delay`` are
            used.

    Raises:
        InvalidMessage: JSON cannot carry the message, or its delay is negative or over 24 hours.
        MessageTooLarge: The message is larger than Cloudflare's limit for one message, even with a
            compressed body.
    """
    due = delayed_until(message, queue)
    eta = eta_of(message)
    if due is None and options.native_delay:
        due = eta
    encoded = _encoded_checked(message, queue, options)
    if encoded.size > limits.BODY_BYTES:
        encoded = _made_to_fit(message, queue, options, encoded.size)
    # A plain body has no eta, so no worker holds the message until then.
    eta = eta if options.body_format == "kombu" else None
    return Packed(encoded.fragment, len(encoded.fragment), due, encoded.alone, eta)


class _Encoded(NamedTuple):
    """A fragment, and its *size* as Cloudflare's limit counts it; see `Packed` for *alone*."""

    fragment: bytes
    size: int
    alone: bool


def _encoded_checked(message: Mapping[str, Any], queue: str, options: Options) -> _Encoded:
    try:
        content, body = _encoded(message, options)
        size = len(content) if content.isascii() else len(content.encode())
        fragment = f'{{"body":{body},"content_type":"{options.content_type}"'.encode()
    except (TypeError, ValueError, RecursionError) as error:
        # ValueError covers NaN, lone surrogates and bytes that are not UTF-8.
        what = "headers and properties" if options.body_format == "kombu" else "a plain body"
        raise InvalidMessage(
            f"the message to queue {queue!r} cannot be sent as {options.body_format} "
            f"{options.content_type}: {error}; {what} may contain only what JSON can carry"
        ) from error
    alone = options.content_type != "json" or content.lstrip()[:1] in ("{", "[")
    return _Encoded(fragment, size, alone)


def _made_to_fit(message: Mapping[str, Any], queue: str, options: Options, size: int) -> _Encoded:
    """Return the message with a compressed body.

    Raises:
        MessageTooLarge: It is still too large, or cannot be compressed.
    """
    smaller, reason = compressed(message, options)
    if not reason:
        encoded = _encoded_checked(smaller, queue, options)
        if encoded.size <= limits.BODY_BYTES:
            return encoded
        reason = f"{encoded.size:,} bytes if its body is compressed"
    raise MessageTooLarge(
        f"the message to queue {queue!r} has {size:,} bytes as it would be sent ({reason}), and "
        f"Cloudflare Queues accepts at most {limits.BODY_BYTES:,} bytes: store the data elsewhere "
        "and send a reference"
    )


def _encoded(message: Mapping[str, Any], options: Options) -> tuple[str, str]:
    """Return the content, which counts towards the limit, and its JSON in a request."""
    as_json = options.content_type == "json"
    if options.body_format == "kombu":
        content = _envelope(message)
        return content, content if as_json else quote_json(content)
    if as_json:
        content = _plain_json(message)
        return content, content
    content = _plain_text(message)
    return content, quote(content)


def _envelope(message: Mapping[str, Any]) -> str:
    """Return the Kombu message as JSON text, with a message id if it has none.

    Consumers recognize duplicates by the message id.
    """
    properties = message.get("properties") or {}
    if not properties.get("message_id"):
        message = {**message, "properties": {**properties, "message_id": new_id()}}
    return str(encode_kombu(message))


def _plain_text(message: Mapping[str, Any]) -> str:
    encoding = (message.get("properties") or {}).get("body_encoding")
    body = message.get("body")
    if encoding == "base64" or not isinstance(body, str):
        raise ValueError("its body is binary, which body_format='plain' cannot carry")
    return body


def _plain_json(message: Mapping[str, Any]) -> str:
    """Return the body as JSON text: a JSON body unchanged, any other text quoted."""
    text = _plain_text(message)
    if message.get("content-type") != "application/json":
        return quote(text)
    strict_loads(text)  # Python's JSON writes NaN, which is not JSON
    return text
