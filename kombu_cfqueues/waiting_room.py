"""Where messages wait for a request that carries them: the protocol of both waiting rooms.

A room keeps messages and knows whose turn the next permit is.  `publish.memory_room` keeps them for
one process, `spool.room` in a file for all processes of a machine.  Everything that has to do with
callers (who posts, until when, what a failure means) is above this protocol, in
`publish.group_commit`, and is written once.

The life of an item::

    enter --> WAITING --claim--> CLAIMED --settle: accepted, or refused--> gone
                 ^                  |
                 +--settle: returned, release--+
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum, IntEnum, auto
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from . import limits
from .envelope import Address
from .errors import CFQueuesError, RateLimited
from .retry import Backoff


class Kind(IntEnum):
    """Who waits.  Files hold these numbers."""

    SINGLE = 0
    """A `publish()`, for its confirmation."""
    BULK = 1
    """A part of a `Producer.batch()`, for its confirmation."""
    SPOOLED = 2
    """Nobody: the message is on this machine's disk, and its publisher has gone on."""
    ADMIN = 3
    """A request that carries no message, for its permit."""
    LOOKUP = 4
    """The same, of which a message's publishing depends."""


class RoomBusy(CFQueuesError):
    """The room could not be used before the caller's deadline.  Nothing in it was changed."""


class Item:
    """A message on its way.

    Attributes:
        address: Its queue.
        message: What is posted; has a ``size`` in bytes.
        kind: Who waits for its outcome.
        deadline: Until when somebody waits for it, in monotonic seconds; infinite if nobody does.
        half_time: When half of its whole time has passed, in monotonic seconds.
        repeats: Whether it may be posted again after an unknown outcome.
        uncertain: Whether it may have arrived, although no answer said so.
        max_batch: Messages that may travel together with it, itself included.
        owner: Who waits for it in this process; None if nobody does.
        place: Where the room keeps it, in the room's own words.
        error: Why its last try failed; None if it has not been tried.
        orphaned: Whether the thread that was posting it was interrupted.
    """

    __slots__ = (
        "address", "deadline", "error", "half_time", "kind", "max_batch", "message", "orphaned",
        "owner", "place", "repeats", "uncertain",
    )  # fmt: skip

    def __init__(
        self,
        address: Address,
        message: Any,
        kind: Kind = Kind.SINGLE,
        *,
        entered: float = 0.0,
        deadline: float = inf,
        repeats: bool = True,
        uncertain: bool = False,
        max_batch: int = limits.BATCH_MESSAGES,
        owner: Any = None,
        place: Any = None,
    ) -> None:
        self.address = address
        self.message = message
        self.kind = kind
        self.deadline = deadline
        self.half_time = (entered + deadline) / 2
        self.repeats = repeats
        self.uncertain = uncertain
        self.max_batch = max_batch
        self.owner = owner
        self.place = place
        self.error: CFQueuesError | None = None
        self.orphaned = False

    @property
    def owned_here(self) -> bool:
        """Whether somebody in this process waits for it."""
        return self.owner is not None


Settled = Mapping[Item, CFQueuesError | None]
"""Items whose outcome stands: None if Cloudflare has the message, else why it does not."""


class Claim(NamedTuple):
    """Messages of one queue that this process alone may post, with a permit for one request.

    Attributes:
        number: Tells it from any other.
        address: The queue.
        items: The messages, in the order in which they are to be posted.
        expired: How many spooled messages were dropped instead, since nobody wants them any more.
    """

    number: int
    address: Address
    items: Sequence[Item]
    expired: int = 0


class Wait(NamedTuple):
    """Nothing may be posted now.

    Attributes:
        until: When to ask again, in monotonic seconds; None: when something changes.
        why: Why nothing of *queue* can leave before that, whoever posts it; None: something may.
        queue: Name of the queue that *why* speaks of; None: of all.
    """

    until: float | None
    why: RateLimited | None = None
    queue: str | None = None


class ClaimTerms(NamedTuple):
    """What may be claimed.

    Attributes:
        number: The number of the claim, chosen by the caller so that `WaitingRoom.release` can
            free it whatever happens.
        kinds: What may be taken.
        busy: Names of queues that are not to be posted to now.
        only_own: Take nothing that other processes wait for.
        latest: Take nothing that is waited for longer than this, in monotonic seconds.
        request_seconds: How long a request takes.  Nothing is taken that has less time left, and
            less than half of its whole time.
        sample: Names of queues of which one message is asked alone, any of those that were split.
        until: When to give up at the latest if the room is busy, in monotonic seconds.
    """

    number: int
    kinds: Collection[Kind] = (Kind.SINGLE, Kind.BULK, Kind.SPOOLED)
    busy: Collection[str] = ()
    only_own: bool = False
    latest: float = inf
    request_seconds: float = 0.0
    sample: Collection[str] = ()
    until: float = inf


class ClaimOutcome(NamedTuple):
    """What became of a claim.

    Attributes:
        settled: Its items whose outcome stands.
        returned: Its items that wait again.
        max_batch: How many of those that wait again may travel together; None: as many as before.
        error: What delays them.
        pause: How long what is spooled for the queue is to wait; None: not at all.
        give_up: What those are told who wait for other messages of the queue that were split: they
            are not asked.  What is spooled waits.  None: all are asked.
    """

    settled: Settled = MappingProxyType({})
    returned: Sequence[Item] = ()
    max_batch: int | None = None
    error: CFQueuesError | None = None
    pause: Backoff | None = None
    give_up: CFQueuesError | None = None


class Outcomes(NamedTuple):
    """What other processes said of this one's messages.

    Attributes:
        settled: Whose outcome stands.
        waiting: Whether any message of this process is not claimed by anybody.
        look_at: When to look again, in monotonic seconds; None: nothing comes from elsewhere.
    """

    settled: Settled
    waiting: bool
    look_at: float | None = None


class Withdrawn(Enum):
    """What is known of a message that was taken back."""

    NOT_SENT = auto()
    """Surely nobody sent it."""
    PERHAPS_SENT = auto()
    """It is on its way, or was once and no answer came."""


class WaitingRoom(Protocol):
    """Keeps messages until a request carries them.  Any thread may call any method.

    No method waits for a network, or for longer than its file takes.  ``until`` is when a method
    gives up at the latest if the room is busy, in monotonic seconds.

    Raises:
        RoomBusy: (every method) it was busy until then.
        SpoolUnavailable, SpoolFull: (every method) the room cannot be used.
    """

    shared: bool
    """Whether other processes post from it."""
    max_batch: int
    """Messages of one request."""

    def enter(
        self, items: Sequence[Item], *, number: int, may_skip: bool, until: float
    ) -> Claim | None:
        """Let *items*, all of one queue, wait.

        If an item *may_skip*, nothing waits and a permit is free, it may be claimed at once, as
        claim *number*.
        """

    def outcomes(self, *, until: float) -> Outcomes:
        """Return what other processes said of this one's messages, each once."""

    def claim(self, terms: ClaimTerms) -> Claim | Wait:
        """Take the next permit and what it is for, if it is there and is for something here."""

    def settle(self, claim: Claim, outcome: ClaimOutcome, *, until: float) -> Settled:
        """Say what became of *claim*; return what of this process *outcome.give_up* settles."""

    def release(self, number: int) -> None:
        """Let what claim *number* still holds wait again: the thread that made it has ended."""

    def withdraw(
        self, items: Sequence[Item], *, claimed: bool, until: float
    ) -> Mapping[Item, Withdrawn | CFQueuesError | None]:
        """Take items back that nobody waits for any more.

        Args:
            items: Of this process.
            claimed: Whether also those that somebody is posting, and may yet be answered.
            until: When to give up.

        Returns:
            What is known of each that was taken back: its outcome, if it had one.
        """
