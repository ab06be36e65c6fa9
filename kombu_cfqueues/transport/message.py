"""A pulled message as a Kombu message, protected against decompression bombs.

Kombu decompresses a body as soon as it receives the message, and 128 KB can become gigabytes.  Such
a body is treated like a damaged one: a Celery worker logs and rejects the message, and other
consumers get it in their `on_decode_error`.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from kombu import compression
from kombu.transport import virtual

from ..errors import MessageTooLarge

MAX_DECOMPRESSED_BYTES: Final = 64 << 20
"""Maximum size of a body after decompression.  A queue takes 128 KB, and text rarely compresses to
less than a twentieth of its size, so genuine bodies are far smaller."""

_CHUNK_BYTES: Final = 1 << 20

_libraries: Any = compression  # Kombu imports the optional ones into this module


class Message(virtual.Message):
    """Kombu's message.  If its body is a decompression bomb, `errors` holds a `MessageTooLarge`.

    Args:
        payload: Kombu's dictionary of the message.
        channel: The channel that delivers the message.
        queue: Kombu's name of its queue, for the text of an error.
        **kwargs: Passed on to Kombu.

    Attributes:
        ack_rejects: Whether an acknowledgement rejects the message.
        on_drop: Called if the message is garbage-collected and was not settled.  It must take no
            lock, because garbage is collected in any thread at any time.
    """

    ack_rejects = False
    on_drop: Callable[[], None] | None = None

    def __init__(
        self, payload: dict[str, Any], channel: Any = None, queue: str = "", **kwargs: Any
    ) -> None:
        method = payload["headers"].get("compression")
        body = payload["body"]
        if method and body:
            body = channel.decode_body(body, payload["properties"].get("body_encoding"))
            if isinstance(body, bytes) and _is_bomb(body, method):
                error = MessageTooLarge(
                    f"the body of a message from queue {queue!r} has {len(body):,} bytes and "
                    f"would have more than {MAX_DECOMPRESSED_BYTES:,} after decompression "
                    f"({method}), so it is not decompressed: store the data elsewhere and send a "
                    "reference"
                )
                # Kombu keeps the errors that it catches here, and does not decompress then.
                self.errors: list[Any] = [(MessageTooLarge, error, None)]
        super().__init__(payload, channel=channel, **kwargs)  # type: ignore[no-untyped-call]

    def __del__(self) -> None:
        if self.on_drop is not None and not self.acknowledged:
            self.on_drop()

    def note_failure(self, error: BaseException) -> None:
        """Note why the message will be rejected, if it will be."""
        self.channel.qos.note_cause(self.delivery_tag, error)

    def ack(self, multiple: bool = False) -> None:
        """Acknowledge the message, or reject it with `ack_rejects`."""
        if self.ack_rejects:
            self.reject()  # type: ignore[no-untyped-call]
        else:
            super().ack(multiple)  # type: ignore[no-untyped-call]


def _is_bomb(data: bytes, method: Any) -> bool:
    """Whether *data* has more than `MAX_DECOMPRESSED_BYTES` decompressed; stops once it has."""
    size = 0
    try:
        _, content_type = compression.get_encoder(method)
        for chunk in _DECOMPRESSORS[content_type](data):
            size += len(chunk)
            if size > MAX_DECOMPRESSED_BYTES:
                return True
    # The data is damaged, or the application has registered the method.  Each library has its own
    # errors; Kombu catches the same one next.
    except Exception:  # noqa: BLE001
        return False
    return False


def _zlib(data: bytes) -> Iterator[bytes]:
    stream = zlib.decompressobj()
    while data and not stream.eof:
        yield stream.decompress(data, _CHUNK_BYTES)
        data = stream.unconsumed_tail


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _bz2(data: bytes) -> Iterator[bytes]:
    return _chunks(bz2.BZ2File(io.BytesIO(data)))


def _lzma(data: bytes) -> Iterator[bytes]:
    return _chunks(lzma.LZMAFile(io.BytesIO(data)))


def _zstd(data: bytes) -> Iterator[bytes]:
    zstd = _libraries.zstd
    if hasattr(zstd, "ZstdFile"):
        return _chunks(zstd.ZstdFile(io.BytesIO(data)))
    return _chunks(zstd.ZstdDecompressor().stream_reader(data))  # before Kombu 5.7


def _brotli(data: bytes) -> Iterator[bytes]:
    # Before 1.2, Brotli cannot limit its output.  16 bytes at a time produce little of it.
    stream = _libraries.brotli.Decompressor()
    for start in range(0, len(data), 16):
        yield stream.process(data[start : start + 16])


#: Kombu's content type of a compression -> an iterator over the decompressed data.
_DECOMPRESSORS: Final[dict[str, Callable[[bytes], Iterator[bytes]]]] = {
    "application/x-gzip": _zlib,
    "application/x-bz2": _bz2,
    "application/x-lzma": _lzma,
    "application/zstd": _zstd,
    "application/x-brotli": _brotli,
}
