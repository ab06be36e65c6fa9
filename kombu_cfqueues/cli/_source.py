"""The lines that ``cfqueues publish`` reads: of a file, a pipe, or the command line."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

from ._stop import Stop

MOST_LINE_BYTES: Final = 1 << 20
"""What follows in a longer line is not kept: it can be no message."""

QUIET_SECONDS: Final = 0.2
"""After so long without a line from a pipe, what was read leaves without waiting for more."""


class Line(NamedTuple):
    """A line: its number, its bytes, and how much of the source it is."""

    number: int
    data: bytes
    work: int


class Source:
    """Lines, one at a time in memory; a None among them says that there is none just now.

    Args:
        stream: Where they come from; or the lines themselves.
        stop: Ends waiting for a pipe.

    Attributes:
        total: The sum of all lines' ``work``; None if nobody knows.
    """

    def __init__(self, stream: BinaryIO | Sequence[str], stop: Stop) -> None:
        self._stream = stream
        self._stop = stop
        self.total = _size_of(stream)

    def __iter__(self) -> Iterator[Line | None]:
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
    while data := stream.readline(MOST_LINE_BYTES):
        number += 1
        work, part = len(data), data
        while len(part) == MOST_LINE_BYTES and not part.endswith(b"\n"):
            part = stream.readline(MOST_LINE_BYTES)
            work += len(part)
        yield Line(number, data, work)


def _lines_of_pipe(descriptor: int, stop: Stop) -> Iterator[Line | None]:
    number, begun, work = 0, b"", 0
    while not stop.wanted:
        if not select.select([descriptor], [], [], QUIET_SECONDS)[0]:
            yield None
            continue
        data = os.read(descriptor, 1 << 16)
        if not data:
            if begun:
                yield Line(number + 1, begun, work)
            return
        *ended, rest = data.split(b"\n")
        for part in ended:
            number += 1
            yield Line(number, begun + part[: MOST_LINE_BYTES - len(begun)], work + len(part) + 1)
            begun, work = b"", 0
        begun += rest[: MOST_LINE_BYTES - len(begun)]
        work += len(rest)
