"""The thread that watches this process, and answers at an address and in a file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from ..options import HostPort
from ..runtime.exits import call_at_exit
from ..runtime.fork import notice_fork, renew_in_child
from ..runtime.locks import new_lock
from ..runtime.threads import start_thread, threads_can_run
from .judge import judge
from .listener import ProbeListener

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
"""How often the thread looks at the process, and touches the file."""

BIND_RETRY_SECONDS: Final = 5.0
"""Pause before another attempt to listen at an address that is in use.  A worker that stops keeps
the address until its last task has ended, and its successor then takes it over."""


class Service:
    """Watches this process, and says whether it is healthy.

    Args:
        address: Where to answer; None to answer nowhere.
        file: A file to touch while the process is healthy; None for no file.
    """

    def __init__(self, address: HostPort | None, file: str | None) -> None:
        self._address = address
        self._file = None if file is None else Path(file)
        self._listener: ProbeListener | None = None
        self._run_token: object | None = None  # of the thread that is to go on
        self._retry_at = 0.0
        self._is_healthy = True  # as far as the log says
        self._complaints: set[str] = set()  # problems that were logged
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Watch nothing: the child does not consume yet, and the parent answers for itself."""
        listener, self._listener, self._run_token = self._listener, None, None
        self._is_healthy, self._complaints, self._retry_at = True, set(), 0.0
        if listener is not None:
            listener.abandon()

    def start(self) -> None:
        """Start the thread unless it runs.  Returns at once."""
        if self._run_token is not None:
            return
        token = self._run_token = object()
        judge.begin()
        error = start_thread("cfqueues-health", partial(self._run, token))
        if error is not None:  # the interpreter is ending, or the system allows no more threads
            self._run_token = None
            logger.debug("no health checks: %s", error)

    def stop(self) -> None:
        """Answer no more, and remove the file.  The thread ends within a second."""
        self._run_token = None
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()

    def _run(self, token: object) -> None:
        try:
            # False also in a forked child that has inherited this greenlet.
            while self._run_token is token:
                self._attempt(self._look)
                self._attempt(self._answer)
        finally:
            if self._run_token is token:  # its greenlet was killed: the next `start` replaces it
                self._run_token = None
            if self._run_token is None:
                listener, self._listener = self._listener, None
                if listener is not None:
                    listener.close()

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        # Whatever the cause is, a worker must not lose its health check over it.
        except Exception:
            logger.exception("a health check of this process failed")
            time.sleep(TICK_SECONDS)

    def _look(self) -> None:
        self._listen()
        self._tick()

    def _answer(self) -> None:
        """Answer one probe, or wait for `TICK_SECONDS`."""
        listener = self._listener
        if listener is None:
            time.sleep(TICK_SECONDS)
        else:
            listener.answer(TICK_SECONDS)

    def _listen(self) -> None:
        address = self._address
        if address is None or self._listener is not None or time.monotonic() < self._retry_at:
            return
        try:
            self._listener = ProbeListener(address)
        except OSError as error:
            self._retry_at = time.monotonic() + BIND_RETRY_SECONDS
            if "address" not in self._complaints:
                self._complaints.add("address")
                logger.warning(
                    "health checks of this process cannot be answered at %s (%s), so the process "
                    "goes on without them and tries again every %d seconds: if another worker of "
                    "this host uses the address, set another health_address",
                    address,
                    error.strerror or error,
                    BIND_RETRY_SECONDS,
                )
            return
        logger.info("health checks are answered at http://%s/healthz", self._listener.address)
        self._complaints.discard("address")

    def _tick(self) -> None:
        report = judge.report()
        if report.is_healthy != self._is_healthy:
            self._is_healthy = report.is_healthy
            if report.is_healthy:
                logger.info("this process is healthy again")
            else:
                logger.warning("this process is unhealthy: %s", "; ".join(report.faults))
        if self._file is not None and self._run_token is not None:
            self._mark(self._file, is_healthy=report.is_healthy)

    def _mark(self, file: Path, *, is_healthy: bool) -> None:
        try:
            if is_healthy:
                file.touch()
            else:
                file.unlink(missing_ok=True)
        except OSError as error:
            if "file" not in self._complaints:
                self._complaints.add("file")
                logger.warning(
                    "health_file %s cannot be written, so probes that look at it fail: %s",
                    file,
                    error.strerror or error,
                )


class _Services:
    """The services of this process, by where they answer."""

    def __init__(self) -> None:
        self._services: dict[tuple[HostPort | None, str | None], Service] = {}
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Replace the lock: a thread of the parent may have held it."""
        self._lock = new_lock()  # guards _services
        self._ends_at_exit = False

    def serve(self, address: HostPort | None, file: str | None) -> Service:
        """Start the service at *address* and *file* unless it runs."""
        with self._lock:
            service = self._services.setdefault((address, file), Service(address, file))
            ends_at_exit, self._ends_at_exit = self._ends_at_exit, True
        # Not under the lock: under gevent, starting a thread switches to another greenlet.
        if not ends_at_exit:
            call_at_exit(self.stop)
        service.start()
        return service

    def stop(self) -> None:
        """Stop all services."""
        notice_fork()
        with self._lock:
            services = list(self._services.values())
        for service in services:
            service.stop()


_services = _Services()


def serve(address: HostPort | None, file: str | None) -> Service | None:
    """Watch this process and say whether it is healthy, once for each place.  Returns at once.

    Args:
        address: Where to answer; None to answer nowhere.
        file: A file to touch while the process is healthy; None for no file.

    Returns:
        The service; None where no thread can run.
    """
    notice_fork()
    return _services.serve(address, file) if threads_can_run() else None
