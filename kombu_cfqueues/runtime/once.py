"""Saying something once."""

from __future__ import annotations

from collections.abc import Hashable


class Once:
    """Remembers what was said already.  Each access is a single step, so there is no lock."""

    def __init__(self) -> None:
        self._said: set[Hashable] = set()

    def is_new(self, what: Hashable = None) -> bool:
        """Return whether this is the first call with *what*."""
        if what in self._said:
            return False
        self._said.add(what)
        return True
