"""A random number generator of our own.

An application that seeds `random` expects the same numbers in every run.  If the library, possibly
in its own threads, took numbers from `random`, the application's numbers would change.
"""

from __future__ import annotations

import os
from random import Random

from .fork import renew_in_child


class _Rng(Random):
    def renew_after_fork(self) -> None:
        """Seed again, so that the children of one parent do not draw the same numbers."""
        self.seed()


rng = _Rng()
"""The generator of this process, for any thread.  It is not safe for secrets."""

renew_in_child(rng)


def new_id() -> str:
    """Return a unique id of 32 hex digits.

    It uses the system's randomness instead of `rng`.  A process that was forked without Python's
    fork hooks would repeat the ids of its parent, and consumers drop messages with known ids.
    """
    return os.urandom(16).hex()
