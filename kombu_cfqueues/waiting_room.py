"""The protocol of a waiting room, in which messages wait for a request that carries them.

A room keeps messages, and gives out permits together with the messages to post.
`publish.memory_room` keeps the messages of one process in memory; `spool.room` keeps the messages
of all processes of a machine in a file.  Everything that concerns callers (which thread posts,
until when, what a failure means) is above this protocol, in `publish.group_commit`, and is written
once.

The states of an item::

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
    """What waits in a room.  The spool's file contains these numbers."""

    SINGLE = 0
    """A message of `publish()`, whose caller waits for the confirmation."""
    BULK = 1
    """A message of a batch, whose caller waits for the confirmation."""
    SPOOLED = 2
    """A message on this machine's disk, for which no caller waits."""
    ADMIN = 3
    """A request that carries no message and waits for a permit."""
    LOOKUP = 4
    """An admin request without which a message cannot be published."""


class RoomBusy(CFQueuesError):
    """The room could not be used before the caller's deadline.  Nothing in it was changed."""


class Item:
    """A message that is being published.

    Attributes:
        address: Its queue.
        message: What to post; has a ``size`` in bytes.
        kind: What waits for its outcome.
        deadline: When its caller stops waiting, in monotonic seconds; infinite without a caller.
        half_time: When half of its caller's time has passed, in monotonic seconds.
        repeats: Whether it may be posted again after an unknown outcome.
        switches: Whether any failure settles it, because its caller has another broker.
        uncertain: Whether it may have arrived although no answer confirmed it.
        max_batch: Maximum number of messages in a request that carries it.
        owner: The caller in this process that waits for it; None if there is none.
        place: Where the room keeps it; only the room knows the format.
        error: Why its last try failed; None if it has not been tried.
        orphaned: Whether the thread that was posting it was interrupted.
    """

    __slots__ = (
        "address", "deadline", "error", "half_time", "kind", "max_batch", "message", "orphaned",
        "owner", "place", "repeats", "switches", "uncertain",
    )  # fmt: skip

    def __init__(
        self,
        address: Address,
        message: Any,
        kind: Kind = Kind.SINGLE,
        *,
        deadline: float = inf,
        half_time: float = inf,
        repeats: bool = True,
        switches: bool = False,
        uncertain: bool = False,
        max_batch: int = limits.BATCH_MESSAGES,
        owner: Any = None,
        place: Any = None,
    ) -> None:
        self.address = address
        self.message = message
        self.kind = kind
        self.deadline = deadline
        self.half_time = half_time
        self.repeats = repeats
        self.switches = switches
        self.uncertain = uncertain
        self.max_batch = max_batch
        self.owner = owner
        self.place = place
        self.error: CFQueuesError | None = None
        self.orphaned = False

    @property
    def owned_here(self) -> bool:
        """Whether a caller in this process waits for it."""
        return self.owner is not None


Settled = Mapping[Item, CFQueuesError | None]
"""Outcomes by item: None if Cloudflare accepted the message, else why it did not."""


class Claim(NamedTuple):
    """Messages of one queue that only this process may post, with a permit for one request.

    Attributes:
        number: Identifies the claim.
        address: The queue.
        items: The messages, in the order in which to post them.
        expired: Number of spooled messages that were dropped because they have expired.
    """

    number: int
    address: Address
    items: Sequence[Item]
    expired: int = 0


class Wait(NamedTuple):
    """Nothing may be posted now.

    Attributes:
        until: When to ask again, in monotonic seconds; None means when something changes.
        why: Why no process can post to *queue* before that; None if one may be able to.
        queue: Name of the queue that *why* concerns; None means all queues.
    """

    until: float | None
    why: RateLimited | None = None
    queue: str | None = None


class ClaimTerms(NamedTuple):
    """Which messages a claim may take.

    Attributes:
        number: The number of the claim.  The caller chooses it, so that it can always free the
            claim with `WaitingRoom.release`.
        kinds: The kinds of messages to take.
        busy: Names of queues to which not to post now.
        only_own: Whether to leave out messages of other processes.
        latest: Take only messages with a deadline up to this time, in monotonic seconds.
        request_seconds: How long a request takes.  Messages with less time left than this, and
            with less than half of their whole time, stay.
        sample: Names of queues for which to take a single message, at random from split batches.
        until: When to give up if the room is busy, in monotonic seconds.
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
    """The result of posting a claim.

    Attributes:
        settled: The outcomes of its items that are settled.
        returned: Its items that wait again.
        max_batch: The new ``max_batch`` of the items that wait again; None leaves it unchanged.
        error: Why they wait again.
        pause: The backoff of spooled messages to the queue; None means no pause.
        give_up: The error with which to settle all other messages of split batches of the queue,
            without posting them; spooled ones wait.  None means to post them.
    """

    settled: Settled = MappingProxyType({})
    returned: Sequence[Item] = ()
    max_batch: int | None = None
    error: CFQueuesError | None = None
    pause: Backoff | None = None
    give_up: CFQueuesError | None = None


class Outcomes(NamedTuple):
    """The outcomes of this process's messages that other processes have posted.

    Attributes:
        settled: The outcomes.
        waiting: Whether any message of this process is unclaimed.
        look_at: When to look again, in monotonic seconds; None if no other process has messages
            of this one.
    """

    settled: Settled
    waiting: bool
    look_at: float | None = None


class Withdrawn(Enum):
    """What is known about a message that was taken back."""

    NOT_SENT = auto()
    """No request has carried it."""
    PERHAPS_SENT = auto()
    """A request carries it now, or has carried it and got no answer."""


class WaitingRoom(Protocol):
    """Keeps messages until a request carries them.  Any thread may call any method.

    No method waits for the network; a room with a file waits for the file.  ``until`` is when a
    method gives up if the room is busy, in monotonic seconds.

    Raises:
        RoomBusy: (every method) The room was busy until then.
        SpoolUnavailable, SpoolFull: (every method) The room cannot be used.
    """

    shared: bool
    """Whether other processes post from it."""
    max_batch: int
    """Maximum number of messages in a request."""

    def enter(
        self, items: Sequence[Item], *, number: int, may_skip: bool, until: float
    ) -> Claim | None:
        """Add *items*, all of one queue.

        If *may_skip* is true, nothing else waits and a permit is free, the room may return a claim
        of them at once, with *number*.
        """

    def outcomes(self, *, until: float) -> Outcomes:
        """Return outcomes of this process's messages from other processes, each outcome once."""

    def claim(self, terms: ClaimTerms) -> Claim | Wait:
        """Take a permit and the messages that go with it, or return when to ask again."""

    def settle(self, claim: Claim, outcome: ClaimOutcome, *, until: float) -> Settled:
        """Record the *outcome* of a claim; return what ``give_up`` settles for this process."""

    def release(self, number: int) -> None:
        """Let the items of claim *number* wait again, because the thread that held it has ended."""

    def withdraw(
        self, items: Sequence[Item], *, claimed: bool, until: float
    ) -> Mapping[Item, Withdrawn | CFQueuesError | None]:
        """Take back items for which no caller waits any longer.

        Args:
            items: Items of this process.
            claimed: Whether to include items that are being posted.
            until: When to give up.

        Returns:
            Each item that was taken back, with its outcome or what is known of it.
        """
