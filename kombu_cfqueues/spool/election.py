"""Which process empties the spool: one at a time, which spares the file."""

from __future__ import annotations

from typing import Final

from .file import File

SILENCE_SECONDS: Final = 5.0
"""A relay that has been silent for this long is considered stuck."""


class Election:
    """The choice of the process that empties the spool.

    Nothing depends on it, since permits and claims keep apart whoever posts.

    Args:
        file: Where it is written down.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def win(self) -> bool:
        """Become the one that empties the spool, or stay it; return False if another one is."""
        now, me = self._file.clock.monotonic(), self._file.me
        drainer, at = self._file.read(
            lambda c: c.execute("SELECT drainer, drained_at FROM machine").fetchone()
        )
        if drainer not in (me, None) and now - at < SILENCE_SECONDS:
            return False
        if drainer == me and now - at < SILENCE_SECONDS / 5:
            return True
        change = "UPDATE machine SET drainer = ?, drained_at = ? WHERE drainer IS ?"
        done = self._file.write(lambda c: c.execute(change, (me, now, drainer)).rowcount)
        return done == 1

    def resign(self) -> None:
        """Let another process empty the spool."""
        change = "UPDATE machine SET drainer = NULL WHERE drainer = ?"
        self._file.write(lambda c: c.execute(change, (self._file.me,)))
