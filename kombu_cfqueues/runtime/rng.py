"""Randomness of our own.

An application that seeds `random` expects the same numbers each time; what we take of them, in
threads of our own even, would change them.
"""

from __future__ import annotations

from random import Random

from .fork import renew_in_child


class _Rng(Random):
    def renew_after_fork(self) -> None:
        """Do not go on with the parent's numbers, as its other children would."""
        self.seed()


#: Not for secrets.  Its methods may be called by any thread.
rng = _Rng()
renew_in_child(rng)
