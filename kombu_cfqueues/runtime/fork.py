"""What must start anew in a forked child: locks, and whatever threads of the parent own."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """An object whose locks and waiters belong to one process."""

    def renew_after_fork(self) -> None:
        """Forget the parent's threads.  Runs in the child, before any other code of it."""


class Pausable(Protocol):
    """An object in whose code no thread may be while the process forks."""

    def pause_for_fork(self) -> None:
        """Return when no thread is inside; keep them out.  Runs in the parent."""

    def resume_after_fork(self) -> None:
        """Let them in again.  Runs in the parent."""


_renewables: WeakSet[Renewable] = WeakSet()
_pausables: WeakSet[Pausable] = WeakSet()
_paused: list[Pausable] = []


def renew_in_child(thing: Renewable) -> None:
    """Call *thing*'s ``renew_after_fork`` in each child forked from now on, while it lives."""
    _renewables.add(thing)


def pause_at_fork(thing: Pausable) -> None:
    """Keep the parent's threads out of *thing* during each fork from now on, while it lives.

    The child makes its own locks, so *thing* is to be renewable as well.
    """
    _pausables.add(thing)


def _pause_all() -> None:
    for thing in list(_pausables):
        thing.pause_for_fork()
        _paused.append(thing)


def _resume_all() -> None:
    while _paused:
        _paused.pop().resume_after_fork()


def _renew_all() -> None:
    _paused.clear()
    for thing in list(_renewables):
        thing.renew_after_fork()


# Once, and with weak references: what is registered here cannot be taken back.
os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_renew_all)
