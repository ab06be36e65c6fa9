"""What is to be done when this process ends, in whichever way it ends."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Final

LAST: Final = -1_000_000
"""Priority of what is done after all finalizers of the application."""


def call_at_exit(act: Callable[[], None]) -> None:
    """Call *act* when this process ends; perhaps more than once.

    Children of ``multiprocessing``, of its executors and of billiard run no exit handlers, but the
    finalizers of their own module.  Children of Celery's prefork pool run neither, but send a
    signal.  All of them forget at their start what their parent has registered, so call this in the
    process that has something to do.
    """
    atexit.register(act)
    for name in ("multiprocessing.util", "billiard.util"):
        util = sys.modules.get(name)
        if util is not None:
            util.Finalize(None, act, exitpriority=LAST)
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(lambda **_: act(), weak=False)
