"""Cloudflare's Queues API on this machine, to develop and test against without an account.

Use ``with Emulator() as emulator:`` in a test, or ``cfqueues emulator`` on the command line.  The
emulator behaves as the documentation says and refuses what the documentation forbids, with
Cloudflare's codes.  ``Knobs`` covers the behaviour that is not known.  The emulator shares no code
with the client, so that it finds the client's misunderstandings instead of repeating them.
"""

from __future__ import annotations

from ..runtime.extras import missing

try:
    from .access import TOKEN
    from .clock import Clock
    from .faults import Fault, Faults
    from .knobs import Knobs
    from .log import LoggedRequest, RequestLog
    from .server import ACCOUNT_ID, Emulator
    from .stored_messages import StoredMessage
except ModuleNotFoundError as error:
    raise missing("the emulator", "emulator", error) from error

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
