"""The request allowance of an API token: how many requests may leave, and what stops them.

Cloudflare counts requests per token.  Exceeding the limit blocks *every* call of the token for 5
minutes (``limits.REQUESTS_PER_WINDOW``), so it is always cheaper to wait here.

`Allowance` is arithmetic: an immutable value of a few numbers, whose methods return a changed copy.
It contains the `Share` of the machine.  `Budget` keeps an allowance for the threads of a process;
the spool keeps one in its file, for the processes of a machine.
"""

from __future__ import annotations

from .allowance import CLOUDFLARE_LIMIT, INITIAL_TOKENS, Allowance, Limit, parse_ratelimit
from .budget import Budget, Waiter
from .share import Share
from .stop_log import WAYS_OUT, StopLog
from .waits import QUEUE_STOPPED, NoPermit, Stopped, no_permit, stopped

__all__ = [
    "CLOUDFLARE_LIMIT",
    "INITIAL_TOKENS",
    "QUEUE_STOPPED",
    "WAYS_OUT",
    "Allowance",
    "Budget",
    "Limit",
    "NoPermit",
    "Share",
    "StopLog",
    "Stopped",
    "Waiter",
    "no_permit",
    "parse_ratelimit",
    "stopped",
]
