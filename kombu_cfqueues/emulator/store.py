"""The messages: published, leased, settled, expired, dead-lettered.

No background job runs.  Leases, delays and retention end by the clock, and each operation first
carries out what has become due, so a test that advances the clock sees all changes at once.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .clock import Clock
from .database import Database
from .knobs import Knobs
from .leases import Lease, Leases
from .queues import Consumer, Queue, Queues
from .stored_messages import ALL, Query, StoredMessage, select

_UNKNOWN_LEASE: Final = "the lease is unknown, or its message is already settled"
_LATE_LEASE: Final = "the lease has expired"
_LEASED_AGAIN: Final = "the lease has expired and the message is leased again"


@dataclass(frozen=True, slots=True)
class Draft:
    """A message to publish; *body* is the text or the JSON text, in UTF-8."""

    body: bytes
    content_type: str
    delay_seconds: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message for a client; *handle* is its lease id, or its ref if it was peeked."""

    id: str
    body: bytes
    content_type: str
    delay_seconds: int
    timestamp_ms: int
    attempts: int
    handle: str


@dataclass(frozen=True, slots=True)
class Metrics:
    """A queue's backlog: messages, bytes, and the time of the oldest message (0 if it is empty)."""

    backlog_count: int
    backlog_bytes: int
    oldest_message_timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Counts:
    """A queue's messages by state; *dead* counts its messages in dead-letter queues."""

    ready: int
    delayed: int
    leased: int
    dead: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The result of an ack call, with warnings by lease id."""

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
class _LeasedRow:
    """The message of a lease id.

    Attributes:
        row: The message.
        active: This lease still holds the message.
        leased_again: A later lease holds the message.
    """

    row: _Row
    active: bool
    leased_again: bool


class Store:
    """The messages of all queues.

    Every method takes the database's lock and returns when its effect is committed.

    Args:
        database: The database of all queues and messages.
        queues: The queues.
        clock: The time.
        knobs: Each operation reads them anew, so they may be replaced at any time.
    """

    def __init__(self, database: Database, queues: Queues, clock: Clock, knobs: Knobs) -> None:
        self.knobs = knobs
        self._database = database
        self._queues = queues
        self._clock = clock
        self._rng = random.Random(knobs.seed)  # noqa: S311 - not used for secrets
        self._leases = Leases(database.setting("lease_key", secrets.token_bytes(32)))
        # Guarded by database.lock:
        self._lease_ends_ms = 0.0  # no lease ends before this time
        # By queue, with the time of the measurement in milliseconds.
        self._metrics: dict[int, tuple[float, Metrics]] = {}
        with database.lock:
            row = database.connection.execute("SELECT max(seq) FROM messages").fetchone()
            self._last_seq = row[0] or 0

    def add(self, queue: Queue, drafts: Sequence[Draft], *, late: float = 0) -> None:
        """Publish *drafts*, all or none; they can be pulled only *late* seconds later."""
        now = self._clock.now_ms()
        ids = secrets.token_bytes(16 * len(drafts))
        with self._database.transaction() as sql:
            first = self._last_seq + 1
            self._last_seq += len(drafts)
            sql.executemany(
                "INSERT INTO messages (seq, queue, id, content_type, size, delay_seconds,"
                " timestamp_ms, visible_at, attempts, lease, leased)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0)",
                [
                    (
                        first + n,
                        queue.number,
                        ids[16 * n : 16 * n + 16],
                        draft.content_type,
                        len(draft.body),
                        draft.delay_seconds,
                        now,
                        now + draft.delay_seconds * 1000 + self._lateness_ms(late),
                    )
                    for n, draft in enumerate(drafts)
                ],
            )
            sql.executemany(
                "INSERT INTO bodies VALUES (?, ?)",
                [(first + n, draft.body) for n, draft in enumerate(drafts)],
            )
            self._add_to_totals(queue, len(drafts), sum(len(draft.body) for draft in drafts))
            queue.activity.count("published", len(drafts))

    def pull(
        self, queue: Queue, limit: int, visibility_ms: int, *, duplicate: bool = False
    ) -> list[Delivery]:
        """Lease at most *limit* ready messages; with *duplicate*, add a copy of each."""
        now = self._clock.now_ms()
        with self._database.transaction() as sql:
            self._catch_up(queue, now)
            chosen = self._choose(queue, limit, now)
            if not chosen:
                return []
            self._duplicate(queue, chosen, 1 if duplicate else self.knobs.duplicate_rate)
            queue.activity.count("delivered", len(chosen))
            sql.executemany(
                "UPDATE messages SET attempts = attempts + 1, lease = lease + 1, leased = 1,"
                " visible_at = ? WHERE seq = ?",
                [(now + visibility_ms, seq) for seq in chosen],
            )
            self._lease_ends_ms = min(self._lease_ends_ms, now + visibility_ms)
            return self._deliveries(chosen, self._leases.write)

    def peek(self, queue: Queue, limit: int) -> list[Delivery]:
        """Return at most *limit* ready messages without leasing them."""
        now = self._clock.now_ms()
        with self._database.transaction():
            self._catch_up(queue, now)
            return self._deliveries(self._choose(queue, limit, now), self._leases.write_ref)

    def settle(
        self, queue: Queue, acks: Iterable[str], retries: Iterable[tuple[str, int | None]]
    ) -> Settled:
        """Settle leases: *acks* delete their messages, *retries* make them ready again.

        Args:
            queue: The queue of the messages; leases of other queues are unknown.
            acks: Lease ids.
            retries: Lease ids, each with a delay in seconds, or None for the consumer's delay.
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
            queue.activity.count("acknowledged", acked)
            queue.activity.count("retried", retried)
        return Settled(acked, retried, warnings)

    def knows(self, lease_id: str) -> bool:
        """Tell whether *lease_id* was ever issued."""
        return self._leases.read(lease_id) is not None

    def extend(
        self, queue: Queue, lease_ids: Iterable[str], visibility_ms: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Let leases end *visibility_ms* from now; return new ids and warnings, both by old id."""
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
                elif not found.active:
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
        """Delete peeked messages; return a warning for each ref without a message."""
        warnings: dict[str, str] = {}
        with self._database.transaction():
            for ref in refs:
                found = self._find(queue, self._leases.read_ref(ref))
                if found is None:
                    warnings[ref] = "the ref is unknown, or its message no longer exists"
                else:
                    self._delete(queue, found.row)
        return warnings

    def purge(self, queue: Queue) -> None:
        """Delete all messages of *queue*, including delayed and leased ones.

        The deletion takes place ``purge_delay`` seconds later; messages that are published
        meanwhile survive.
        """
        now = self._clock.now_ms()
        with self._database.transaction():
            queue.purged_ms = now
            queue.purge_due_ms = now + round(self.knobs.purge_delay * 1000)
            self._queues.save(queue)
            self._catch_up(queue, now)

    def metrics(self, queue: Queue) -> Metrics:
        """Return the backlog of *queue*: messages that are not acknowledged, expired or dead.

        The metrics are at most ``metrics_lag`` seconds old.
        """
        now = self._clock.now_ms()
        lag_ms = self.knobs.metrics_lag * 1000
        with self._database.lock:
            taken_ms, metrics = self._metrics.get(queue.number, (-math.inf, None))
            if metrics is None or now >= taken_ms + lag_ms:
                metrics = self._measure(queue, now)
                if lag_ms:
                    self._metrics[queue.number] = now, metrics
            return metrics

    # --- for the page and tests

    def counts(self, queue: Queue) -> Counts:
        """Count the messages of *queue* by state."""
        now = self._clock.now_ms()
        with self._database.lock:
            self._catch_up(queue, now)
            sql = self._database.connection
            invisible = self._count_invisible(queue, now)
            dead = sql.execute(
                "SELECT count(*) FROM messages WHERE died_in = ?", (queue.number,)
            ).fetchone()[0]
            delayed, leased = invisible.get(0, 0), invisible.get(1, 0)
            return Counts(queue.backlog_count - delayed - leased, delayed, leased, dead)

    def stored(self, queue: Queue, query: Query = ALL) -> list[StoredMessage]:
        """Return the messages of *queue* that *query* chooses, by default all, oldest first."""
        now = self._clock.now_ms()
        with self._database.lock:
            self._catch_up(queue, now)
            names = {queue.number: queue.name for queue in self._queues}
            return select(self._database.connection, queue.number, query, now, names)

    def retry_now(self, queue: Queue, numbers: Sequence[int] | None = None) -> int:
        """Make leased and delayed messages ready at once; return how many changed.

        A dead letter returns to its original queue, with its attempts at 0.  No attempt is counted,
        because a person does this and not a consumer.

        Args:
            queue: The queue that holds the messages.
            numbers: The numbers of the messages; None for all.
        """
        now = self._clock.now_ms()
        changed = 0
        with self._database.transaction() as sql:
            self._catch_up(queue, now)
            for number in self._numbers(queue) if numbers is None else numbers:
                row = sql.execute(
                    "SELECT died_in, size, visible_at FROM messages WHERE seq = ? AND queue = ?",
                    (number, queue.number),
                ).fetchone()
                if row is None:
                    continue
                died_in, size, visible_at = row
                original = self._queues.find_number(died_in)
                if original is not None:
                    sql.execute(
                        "UPDATE messages SET queue = ?, died_in = NULL, leased = 0, attempts = 0,"
                        " lease = lease + 1, timestamp_ms = ?, visible_at = ? WHERE seq = ?",
                        (original.number, now, now, number),
                    )
                    self._add_to_totals(queue, -1, -size)
                    self._add_to_totals(original, 1, size)
                    original.expires_ms = 0
                elif visible_at > now:
                    sql.execute(
                        "UPDATE messages SET leased = 0, visible_at = ? WHERE seq = ?",
                        (now, number),
                    )
                else:
                    continue
                changed += 1
        return changed

    def delete(self, queue: Queue, numbers: Iterable[int]) -> int:
        """Delete messages by their numbers; return how many were deleted."""
        deleted = 0
        with self._database.transaction() as sql:
            for number in numbers:
                row = sql.execute(
                    "SELECT seq, queue, size, attempts, visible_at FROM messages"
                    " WHERE seq = ? AND queue = ?",
                    (number, queue.number),
                ).fetchone()
                if row is not None:
                    self._delete(queue, _Row(*row))
                    deleted += 1
        return deleted

    def _numbers(self, queue: Queue) -> list[int]:
        return [
            number
            for (number,) in self._database.connection.execute(
                "SELECT seq FROM messages WHERE queue = ?", (queue.number,)
            )
        ]

    def _count_invisible(self, queue: Queue, now: int) -> dict[int, int]:
        """Count messages that are not ready: delayed ones under key 0, leased ones under key 1."""
        return dict(
            self._database.connection.execute(
                "SELECT leased, count(*) FROM messages WHERE queue = ? AND visible_at > ?"
                " GROUP BY leased",
                (queue.number, now),
            )
        )

    def _measure(self, queue: Queue, now: int) -> Metrics:
        self._catch_up(queue, now)
        counted = self.knobs.backlog_counts
        conditions = "queue = ?"
        values = [queue.number]
        if counted != "both":
            invisible = {"leased": "leased = 1", "delayed": "leased = 0", "none": "0"}[counted]
            conditions += f" AND (visible_at <= ? OR {invisible})"
            values.append(now)
            row = self._database.connection.execute(
                "SELECT count(*), coalesce(sum(size), 0), min(timestamp_ms) FROM messages"  # noqa: S608
                f" WHERE {conditions}",
                values,
            ).fetchone()
            return Metrics(row[0], row[1], row[2] or 0)
        oldest = self._database.connection.execute(
            "SELECT min(timestamp_ms) FROM messages WHERE queue = ?", values
        ).fetchone()[0]
        return Metrics(queue.backlog_count, queue.backlog_bytes, oldest or 0)

    # --- leases

    def _choose(self, queue: Queue, limit: int, now: int) -> list[int]:
        knobs = self.knobs
        # Shuffle within a window: Cloudflare keeps no order, but every message gets delivered.
        window = limit if knobs.order == "fifo" else max(4 * limit, 100)
        # `leased` is 0 in all of them; it is named because the index has it before the seq.
        ready = [
            seq
            for (seq,) in self._database.connection.execute(
                "SELECT seq FROM messages WHERE queue = ? AND visible_at <= ?"
                " ORDER BY visible_at, leased, seq LIMIT ?",
                (queue.number, now, window),
            )
        ]
        if knobs.order == "shuffled":
            self._rng.shuffle(ready)
        chosen = ready[:limit]
        if knobs.short_batches and len(chosen) > 1:
            chosen = chosen[: self._rng.randint(1, len(chosen))]
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

    def _find(self, queue: Queue, lease: Lease | None) -> _LeasedRow | None:
        """Return the message of a lease or a ref; None if *queue* no longer has it."""
        if lease is None or lease.queue != queue.number:
            return None
        # Compare the id too, because a database that was emptied reuses a seq after a restart, and
        # the queue, because a dead letter may keep its id.
        row = self._database.connection.execute(
            "SELECT seq, queue, size, attempts, visible_at, lease, leased FROM messages"
            " WHERE seq = ? AND id = ? AND queue = ?",
            (lease.seq, lease.message_id, queue.number),
        ).fetchone()
        if row is None:
            return None
        held = bool(row[6])  # _catch_up has ended expired leases
        latest = row[5] == lease.number
        return _LeasedRow(_Row(*row[:5]), active=held and latest, leased_again=held and not latest)

    def _ack(self, queue: Queue, lease_id: str) -> str | None:
        found = self._find(queue, self._leases.read(lease_id))
        if found is None:
            return _UNKNOWN_LEASE
        if not found.active and self.knobs.late_ack == "warn":
            return _LATE_LEASE
        self._delete(queue, found.row)
        return None

    def _retry(self, queue: Queue, lease_id: str, delay: int | None, now: int) -> str | None:
        found = self._find(queue, self._leases.read(lease_id))
        if found is None:
            return _UNKNOWN_LEASE
        if found.leased_again:  # a retry would let two clients hold it
            return _LEASED_AGAIN
        if not found.active and self.knobs.late_ack == "warn":
            return _LATE_LEASE
        consumer = queue.consumer()
        if self._is_dead(consumer, found.row):
            self._dead_letter(queue, consumer, found.row, now)
            return None
        if delay is None:
            delay = consumer.retry_delay if consumer else 0
        self._database.connection.execute(
            "UPDATE messages SET leased = 0, visible_at = ? WHERE seq = ?",
            (now + delay * 1000, found.row.seq),
        )
        return None

    # --- changes that become due

    def _catch_up(self, queue: Queue, now: int) -> None:
        """Carry out what is due in *queue*: a purge, the end of leases, the end of retention.

        The leases of all queues end here, because a dead letter of one queue may move to another.
        """
        if queue.purge_due_ms is not None and now >= queue.purge_due_ms:
            self._carry_out_purge(queue)
        if now >= self._lease_ends_ms:
            self._end_leases(now)
        if now >= queue.expires_ms:
            self._expire(queue, now)

    def _carry_out_purge(self, queue: Queue) -> None:
        with self._database.transaction() as sql:
            sql.execute(
                "DELETE FROM messages WHERE queue = ? AND timestamp_ms <= ?",
                (queue.number, queue.purged_ms),
            )
            count, size = sql.execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM messages WHERE queue = ?",
                (queue.number,),
            ).fetchone()
            queue.backlog_count, queue.backlog_bytes = count, size
            queue.purge_due_ms = None
            self._queues.save(queue)

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
                queue.activity.count("lease_expired")
                if self._is_dead(consumer, row):
                    self._dead_letter(queue, consumer, row, row.visible_at)
            next_end = sql.execute(
                "SELECT min(visible_at) FROM messages WHERE leased = 1"
            ).fetchone()[0]
            self._lease_ends_ms = math.inf if next_end is None else next_end

    def _is_dead(self, consumer: Consumer | None, row: _Row) -> bool:
        if consumer is None:
            return False
        extra = 1 if self.knobs.deliveries == "one_more" else 0
        return row.attempts >= max(1, consumer.max_retries + extra)

    def _dead_letter(self, queue: Queue, consumer: Consumer | None, row: _Row, now: int) -> None:
        """Move a message to the consumer's dead-letter queue; delete it if there is none."""
        queue.activity.count("dead")
        name = consumer.dead_letter_queue if consumer else ""
        if not name:
            self._delete(queue, row)
            return
        target = self._queues.named(name, fold=self.knobs.fold_names)
        if target is None:
            target = self._queues.create(name, queue.jurisdiction)
        self._database.connection.execute(
            "UPDATE messages SET queue = ?, attempts = 0, leased = 0, lease = lease + 1,"
            " timestamp_ms = ?, visible_at = ?, died_in = ?, id = coalesce(?, id) WHERE seq = ?",
            (
                target.number,
                now,
                now,
                queue.number,
                None if self.knobs.dead_letter_keeps_id else secrets.token_bytes(16),
                row.seq,
            ),
        )
        self._add_to_totals(queue, -1, -row.size)
        self._add_to_totals(target, 1, row.size)
        target.expires_ms = 0

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
                    queue.activity.count("expired")
            oldest = sql.execute(
                "SELECT min(timestamp_ms) FROM messages WHERE queue = ?", (queue.number,)
            ).fetchone()[0]
            # In an empty queue, no message can be older than now.
            queue.expires_ms = (now if oldest is None else oldest) + retention_ms

    def _lateness_ms(self, late: float) -> int:
        """Return the milliseconds until a new message can be pulled, apart from its delay."""
        limit = max(late, self.knobs.late_visibility)
        return round(1000 * (late or self._rng.uniform(0, limit))) if limit else 0

    def _duplicate(self, queue: Queue, seqs: Iterable[int], rate: float) -> None:
        """Copy messages, each with probability *rate*, but none twice."""
        if not rate:
            return
        sql = self._database.connection
        for seq in seqs:
            if self._rng.random() >= rate:
                continue
            inserted = sql.execute(
                "INSERT INTO messages SELECT ?, queue, id, content_type, size, delay_seconds,"
                " timestamp_ms, visible_at, attempts, lease, leased, 1, died_in"
                " FROM messages WHERE seq = ? AND copied = 0",
                (self._last_seq + 1, seq),
            ).rowcount
            if inserted:
                self._last_seq += 1
                sql.execute(
                    "INSERT INTO bodies SELECT ?, body FROM bodies WHERE seq = ?",
                    (self._last_seq, seq),
                )
                sql.execute("UPDATE messages SET copied = 1 WHERE seq = ?", (seq,))
                size = sql.execute("SELECT size FROM messages WHERE seq = ?", (seq,)).fetchone()[0]
                self._add_to_totals(queue, 1, size)

    def _delete(self, queue: Queue, row: _Row) -> None:
        self._database.connection.execute("DELETE FROM messages WHERE seq = ?", (row.seq,))
        self._add_to_totals(queue, -1, -row.size)

    def _add_to_totals(self, queue: Queue, count: int, size: int) -> None:
        queue.backlog_count += count
        queue.backlog_bytes += size
