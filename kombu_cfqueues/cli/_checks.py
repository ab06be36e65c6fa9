"""What ``cfqueues doctor`` looks at, one check after the other.

Each check is a plain verdict; one that is not well says what to do.  Together they make half a
dozen requests, and change nothing.
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

from ..api.models import Queue, QueuePage
from ..errors import (
    AuthenticationFailed,
    CFQueuesError,
    ConfigurationError,
    ConnectionFailed,
    InvalidMessage,
    PermissionDenied,
    QueueNotFound,
    ServerError,
    SpoolFull,
    SpoolUnavailable,
)
from ..options import Options, is_loopback
from ..rate_limit import Limit
from ..spool.file import File
from ..spool.listing import Listing
from ..spool.posters import AVAILABLE
from . import _console as console
from ._broker import Given
from ._commands import in_words
from ._session import Session
from .queues import consumer_words

Verdict = Literal["ok", "warning", "problem", "unknown"]

SETTLE_PREFIX: Final = "cfqueues-settle-"
"""What the queues of ``doctor --settle`` are called."""

SKEW_SECONDS: Final = 30.0
"""By so much a clock may be wrong; the header has whole seconds, and came through a network."""

FEW_RETRIES: Final = 10
"""A consumer that allows fewer loses messages when workers are restarted now and then."""

_NOBODY: Final = "0" * 32
"""A queue id that no queue has."""


class Check(NamedTuple):
    """A thing that was looked at.

    Attributes:
        name: In a word or two.
        verdict: Whether it is well; ``unknown``: it cannot be told.
        text: What was found, and what to do about it.
    """

    name: str
    verdict: Verdict
    text: str


def examine(given: Given, names: tuple[str, ...]) -> Iterator[Check]:
    """Check everything, each thing as soon as it is known.

    Args:
        given: What the user said.
        names: Kombu's names of the queues to look at.
    """
    try:
        options = given.read()
    except ConfigurationError as error:
        yield Check("settings", "problem", in_words(error))
        return
    yield Check("settings", "ok", _settings(options))
    yield _proxies(options)
    tls = _tls(options)
    yield tls
    session = Session(options)
    try:
        if tls.verdict != "problem":
            yield from _service(session, names)
    finally:
        session.close()
    yield from _machine(session)


def _service(session: Session, names: tuple[str, ...]) -> Iterator[Check]:
    began = time.monotonic()
    try:
        page = session.client.list_queues(deadline=_soon(session))
    except CFQueuesError as error:
        yield from _refusal(error)
        return
    took = time.monotonic() - began
    # Its permit may have had to be waited for, which says nothing of the API.
    limited = session.options.request_rate is not None
    of_what = ", the wait for the request allowance included" if limited else ""
    answered = f"{session.options.host} answers, in {1000 * took:,.0f} ms{of_what}"
    yield Check("API", "ok", answered)
    yield Check("token", "ok", "it is taken, and may read this account's queues")
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
            return Check("TLS", "ok", "none needed: plain http that stays on this machine")
        return Check("TLS", "warning", "none: the API token travels unencrypted; use https")
    bundle, name = DEFAULT_CA_BUNDLE_PATH, "certifi"
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.environ.get(variable):
            bundle, name = os.environ[variable], variable
            break
    try:
        if not Path(bundle).is_dir():
            ssl.create_default_context(cafile=bundle)
    except OSError as error:  # an SSLError is one
        why = error.strerror or str(error)
        return Check(
            "TLS",
            "problem",
            f"{name} names {bundle}, from which no certificates can be read ({why}): correct it",
        )
    return Check("TLS", "ok", f"certificates are checked against {bundle} ({name})")


def _refusal(error: CFQueuesError) -> Iterator[Check]:
    """Whose fault it is that the first request was refused."""
    text = in_words(error)
    if isinstance(error, (AuthenticationFailed, PermissionDenied)):
        if error.status is not None:
            yield Check("API", "ok", f"it answers (HTTP {error.status})")
        yield Check("token", "problem", text)
    elif isinstance(error, (ConfigurationError, QueueNotFound)):
        yield Check("account", "problem", text)
    else:
        yield Check("API", "problem", text + _remedy(error))


def _remedy(error: CFQueuesError) -> str:
    """What to do, where the error's own words do not say."""
    says = ("set REQUESTS_CA_BUNDLE", "check the host", "check HTTPS_PROXY")
    if isinstance(error, ConnectionFailed) and not any(one in str(error) for one in says):
        return "; check the host of the broker URL, the network, a firewall, and HTTPS_PROXY"
    if isinstance(error, ServerError) and "cloudflarestatus" not in str(error):
        return " Try again; if it stays, see https://www.cloudflarestatus.com."
    return ""


def _clock(session: Session) -> Check:
    try:
        there = parsedate_to_datetime(session.client.latest_headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return Check("clock", "unknown", "the API does not say what time it is")
    skew = time.time() - there
    if abs(skew) <= SKEW_SECONDS:
        return Check("clock", "ok", "it agrees with the API's")
    way = "ahead of" if skew > 0 else "behind"
    return Check(
        "clock",
        "problem",
        f"this machine is {console.span(abs(skew))} {way} the API, so each eta and expiry is "
        "wrong by that: set the clock (timedatectl set-ntp true)",
    )


def _permission(session: Session, queue: Queue | None) -> Check:
    """Whether the token may publish: a batch of no messages is refused for what it is, or not."""
    path = f"/{queue.id if queue else _NOBODY}/messages/batch"
    try:
        session.client.request("POST", path, {"messages": []}, deadline=_soon(session))
    except (InvalidMessage, QueueNotFound):
        pass  # it was refused for what it is, so it may publish
    except (AuthenticationFailed, PermissionDenied) as error:
        return Check(
            "permission", "problem", f"the token may read queues and not publish: {in_words(error)}"
        )
    except CFQueuesError as error:
        return Check("permission", "unknown", in_words(error))
    return Check("permission", "ok", "the token may publish, consume and change queues")


def _find(session: Session, name: str) -> Queue | Check:
    options = session.options
    try:
        session.title(name)  # refuses a second name for one queue, also where that is missing
        queue = session.directory.find(name, options, deadline=_soon(session))
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
        "it does not exist, and create_missing_queues is off: 'cfqueues queues create "
        f"{name}' creates it",
    )


def _queue(session: Session, name: str, queue: Queue) -> Check:
    try:
        consumers = tuple(session.client.list_consumers(queue.id, deadline=_soon(session)))
    except CFQueuesError as error:
        failed = _failed(name, error)
        if isinstance(error, QueueNotFound) and name in session.options.queues:
            return failed._replace(text=f"{failed.text} Correct its id in the option 'queues'.")
        return failed
    parts = [f"consumer: {consumer_words(consumers)}"]
    if not any(consumer.get("type") == "worker" for consumer in consumers):
        parts.append(_held(session, queue))
    few = [
        retries
        for consumer in consumers
        if consumer.get("type") == "http_pull"
        and isinstance(settings := consumer.get("settings"), dict)
        and isinstance(retries := settings.get("max_retries"), int)
        and retries < min(FEW_RETRIES, session.options.consumer_max_retries)
    ]
    if queue.paused:
        parts.append(f"delivery is paused: 'cfqueues queues resume {name}'")
    if few:
        parts.append(
            f"a message is deleted, or dead, after {few[0]} deliveries, and each worker that ends "
            "with it uses one up: set max_retries to 100 in the dashboard"
        )
    return Check(_label(name), "warning" if few or queue.paused else "ok", "; ".join(parts))


def _held(session: Session, queue: Queue) -> str:
    try:
        count = session.client.backlog(queue.id, deadline=_soon(session)).messages
    except CFQueuesError:
        return "how many messages it holds cannot be read"
    return f"holds about {console.amount(count)} messages"


def _failed(name: str, error: CFQueuesError) -> Check:
    return Check(_label(name), "problem", in_words(error) + _remedy(error))


def _label(name: str) -> str:
    return f"queue {name}"


def _others(page: QueuePage, names: tuple[str, ...]) -> Iterator[Check]:
    if not names:
        more = " and more" if page.has_more else ""
        count = console.plural(len(page.queues), "queue")
        yield Check("queues", "ok", f"{count}{more}; 'cfqueues doctor QUEUE' looks at one")
    for queue in page.queues:
        if queue.name.lower().startswith(SETTLE_PREFIX):
            text = f"left by 'doctor --settle': 'cfqueues queues delete {queue.name}'"
            yield Check(_label(queue.name), "warning", text)


def _machine(session: Session) -> Iterator[Check]:
    """The allowance, and who shares it."""
    options = session.options
    rate, heard = options.request_rate, session.left()
    if rate is None:
        yield Check("allowance", "ok", f"requests to {options.host} are not limited")
        if options.publish_mode != "spool":
            yield Check("spool", "ok", "not used: nothing has to wait")
            return
    elif options.budget_scope == "process":
        text = f"{rate:g} requests a second for each process (budget_scope is 'process')"
        yield Check("allowance", "ok", text)
        return
    if not AVAILABLE:
        text = "this system cannot share requests: divide request_rate by the processes"
        yield Check("spool", "warning", text)
        return
    limit = None if rate is None else Limit(rate, options.request_burst)
    token = options.api_token
    file = File(
        options.base_url,
        options.account_id,
        limit,
        token if callable(token) else lambda: token,
        spool_dir=options.spool_dir,
    )
    try:
        if limit is not None:
            yield _allowance(Listing(file), limit, heard)
        yield _spool(file)
    except (SpoolFull, SpoolUnavailable) as error:
        yield Check("spool", "problem", in_words(error))
    finally:
        file.close()


def _allowance(listing: Listing, limit: Limit, heard: tuple[int, float] | None) -> Check:
    allowed = listing.allowed()
    if allowed.stopped_seconds:
        return Check(
            "allowance",
            "problem",
            f"the API refuses every call of the token for {console.span(allowed.stopped_seconds)}: "
            "wait, and see who else uses the token (dashboard, other machines)",
        )
    told = f"; the API says {heard[0]:,} for {heard[1]:,.0f} s" if heard else ""
    return Check(
        "allowance",
        "ok",
        f"{allowed.requests} of {limit.burst} requests may leave at once, {limit.rate:g} a second "
        f"after that{told}",
    )


def _spool(file: File) -> Check:
    listing = Listing(file)
    folder = file.path.parent
    whose = "this user's group" if folder.stat().st_mode & 0o020 else "this user alone"
    pids = listing.sharers()
    others = f"with process {', '.join(map(str, pids))}" if pids else "no other process uses it now"
    text = f"{file.path}, for {whose}; {others}"
    refused, waiting = len(listing.refused()), sum(one.waiting for one in listing.queues())
    if waiting:
        text += f"; {console.plural(waiting, 'message')} waiting"
    if refused:
        count = console.plural(refused, "message")
        return Check("spool", "warning", f"{text}; {count} refused: see 'cfqueues spool'")
    return Check("spool", "ok", text)


def _soon(session: Session) -> float:
    options = session.options
    return time.monotonic() + options.connect_timeout + options.read_timeout
