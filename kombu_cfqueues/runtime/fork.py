"""Renews in a forked child what belongs to the parent: locks, and what the parent's threads own.

Python's fork hooks do this in children of `os.fork`.  uWSGI forks in C, where the hooks may not
run, so each entry point of the library calls `notice_fork` before it touches anything that may
belong to the parent.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from .locks import Lock, new_reentrant_lock

T = TypeVar("T")


class Renewable(Protocol):
    """An object whose locks and waiting threads belong to one process."""

    def renew_after_fork(self) -> None:
        """Forget the parent's threads.  Runs in the child, before the child uses the object."""


class Pausable(Protocol):
    """An object whose code no thread may be running when the process forks."""

    def pause_for_fork(self) -> None:
        """Block until no thread is inside, and keep threads out.  Runs in the parent."""

    def resume_after_fork(self) -> None:
        """Let threads in again.  Runs in the parent."""


_renewables: WeakSet[Renewable] = WeakSet()
_pausables: WeakKeyDictionary[Pausable, int] = WeakKeyDictionary()  # by order of registration
_numbers = itertools.count()
_paused: list[Pausable] = []
_owner = os.getpid()  # the process to which all renewable objects belong
_renewing: dict[int, Lock] = {}  # by process
_renews = 0  # the process that is renewing its things now


def renew_in_child(thing: Renewable) -> None:
    """Call *thing*'s ``renew_after_fork`` in every child that this process forks from now on.

    The registration does not keep *thing* alive.  If this process was itself forked unnoticed,
    what it inherited is renewed first: later, *thing* would be taken for inherited, too.
    """
    if _renews != os.getpid():  # else a thing that is being renewed has made *thing*
        notice_fork()
    _renewables.add(thing)


def pause_at_fork(thing: Pausable) -> None:
    """Keep the parent's threads out of *thing* during every fork from now on.

    The registration does not keep *thing* alive.  Register *thing* with `renew_in_child` as well,
    because the child does not resume it but makes new locks.

    A fork pauses the latest registration first.  A thread that enters two things must enter them in
    the same order, or the thread and the fork would wait for each other.
    """
    _pausables[thing] = next(_numbers)


def notice_fork() -> None:
    """Renew everything if this process was forked, and Python's fork hooks have not run since.

    Call this wherever the application or the interpreter enters the library, before any lock is
    taken.  It costs a tenth of a microsecond, and blocks only while another thread renews.
    """
    if os.getpid() != _owner:
        _renew_unless_done()


def _renew_unless_done() -> None:
    pid = os.getpid()
    # A lock of this process: the parent's may be locked forever.  Reentrant, because a signal
    # handler may interrupt the renewal and enter the library.
    with _renewing.setdefault(pid, new_reentrant_lock()):
        if pid != _owner:
            _renew_all()


def _pause_all() -> None:
    numbers = {thing: _pausables[thing] for thing in living(_pausables)}
    for thing in sorted(numbers, key=numbers.__getitem__, reverse=True):
        thing.pause_for_fork()
        _paused.append(thing)


def _resume_all() -> None:
    while _paused:
        _paused.pop().resume_after_fork()


def _renew_all() -> None:
    global _owner, _renews  # noqa: PLW0603  one for the process
    _renews = os.getpid()
    _paused.clear()
    for thing in living(_renewables):
        thing.renew_after_fork()
    _owner, _renews = os.getpid(), 0


def living(things: Iterable[T]) -> list[T]:
    """Return the members of *things*, to which another thread may be adding."""
    while True:
        try:
            return list(things)
        except RuntimeError:  # noqa: PERF203  the set changed meanwhile
            pass


# Python cannot unregister these functions.  So they are registered once, and find their objects by
# weak references.
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_renew_all)
