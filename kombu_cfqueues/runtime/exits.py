"""Calls functions when this process ends, however it ends."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Final

LAST: Final = -1_000_000
"""Priority that runs after all finalizers of the application."""


def call_at_exit(act: Callable[[], None]) -> None:
    """Call *act* when this process ends; perhaps more than once.

    Children of ``multiprocessing`` (also in executors) and of billiard do not run exit handlers,
    only the finalizers of that module.  Children of Celery's prefork pool run neither, but send a
    signal.  All these children start without what their parent registered, so call this in the
    process whose end *act* must handle.
    """
    atexit.register(act)
    for name in ("multiprocessing.util", "billiard.util"):
        util = sys.modules.get(name)
        if util is not None:
            util.Finalize(None, act, exitpriority=LAST)
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(lambda **_: act(), weak=False)
