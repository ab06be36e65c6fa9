"""One caller of a group commit: what it waits for, until when, and its sleep."""

from __future__ import annotations

import threading

from ..envelope import Address
from ..errors import CFQueuesError, PublishTimeout
from ..runtime.clock import Lock
from ..runtime.rng import rng
from ..waiting_room import Item, Kind
from .sender import Judge


class Caller:
    """A thread that waits for its messages.  The lock of its group commit guards it.

    Attributes:
        acts_by: Where it leads: when it will have acted again, in monotonic seconds.
        address: Where its messages go.
        claims: The numbers of claims that it may hold.
        deadline: Until when it waits, in monotonic seconds.
        failed: Whether it has posted in vain, perhaps only messages of others.
        half_time: When half of its whole time is over, in monotonic seconds.
        idle: Where it leads: whether it waits for something to change.
        is_late: Whether no request for it may leave any more.
        judge: What a failure means to it; None: what it means to all.
        kind: Single messages, or a batch.
        outcomes: What became of its messages.
        paused_until: Where it leads: until when it sleeps out a pause, in monotonic seconds.
        posts: Whether it is posting.
        unsettled: Its messages without an outcome.
    """

    __slots__ = (
        "acts_by",
        "address",
        "claims",
        "deadline",
        "failed",
        "half_time",
        "idle",
        "is_late",
        "judge",
        "kind",
        "outcomes",
        "paused_until",
        "posts",
        "unsettled",
        "wake",
    )  # fmt: skip

    def __init__(
        self,
        address: Address,
        kind: Kind,
        *,
        now: float,
        deadline: float,
        judge: Judge | None,
        wake: Lock,
    ) -> None:
        self.address = address
        self.kind = kind
        self.deadline = deadline
        self.half_time = (now + deadline) / 2
        self.judge = judge
        self.unsettled: dict[Item, None] = {}
        self.outcomes: dict[Item, CFQueuesError | None] = {}
        self.claims: dict[int, None] = {}  # numbers of claims that it may hold
        self.posts = False
        self.failed = False  # it has posted in vain, perhaps only messages of others
        self.is_late = False  # no request for it may leave any more
        self.acts_by = 0.0  # where it leads: when it will have acted again
        self.paused_until = 0.0  # where it leads, and waits for a pause to end
        self.idle = False  # where it leads, and waits for something to change
        self.wake = wake  # locked while there is no news
        wake.acquire()

    def new_claim(self) -> int:
        """Choose the number of a claim, before there is one: whatever happens, it can be freed."""
        number = rng.getrandbits(62)
        self.claims[number] = None
        return number

    def has_failed(self) -> bool:
        """Whether it has posted in vain, or somebody has posted its messages in vain."""
        return self.failed or any(item.error is not None for item in list(self.unsettled))

    def call(self) -> None:
        """Wake it: it is settled, leads, or may look again."""
        if self.wake.locked():
            self.wake.release()

    def sleep(self, seconds: float) -> None:
        """Block for at most *seconds*, or until `call`."""
        if seconds > 0:
            self.wake.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def settle(self, item: Item, error: CFQueuesError | None) -> None:
        """Note what became of *item*; the first outcome counts."""
        if item in self.unsettled:
            self.outcomes[item] = error
            self.unsettled.pop(item, None)
            if not self.unsettled:
                self.call()


def judge_of(item: Item) -> Judge | None:
    """Return what a failure means to the caller of *item*."""
    caller: Caller = item.owner
    return caller.judge


def timeout_error(why: CFQueuesError | None, *, sent: bool) -> PublishTimeout:
    """Return what a caller is told whose message was not accepted in time.

    Args:
        why: The last failure.
        sent: Whether a request that carried the message may have arrived.
    """
    text = "no request could leave for the message in time"
    if sent:
        text = "the request that carries the message was not answered in time"
    error = PublishTimeout(
        f"{text} (last failure: {why})" if why else text,
        retry_after=why.retry_after if why else None,
        delivered="unknown" if sent else "no",
    )
    error.__cause__ = why
    return error
