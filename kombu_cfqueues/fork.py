"""What must start anew in a forked child: locks, and whatever threads of the parent own."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """An object whose locks and waiters belong to one process."""

    def renew_after_fork(self) -> None:
        """Forget the parent's threads.  Runs in the child, before any other code of it."""


_renewables: WeakSet[Renewable] = WeakSet()


def renew_in_child(thing: Renewable) -> None:
    """Call *thing*'s ``renew_after_fork`` in each child forked from now on, while it lives."""
    _renewables.add(thing)


def _renew_all() -> None:
    for thing in list(_renewables):
        thing.renew_after_fork()


# Once, and with weak references: what is registered here cannot be taken back.
os.register_at_fork(after_in_child=_renew_all)
