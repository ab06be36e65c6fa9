"""The checks of ``cfqueues doctor``, one after the other.

A check whose verdict is not "ok" says what to do.  Together the checks make about six requests, and
change nothing.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies

from ..account import open_spool
from ..api.models import Queue, QueuePage
from ..errors import (
    AuthenticationFailed,
    CFQueuesError,
    ConfigurationError,
    InvalidMessage,
    PermissionDenied,
    QueueNotFound,
    SpoolFull,
    SpoolUnavailable,
)
from ..options import (
    POD_ADVICE,
    Options,
    frozen_spool_advice,
    is_loopback,
    lacks_shared_rate,
)
from ..rate_limit import Limit
from ..redis_allowance import BudgetUnavailable
from ..spool import Spool
from . import _console as console
from ._broker import RawOptions
from ._commands import in_one_line
from ._session import Session
from ._share import in_full
from .queues import consumer_summary

Verdict = Literal["ok", "warning", "problem", "unknown"]

SETTLE_PREFIX: Final = "cfqueues-settle-"
"""Prefix of the names of the queues that ``doctor --settle`` creates."""

MAX_SKEW_SECONDS: Final = 30.0
"""Largest difference from the API's clock that passes.  The ``Date`` header has whole seconds, and
the network delays it."""

MIN_RETRIES: Final = 10
"""Smallest ``max_retries`` that passes.  With fewer, restarts of workers lose messages."""

UNKNOWN_QUEUE_ID: Final = "0" * 32
"""A queue id that no queue has."""


class Check(NamedTuple):
    """The result of one check.

    Attributes:
        name: What was checked, in one or two words.
        verdict: The result; ``unknown`` if the check could not be made.
        text: What was found, and what to do about it.
    """

    name: str
    verdict: Verdict
    text: str


def examine(raw_options: RawOptions, names: tuple[str, ...]) -> Iterator[Check]:
    """Make all checks, and yield each result as soon as it is known.

    Args:
        raw_options: The settings from the command line.
        names: Kombu's names of the queues to check.
    """
    try:
        options = raw_options.read()
    except ConfigurationError as error:
        yield Check("settings", "problem", in_one_line(error))
        return
    yield Check("settings", "ok", _settings(options))
    yield _proxies(options)
    tls = _tls(options)
    yield tls
    try:
        session = Session(options)
    except ConfigurationError as error:  # such as an option that needs a package
        yield Check("settings", "problem", in_one_line(error))
        return
    try:
        if tls.verdict != "problem":
            yield from _service(session, names)
    finally:
        session.close()
    yield from _machine(session)


def _service(session: Session, names: tuple[str, ...]) -> Iterator[Check]:
    started = time.monotonic()
    try:
        page = session.client.list_queues(deadline=_deadline(session))
    except CFQueuesError as error:
        yield from _refusal(error, session.options.host)
        return
    took = time.monotonic() - started
    # The wait for a permit is part of the time, and says nothing about the API.
    limited = session.options.request_rate is not None
    included = ", including the wait for the request allowance" if limited else ""
    text = f"{session.options.host} answered in {1000 * took:,.0f} ms{included}"
    yield Check("API", "ok", text)
    yield Check("token", "ok", "valid; it can read this account's queues")
    yield _clock(session)
    found = [(name, _find(session, name)) for name in names]
    known = [queue for _, queue in found if isinstance(queue, Queue)]
    yield _permission(session, next(iter([*known, *page.queues]), None))
    for name, queue in found:
        yield _queue(session, name, queue) if isinstance(queue, Queue) else queue
    yield from _others(page, names)


def _settings(options: Options) -> str:
    prefix = f", queue names begin with {options.queue_name_prefix!r}"
    return (
        f"account {options.account_id}, API at {options.base_url}"
        f"{prefix if options.queue_name_prefix else ''}"
    )


def _proxies(options: Options) -> Check:
    proxies = {} if is_loopback(options.host) else get_environ_proxies(options.base_url)
    scheme = urlsplit(options.base_url).scheme
    proxy = proxies.get(scheme) or proxies.get("all")
    if proxy is None:
        return Check("proxy", "ok", "none")
    parts = urlsplit(proxy)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "malformed"
    name = f"{scheme.upper()}_PROXY"
    return Check("proxy", "ok", f"requests go through {shown} ({name} or ALL_PROXY is set)")


def _tls(options: Options) -> Check:
    if urlsplit(options.base_url).scheme == "http":
        if is_loopback(options.host):
            return Check("TLS", "ok", "not needed: plain http stays on this machine")
        return Check("TLS", "warning", "not used, so the API token travels unencrypted: use https")
    bundle, name = DEFAULT_CA_BUNDLE_PATH, "certifi"
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.environ.get(variable):
            bundle, name = os.environ[variable], variable
            break
    try:
        if not Path(bundle).is_dir():
            ssl.create_default_context(cafile=bundle)
    except OSError as error:  # an SSLError is a subclass
        why = error.strerror or str(error)
        return Check(
            "TLS",
            "problem",
            f"{name} names {bundle}, from which no certificate can be read ({why}): set "
            "REQUESTS_CA_BUNDLE to a file of CA certificates",
        )
    return Check("TLS", "ok", f"certificates are checked against {bundle} ({name})")


def _refusal(error: CFQueuesError, host: str) -> Iterator[Check]:
    """Report a failure of the first request under the check that it belongs to."""
    text = in_one_line(error)
    if isinstance(error, (AuthenticationFailed, PermissionDenied)):
        if error.status is not None:
            yield Check("API", "ok", f"{host} answered with HTTP {error.status}")
        yield Check("token", "problem", text)
    elif isinstance(error, (ConfigurationError, QueueNotFound)):
        yield Check("account", "problem", text)
    else:
        yield Check("API", "problem", text)


def _clock(session: Session) -> Check:
    try:
        api_time = parsedate_to_datetime(session.client.latest_headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return Check("clock", "unknown", "the API's response has no valid Date header")
    skew = time.time() - api_time
    if abs(skew) <= MAX_SKEW_SECONDS:
        return Check("clock", "ok", "matches the API's clock")
    way = "ahead of" if skew > 0 else "behind"
    return Check(
        "clock",
        "problem",
        f"this machine is {console.duration(abs(skew))} {way} the API, so every eta and expiry "
        "is wrong by as much: set the clock (timedatectl set-ntp true)",
    )


def _permission(session: Session, queue: Queue | None) -> Check:
    """Check whether the token can publish, by publishing a batch without messages.

    If the token can publish, the API refuses the batch as invalid; if not, as not permitted.
    """
    path = f"/{queue.id if queue else UNKNOWN_QUEUE_ID}/messages/batch"
    try:
        session.client.request("POST", path, {"messages": []}, deadline=_deadline(session))
    except (InvalidMessage, QueueNotFound):
        pass  # the batch or the id was refused, not the token
    except (AuthenticationFailed, PermissionDenied) as error:
        return Check(
            "permission",
            "problem",
            f"the token can read queues but cannot publish: {in_one_line(error)}",
        )
    except CFQueuesError as error:
        return Check("permission", "unknown", in_one_line(error))
    return Check("permission", "ok", "the token can publish, consume and change queues")


def _find(session: Session, name: str) -> Queue | Check:
    options = session.options
    try:
        session.cloudflare_name(name)  # raises if another name means the same queue
        queue = session.directory.find(name, options, deadline=_deadline(session), anew=True)
    except CFQueuesError as error:
        return _failed(name, error)
    if queue is not None:
        session.client.remember_name(queue.id, name)
        return queue
    if options.create_missing_queues:
        text = "it does not exist; the first publish creates it"
        return Check(_label(name), "warning", text)
    return Check(
        _label(name),
        "problem",
        "it does not exist, and create_missing_queues is off: create it with 'cfqueues queues "
        f"create {name}'",
    )


def _queue(session: Session, name: str, queue: Queue) -> Check:
    try:
        consumers = tuple(session.client.list_consumers(queue.id, deadline=_deadline(session)))
    except CFQueuesError as error:
        failed = _failed(name, error)
        if isinstance(error, QueueNotFound) and name in session.options.queues:
            return failed._replace(text=f"{failed.text} Correct its id in the option 'queues'.")
        return failed
    parts = [f"consumer: {consumer_summary(consumers)}"]
    if not any(consumer.get("type") == "worker" for consumer in consumers):
        parts.append(_message_count(session, queue))
    few = [
        retries
        for consumer in consumers
        if consumer.get("type") == "http_pull"
        and isinstance(settings := consumer.get("settings"), dict)
        and isinstance(retries := settings.get("max_retries"), int)
        and retries < min(MIN_RETRIES, session.options.consumer_max_retries)
    ]
    if queue.paused:
        parts.append(f"delivery is paused: resume it with 'cfqueues queues resume {name}'")
    if few:
        parts.append(
            f"a message is deleted or dead-lettered after {few[0]} deliveries, and a worker that "
            "stops while it holds the message uses one up: raise it with 'cfqueues queues update "
            f"{name} --max-retries 100'"
        )
    return Check(_label(name), "warning" if few or queue.paused else "ok", "; ".join(parts))


def _message_count(session: Session, queue: Queue) -> str:
    try:
        count = session.client.backlog(queue.id, deadline=_deadline(session)).messages
    except CFQueuesError:
        return "the number of its messages cannot be read"
    return f"holds about {console.number(count)} messages"


def _failed(name: str, error: CFQueuesError) -> Check:
    return Check(_label(name), "problem", in_one_line(error))


def _label(name: str) -> str:
    return f"queue {name}"


def _others(page: QueuePage, names: tuple[str, ...]) -> Iterator[Check]:
    if not names:
        more = " and more" if page.has_more else ""
        count = console.plural(len(page.queues), "queue")
        yield Check("queues", "ok", f"{count}{more}; check one with 'cfqueues doctor QUEUE'")
    for queue in page.queues:
        if queue.name.lower().startswith(SETTLE_PREFIX):
            text = f"left by 'doctor --settle': run 'cfqueues queues delete {queue.name}'"
            yield Check(_label(queue.name), "warning", text)


def _platform(options: Options) -> Iterator[Check]:
    """Check for settings that do not fit Kubernetes, AWS Lambda or Cloud Run."""
    if lacks_shared_rate(options):
        yield Check("pod", "warning", POD_ADVICE)
    if options.publish_mode == "spool" and (advice := frozen_spool_advice()):
        yield Check("serverless", "warning", advice)


def _machine(session: Session) -> Iterator[Check]:
    """Check the request allowance, and the spool by which processes share it."""
    options = session.options
    rate, reported = options.request_rate, session.requests_left()
    yield from _platform(options)
    if rate is None:
        yield Check("allowance", "ok", f"requests to {options.host} are not limited")
        if options.publish_mode != "spool" and options.spool_dir is None:
            yield Check("spool", "ok", "not used, because requests are not limited")
            return
    elif not options.shares_budget:
        text = f"{rate:g} requests per second for each process (budget_scope is 'process')"
        yield Check("allowance", "ok", text)
        return
    if not Spool.available:
        text = (
            "this system has no file locks, so processes cannot share the allowance: divide "
            "request_rate by the number of processes"
        )
        yield Check("spool", "warning", text)
        return
    if options.spool_dir is not None and not Path(options.spool_dir).exists():
        text = f"{options.spool_dir} does not exist; the first process that spools creates it"
        yield Check("spool", "warning", text)
        return
    try:
        spool = open_spool(options)
    except ConfigurationError as error:
        yield Check("allowance", "problem", in_one_line(error))
        return
    limit = None if rate is None else Limit(rate, options.request_burst)
    yield from _shared(spool, limit, reported)


def _shared(spool: Spool, limit: Limit | None, reported: tuple[int, int] | None) -> Iterator[Check]:
    """Check what the processes of the machine share, and close the spool."""
    try:
        if limit is not None:
            left = "" if reported is None else _reported(*reported)
            yield _fleet(spool, left) or _allowance(spool, limit, left)
            share = None if spool.fleet else spool.listing.share()
            if share is not None:
                yield Check("share", "warning", in_full(share))
        yield _spool(spool)
    except (SpoolFull, SpoolUnavailable) as error:
        yield Check("spool", "problem", in_one_line(error))
    finally:
        spool.close()


def _reported(left: int, seconds: float) -> str:
    return f"; the API reports {left:,} left for {seconds:,.0f} s"


def _fleet(spool: Spool, reported: str) -> Check | None:
    """Check the allowance that all machines share; None if each machine has its own."""
    if spool.fleet is None:
        return None
    place, limit = spool.fleet.shown, spool.fleet.limit
    try:
        left = spool.fleet_allowed()
    except BudgetUnavailable as error:
        return Check(
            "allowance",
            "warning",
            f"to be shared by all machines through Redis, which does not answer: {error}; until it "
            "does, this machine goes on alone with a part of the allowance",
        )
    if left.stopped_seconds:
        return _blocked(left.stopped_seconds, f"; all machines that use {place} wait")
    return Check(
        "allowance",
        "ok",
        f"shared by all machines through Redis at {place}, which answers: {left.requests} of "
        f"{limit.burst} requests may be sent at once, then {limit.rate:g} per second{reported}",
    )


def _blocked(seconds: float, more: str = "") -> Check:
    return Check(
        "allowance",
        "problem",
        f"the API blocks every call of this token for {console.duration(seconds)}: wait, and find "
        f"out what else uses the token (dashboard, other machines){more}",
    )


def _allowance(spool: Spool, limit: Limit, reported: str) -> Check:
    allowed = spool.listing.allowed()
    if allowed.stopped_seconds:
        return _blocked(allowed.stopped_seconds)
    return Check(
        "allowance",
        "ok",
        f"{allowed.requests} of {limit.burst} requests may be sent at once, then {limit.rate:g} "
        f"per second{reported}",
    )


def _spool(spool: Spool) -> Check:
    folder = spool.path.parent
    users = "this user's group" if folder.stat().st_mode & 0o020 else "this user only"
    pids = spool.listing.sharers()
    sharers = f"shared with process {', '.join(map(str, pids))}" if pids else "not shared now"
    text = f"{spool.path}, for {users}; {sharers}"
    queues = spool.listing.queues()
    # Claimed messages of a process that was killed wait too.
    waiting = sum(queue.waiting + queue.sending for queue in queues)
    refused = len(spool.listing.refused())
    if waiting:
        oldest = max(queue.oldest_seconds or 0.0 for queue in queues)
        text += (
            f"; {console.plural(waiting, 'message')} waiting, the oldest for "
            f"{console.duration(oldest)} (see 'cfqueues spool')"
        )
    if refused:
        count = console.plural(refused, "message")
        return Check(
            "spool", "warning", f"{text}; {count} refused: retry or drop them with 'cfqueues spool'"
        )
    return Check("spool", "ok", text)


def _deadline(session: Session) -> float:
    """Return when a single try gives up: checks do not retry."""
    options = session.options
    return time.monotonic() + options.connect_timeout + options.read_timeout
