"""Lease ids and refs: opaque to clients, and readable here without a table of issued ids."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final

_FORM: Final = struct.Struct(">cQII16s")  # kind, seq, number, queue, message id
_SIGNATURE_BYTES: Final = 64
_PREFIX: Final = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2Q0JDLUhTNTEyIn0.."


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease of a message.

    Attributes:
        seq: The message's row.
        number: Counts the leases of the message.
        queue: The number of the message's queue.
        message_id: The message's id, 16 bytes.
    """

    seq: int
    number: int
    queue: int
    message_id: bytes


class Leases:
    """Writes and reads lease ids.

    A lease id contains its lease and a signature, which distinguish an expired lease id from an
    invalid one.  It has about the length of Cloudflare's lease ids and starts like them.

    Args:
        key: Signs the ids.  The database stores it, so that leases survive a restart.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, lease: Lease) -> str:
        """Return the id of *lease*."""
        return _PREFIX + self._seal(b"L", lease)

    def read(self, text: str) -> Lease | None:
        """Return the lease of an id; None if this emulator did not write the id."""
        return self._open(b"L", text[len(_PREFIX) :]) if text.startswith(_PREFIX) else None

    def write_ref(self, message: Lease) -> str:
        """Return the ref with which a client can purge a peeked message."""
        return self._seal(b"R", message)

    def read_ref(self, text: str) -> Lease | None:
        """Return the message of a ref; None if this emulator did not write the ref."""
        return self._open(b"R", text)

    def _seal(self, kind: bytes, lease: Lease) -> str:
        data = _FORM.pack(kind, lease.seq, lease.number, lease.queue, lease.message_id)
        return base64.urlsafe_b64encode(data + self._sign(data)).decode().rstrip("=")

    def _open(self, kind: bytes, text: str) -> Lease | None:
        try:
            sealed = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):  # ValueError: characters outside ASCII
            return None
        data, signature = sealed[: _FORM.size], sealed[_FORM.size :]
        if len(data) < _FORM.size or not hmac.compare_digest(signature, self._sign(data)):
            return None
        found, seq, number, queue, message_id = _FORM.unpack(data)
        return Lease(seq, number, queue, message_id) if found == kind else None

    def _sign(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=_SIGNATURE_BYTES).digest()
