"""A step of Celery's worker: when it starts, it asks the other workers what is revoked.

Celery has this step, and takes it only with its own transports.
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
        """Whether there is something to ask: `worker_start` adds the step only then."""
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
        """Ask; a worker starts without an answer too."""
        try:
            super().sync(c)  # type: ignore[no-untyped-call]
        except ControlUnavailable as error:
            logger.warning("the other workers cannot be asked which tasks are revoked: %s", error)
