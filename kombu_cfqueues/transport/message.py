"""A pulled message as Kombu has it, which cannot be small and fill the memory.

Kombu decompresses a body as soon as it has the message, and 128 KB may be gigabytes.  Such a body
counts as one that cannot be read, as a damaged one does: Celery drops it with a line in the log,
and other consumers get it in their `on_decode_error`.
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

MOST_BYTES: Final = 64 << 20
"""Most bytes that a compressed body may have.  What fits into a queue has 128 KB, and text rarely
shrinks to a twentieth: a body of our own is nowhere near."""

_CHUNK: Final = 1 << 20

_kombus: Any = compression  # with the libraries that it has found, each by its name


class Message(virtual.Message):
    """Kombu's message; one that would swell over 64 MiB has an error in its body's place.

    Args:
        payload: Kombu's dictionary.
        channel: The channel that delivers it.
        queue: Kombu's name of its queue, for the error's text.
    """

    def __init__(
        self, payload: dict[str, Any], channel: Any = None, queue: str = "", **kwargs: Any
    ) -> None:
        method = payload["headers"].get("compression")
        body = payload["body"]
        if method and body:
            body = channel.decode_body(body, payload["properties"].get("body_encoding"))
            if isinstance(body, bytes) and _swells(body, method):
                error = MessageTooLarge(
                    f"the body of a message from queue {queue!r} has {len(body):,} bytes and "
                    f"would have more than {MOST_BYTES:,} when it is decompressed ({method}); it "
                    "is not: store the data elsewhere and send a reference"
                )
                # As if Kombu had caught it; then it looks no further.
                self.errors: list[Any] = [(MessageTooLarge, error, None)]
        super().__init__(payload, channel=channel, **kwargs)  # type: ignore[no-untyped-call]


def _swells(data: bytes, method: Any) -> bool:
    size = 0
    try:
        _, content_type = compression.get_encoder(method)
        for chunk in _DECOMPRESSORS[content_type](data):
            size += len(chunk)
            if size > MOST_BYTES:
                return True
    # What is damaged, or compressed in a way that only the application knows: each library has
    # errors of its own, and Kombu meets the same one next, and keeps it.
    except Exception:  # noqa: BLE001
        return False
    return False


def _zlib(data: bytes) -> Iterator[bytes]:
    stream = zlib.decompressobj()
    while data and not stream.eof:
        yield stream.decompress(data, _CHUNK)
        data = stream.unconsumed_tail


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _bz2(data: bytes) -> Iterator[bytes]:
    return _chunks(bz2.BZ2File(io.BytesIO(data)))


def _lzma(data: bytes) -> Iterator[bytes]:
    return _chunks(lzma.LZMAFile(io.BytesIO(data)))


def _zstd(data: bytes) -> Iterator[bytes]:
    zstd = _kombus.zstd
    if hasattr(zstd, "ZstdFile"):
        return _chunks(zstd.ZstdFile(io.BytesIO(data)))
    return _chunks(zstd.ZstdDecompressor().stream_reader(data))  # before Kombu 5.7


def _brotli(data: bytes) -> Iterator[bytes]:
    # It says how much may come out of a piece only since 1.2; of a small piece, it is little.
    stream = _kombus.brotli.Decompressor()
    for start in range(0, len(data), 16):
        yield stream.process(data[start : start + 16])


#: What Kombu calls them -> what gives their content piece by piece.
_DECOMPRESSORS: Final[dict[str, Callable[[bytes], Iterator[bytes]]]] = {
    "application/x-gzip": _zlib,
    "application/x-bz2": _bz2,
    "application/x-lzma": _lzma,
    "application/zstd": _zstd,
    "application/x-brotli": _brotli,
}
