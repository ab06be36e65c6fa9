"""Modules that are imported at their first use, in any thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from .fork import pause_at_fork, renew_in_child
from .locks import new_reentrant_lock

IMPORT_FORK_TIMEOUT_SECONDS: Final = 5.0
"""Longest time that a fork waits for a thread that imports a module.

Long enough for a slow disk.  After that, the child finds the module half loaded."""


class Importing:
    """Lets no other thread fork while a module is imported in a ``with`` statement.

    A child that is forked during the import would wait forever for the importing thread, which does
    not exist in the child.
    """

    def __init__(self) -> None:
        self._loaders: list[Callable[[], object]] = []
        self.renew_after_fork()
        renew_in_child(self)
        pause_at_fork(self)

    def before_forks(self, load: Callable[[], object]) -> None:
        """Call *load*, which imports a module, before each fork: children need not import it."""
        self._loaders.append(load)

    def renew_after_fork(self) -> None:
        """Replace the lock: a thread of the parent may have held it."""
        # Reentrant, because a signal handler that interrupts the import may fork.
        self._lock = new_reentrant_lock()
        self._is_paused = False

    def pause_for_fork(self) -> None:
        """Load what children would load; wait until no thread imports, and let none begin."""
        for load in self._loaders:
            # If this fails, the first use of the module reports it.  It always fails if a signal
            # handler that interrupts an import forks, because the module is half loaded.
            with contextlib.suppress(Exception):
                load()
        self._is_paused = self._lock.acquire(timeout=IMPORT_FORK_TIMEOUT_SECONDS)

    def resume_after_fork(self) -> None:
        """Let threads import again."""
        if self._is_paused:
            self._is_paused = False
            self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


importing: Final = Importing()
"""Used for all modules that this package imports at their first use."""
