"""Wakes the owner thread, which waits for files."""

from __future__ import annotations

import contextlib
import os


class Waker:
    """A pipe that can be read after `ring`, until `clear`.

    Attributes:
        file: The end that can be read.
    """

    def __init__(self) -> None:
        self.file, self._end = os.pipe()
        os.set_blocking(self.file, False)
        os.set_blocking(self._end, False)
        self._rung = False

    def ring(self) -> None:
        """Wake the thread.  Any thread and any finalizer may call this."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # a full pipe can be read; or it is closed
                os.write(self._end, b"\0")

    def clear(self) -> None:
        """Empty the pipe.  If the file cannot be read, this would block under eventlet."""
        os.read(self.file, 1024)
        # After the read: a thread that rings between the two has handed over its work before.
        self._rung = False

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.file)
        os.close(self._end)
