"""Ends a Celery worker's wait for messages at the moment when the worker is told to stop.

Celery's signal handler sets a flag, which the worker checks only after its wait, seconds later.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

from ..consume.inbox import Inbox
from ..health.judge import judge
from ..runtime.fork import living

_inboxes: weakref.WeakSet[Inbox] = weakref.WeakSet()


def end_wait_at_stop(inbox: Inbox) -> None:
    """Deliver nothing from *inbox*, and wait for nothing, once its worker is told to stop.

    Args:
        inbox: That of a connection that a worker consumes from.
    """
    signals = sys.modules.get("celery.signals")  # every worker imports it
    if signals is not None:
        _inboxes.add(inbox)
        signals.worker_shutting_down.connect(
            _on_stop, weak=False, dispatch_uid="kombu_cfqueues.worker_stop"
        )


def _on_stop(**_: Any) -> None:
    """Run in a signal handler, so take no lock."""
    judge.is_stopping = True
    for inbox in living(_inboxes):
        inbox.interrupt()
