"""The bootstep that makes a Celery worker answer health checks."""

from __future__ import annotations

from typing import Any, Final

from celery import bootsteps, signals

from ..options import HostPort, Options
from .service import Service, serve

DEFAULT_ADDRESS: Final = HostPort("127.0.0.1", 9810)
"""Where a worker answers unless ``health_address`` or ``health_file`` is set."""


class HealthStep(bootsteps.StartStopStep):
    """Answers health checks from the start of a worker until its last task has ended.

    Add it with ``app.steps["worker"].add(HealthStep)``.  It answers at ``health_address``, by
    default at ``127.0.0.1:9810``, and touches ``health_file`` if that is set.  If only
    ``health_file`` is set, it does not listen.  A worker of another broker is left alone.
    """

    _service: Service | None = None

    def start(self, worker: Any) -> None:
        """Start to watch the worker.

        Raises:
            ConfigurationError: An option of the broker is wrong.
        """
        with worker.app.connection_for_read() as connection:
            options = getattr(getattr(connection.transport, "session", None), "options", None)
        if not isinstance(options, Options):
            return
        address = options.health_address
        if address is None and options.health_file is None:
            address = DEFAULT_ADDRESS
        self._service = serve(address, options.health_file)
        # Not in `stop`, which comes before the tasks that run have ended.
        signals.worker_shutdown.connect(self._end, weak=False)

    def stop(self, worker: Any) -> None:
        """Go on: the last tasks still run, and their messages are still to be acknowledged."""

    def _end(self, **_: Any) -> None:
        signals.worker_shutdown.disconnect(self._end)
        if self._service is not None:
            self._service.stop()
