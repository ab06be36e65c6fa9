"""A pulled message, packed again: for dead letters and other copies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .. import limits
from ..errors import MessageTooLarge
from ..runtime.rng import new_id
from .deaths import HEADER, Death, with_death, without_deaths
from .json_text import NOT_JSON, encode_kombu, quote, strict_loads
from .packed import Packed
from .unpack import cloudflare_type, content_of, foreign_message, is_envelope


def repack(
    raw: Mapping[str, Any],
    *,
    delay_seconds: int = 0,
    death: Death | None = None,
    forget_deaths: bool = False,
) -> Packed:
    """Return a pulled message, ready to be published again as what it was.

    Text and JSON stay what they are.  Data is put into a Kombu envelope, because Cloudflare accepts
    only text and JSON over HTTP.  Only a Kombu envelope has headers, which can hold *death*.

    Args:
        raw: An entry of a pull's ``messages``.
        delay_seconds: Seconds until the copy may be delivered.
        death: Why the message is dead-lettered; None if it is not.
        forget_deaths: Whether to remove earlier deaths from its headers.

    Raises:
        MessageTooLarge: The message is data that does not fit into an envelope.
    """
    cf_type = cloudflare_type(raw)
    body, value = content_of(raw.get("body"), cf_type)
    if isinstance(body, bytes):
        text, value = _text_of_data(body, death), NOT_JSON
    else:
        if isinstance(value, dict) and is_envelope(value):
            body = _marked(body, value, death, forget_deaths=forget_deaths)
        is_json = cf_type == "json" and value is not NOT_JSON
        text, value = body, _strict_value(body) if is_json else NOT_JSON
    size = len(text.encode())
    if size > limits.BODY_BYTES:
        raise MessageTooLarge(
            f"a copy of the message would have {size:,} bytes, and Cloudflare Queues accepts at "
            f"most {limits.BODY_BYTES:,} bytes"
        )
    return _packed(text, value, delay_seconds)


def _packed(text: str, value: Any, delay_seconds: int) -> Packed:
    """Return a body, which is JSON if it has a *value*, ready to be posted."""
    as_json = value is not NOT_JSON
    content, content_type = (text, "json") if as_json else (quote(text), "text")
    fragment = f'{{"body":{content},"content_type":"{content_type}"'.encode()
    due = time.time() + delay_seconds if delay_seconds else None
    return Packed(fragment, len(fragment), due, not as_json or isinstance(value, (dict, list)))


def _marked(text: str, message: dict[str, Any], death: Death | None, *, forget_deaths: bool) -> str:
    """Return the text of an envelope with *death*, or without any.

    Returns *text* itself if there is nothing to change, or if *message* cannot be encoded.
    """
    if forget_deaths and HEADER in message["headers"]:
        message = without_deaths(message)
    elif death is None:
        return text
    try:
        marked = str(encode_kombu(message if death is None else with_death(message, death)))
        marked.encode()
    # Python's JSON reads what it does not write, such as NaN and lone surrogates.
    except (TypeError, ValueError, RecursionError):
        return text
    return marked


def _text_of_data(data: bytes, death: Death | None) -> str:
    """Return *data* in an envelope, with *death*."""
    message = foreign_message(data, "application/data", "binary")
    message["properties"]["message_id"] = new_id()
    return str(encode_kombu(message if death is None else with_death(message, death)))


def _strict_value(text: str) -> Any:
    try:
        return strict_loads(text)
    except (ValueError, RecursionError):
        return NOT_JSON
