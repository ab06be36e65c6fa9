"""Decides whether this process is healthy, by when it last pulled and settled."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ..account import Account
from ..consume.vitals import Vitals
from ..errors import CFQueuesError
from ..runtime.fork import renew_in_child

PATIENCE_SECONDS: Final = 15.0
"""How long pulls and acknowledgements may go unanswered.  Longer than one request that times out,
and short enough to report it within 30 seconds: the next pull of an idle queue may be due in 10."""


class Report(NamedTuple):
    """The state of this process at one moment.

    Attributes:
        faults: Why the process is unhealthy; empty if it is healthy.
        is_ready: Whether it is healthy, pulls at least one queue, and was not told to stop.
        vitals: What its consumers do, by account.
    """

    faults: Sequence[str]
    is_ready: bool
    vitals: Sequence[Vitals]

    @property
    def is_healthy(self) -> bool:
        """Whether the process pulls and settles, as far as it has something to do."""
        return not self.faults


class Judge:
    """Reports on this process.

    Attributes:
        is_stopping: Whether a worker was told to stop.  It is healthy for as long as its last tasks
            take.  A signal handler may set this.
    """

    def __init__(self) -> None:
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start anew: a child consumes for itself."""
        self.begin()

    def begin(self) -> None:
        """Expect this process to consume from now on."""
        self.is_stopping = False
        self._open_at = time.monotonic()  # when a connection was last seen to consume

    def report(self) -> Report:
        """Return the state of this process.  Makes no request."""
        now = time.monotonic()
        vitals = [account.receiver.vitals() for account in Account.all()]
        if any(one.is_open for one in vitals):
            self._open_at = now
        faults: list[str] = []
        if not self.is_stopping:
            faults += [fault for one in vitals for fault in _faults(one, now)]
            closed_for = now - self._open_at
            if closed_for > PATIENCE_SECONDS:
                faults.append(f"no connection has consumed for {closed_for:.0f} s")
        queues = [queue for one in vitals for queue in one.queues if not queue.is_lost]
        pulled = bool(queues) and all(queue.pulls.answered_at is not None for queue in queues)
        return Report(faults, pulled and not faults and not self.is_stopping, vitals)


judge: Final = Judge()
"""The judge of this process."""


def _faults(vitals: Vitals, now: float) -> Iterator[str]:
    for queue in vitals.queues:
        silence = queue.pulls.silence(now)
        if not queue.is_lost and (queue.pulls.is_refused or silence > PATIENCE_SECONDS):
            what = f"queue {queue.name!r} could not be pulled for {silence:.0f} s"
            yield what + _cause(queue.pulls.error)
    for name, pulse in vitals.settling.queues:
        silence = pulse.silence(now)
        if pulse.is_refused or silence > PATIENCE_SECONDS:
            what = f"messages of queue {name!r} could not be settled for {silence:.0f} s"
            yield what + _cause(pulse.error)


def _cause(error: CFQueuesError | None) -> str:
    return "" if error is None else f": {error}"
