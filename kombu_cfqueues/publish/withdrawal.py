"""Take messages back from the room, and say whether they may have been sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import CFQueuesError, PublishTimeout, SpoolFull, SpoolUnavailable
from ..waiting_room import Item, RoomBusy, Settled, WaitingRoom, Withdrawn
from .sender import Pause


def withdraw(
    room: WaitingRoom,
    items: Sequence[Item],
    *,
    claimed: bool,
    now: float,
    reason: CFQueuesError | None,
    pause: Pause | None,
) -> Settled:
    """Take messages back for which their callers can no longer wait.

    Args:
        room: Where the messages are.
        items: The messages, all of this process.
        claimed: Whether to include messages that are being posted.  If so, every item is settled,
            even if the room cannot be used, because no caller waits beyond its deadline.
        now: Monotonic seconds.
        reason: Why no request can leave; None means the last failure of each message.
        pause: The current pause, which explains messages that have not been tried.

    Returns:
        The outcome of each message that was taken back.
    """
    settled: dict[Item, CFQueuesError | None] = {}
    for item, found in _take_back(room, items, claimed=claimed, now=now).items():
        if isinstance(found, Withdrawn):
            failure = reason or item.error or (pause and pause.why)
            settled[item] = timeout(item, failure, sent=found is Withdrawn.PERHAPS_SENT)
        else:
            settled[item] = found
    if claimed:
        for item in items:
            if item not in settled:
                settled[item] = timeout(item, reason, sent=True)
    return settled


def _take_back(
    room: WaitingRoom, items: Sequence[Item], *, claimed: bool, now: float
) -> Mapping[Item, Withdrawn | CFQueuesError | None]:
    try:
        return room.withdraw(items, claimed=claimed, until=now)
    except (SpoolUnavailable, SpoolFull, RoomBusy):
        return dict.fromkeys(items, Withdrawn.PERHAPS_SENT) if claimed else {}


def timeout(item: Item, failure: CFQueuesError | None, *, sent: bool) -> PublishTimeout:
    """Return the error for a message that was not accepted before its deadline.

    Args:
        item: The message.
        failure: The last failure, which becomes the cause; None if nothing has failed.
        sent: Whether the message may have been sent.
    """
    queue = item.address.name
    if sent:
        text = (
            f"the message to queue {queue!r} may have been delivered: its request was not answered "
            "before the deadline"
        )
    else:
        text = (
            f"the message to queue {queue!r} was not sent: no request could be made before the "
            "deadline"
        )
    error = PublishTimeout(
        f"{text} (last failure: {failure})" if failure else text,
        retry_after=failure.retry_after if failure else None,
        delivered="unknown" if sent else "no",
    )
    error.__cause__ = failure
    return error
