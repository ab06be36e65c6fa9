"""What each process was told and did, in a file of its own that survives its end by SIGKILL.

A line is a JSON list: what happened, when (seconds of the monotonic clock, which all processes of
the machine share), and its particulars.  One ``write`` is one line, so a killed process leaves
whole lines behind.  There is no fsync: processes are killed here, and never the machine.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

#: Where the ledgers are, and what this process is called there.
FOLDER, NAME = "CHAOS_LEDGER", "CHAOS_NAME"

#: The settings of the Celery application, as JSON.
SETTINGS = "CHAOS_SETTINGS"

#: A file beside the ledgers: the child of the prefork pool that finds it is killed.  It is one that
#: runs a task.  One that waits for a task would die with the lock of the queue that all children
#: share, and the pool would stand still for good (billiard's pull request 457 tells how).
KILL_CHILD = "kill-child"

#: How a message is called, everywhere: it is its Celery task's id.
MESSAGE = re.compile(rb"m-[\w.-]+?-\d+-m")


class Line(NamedTuple):
    """One line of one process."""

    process: str
    what: str
    at: float
    rest: list[Any]


class Ledger:
    """This process's own."""

    def __init__(self, folder: str | Path, name: str) -> None:
        path = Path(folder) / f"{name}~{os.getpid()}"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, *rest: Any) -> None:
        line = json.dumps([what, time.monotonic(), *rest], separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")


_mine: tuple[int, Ledger] | None = None


def write(what: str, *rest: Any) -> None:
    """Write a line into this process's ledger; a forked child begins one of its own."""
    global _mine  # noqa: PLW0603
    if _mine is None or _mine[0] != os.getpid():
        _mine = os.getpid(), Ledger(os.environ[FOLDER], os.environ[NAME])
    _mine[1].write(what, *rest)


def read(folder: str | Path) -> Iterator[Line]:
    """All lines of all processes, each process's in their order."""
    for path in sorted(Path(folder).iterdir()):
        name = path.name.partition("~")[0]
        for text in path.read_text().splitlines():
            what, at, *rest = json.loads(text)
            yield Line(name, what, at, rest)
