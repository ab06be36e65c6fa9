"""A step of Celery's worker: a starting worker asks the others which tasks are revoked.

Celery has this step, but only for transports that it knows, and not for this one.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.worker.consumer import mingle
from celery.worker.consumer.events import Events

from ..errors import ControlUnavailable

logger = logging.getLogger(__name__)


class Mingle(mingle.Mingle):
    """Celery's step, for a worker with ``control_url``.  ``--without-mingle`` leaves it out."""

    label = "Mingle (control_url)"

    def compatible_transport(self, app: Any) -> bool:
        """Return True: `worker_start` adds the step only where other workers can be asked."""
        return True

    def include(self, parent: Any) -> bool:
        """Take part in the start of *parent*, before it consumes tasks."""
        included = bool(super().include(parent))  # type: ignore[no-untyped-call]
        if included:
            steps = parent.steps
            steps.remove(self)
            events = [index for index, step in enumerate(steps) if isinstance(step, Events)]
            steps.insert(events[-1] + 1 if events else len(steps), self)
        return included

    def sync(self, c: Any) -> None:
        """Ask the other workers; without an answer, this worker starts nevertheless."""
        try:
            super().sync(c)  # type: ignore[no-untyped-call]
        except ControlUnavailable as error:
            logger.warning("the other workers cannot be asked which tasks are revoked: %s", error)
