"""The messages: published, leased, settled, expired, dead.

Nothing here happens by itself.  Leases, delays and retention run out by the clock, and whatever
that changes is caught up with when somebody next looks, so a test that advances the clock sees all
of it at once.
"""

from __future__ import annotations

import json
import math
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .clock import Clock
from .database import Database
from .knobs import Knobs
from .leases import Lease, Leases
from .queues import Consumer, Queue, Queues

_UNKNOWN_LEASE: Final = "the lease is unknown, or its message is settled already"
_LATE_LEASE: Final = "the lease has expired"
_HELD_ELSEWHERE: Final = "the lease has expired and the message is leased again"


@dataclass(frozen=True, slots=True)
class Draft:
    """A message about to be published; *body* is UTF-8: the text, or the JSON text."""

    body: bytes
    content_type: str
    delay_seconds: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to a client; *handle* is its lease id, or its ref if it was peeked."""

    id: str
    body: bytes
    content_type: str
    delay_seconds: int
    timestamp_ms: int
    attempts: int
    handle: str


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it is stored, for tests to look at.

    Attributes:
        id: Its id, 32 hex digits.
        body: The text, or the JSON text.
        content_type: ``text`` or ``json``.
        delay_seconds: The delay it was published with, the queue's own included.
        timestamp: When it was published, in seconds since the epoch by the emulator's clock.
        visible_at: When it is (or was) next to be had, by the same clock.
        attempts: Deliveries so far.
        state: ``ready``, ``delayed`` or ``leased``.
    """

    id: str
    body: str
    content_type: str
    delay_seconds: int
    timestamp: float
    visible_at: float
    attempts: int
    state: str

    @property
    def value(self) -> Any:
        """What was published: the body, decoded if it is JSON."""
        return json.loads(self.body) if self.content_type == "json" else self.body


@dataclass(frozen=True, slots=True)
class Metrics:
    """A queue's backlog, in messages, in bytes, and by its oldest (0 if there is none)."""

    backlog_count: int
    backlog_bytes: int
    oldest_message_timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What an ack call came to; warnings by lease id."""

    acked: int
    retried: int
    warnings: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Row:
    seq: int
    queue: int
    size: int
    attempts: int
    visible_at: int


@dataclass(frozen=True, slots=True)
class _Found:
    """A message by one of its leases: whether that one still holds it, or a later one does."""

    row: _Row
    ours: bool
    elsewhere: bool


class Store:
    """The messages of all queues.

    Every method takes the database's lock and returns when its effect is committed.

    Args:
        knobs: Read anew by every operation, so they may be exchanged at any time.
    """

    def __init__(self, database: Database, queues: Queues, clock: Clock, knobs: Knobs) -> None:
        self.knobs = knobs
        self._database = database
        self._queues = queues
        self._clock = clock
        self._chance = random.Random(knobs.seed)  # noqa: S311 - shuffles, keeps no secret
        self._leases = Leases(database.setting("lease_key", secrets.token_bytes(32)))
        # Guarded by database.lock:
        self._lease_ends_ms = 0.0  # no lease runs out before
        with database.lock:
            row = database.connection.execute("SELECT max(seq) FROM messages").fetchone()
            self._last_seq = row[0] or 0

    def add(self, queue: Queue, drafts: Sequence[Draft]) -> None:
        """Publish *drafts*, all or none."""
        now = self._clock.now_ms()
        ids = secrets.token_bytes(16 * len(drafts))
        with self._database.transaction() as sql:
            first = self._last_seq + 1
            self._last_seq += len(drafts)
            sql.executemany(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0)",
                [
                    (
                        first + n,
                        queue.number,
                        ids[16 * n : 16 * n + 16],
                        draft.content_type,
                        len(draft.body),
                        draft.delay_seconds,
                        now,
                        now + draft.delay_seconds * 1000,
                    )
                    for n, draft in enumerate(drafts)
                ],
            )
            sql.executemany(
                "INSERT INTO bodies VALUES (?, ?)",
                [(first + n, draft.body) for n, draft in enumerate(drafts)],
            )
            self._tally(queue, len(drafts), sum(len(draft.body) for draft in drafts))

    def pull(self, queue: Queue, most: int, visibility_ms: int) -> list[Delivery]:
        """Lease up to *most* messages that are ready."""
        now = self._clock.now_ms()
        with self._database.transaction() as sql:
            self._catch_up(queue, now)
            chosen = self._choose(queue, most, now)
            if not chosen:
                return []
            sql.executemany(
                "UPDATE messages SET attempts = attempts + 1, lease = lease + 1, leased = 1,"
                " visible_at = ? WHERE seq = ?",
                [(now + visibility_ms, seq) for seq in chosen],
            )
            self._lease_ends_ms = min(self._lease_ends_ms, now + visibility_ms)
            return self._deliveries(chosen, self._leases.write)

    def peek(self, queue: Queue, most: int) -> list[Delivery]:
        """Show up to *most* messages that are ready, and leave them so."""
        now = self._clock.now_ms()
        with self._database.transaction():
            self._catch_up(queue, now)
            return self._deliveries(self._choose(queue, most, now), self._leases.write_ref)

    def settle(
        self, queue: Queue, acks: Iterable[str], retries: Iterable[tuple[str, int | None]]
    ) -> Settled:
        """End leases: *acks* delete their messages, *retries* give them back.

        Args:
            queue: Whose messages they are; leases of another queue's are unknown.
            acks: Lease ids.
            retries: Lease ids with the delay in seconds, None for the consumer's.
        """
        now = self._clock.now_ms()
        warnings: dict[str, str] = {}
        acked = retried = 0
        with self._database.transaction():
            self._catch_up(queue, now)
            for lease_id in acks:
                warning = self._ack(queue, lease_id)
                if warning is None:
                    acked += 1
                else:
                    warnings[lease_id] = warning
            for lease_id, delay in retries:
                warning = self._retry(queue, lease_id, delay, now)
                if warning is None:
                    retried += 1
                else:
                    warnings[lease_id] = warning
        return Settled(acked, retried, warnings)

    def knows(self, lease_id: str) -> bool:
        """Tell whether *lease_id* was ever given out."""
        return self._leases.read(lease_id) is not None

    def extend(
        self, queue: Queue, lease_ids: Iterable[str], visibility_ms: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Let leases end *visibility_ms* from now; return new ids by old, and warnings by old."""
        now = self._clock.now_ms()
        renewed: dict[str, str] = {}
        warnings: dict[str, str] = {}
        with self._database.transaction() as sql:
            self._catch_up(queue, now)
            for lease_id in lease_ids:
                lease = self._leases.read(lease_id)
                found = self._find(queue, lease)
                if lease is None or found is None:
                    warnings[lease_id] = _UNKNOWN_LEASE
                elif not found.ours:
                    warnings[lease_id] = _LATE_LEASE
                else:
                    sql.execute(
                        "UPDATE messages SET lease = lease + 1, visible_at = ? WHERE seq = ?",
                        (now + visibility_ms, lease.seq),
                    )
                    self._lease_ends_ms = min(self._lease_ends_ms, now + visibility_ms)
                    renewed[lease_id] = self._leases.write(
                        Lease(lease.seq, lease.number + 1, lease.queue, lease.message_id)
                    )
        return renewed, warnings

    def purge_refs(self, queue: Queue, refs: Iterable[str]) -> dict[str, str]:
        """Delete peeked messages; return a warning for each ref that means nothing now."""
        warnings: dict[str, str] = {}
        with self._database.transaction():
            for ref in refs:
                found = self._find(queue, self._leases.read_ref(ref))
                if found is None:
                    warnings[ref] = "the ref is unknown, or its message is gone"
                else:
                    self._delete(queue, found.row)
        return warnings

    def purge(self, queue: Queue) -> None:
        """Delete all messages of *queue*, delayed and leased ones too."""
        with self._database.transaction() as sql:
            sql.execute("DELETE FROM messages WHERE queue = ?", (queue.number,))
            self._tally(queue, -queue.backlog_count, -queue.backlog_bytes)
            queue.purged_ms = self._clock.now_ms()
            self._queues.save(queue)

    def metrics(self, queue: Queue) -> Metrics:
        """Return the backlog of *queue*: what is neither acknowledged, expired nor dead."""
        with self._database.lock:
            self._catch_up(queue, self._clock.now_ms())
            oldest = self._database.connection.execute(
                "SELECT min(timestamp_ms) FROM messages WHERE queue = ?", (queue.number,)
            ).fetchone()[0]
            return Metrics(queue.backlog_count, queue.backlog_bytes, oldest or 0)

    def stored(self, queue: Queue) -> list[StoredMessage]:
        """Return all messages of *queue*, in the order of publishing."""
        now = self._clock.now_ms()
        with self._database.lock:
            self._catch_up(queue, now)
            rows = self._database.connection.execute(
                "SELECT id, body, content_type, delay_seconds, timestamp_ms, visible_at, attempts,"
                " leased FROM messages JOIN bodies USING (seq) WHERE queue = ? ORDER BY seq",
                (queue.number,),
            ).fetchall()
        return [_stored(row, now) for row in rows]

    # --- leases

    def _choose(self, queue: Queue, most: int, now: int) -> list[int]:
        knobs = self.knobs
        # Shuffled within a window: Cloudflare keeps no order, but starves nobody either.
        window = most if knobs.order == "fifo" else max(4 * most, 100)
        ready = [
            seq
            for (seq,) in self._database.connection.execute(
                "SELECT seq FROM messages WHERE queue = ? AND visible_at <= ?"
                " ORDER BY visible_at, seq LIMIT ?",
                (queue.number, now, window),
            )
        ]
        if knobs.order == "shuffled":
            self._chance.shuffle(ready)
        chosen = ready[:most]
        if knobs.short_batches and len(chosen) > 1:
            chosen = chosen[: self._chance.randint(1, len(chosen))]
        return chosen

    def _deliveries(self, seqs: list[int], handle: Callable[[Lease], str]) -> list[Delivery]:
        deliveries = []
        for seq in seqs:
            queue, message_id, body, content_type, delay, timestamp_ms, attempts, lease = (
                self._database.connection.execute(
                    "SELECT queue, id, body, content_type, delay_seconds, timestamp_ms, attempts,"
                    " lease FROM messages JOIN bodies USING (seq) WHERE seq = ?",
                    (seq,),
                ).fetchone()
            )
            text = handle(Lease(seq, lease, queue, message_id))
            deliveries.append(
                Delivery(message_id.hex(), body, content_type, delay, timestamp_ms, attempts, text)
            )
        return deliveries

    def _find(self, queue: Queue, lease: Lease | None) -> _Found | None:
        """Return the message that a lease or a ref speaks of; None if *queue* has it no more."""
        if lease is None or lease.queue != queue.number:
            return None
        # By the id too, since a database that was emptied and restarted gives a seq again, and by
        # the queue, since a dead letter may keep its id.
        row = self._database.connection.execute(
            "SELECT seq, queue, size, attempts, visible_at, lease, leased FROM messages"
            " WHERE seq = ? AND id = ? AND queue = ?",
            (lease.seq, lease.message_id, queue.number),
        ).fetchone()
        if row is None:
            return None
        held = bool(row[6])  # _catch_up has ended the leases that ran out
        ours = row[5] == lease.number
        return _Found(_Row(*row[:5]), ours=held and ours, elsewhere=held and not ours)

    def _ack(self, queue: Queue, lease_id: str) -> str | None:
        found = self._find(queue, self._leases.read(lease_id))
        if found is None:
            return _UNKNOWN_LEASE
        if not found.ours and self.knobs.late_ack == "warn":
            return _LATE_LEASE
        self._delete(queue, found.row)
        return None

    def _retry(self, queue: Queue, lease_id: str, delay: int | None, now: int) -> str | None:
        found = self._find(queue, self._leases.read(lease_id))
        if found is None:
            return _UNKNOWN_LEASE
        if found.elsewhere:  # giving it back would lease it to two
            return _HELD_ELSEWHERE
        if not found.ours and self.knobs.late_ack == "warn":
            return _LATE_LEASE
        consumer = queue.consumer()
        if self._is_dead(consumer, found.row):
            self._bury(queue, consumer, found.row, now)
            return None
        if delay is None:
            delay = consumer.retry_delay if consumer else 0
        self._database.connection.execute(
            "UPDATE messages SET leased = 0, visible_at = ? WHERE seq = ?",
            (now + delay * 1000, found.row.seq),
        )
        return None

    # --- what time does

    def _catch_up(self, queue: Queue, now: int) -> None:
        """End the leases that have run out, and delete what of *queue* has expired.

        The leases of all queues, since one may fill another with its dead.
        """
        if now >= self._lease_ends_ms:
            self._end_leases(now)
        if now >= queue.expires_ms:
            self._expire(queue, now)

    def _end_leases(self, now: int) -> None:
        with self._database.transaction() as sql:
            ended = [
                _Row(*row)
                for row in sql.execute(
                    "SELECT seq, queue, size, attempts, visible_at FROM messages"
                    " WHERE leased = 1 AND visible_at <= ?",
                    (now,),
                )
            ]
            sql.execute(
                "UPDATE messages SET leased = 0 WHERE leased = 1 AND visible_at <= ?", (now,)
            )
            for row in ended:
                queue = self._queues.by_number(row.queue)
                consumer = queue.consumer()
                if self._is_dead(consumer, row):
                    self._bury(queue, consumer, row, row.visible_at)
            next_end = sql.execute(
                "SELECT min(visible_at) FROM messages WHERE leased = 1"
            ).fetchone()[0]
            self._lease_ends_ms = math.inf if next_end is None else next_end

    def _is_dead(self, consumer: Consumer | None, row: _Row) -> bool:
        if consumer is None:
            return False
        more = 1 if self.knobs.deliveries == "one_more" else 0
        return row.attempts >= max(1, consumer.max_retries + more)

    def _bury(self, queue: Queue, consumer: Consumer | None, row: _Row, now: int) -> None:
        """Move a message that is out of retries to the dead-letter queue, or delete it."""
        name = consumer.dead_letter_queue if consumer else ""
        if not name:
            self._delete(queue, row)
            return
        grave = self._queues.named(name, fold=self.knobs.fold_names)
        if grave is None:
            grave = self._queues.create(name, queue.jurisdiction)
        self._database.connection.execute(
            "UPDATE messages SET queue = ?, attempts = 0, leased = 0, lease = lease + 1,"
            " timestamp_ms = ?, visible_at = ?, id = coalesce(?, id) WHERE seq = ?",
            (
                grave.number,
                now,
                now,
                None if self.knobs.dead_letter_keeps_id else secrets.token_bytes(16),
                row.seq,
            ),
        )
        self._tally(queue, -1, -row.size)
        self._tally(grave, 1, row.size)
        grave.expires_ms = 0

    def _expire(self, queue: Queue, now: int) -> None:
        retention_ms = queue.message_retention_period * 1000
        with self._database.transaction() as sql:
            old = sql.execute(
                "SELECT leased, seq, queue, size, attempts, visible_at FROM messages"
                " WHERE queue = ? AND timestamp_ms <= ?",
                (queue.number, now - retention_ms),
            ).fetchall()
            for leased, *rest in old:
                row = _Row(*rest)
                state = "ready" if row.visible_at <= now else "leased" if leased else "delayed"
                if self.knobs.retention_spares not in (state, "both") or state == "ready":
                    self._delete(queue, row)
            oldest = sql.execute(
                "SELECT min(timestamp_ms) FROM messages WHERE queue = ?", (queue.number,)
            ).fetchone()[0]
            # In an empty queue the next message is the oldest, and none is older than now.
            queue.expires_ms = (now if oldest is None else oldest) + retention_ms

    def _delete(self, queue: Queue, row: _Row) -> None:
        self._database.connection.execute("DELETE FROM messages WHERE seq = ?", (row.seq,))
        self._tally(queue, -1, -row.size)

    def _tally(self, queue: Queue, count: int, size: int) -> None:
        queue.backlog_count += count
        queue.backlog_bytes += size


def _stored(row: tuple[Any, ...], now: int) -> StoredMessage:
    message_id, body, content_type, delay, timestamp_ms, visible_ms, attempts, leased = row
    return StoredMessage(
        id=message_id.hex(),
        body=body.decode(),
        content_type=content_type,
        delay_seconds=delay,
        timestamp=timestamp_ms / 1000,
        visible_at=visible_ms / 1000,
        attempts=attempts,
        state="ready" if visible_ms <= now else "leased" if leased else "delayed",
    )
