"""Where a message goes, for whichever process posts it."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """A queue, by the name that every process knows it by.

    Attributes:
        name: Its name at Cloudflare, or ``#`` and its id where the application says the id.
        creates: Whether it is to be made if it is missing.
        cloudflare_id: Its id, where that is known already.
    """

    name: str
    creates: bool = False
    cloudflare_id: str | None = None

    @classmethod
    def of_id(cls, cloudflare_id: str) -> Address:
        """The address of a queue of which the id is all that need be known."""
        return cls(f"#{cloudflare_id}", cloudflare_id=cloudflare_id)
