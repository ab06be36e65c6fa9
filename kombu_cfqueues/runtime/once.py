"""Says something once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable

from .recent import Recent


class Once:
    """Remembers what was said already, as long as `Recent` does."""

    def __init__(self) -> None:
        self._said: Recent[Hashable, None] = Recent()

    def is_new(self, what: Hashable = None) -> bool:
        """Return whether this is the first call with *what*."""
        first: list[Hashable] = []
        self._said.get_or_make(what, lambda: first.append(what))
        return bool(first)


def once(say: Callable[..., None]) -> Callable[..., None]:
    """Make a function do nothing if this process has called it before with equal arguments."""
    said = Once()

    @functools.wraps(say)
    def say_once(*what: Hashable) -> None:
        if said.is_new(what):
            say(*what)

    return say_once
