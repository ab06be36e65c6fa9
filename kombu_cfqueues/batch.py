"""``with producer.batch():`` of Kombu 5.7: one thread publishes thousands of messages fast.

Messages are collected until there are ``max_size``, or until a flush, and leave in full requests,
two at a time, while the block collects the next.  So at most twice ``max_size`` are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu import exceptions

from . import limits
from .envelope import Packed
from .errors import CFQueuesError
from .lane import BULK_IN_FLIGHT

if TYPE_CHECKING:
    from .channel import Channel

# Kombu before 5.7 never makes a batch; the module can be imported all the same.
_KombuError: type[Exception] = getattr(exceptions, "BatchPublishError", exceptions.KombuError)


class Outcome(NamedTuple):
    """What became of one message of a batch.

    Attributes:
        queue: Kombu's name of the queue.
        message: Kombu's dictionary, as it was published.
        error: Why it is not known to be accepted; None: it is.
    """

    queue: str
    message: dict[str, Any]
    error: CFQueuesError | None


class BatchPublishError(_KombuError):  # type: ignore[misc, valid-type]
    """Some messages of a batch were not accepted.  None of it is still on its way.

    Messages of earlier flushes, which succeeded, are not listed.

    Attributes:
        accepted: Messages that are in their queue.
        refused: Messages that surely are not.
        uncertain: Messages whose answer was lost: publishing them again may duplicate them.
    """

    def __init__(self, text: str, outcomes: tuple[Outcome, ...] = ()) -> None:
        super().__init__(text, outcomes)
        self.accepted = [outcome for outcome in outcomes if outcome.error is None]
        self.refused = [o for o in outcomes if o.error and o.error.delivered == "no"]
        self.uncertain = [o for o in outcomes if o.error and o.error.delivered == "unknown"]

    def __str__(self) -> str:
        return str(self.args[0])


class Entry(NamedTuple):
    """A message that waits for the flush."""

    queue: str
    message: dict[str, Any]
    packed: Packed


class PublishBatch:
    """What `Channel.create_publish_batch` gives to Kombu; used by one thread.

    Args:
        channel: Routes the messages, and sends them.
        max_size: Messages that may be collected before the full requests among them leave.
    """

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._collected: list[Entry] = []
        self._leaving: list[Future[list[Outcome]]] = []
        self._senders: ThreadPoolExecutor | None = None
        self._over = ""  # why no more can be published

    def publish(self, message: dict[str, Any], **kwargs: Any) -> None:
        """Route *message*, and collect it for the queues that it goes to.

        Raises:
            BatchPublishError: Messages that left earlier were not all accepted.
            CFQueuesError: This message can never be sent; the others are not affected.
        """
        self._check()
        self.channel.basic_publish(message, publish_batch=self, **kwargs)
        if len(self._collected) >= self._max_size:
            self._settle()
            self._send(everything=False)

    def add(self, queue: str, message: dict[str, Any], packed: Packed) -> None:
        """Take a message that was routed to *queue*."""
        self._collected.append(Entry(queue, message, packed))

    def flush(self) -> None:
        """Send what is collected, and block until all is settled.

        Raises:
            BatchPublishError: Not everything was accepted; the batch can no more be used.
        """
        self._check()
        self._settle()
        self._send(everything=True)
        self._settle()

    def discard(self) -> None:
        """Forget what is collected.  What has left cannot be taken back; it is waited for."""
        self._over = self._over or "it was aborted"
        self._stop()

    def close(self) -> None:
        """Return when nothing of the batch is on its way any more."""
        self._over = self._over or "it is closed"
        self._stop()

    def _check(self) -> None:
        if self._over:
            raise RuntimeError(f"nothing can be published through this batch: {self._over}")

    def _send(self, *, everything: bool) -> None:
        """Let requests leave; *everything*, or only those that are full."""
        chunks = list(_chunks(self._collected))
        full = [chunk for chunk, is_full in chunks if is_full]
        if everything or not full:
            full, self._collected = [chunk for chunk, _ in chunks], []
        else:
            self._collected = [e for chunk, is_full in chunks if not is_full for e in chunk]
        if self._senders is None and full:
            self._senders = ThreadPoolExecutor(BULK_IN_FLIGHT, "cfqueues-batch")
        if self._senders is not None:
            self._leaving += [self._senders.submit(self.channel.put_many, one) for one in full]

    def _settle(self) -> None:
        """Block until what left is settled; raise if not all of it was accepted."""
        outcomes = [outcome for future in self._leaving for outcome in future.result()]
        self._leaving.clear()
        first = next((outcome.error for outcome in outcomes if outcome.error), None)
        if first is not None:
            self._over = "a flush failed"
            # They were published without an error, so this one must account for them.
            unsent = CFQueuesError("the message was not sent: earlier ones of its batch failed")
            outcomes += [Outcome(entry.queue, entry.message, unsent) for entry in self._collected]
            self._stop()
            raise _failure(outcomes, first) from first

    def _stop(self) -> None:
        self._collected.clear()
        self._leaving.clear()
        senders, self._senders = self._senders, None
        if senders is not None:
            senders.shutdown(cancel_futures=True)


def _chunks(entries: Iterable[Entry]) -> Iterator[tuple[list[Entry], bool]]:
    """The entries by queue, in their order, as requests; and whether each request is full."""
    open_chunks: dict[str, list[Entry]] = {}
    sizes: dict[str, int] = {}
    for entry in entries:
        chunk = open_chunks.setdefault(entry.queue, [])
        size = sizes.get(entry.queue, 0) + entry.packed.size
        if chunk and (len(chunk) == limits.BATCH_MESSAGES or size > limits.BATCH_BYTES):
            yield chunk, True
            chunk = open_chunks[entry.queue] = []
            size = entry.packed.size
        chunk.append(entry)
        sizes[entry.queue] = size
    for chunk in open_chunks.values():
        yield chunk, len(chunk) == limits.BATCH_MESSAGES


def _failure(outcomes: Sequence[Outcome], first: CFQueuesError) -> BatchPublishError:
    error = BatchPublishError("", tuple(outcomes))
    text = (
        f"of {len(outcomes):,} messages, {len(error.accepted):,} were accepted, "
        f"{len(error.refused):,} surely did not arrive and {len(error.uncertain):,} are uncertain; "
        f"the first failure: {first}"
    )
    error.args = (text, tuple(outcomes))
    return error
