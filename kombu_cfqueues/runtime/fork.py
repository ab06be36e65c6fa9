"""What a forked child must create anew: locks, and everything that threads of the parent own."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """An object whose locks and waiting threads belong to one process."""

    def renew_after_fork(self) -> None:
        """Forget the parent's threads.  Runs in the child, before any other code there."""


class Pausable(Protocol):
    """An object whose code no thread may be running when the process forks."""

    def pause_for_fork(self) -> None:
        """Block until no thread is inside, and keep threads out.  Runs in the parent."""

    def resume_after_fork(self) -> None:
        """Let threads in again.  Runs in the parent."""


_renewables: WeakSet[Renewable] = WeakSet()
_pausables: WeakSet[Pausable] = WeakSet()
_paused: list[Pausable] = []


def renew_in_child(thing: Renewable) -> None:
    """Call *thing*'s ``renew_after_fork`` in every child that this process forks from now on.

    The registration does not keep *thing* alive.
    """
    _renewables.add(thing)


def pause_at_fork(thing: Pausable) -> None:
    """Keep the parent's threads out of *thing* during every fork from now on.

    The registration does not keep *thing* alive.  Register *thing* with `renew_in_child` as well:
    nothing resumes it in the child, which makes its own locks.
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


# Python cannot unregister these functions.  So they are registered once, and find their objects by
# weak references.
os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_renew_all)
