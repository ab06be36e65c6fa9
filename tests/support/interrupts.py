"""Exceptions and forks at chosen places of a call, as a signal handler brings them there.

CPython runs signal handlers where a function begins, after a call has returned, and where a loop
turns; nowhere else.  A `Place` is one of these in the library's code (or in other files that a test
names), or in that of ``threading`` as it is used there.  `places` finds those that a call passes;
`at` acts at one of them.
Nothing here knows what the library's modules are called.
"""

from __future__ import annotations

import dis
import faulthandler
import http
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import requests
import urllib3

import kombu_cfqueues

PACKAGE = str(Path(kombu_cfqueues.__file__).parent)
THREADING = threading.__file__

#: What a request passes through below the library.
HTTP = (
    *(str(Path(module.__file__).parent) for module in (requests, urllib3, http)),
    queue.__file__,
)

#: Python then reports the instructions of a function from its second traced call on.
TRACES_LATE = sys.version_info >= (3, 12)


class Interrupt(BaseException):
    """What a signal handler raises: as Ctrl-C, a timeout, or the end of a worker."""


class Place(NamedTuple):
    """Where a signal handler may run."""

    code: CodeType
    offset: int
    line: int

    def __str__(self) -> str:
        file = self.code.co_filename.removeprefix(PACKAGE)
        return f"{file}:{self.line} ({self.code.co_name})"


@cache
def _calls(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions after whose end a handler may run."""
    found = set()
    before = ""
    for instruction in dis.get_instructions(code):
        # ``with`` calls ``__enter__`` and ``__exit__`` without a break in between.
        if instruction.opname.startswith("CALL") and before != "LOAD_SPECIAL":
            found.add(instruction.offset)
        before = instruction.opname
    return frozenset(found)


@cache
def _guards(code: CodeType) -> tuple[tuple[int, int, int], ...]:
    """Which instructions a ``with``, ``except`` or ``finally`` guards: first, end, and handler."""
    entries = getattr(dis.Bytecode(code), "exception_entries", ())  # from Python 3.11 on
    return tuple((entry.start, entry.end, entry.target) for entry in entries)


def _guard(code: CodeType, offset: int) -> int | None:
    return next((t for start, end, t in _guards(code) if start <= offset < end), None)


def _is_place(code: CodeType, last: int, offset: int) -> bool:
    """Whether a handler may run between these two instructions.

    What it raises comes out of the first one, and ours comes out of the second.  So where only one
    of the two is guarded (``return call()`` in a ``with``), there is no place of ours.
    """
    if last not in _calls(code) and offset >= last:
        return False
    return _guard(code, last) == _guard(code, offset)


class _Tracer:
    """Calls *reached* with each place in *files* that this thread passes.

    Watching a single function, the code *only*, takes a tenth of the time.
    """

    def __init__(
        self,
        reached: Callable[[Place, FrameType], None],
        files: tuple[str, ...],
        only: CodeType | None = None,
    ) -> None:
        self._reached = reached
        self._files = files
        self._only = only
        self._last: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            if self._only is not None and frame.f_code is not self._only:
                return None
            if not _is_in(frame, self._files):
                return self if frame.f_code.co_filename == THREADING else None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            self._last.pop(frame, None)
            return self
        if event == "opcode":
            last = self._last.get(frame)
            self._last[frame] = frame.f_lasti
            if last is None or _is_place(frame.f_code, last, frame.f_lasti):
                self._reached(Place(frame.f_code, frame.f_lasti, frame.f_lineno), frame)
        elif event == "return":
            self._last.pop(frame, None)
        return self


def _is_in(frame: FrameType, files: tuple[str, ...]) -> bool:
    """Whether one of *files* runs here, or ``threading`` on its behalf."""
    link: FrameType | None = frame
    while link is not None and link.f_code.co_filename == THREADING:
        link = link.f_back
    return link is not None and link.f_code.co_filename.startswith(files)


@contextmanager
def _traced(
    reached: Callable[[Place, FrameType], None],
    files: tuple[str, ...],
    only: CodeType | None = None,
) -> Iterator[None]:
    sys.settrace(_Tracer(reached, files, only))
    try:
        yield
    finally:
        sys.settrace(None)


def places(call: Callable[[], object], files: tuple[str, ...] = (PACKAGE,)) -> list[Place]:
    """Make the call, and return the places in *files* that it passes in this thread, each once.

    Args:
        call: What is called.
        files: Paths of files or of folders.
    """
    found: dict[Place, None] = {}
    with _traced(lambda place, _: found.setdefault(place), files):
        call()
    return list(found)


def at(
    place: Place,
    act: Callable[[], None],
    call: Callable[[], object],
    files: tuple[str, ...] = (PACKAGE,),
) -> bool:
    """Make the call, and *act* the first time that it passes *place*; return whether it did.

    What *act* raises is raised there.  What comes out of the call is left alone.
    """
    passed = False

    def reached(here: Place, _: FrameType) -> None:
        nonlocal passed
        if not passed and here == place:
            passed = True
            sys.settrace(None)
            act()

    try:
        if TRACES_LATE:
            with _traced(lambda *_: None, files, place.code):
                call()
        with _traced(reached, files, place.code):
            call()
    except BaseException:  # noqa: BLE001  whatever the library makes of it
        return passed
    return passed


def interrupt() -> None:
    """Raise what a handler raises."""
    raise Interrupt


def end_if_stuck(now: Sequence[Place | None], seconds: float, say: Callable[[str], object]) -> None:
    """End this process once the main thread has been at the same place for so many seconds.

    Args:
        now: The place that is tried, as its one element; None when all are done.
        seconds: How long one place may take.
        say: Called with the place, before the process ends.
    """

    def watch() -> None:
        before = None
        while True:
            time.sleep(seconds)
            if now[0] is not None and now[0] is before:
                say(str(now[0]))
                faulthandler.dump_traceback()
                os._exit(1)
            before = now[0]

    threading.Thread(target=watch, daemon=True).start()
