"""What the consumers of a process do and hold, as a health check asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .delivery import Delivery
from .inbox import Inbox, Subscription
from .pulse import Pulse


class QueueVitals(NamedTuple):
    """One queue that a process consumes.

    Attributes:
        name: Kombu's name of the queue.
        pulls: Whether its pulls are answered.
        is_lost: Whether the queue was deleted, or a Worker consumes it, while its consumer goes on
            with other queues.
    """

    name: str
    pulls: Pulse
    is_lost: bool


class Settling(NamedTuple):
    """What a process tells the server about messages that are settled.

    Attributes:
        queues: For each queue with acknowledgements that wait or are in flight, its name and
            whether they are answered.
        settled_at: When an acknowledgement was last answered, in seconds of `time.monotonic`; None
            if none was.
    """

    queues: Sequence[tuple[str, Pulse]]
    settled_at: float | None


class Vitals(NamedTuple):
    """What the consumers of a process to one account do and hold.

    Attributes:
        is_open: Whether a connection is open that has consumed.
        queues: What is consumed.
        settling: Whether messages are settled.
        prefetch: The prefetch counts of all channels together; 0 if none has one.
        waiting: Messages that were pulled, and wait for their delivery.
        unsettled: Messages that were delivered, and are not settled.
        leased_at: When the oldest of these messages was leased, in seconds of `time.monotonic`;
            None if there is none.
    """

    is_open: bool
    queues: Sequence[QueueVitals]
    settling: Settling
    prefetch: int
    waiting: int
    unsettled: int
    leased_at: float | None


def take_vitals(
    subscriptions: Iterable[Subscription],
    inboxes: Sequence[Inbox],
    unsettled: Sequence[Delivery],
    settling: Settling,
) -> Vitals:
    """Return the vitals of one account.  The caller holds the receiver's lock."""
    pulled = [one for one in subscriptions if one.inbox.newest(one) is one]
    windows = {id(one.window): one.window for one in pulled}
    waiting = [delivery for inbox in inboxes for delivery in inbox.waiting()]
    return Vitals(
        is_open=any(inbox.is_open and not inbox.abandoned for inbox in inboxes),
        queues=[QueueVitals(one.name, one.pulse.copy(), one.lost) for one in pulled],
        settling=settling,
        prefetch=sum(window.prefetch for window in windows.values()),
        waiting=len(waiting),
        unsettled=len(unsettled),
        leased_at=min((one.leased_at for one in [*waiting, *unsettled]), default=None),
    )
