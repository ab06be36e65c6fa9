"""One caller of a group commit: the messages it waits for, its deadline, and its sleep."""

from __future__ import annotations

import threading

from ..envelope import Address
from ..errors import CFQueuesError
from ..runtime.locks import Lock
from ..runtime.rng import rng
from ..waiting_room import Item, Kind


class Caller:
    """A thread that waits for its messages.  The lock of its group commit guards it.

    All times are monotonic seconds.

    Attributes:
        acts_by: The latest time at which the caller acts next, if it is the leader.
        address: The queue of its messages.
        claims: The numbers of the claims that it may hold.
        deadline: Until when it waits.
        failed: Whether a request that it posted has failed, even one without its own messages.
        half_time: When half of its whole time is over.
        idle: Whether it sleeps until something changes, if it is the leader.
        is_late: Whether it is too late for another request.
        kind: `Kind.SINGLE` or `Kind.BULK`.
        outcomes: The outcomes of its settled messages.
        paused_until: When the pause that it sleeps through ends, if it is the leader; else 0.
        posts: Whether it is posting now.
        unsettled: Its messages without an outcome.
    """

    __slots__ = (
        "_asleep",
        "acts_by",
        "address",
        "claims",
        "deadline",
        "failed",
        "half_time",
        "idle",
        "is_late",
        "kind",
        "outcomes",
        "paused_until",
        "posts",
        "unsettled",
    )  # fmt: skip

    def __init__(
        self, address: Address, kind: Kind, *, now: float, deadline: float, asleep: Lock
    ) -> None:
        self.address, self.kind = address, kind
        self.deadline, self.half_time = deadline, (now + deadline) / 2
        self.unsettled: dict[Item, None] = {}
        self.outcomes: dict[Item, CFQueuesError | None] = {}
        self.claims: dict[int, None] = {}
        self.posts = False
        self.failed = False
        self.is_late = False
        self.acts_by = 0.0
        self.paused_until = 0.0
        self.idle = False
        self._asleep = asleep  # locked until `wake`
        asleep.acquire()

    def new_claim(self) -> int:
        """Choose the number of a claim before the claim exists, so that it can always be freed."""
        number = rng.getrandbits(62)
        self.claims[number] = None
        return number

    def has_failed(self) -> bool:
        """Whether a request that it posted, or one that carried its messages, has failed."""
        return self.failed or any(item.error is not None for item in list(self.unsettled))

    def wake(self) -> None:
        """End its sleep: its messages are settled, or it is the leader, or it should look again."""
        if self._asleep.locked():
            self._asleep.release()

    def sleep(self, seconds: float) -> None:
        """Block for at most *seconds*, or until `wake`."""
        if seconds > 0:
            self._asleep.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def settle(self, item: Item, error: CFQueuesError | None) -> None:
        """Record the outcome of *item*; only its first outcome counts."""
        if item in self.unsettled:
            self.outcomes[item] = error
            self.unsettled.pop(item, None)
            if not self.unsettled:
                self.wake()
