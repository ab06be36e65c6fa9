"""Knobs for behaviour of Cloudflare Queues that is not known.

Where sources disagree about the service, the emulator can behave either way.  A default follows the
documentation.  Where the documentation is silent, the default is the hardest case for a client.
Test a client in each position of each knob to be sure that it works with the real service.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from . import limits


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """The position of every knob.

    ``Knobs(json_pull_encoding="plain", rate_limit=20)``

    Raises:
        ValueError: A knob does not have this position; the message names its positions.
        TypeError: No knob has this name.
    """

    json_pull_encoding: Literal["base64", "plain", "mixed"] = "base64"
    """A pulled ``json`` body: base64 of the JSON text, the JSON text itself, or either at random.
    The documentation says base64; several people saw plain text."""

    strict_json_body: bool = True
    """The single publish route refuses a ``json`` body other than an object or an array (10207).
    Several people saw this for strings; the SDK's types allow any value."""

    first_attempt: Literal[0, 1] = 1
    """``attempts`` of a message's first delivery.  Documented as 1; one person saw 0."""

    deliveries: Literal["one_more", "max_retries"] = "one_more"
    """Number of deliveries before a message is dead-lettered: ``max_retries`` + 1 (pricing page,
    miniflare) or ``max_retries``."""

    late_ack: Literal["accept", "warn"] = "accept"
    """An ack or retry after the lease has expired takes effect (documented), or only causes a
    warning (the same page calls such a lease invalid)."""

    unknown_lease: Literal["warn", "reject"] = "warn"
    """An unknown lease id causes a warning under status 200, or 400 for the whole call."""

    ack_result: Literal["counts", "no_counts", "warnings_list", "warnings_null"] = "counts"
    """The result of an ack: counts and a map of warnings; no counts, which are optional; a list of
    warnings, as in older SDKs; or null instead of an empty map of warnings."""

    push_result: Literal["metrics", "null", "absent"] = "metrics"
    """``result`` of a publish: the backlog's metrics (since April 2026), null (before), or absent
    (the documented example)."""

    rate_limit: int | None = None
    """Maximum number of requests of a token in a window; None for no limit.  Cloudflare's limit is
    1,200.  The default is None, because most people use an emulator for development, where one
    loop of publishes would block the token for minutes."""

    rate_window_seconds: int = limits.WINDOW_SECONDS
    """Length of that window, which opens with the first counted request."""

    rate_block_seconds: int = limits.WINDOW_SECONDS
    """Time for which a token is blocked once it exceeds the limit."""

    rate_limited_routes: Literal["all_but_pull", "admin", "all"] = "all_but_pull"
    """Routes that the limit counts and refuses: all except pull and ack, which are documented as
    exempt; only the admin routes, in case publishing is exempt too; or all routes."""

    rate_limit_answer: Literal[
        "429/971", "429/6100", "429/10429", "200/971", "200/10429", "500/971", "500/6100"
    ] = "429/971"
    """Status and code of the refusals of that limit.  Documented as 429; several people saw each
    code with status 200 or 500 as well."""

    queue_429_retry_after: int | None = None
    """Seconds in the ``Retry-After`` of a queue's own 429s (codes 10250 to 10253); None for no such
    header.  No source says that they have one."""

    bad_token: Literal["403/10000", "401/10000", "403/9109", "401/9109"] = "403/10000"  # noqa: S105
    """Status and code for an unknown token.  Cloudflare's page on publishing over HTTP says 403;
    other parts of the API also use 401."""

    missing_queue_code: Literal["by_route", "10104", "11000"] = "by_route"
    """Code for a queue that does not exist: 10104 on message routes and 11000 on the others, or
    one of them on all routes."""

    pull_enable_delay: float = 0
    """Seconds until a new ``http_pull`` consumer takes effect; until then a pull gets 405.  Several
    people saw it take some seconds."""

    paused_pull: Literal["409", "429/10252"] = "409"
    """Status, and code if there is one, of a pull from a paused queue."""

    list_name_filter: Literal["exact", "prefix", "ignored"] = "exact"
    """How ``?name=`` filters a list of queues.  Only wrangler is known to send it."""

    list_page_size: int = 20
    """Queues on one page of a list.  The examples have 20; no source says more."""

    visibility_alias: bool = False
    """A pull may send ``visibility_timeout`` instead of ``visibility_timeout_ms``, as in old
    examples.  Otherwise it is ignored, and such a pull leases for 30 s."""

    pull_default_size: Literal["consumer", "5"] = "consumer"
    """Batch size of a pull that does not set it: the consumer's ``batch_size``, or 5 if that is not
    set either; or always 5."""

    max_leases_per_ack: int = 200
    """Maximum number of leases in one ack call.  No source has a number."""

    metadata_bytes: int = limits.METADATA_BYTES
    """Bytes that count towards a message's size in addition to its body.  Documented as about 100;
    miniflare counts none."""

    max_batch_bytes: int = limits.BATCH_BYTES
    """Maximum size of a batch.  Documented as 256 KB; miniflare accepts 288,000 bytes."""

    max_backlog_bytes: int = limits.BACKLOG_BYTES
    """Maximum size of a queue's backlog; a publish beyond it gets 429 with code 10251.  Documented
    as 25 GB; set it lower to test a full queue."""

    too_large_status: Literal[413, 400] = 413
    """Status for a message, a batch or a request that is too large."""

    empty_batch_code: Literal["10206", "10207", "10013"] = "10206"
    """Code for an empty batch.  The first is documented, the others were observed."""

    extend: bool = False
    """Serve ``messages/extend``, which only the schema mentions.  Otherwise it gets 404."""

    max_consumers: int = 1
    """Maximum number of consumers of a queue.  Documented as one; a draft page has several."""

    allow_rename: bool = True
    """``PUT`` and ``PATCH`` can rename a queue.  The documentation says that they cannot; people
    saw it work."""

    purge_result: Literal["status", "queue"] = "status"
    """Result of starting a purge: its start and whether it is complete (wrangler), or the queue
    (SDK)."""

    purge_delay: float = 0
    """Seconds from the start of a purge to its end.  Documented as asynchronous: messages that are
    published meanwhile survive, and messages in flight may still be processed."""

    metrics_lag: float = 0
    """Maximum age of metrics in seconds.  Documented as approximate."""

    backlog_counts: Literal["both", "leased", "delayed", "none"] = "both"
    """Which invisible messages the metrics count as backlog: leased and delayed ones, one kind, or
    neither.  Documented as "unacknowledged"."""

    min_visibility_ms: int = 0
    """Minimum visibility timeout in milliseconds.  No source has a number."""

    dead_letter_keeps_id: bool = True
    """A message that moves to the dead-letter queue keeps its id, as in miniflare."""

    retention_spares: Literal["none", "leased", "delayed", "both"] = "none"
    """Messages that do not expire even if they are older than the queue's retention."""

    order: Literal["shuffled", "fifo"] = "shuffled"
    """Order in which pulls return messages.  Cloudflare promises none."""

    short_batches: bool = False
    """Pulls sometimes return fewer messages than are available, as documented."""

    duplicate_rate: float = 0
    """Share of pulled messages that are delivered once more even if they are acknowledged, from 0
    (none) to 1 (each, once).  Documented as rare."""

    late_visibility: float = 0
    """Maximum seconds until an accepted message can be pulled; each message takes a random time up
    to this.  No source says how long it takes."""

    fold_names: bool = False
    """``Jobs`` and ``jobs`` are the same queue.  No source says whether they are."""

    seed: int | None = None
    """Seed for whatever is random in the store (order, short batches, duplicates, lateness), so
    that a run can be repeated; None for a different run each time."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for knob in fields(self):
            value = getattr(self, knob.name)
            positions = _positions(hints[knob.name])
            if not any(_fits(value, position) for position in positions):
                allowed = " or ".join(map(_describe, positions))
                raise ValueError(f"{knob.name} must be {allowed}, not {value!r}")
        if self.duplicate_rate > 1:
            raise ValueError(f"duplicate_rate must be from 0 to 1, not {self.duplicate_rate}")


def positions(name: str) -> list[Any]:
    """Return the positions of the knob *name*: literal values, or types if any value is allowed."""
    return _positions(get_type_hints(Knobs)[name])


def _positions(hint: Any) -> list[Any]:
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
        return "a number of at least 0"
    if position is bool:
        return "True or False"
    return repr(position)
