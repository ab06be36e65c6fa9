"""Which process empties the spool: one at a time, to keep the file free for the others."""

from __future__ import annotations

from typing import Final

from .file import File

RELAY_SILENCE_SECONDS: Final = 5.0
"""A relay that has been silent for this long is considered stuck.

The sweep notices a dead process much earlier; this is for a process that was stopped or hangs."""

RELAY_HEARTBEAT_SECONDS: Final = RELAY_SILENCE_SECONDS / 5
"""Interval between two signs of life of the relay, so that it may be late by several."""


class Election:
    """The choice of the process that empties the spool.

    Correctness does not depend on it, because permits and claims separate the processes.

    Args:
        file: The spool's file, which records the choice.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def win(self) -> bool:
        """Become or stay the process that empties the spool; return False if another process is."""
        now, me = self._file.clock.monotonic(), self._file.me
        relay, relay_seen_at = self._file.read(
            lambda c: c.execute("SELECT relay, relay_seen_at FROM machine").fetchone()
        )
        another = relay not in (me, None) and now - relay_seen_at < RELAY_SILENCE_SECONDS
        if another and self._file.locks.is_alive(relay):  # it may have been killed
            return False
        if relay == me and now - relay_seen_at < RELAY_HEARTBEAT_SECONDS:
            return True
        change = "UPDATE machine SET relay = ?, relay_seen_at = ? WHERE relay IS ?"
        done = self._file.write(lambda c: c.execute(change, (me, now, relay)).rowcount)
        return done == 1

    def resign(self) -> None:
        """Let another process empty the spool."""
        change = "UPDATE machine SET relay = NULL WHERE relay = ?"
        self._file.write(lambda c: c.execute(change, (self._file.me,)))
