"""Adds the step `Mingle` to a Celery worker with a control broker, before the worker starts."""

from __future__ import annotations

import sys
from typing import Any


def prepare_workers() -> None:
    """Prepare the Celery workers that this process starts, if it has imported Celery."""
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_init.connect(
            _on_worker_init, weak=False, dispatch_uid="kombu_cfqueues.worker_start"
        )


def _on_worker_init(sender: Any, **_: Any) -> None:
    with sender.app.connection_for_read() as connection:  # does not connect
        transport = connection.transport
        is_ours = transport.driver_type == "cfqueues"
        if not (is_ours and "fanout" in transport.implements.exchange_type):
            return
    from .mingle import Mingle  # noqa: PLC0415  it imports Celery

    sender.app.steps["consumer"].add(Mingle)
