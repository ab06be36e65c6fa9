"""The lines that ``cfqueues publish`` reads from a file, a pipe or the command line."""

from __future__ import annotations

import codecs
import os
import queue
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

from ._stop import Stop

MAX_LINE_BYTES: Final = 1 << 20
"""Number of bytes of a line that are kept.  The rest is dropped: no message is that long."""

READ_BYTES: Final = 1 << 16
"""Maximum number of bytes that one read of a pipe returns."""

QUIET_SECONDS: Final = 0.2
"""Wait for the next line of a pipe, after which the lines read so far are published.

Short enough to follow a log, and long enough for a busy writer to fill a request.
"""


class Line(NamedTuple):
    """A line: its number, its bytes, and its share of the source's ``total``."""

    number: int
    data: bytes
    work: int


class Source:
    """Iterates over lines, one in memory at a time.  Yields None while a pipe has no line.

    Args:
        stream: A stream of lines, or the lines themselves.
        stop: Ends the wait for a pipe.

    Attributes:
        total: The sum of ``work`` over all lines; None if unknown.
    """

    def __init__(self, stream: BinaryIO | Sequence[str], stop: Stop) -> None:
        self._stream = stream
        self._stop = stop
        self.total = _size_of(stream)

    def __iter__(self) -> Iterator[Line | None]:
        for line in self._lines():
            if line is not None and line.number == 1 and line.data.startswith(codecs.BOM_UTF8):
                yield line._replace(data=line.data[len(codecs.BOM_UTF8) :])
            else:
                yield line

    def _lines(self) -> Iterator[Line | None]:
        if isinstance(self._stream, Sequence):
            for number, text in enumerate(self._stream, 1):
                yield Line(number, text.encode("utf-8", "surrogateescape"), 1)
        elif self.total is None and _has_descriptor(self._stream):
            yield from _lines_of_pipe(self._stream.fileno(), self._stop)
        else:
            yield from _lines_of_file(self._stream)


def _size_of(stream: BinaryIO | Sequence[str]) -> int | None:
    if isinstance(stream, Sequence):
        return len(stream)
    if not _has_descriptor(stream):
        return None
    found = os.fstat(stream.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _has_descriptor(stream: BinaryIO) -> bool:
    try:
        stream.fileno()
    except OSError:
        return False
    return True


def _lines_of_file(stream: BinaryIO) -> Iterator[Line]:
    number = 0
    while data := stream.readline(MAX_LINE_BYTES):
        number += 1
        work, part = len(data), data
        while len(part) == MAX_LINE_BYTES and not part.endswith(b"\n"):
            part = stream.readline(MAX_LINE_BYTES)
            work += len(part)
        yield Line(number, data, work)


def _lines_of_pipe(descriptor: int, stop: Stop) -> Iterator[Line | None]:
    number, partial, work = 0, b"", 0
    parts = _read_in_thread(descriptor)
    while not stop.requested:
        try:
            data = parts.get(timeout=QUIET_SECONDS)
        except queue.Empty:
            yield None
            continue
        if isinstance(data, OSError):
            raise data
        if not data:
            if partial:
                yield Line(number + 1, partial, work)
            return
        *complete, rest = data.split(b"\n")
        for part in complete:
            number += 1
            yield Line(
                number, partial + part[: MAX_LINE_BYTES - len(partial)], work + len(part) + 1
            )
            partial, work = b"", 0
        partial += rest[: MAX_LINE_BYTES - len(partial)]
        work += len(rest)


def _read_in_thread(descriptor: int) -> queue.Queue[bytes | OSError]:
    """Return a queue of what is read, and ``b""`` at the end.

    `select.select` could wait for a pipe without a thread, but on Windows it takes sockets only.
    """
    parts: queue.Queue[bytes | OSError] = queue.Queue(maxsize=1)

    def read() -> None:
        data: bytes | OSError = b"-"
        while data and not isinstance(data, OSError):
            try:
                data = os.read(descriptor, READ_BYTES)
            except OSError as error:
                data = error
            parts.put(data)

    threading.Thread(target=read, name="cfqueues-read", daemon=True).start()
    return parts
