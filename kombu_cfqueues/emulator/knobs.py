"""What is not known of Cloudflare Queues, as knobs.

Where the sources disagree about how the service behaves, the emulator can behave either way.  A
default follows the documentation or, where that is silent, makes a client work hardest; a client
that is to survive the real thing is tested in each position of each knob.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """One position of every knob, checked when made.

    ``Knobs(json_pull_encoding="plain", rate_limit=20)``

    Raises:
        ValueError: A value that its knob does not have; the message names those that it has.
        TypeError: No knob of that name.
    """

    json_pull_encoding: Literal["base64", "plain", "mixed"] = "base64"
    """A ``json`` body on pull: base64 of the JSON text, the JSON text itself, or now this, now
    that.  The documentation says base64; several people saw plain text."""

    strict_json_body: bool = True
    """Refuse anything but an object or an array under ``json`` on the single publish route
    (10207).  Several people saw that for strings; the SDK's types allow any value."""

    first_attempt: Literal[0, 1] = 1
    """``attempts`` of a message's first delivery.  Documented as 1; one person saw 0."""

    deliveries: Literal["one_more", "max_retries"] = "one_more"
    """How often a message is delivered before it is dead: ``max_retries`` + 1 times (pricing
    page, miniflare) or ``max_retries`` times."""

    late_ack: Literal["accept", "warn"] = "accept"
    """An ack or retry after the lease has run out: it counts (documented), or it is only warned
    about (the same page calls such a lease invalid)."""

    unknown_lease: Literal["warn", "reject"] = "warn"
    """A lease id that means nothing: a warning under 200, or 400 for the whole call."""

    ack_result: Literal["counts", "no_counts", "warnings_list", "warnings_null"] = "counts"
    """The ack answer: counts and a map of warnings; without the counts, which are optional;
    warnings as a list, as older SDKs had them; or null where there are none."""

    push_result: Literal["metrics", "null", "absent"] = "metrics"
    """``result`` of a publish: the backlog's metrics (since April 2026), null (before), or left
    out (the documented example)."""

    rate_limit: int | None = None
    """Requests that a token may make in a window.  Cloudflare's is 1,200; off here, because most
    people start an emulator to develop, and one loop of publishes would block it for minutes."""

    rate_window_seconds: int = 300
    """That window; it opens with the first request that counts."""

    rate_block_seconds: int = 300
    """How long a token is refused once it has passed the limit."""

    rate_limited_routes: Literal["all_but_pull", "admin", "all"] = "all_but_pull"
    """What the limit counts and refuses: all except pull and ack, which are documented as exempt;
    not publishing either, should that be exempt too; or everything."""

    queue_429_retry_after: int | None = None
    """Seconds in the ``Retry-After`` of the queue's own 429s (codes 10250 to 10253).  No source
    says that they carry one."""

    bad_token: Literal["403/10000", "401/10000", "403/9109", "401/9109"] = "403/10000"  # noqa: S105
    """Status and code for a token that is not known.  Cloudflare's page on publishing over HTTP
    says 403; the API elsewhere says 401 too."""

    missing_queue_code: Literal["by_route", "10104", "11000"] = "by_route"
    """Code for a queue that does not exist: 10104 on message routes and 11000 on the others, or
    one of them everywhere."""

    pull_enable_delay: float = 0
    """Seconds until a new ``http_pull`` consumer is in force; pulls are 405 until then.  Several
    people saw it take some seconds."""

    paused_pull: Literal["409", "429/10252"] = "409"
    """A pull from a paused queue."""

    list_name_filter: Literal["exact", "prefix", "ignored"] = "exact"
    """What ``?name=`` does to a list of queues.  Only wrangler is known to send it."""

    list_page_size: int = 20
    """Queues on one page of a list.  20 in the examples; nothing says more."""

    pull_default_size: Literal["consumer", "5"] = "consumer"
    """Messages of a pull that does not say: the consumer's ``batch_size`` if it was set, else 5,
    or always 5."""

    max_leases_per_ack: int = 200
    """Most leases in one ack call.  No source has a number."""

    metadata_bytes: int = 100
    """Bytes that a message counts for beside its body.  Documented as about 100; miniflare counts
    none."""

    max_batch_bytes: int = 256_000
    """Most bytes of a batch.  Documented as 256 KB; miniflare takes 288,000."""

    max_backlog_bytes: int = 25_000_000_000
    """Most bytes that wait in a queue; what goes beyond is 429 with 10251.  Documented as 25 GB;
    smaller in tests."""

    too_large_status: Literal[413, 400] = 413
    """Status of a message, a batch or a request that is too large."""

    empty_batch_code: Literal["10206", "10207", "10013"] = "10206"
    """Code for a batch of no messages.  The first is documented, the others were seen."""

    extend: bool = False
    """Serve ``messages/extend``, which is in the schema and nowhere else.  Otherwise 404."""

    max_consumers: int = 1
    """Consumers that a queue may have.  One is documented; a draft page has several."""

    allow_rename: bool = True
    """Let ``PUT`` and ``PATCH`` rename a queue.  The documentation says never; it was seen to
    work."""

    purge_result: Literal["status", "queue"] = "status"
    """What starting a purge returns: when it started and whether it is done (wrangler), or the
    queue (SDK)."""

    purge_delay: float = 0
    """Seconds from a purge's start to its end.  Documented as asynchronous: what is published
    meanwhile survives, and what is in flight may still be processed."""

    metrics_lag: float = 0
    """Seconds by which metrics may be old.  Documented as approximate."""

    backlog_counts: Literal["both", "leased", "delayed", "none"] = "both"
    """Which of the messages that nobody can pull just now the metrics count as backlog: leased
    and delayed ones, one kind of them, or neither.  Documented as "unacknowledged"."""

    min_visibility_ms: int = 0
    """Shortest lease.  No source has a number."""

    dead_letter_keeps_id: bool = True
    """A message that moves to the dead-letter queue keeps its id.  So in miniflare."""

    retention_spares: Literal["none", "leased", "delayed", "both"] = "none"
    """Messages that do not expire although they are older than the queue's retention."""

    order: Literal["shuffled", "fifo"] = "shuffled"
    """Whether pulls keep the order of publishing.  Cloudflare promises none."""

    short_batches: bool = False
    """Pulls return fewer messages than there are, now and then, as documented."""

    duplicate_rate: float = 0
    """How many of the messages that are pulled will be delivered once more although they are
    acknowledged, from 0 (none) to 1 (each, once).  Documented as rare."""

    late_visibility: float = 0
    """Seconds, at most, until a message that was accepted can be pulled; each takes a random time
    up to that.  Nothing says how long it takes, nor that it takes none."""

    fold_names: bool = False
    """``Jobs`` and ``jobs`` are the same queue.  Nothing says."""

    seed: int | None = None
    """Makes what is left to chance here (order, short batches, mixed encodings) repeat itself."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for knob in fields(self):
            value = getattr(self, knob.name)
            positions = _positions(hints[knob.name])
            if not any(_fits(value, position) for position in positions):
                allowed = " or ".join(map(_describe, positions))
                raise ValueError(f"{knob.name} is {allowed}, not {value!r}")
        if self.duplicate_rate > 1:
            raise ValueError(f"duplicate_rate is a number from 0 to 1, not {self.duplicate_rate}")


def positions(name: str) -> list[Any]:
    """Return what the knob *name* may be: literal values, and types where it is open."""
    return _positions(get_type_hints(Knobs)[name])


def _positions(hint: Any) -> list[Any]:
    """Return what a knob of type *hint* may be: literal values, and types for the open ones."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_args(hint):  # int | None
        return list(get_args(hint))
    return [hint]


def _fits(value: Any, position: Any) -> bool:
    if not isinstance(position, type):
        return type(value) is type(position) and bool(value == position)
    if position is float:
        return type(value) in (int, float) and value >= 0
    if position is int:
        return type(value) is int and value >= 0
    return isinstance(value, position)


def _describe(position: Any) -> str:
    if position is NoneType:
        return "None"
    if position in (int, float):
        return "a number from 0"
    if position is bool:
        return "True or False"
    return repr(position)
