"""Sockets that a forked child inherits, and must neither use nor close."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Final

_owners: Final[list[object]] = []
"""What belongs to the parents of this process; its descriptors now belong to ``/dev/null``."""


def abandon(owner: object, descriptors: Iterable[int]) -> None:
    """Put ``/dev/null`` in the place of the *descriptors*, which *owner* has open for the parent.

    *owner* is kept forever.  If it were collected, it could end the connection at the server, and
    ``socket.close`` would use the event loop of gevent, which is still the parent's here.  If only
    the descriptors were closed, it could later close other files with the same numbers.
    """
    _owners.append(owner)
    with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        undo.callback(os.close, nothing)
        for number in descriptors:
            with contextlib.suppress(OSError):
                os.dup2(nothing, number, inheritable=False)
