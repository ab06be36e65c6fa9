"""What the help of each command ends with."""

from __future__ import annotations


def examples(*arguments: str) -> str:
    """Return the epilog of a command: how it is called with each of *arguments*."""
    # Click wraps each paragraph that does not begin with this character.
    return "\n".join(["\b", "Examples:", *(f"  cfqueues {one}" for one in arguments)])
