"""Kombu's message <-> the queue's message.

Out: `pack` encodes a message once, in the thread of its publisher, as a JSON fragment.  A request
joins the fragments of its messages.  In: `receive` turns anything that a queue can contain into
Kombu's dictionary, including messages that other software has sent.
"""

from ..runtime.rng import new_id
from .deaths import deaths_of
from .pack import pack
from .packed import Address, Packed
from .repack import repack
from .times import (
    expired,
    expires_at,
    is_revoked_by_worker,
    retention_error,
    seconds_until_due,
)
from .unpack import receive

__all__ = [
    "Address",
    "Packed",
    "deaths_of",
    "expired",
    "expires_at",
    "is_revoked_by_worker",
    "new_id",
    "pack",
    "receive",
    "repack",
    "retention_error",
    "seconds_until_due",
]
