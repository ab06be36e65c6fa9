"""Cloudflare's Queues API on this machine, to develop and test against without an account.

``with Emulator() as emulator:`` in a test, ``cfqueues emulator`` on the command line.  It behaves
as the documentation says, refuses what that forbids, with its codes, and leaves to ``Knobs`` what
is not known.  It uses nothing of the client, whose misunderstandings it is there to find.
"""

from __future__ import annotations

from .access import TOKEN
from .clock import Clock
from .faults import Fault, Faults
from .knobs import Knobs
from .log import LoggedRequest, RequestLog
from .server import ACCOUNT_ID, Emulator
from .store import StoredMessage

__all__ = [
    "ACCOUNT_ID",
    "TOKEN",
    "Clock",
    "Emulator",
    "Fault",
    "Faults",
    "Knobs",
    "LoggedRequest",
    "RequestLog",
    "StoredMessage",
]
