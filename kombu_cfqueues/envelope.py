"""Kombu's message <-> the queue's message.

Outwards, `pack` makes one finished JSON fragment of a message, once, in its publisher's own thread;
a batch is a join of fragments.  Inwards, `unpack` makes Kombu's dictionary of whatever the queue
holds, messages from elsewhere included.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

# Kombu's own JSON, so that headers with dates, UUIDs, decimals and bytes survive as they do on
# Kombu's other transports.
from kombu.utils.json import JSONEncoder
from kombu.utils.json import loads as kombu_loads

from . import limits
from .errors import InvalidMessage, MessageTooLarge
from .options import Options
from .runtime.rng import rng

#: The names that make a JSON object a Kombu envelope.
ENVELOPE_KEYS = frozenset({"body", "headers", "properties"})

# Made once: making an encoder costs more than encoding a short text.  What holds itself ends in a
# RecursionError; looking for it in each message would take a tenth of the time.
_encode_envelope = JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode
_encode_text = json.JSONEncoder(ensure_ascii=False).encode


class Address(NamedTuple):
    """A queue, by the name that every process knows it by.

    Attributes:
        name: Its name at Cloudflare, or ``#`` and its id where the application says the id.
        creates: Whether it is to be made if it is missing.
        cloudflare_id: Its id, where that is known already.
    """

    name: str
    creates: bool = False
    cloudflare_id: str | None = None

    @classmethod
    def of_id(cls, cloudflare_id: str) -> Address:
        """The address of a queue of which the id is all that need be known."""
        return cls(f"#{cloudflare_id}", cloudflare_id=cloudflare_id)


class Packed(NamedTuple):
    """A message that is ready to be posted.

    Attributes:
        fragment: The JSON object of the message in UTF-8, without its closing brace.
        size: Bytes that it counts in a request.
        due: When it may be delivered, in seconds since the epoch; None: whenever the queue says.
        alone: Whether the route for one message takes it.  That route refuses a JSON body that is
            no object or array (code 10207); the batch route takes any.
    """

    fragment: bytes
    size: int
    due: float | None = None
    alone: bool = True

    def encode(self, now: float | None = None) -> bytes:
        """The finished JSON object.

        The delay is counted from now, so that a message that had to wait is not late by its wait.
        It is stated even when it is 0, because that overrides the queue's own delivery delay.

        Args:
            now: Seconds since the epoch; None: the clock's.
        """
        if self.due is None:
            return self.fragment + b"}"
        # Whole seconds, rounded up: a message must never be early.
        left = math.ceil(self.due - (time.time() if now is None else now))
        delay = min(max(left, 0), limits.DELAY_SECONDS)
        return b'%b,"delay_seconds":%d}' % (self.fragment, delay)

    def message(self) -> Any:
        """What was packed: Kombu's dictionary, or a plain body."""
        posted = json.loads(self.fragment + b"}")
        body = posted["body"]
        inner = _json_or_none(body) if isinstance(body, str) else body
        return inner if isinstance(inner, dict) and _is_envelope(inner) else body


def pack(message: Mapping[str, Any], queue: str, options: Options) -> Packed:
    """Encode *message* for Cloudflare, and check it against the limits before any request.

    Args:
        message: Kombu's dictionary: ``body``, ``content-type``, ``content-encoding``, ``headers``,
            ``properties``.  It is not changed.
        queue: Kombu's name of the queue, for the texts of errors.
        options: ``body_format``, ``content_type`` and ``native_delay`` are used.

    Raises:
        InvalidMessage: JSON cannot carry it, or its delay is negative or over 24 hours.
        MessageTooLarge: It is over Cloudflare's limit for one message.
    """
    due = _due(message, queue, native_delay=options.native_delay)
    as_json = options.content_type == "json"
    try:
        if options.body_format == "kombu":
            content = _envelope(message)
            body = content if as_json else _quote_json(content)
        elif as_json:
            content = body = _plain_json(message)
        else:
            content = _plain_text(message)
            body = _encode_text(content)
        size = len(content) if content.isascii() else len(content.encode())
        fragment = f'{{"body":{body},"content_type":"{options.content_type}"'.encode()
    except (TypeError, ValueError, RecursionError) as error:
        # ValueError covers NaN, circular references, lone surrogates and bytes that are no UTF-8.
        what = "headers and properties" if options.body_format == "kombu" else "a plain body"
        raise InvalidMessage(
            f"the message to queue {queue!r} cannot be sent as {options.body_format} "
            f"{options.content_type}: {error}; {what} may hold only what JSON can"
        ) from error
    if size > limits.BODY_BYTES:
        raise MessageTooLarge(
            f"the message to queue {queue!r} has {size:,} bytes as it would be sent, and "
            f"Cloudflare Queues takes {limits.BODY_BYTES:,}: store the data elsewhere and send a "
            "reference, or use compression"
        )
    alone = not as_json or content.lstrip()[:1] in ("{", "[")
    return Packed(fragment, len(fragment), due, alone)


def expires(message: Mapping[str, Any]) -> float | None:
    """When Kombu's *message* expires, in seconds since the epoch; None: never."""
    expiration: Any = (message.get("properties") or {}).get("expiration")
    try:
        return time.time() + float(expiration) / 1000  # milliseconds, as text, as in AMQP
    except (OverflowError, TypeError, ValueError):
        return None


def outlived(packed: Packed, queue: str, retention_seconds: int | None) -> InvalidMessage | None:
    """The error of a message that its queue would delete before it is due; else None.

    Args:
        packed: The message.
        queue: Kombu's name of the queue, for the error's text.
        retention_seconds: How long the queue keeps messages; None: unknown.
    """
    if packed.due is None or retention_seconds is None:
        return None
    delay = packed.due - time.time()
    if delay <= retention_seconds:
        return None
    return InvalidMessage(
        f"the message to queue {queue!r} is due in {delay:,.0f} s, and the queue deletes messages "
        f"after {retention_seconds:,} s (its message retention): it would never arrive"
    )


def unpack(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Kombu's dictionary of a pulled message; never raises, whatever the message is.

    A Kombu envelope comes back as it went in.  Anything else (a Worker's ``env.QUEUE.send``)
    becomes a message whose body is that JSON, text or data, without headers.

    Args:
        raw: An entry of a pull's ``messages``: ``body``, ``metadata``, ``id`` and others.
    """
    return _read(raw)[0]


def receive(raw: Mapping[str, Any], queue: str) -> dict[str, Any]:
    """Kombu's dictionary of a pulled message, with all that Kombu and Celery take for granted.

    ``delivery_info["cloudflare"]`` says what the message was.  An envelope need not be Kombu's
    own: a Worker writes them too, and a consumer dies of a wrong type.

    Args:
        raw: An entry of a pull's ``messages``.
        queue: Kombu's name of the queue that it was pulled from.
    """
    message, is_envelope = _read(raw)
    headers, properties = dict(message["headers"]), dict(message["properties"])
    if "task" in headers:
        if not isinstance(headers["task"], str):
            del headers["task"]
        elif not isinstance(headers.get("id"), str):
            headers["id"] = str(raw.get("id") or new_id())
    properties.setdefault("body_encoding", "utf-8")
    attempts, info = raw.get("attempts"), properties.get("delivery_info")
    properties["delivery_info"] = {
        "exchange": "",
        "routing_key": queue,
        **(info if isinstance(info, dict) else {}),
        # The first attempt is documented as 1, and was seen as 0: only above 1 it is sure.
        "redelivered": isinstance(attempts, int) and attempts > 1,
        "cloudflare": {
            "id": raw.get("id"),
            "attempts": attempts,
            "timestamp_ms": raw.get("timestamp_ms"),
            "content_type": _kind(raw),
            "envelope": is_envelope,
        },
    }
    return {
        "body": message["body"],
        "content-type": _string_or_none(message.get("content-type")),
        "content-encoding": _encoding_or_none(message.get("content-encoding")),
        "headers": headers,
        "properties": properties,
    }


def repack(raw: Mapping[str, Any], *, delay_seconds: int = 0) -> Packed:
    """A pulled message, ready to be published again as what it was.

    Args:
        raw: An entry of a pull's ``messages``.
        delay_seconds: When it may be delivered.

    Raises:
        MessageTooLarge: Cloudflare takes text and JSON over HTTP; data has to be put into an
            envelope, and does not fit.
    """
    kind = _kind(raw)
    body, value = _content(raw.get("body"), kind)
    as_json = kind == "json" and value is not _NOTHING
    if isinstance(body, bytes):
        body = str(_encode_envelope(_envelope_of_data(body)))
    elif as_json:
        value = _plain_json_or_nothing(body)
        as_json = value is not _NOTHING
    content = body if as_json else _encode_text(body)
    size = len(body.encode())
    if size > limits.BODY_BYTES:
        raise MessageTooLarge(f"a copy of the message would have {size:,} bytes")
    kind = "json" if as_json else "text"
    fragment = f'{{"body":{content},"content_type":"{kind}"'.encode()
    due = time.time() + delay_seconds if delay_seconds else None
    return Packed(fragment, len(fragment), due, not as_json or isinstance(value, (dict, list)))


def expired(message: Mapping[str, Any], now: float) -> bool:
    """Whether the message's ``expiration`` has passed at *now* (seconds since the epoch).

    It is in milliseconds, as AMQP has it, and counted from when the queue got the message.
    """
    properties = message["properties"]
    expiration = properties.get("expiration")
    since = properties["delivery_info"]["cloudflare"]["timestamp_ms"]
    if expiration is None or not isinstance(since, (int, float)):
        return False
    try:
        return since + float(expiration) <= now * 1000
    except (OverflowError, TypeError, ValueError):
        return False  # not Kombu's, and it says nothing that is known


def seconds_until_due(message: Mapping[str, Any], now: float) -> float:
    """How far off the message's eta is at *now* (seconds since the epoch); 0 without one."""
    due = _timestamp(message["headers"].get("eta"))
    return 0.0 if due is None else max(0.0, due - now)


class _Nothing:
    """No JSON value; not None, which is JSON's null."""


_NOTHING = _Nothing()


def _read(raw: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The message, and whether it is an envelope."""
    kind = _kind(raw)
    body, value = _content(raw.get("body"), kind)
    if isinstance(value, dict) and _is_envelope(value):
        return {**value, "body": value["body"] and _without_surrogates(value["body"])}, True
    if isinstance(body, bytes):
        return _foreign(body, "application/data", "binary"), False
    if value is not _NOTHING and kind != "text":
        return _foreign(body, "application/json", "utf-8"), False
    return _foreign(body, "text/plain", "utf-8"), False


def _kind(raw: Mapping[str, Any]) -> Any:
    """How the body is typed at Cloudflare: text, json, bytes or v8; None if nothing says."""
    metadata = raw.get("metadata")
    return metadata.get("CF-Content-Type") if isinstance(metadata, Mapping) else None


def _content(body: Any, kind: Any) -> tuple[Any, Any]:
    """A pulled body as text or bytes, and as the JSON value that it is; ``_NOTHING`` if none."""
    if not isinstance(body, str):
        # The API gives a string; something in its place may give the value itself.
        if body is None:
            return "", _NOTHING
        return _without_surrogates(json.dumps(body, ensure_ascii=False)), body
    if kind in ("bytes", "v8"):
        data = _from_base64(body)
        if data is not None:
            return data, _NOTHING
    value = _json_or_nothing(body)
    if value is _NOTHING and kind == "json":
        # Whether a JSON body comes back as it is or in base64 is disputed; both are taken.
        data = _from_base64(body)
        decoded = _text_or_none(data) if data is not None else None
        if decoded is not None:
            value = _json_or_nothing(decoded)
            body = body if value is _NOTHING else decoded
    return _without_surrogates(body), value


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one; so are characters beyond ASCII
        return None


def _text_or_none(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _without_surrogates(text: str) -> str:
    """*text* as UTF-8 can carry it: JSON may escape halves of characters, which it cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _string_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _encoding_or_none(value: Any) -> str | None:
    """The encoding of a text, or Kombu's word for none.

    Python has others, which Kombu would use just as well: bz2 among them makes gigabytes of a body.
    """
    if not isinstance(value, str) or value in ("utf-8", "binary"):
        return _string_or_none(value)
    try:
        b"x".decode(value)
    except UnicodeError:
        return value  # of a text in which this is not enough
    except (LookupError, ValueError):
        return None
    return value


def _envelope_of_data(data: bytes) -> dict[str, Any]:
    message = _foreign(data, "application/data", "binary")
    message["properties"]["message_id"] = new_id()
    return message


def _plain_json_or_nothing(text: str) -> Any:
    """The value of strict JSON, which Python's reading of NaN is not."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _NOTHING


def _envelope(message: Mapping[str, Any]) -> str:
    """The Kombu message as JSON text, with a message id: what consumers tell duplicates by."""
    properties = message.get("properties") or {}
    if not properties.get("message_id"):
        message = {**message, "properties": {**properties, "message_id": new_id()}}
    return str(_encode_envelope(message))


def _quote_json(text: str) -> str:
    """A JSON text as a JSON string.

    It holds no control characters, which its own encoder has escaped, so two things are left to
    escape, and looking for them takes a quarter of the time of encoding every character.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def new_id() -> str:
    """32 hex digits that no other message has.

    Not from `uuid`, which asks the system for secure randomness and takes ten times as long.
    """
    return f"{rng.getrandbits(128):032x}"


def _plain_text(message: Mapping[str, Any]) -> str:
    encoding = (message.get("properties") or {}).get("body_encoding")
    body = message.get("body")
    if encoding == "base64" or not isinstance(body, str):
        raise ValueError("its body is binary, which body_format='plain' cannot carry")
    return body


def _plain_json(message: Mapping[str, Any]) -> str:
    """The body as JSON text: what was serialized as JSON is left alone, other text is quoted."""
    text = _plain_text(message)
    if message.get("content-type") != "application/json":
        return _encode_text(text)
    json.loads(text, parse_constant=_refuse_constant)  # Python writes NaN, which JSON has not
    return text


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _due(message: Mapping[str, Any], queue: str, *, native_delay: bool) -> float | None:
    """When the message is due, in seconds since the epoch: its ``delay_seconds``, else its eta."""
    delay = (message.get("properties") or {}).get("delay_seconds")
    if delay is not None:
        number = isinstance(delay, (int, float)) and not isinstance(delay, bool)
        if not (number and 0 <= delay <= limits.DELAY_SECONDS):
            raise InvalidMessage(
                f"delay_seconds of the message to queue {queue!r} must be 0 to "
                f"{limits.DELAY_SECONDS:,}, not {delay!r}"
            )
        return time.time() + float(delay)
    eta = (message.get("headers") or {}).get("eta")
    return _timestamp(eta) if native_delay else None


def _timestamp(eta: Any) -> float | None:
    """Seconds since the epoch of Celery's eta, or None for a header that is no time."""
    if isinstance(eta, str):
        try:
            # Python 3.10's fromisoformat does not know the Z of UTC.
            eta = datetime.fromisoformat(f"{eta[:-1]}+00:00" if eta.endswith("Z") else eta)
        except ValueError:
            return None  # a header of the application's own that happens to be called eta
    if not isinstance(eta, datetime):
        return None
    if eta.tzinfo is None:
        eta = eta.replace(tzinfo=timezone.utc)  # as Celery's worker reads it
    return float(eta.timestamp())


def _json_or_none(text: str) -> Any:
    value = _json_or_nothing(text)
    return None if value is _NOTHING else value


def _json_or_nothing(text: str) -> Any:
    # Kombu's reading of `{"__type__": …}` fails in as many ways as there are types, and on types
    # of a newer Kombu.  Plain JSON then still has all that the message says.
    for loads in (kombu_loads, json.loads):
        try:
            return loads(text)
        except (  # noqa: PERF203  two rounds at most
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ):
            continue
    return _NOTHING


def _is_envelope(value: dict[str, Any]) -> bool:
    """Whether Kombu can take it; what it cannot would end a worker where nothing catches it."""
    if not (
        value.keys() >= ENVELOPE_KEYS
        and isinstance(value["properties"], dict)
        and isinstance(value["headers"], dict)
    ):
        return False
    body, encoding = value["body"], value["properties"].get("body_encoding")
    if encoding == "base64" and isinstance(body, str):
        try:
            base64.b64decode(body, validate=True)
        except ValueError:
            return False
        return True
    return encoding in (None, "utf-8") and (body is None or isinstance(body, str))


def _foreign(body: str | bytes, content_type: str, encoding: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"delivery_info": {}, "body_encoding": "utf-8"}
    if isinstance(body, bytes):
        body, properties["body_encoding"] = base64.b64encode(body).decode(), "base64"
    return {
        "body": body,
        "content-type": content_type,
        "content-encoding": encoding,
        "headers": {},
        "properties": properties,
    }
