"""What is disputed about the API, asked of an account itself.

Sources disagree about how the service behaves in many small things.  A queue made for it, some
thirty requests and a few seconds show what holds here.  The library takes every answer; who writes
another client, or reports a defect, wants to know which one it is.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from ..api.client import Client
from ..api.models import Queue
from ..errors import CFQueuesError, PermanentError, PullNotEnabled, QueueNameConflict, QueueNotFound
from ..options import Secret
from . import _console as console
from ._checks import SETTLE_PREFIX
from ._commands import in_words
from ._session import Session
from ._stop import Stop

ARRIVAL_SECONDS: Final = 10.0
"""So long is waited for a message that was published."""

QUIET_SECONDS: Final = 2.0
"""What has not come again by then does not come."""

PAUSE_SECONDS: Final = 30.0
"""Longest that a pause was seen to take until it is in force."""

CONSUMER_SECONDS: Final = 60.0
"""Longest that a new pull consumer is waited for; some seconds were seen."""

LEASE_MS: Final = 1000
LONG_LEASE_MS: Final = 60_000

MAX_RETRIES: Final = 2

_NOBODY: Final = "0" * 32


class Fact(NamedTuple):
    """A thing that was in dispute.

    Attributes:
        name: Of the emulator's knob for it, where it has one.
        question: In words.
        answer: How it is here: the knob's position, or what was seen.
        evidence: What the API said.
    """

    name: str
    question: str
    answer: str
    evidence: str


class Stopped(Exception):
    """Somebody wants it to end."""


class Settle:
    """Asks one account; use it once.

    Args:
        session: The account.
        stop: Says when to end.

    Attributes:
        name: Of the queue that is made, and deleted by `clean`.
    """

    def __init__(self, session: Session, stop: Stop) -> None:
        self.name = f"{SETTLE_PREFIX}{secrets.token_hex(4)}"
        self._session = session
        self._client = session.client
        self._stop = stop
        self._queue = Queue("", self.name, None)
        self._made: dict[str, str | None] = {}  # name -> id; None while it is not known

    def facts(self) -> Iterator[Fact]:
        """Each fact, as soon as it is known.

        Raises:
            Stopped: Somebody wants it to end.
            CFQueuesError: A request failed on which the rest depends.
        """
        self._queue = self._create(self.name)
        yield self._headers()
        for find in (
            self._pull_consumer,
            self._push_result,
            self._string_as_json,
            self._json_and_attempts,
            self._unknown_lease,
            self._late_ack,
            self._deliveries,
            self._paused_pull,
            self._missing_queue,
            self._bad_token,
            self._empty_batch,
            self._sizes,
            self._lists,
            self._names,
            self._rare_routes,
            self._counted,
        ):
            self._heed()
            yield from find()

    def clean(self) -> list[str]:
        """Delete what was made.

        Returns:
            Names of queues that could not be deleted, each with the reason.
        """
        return [text for name in list(self._made) if (text := self._delete(name))]

    def _create(self, name: str) -> Queue:
        self._made[name] = None  # its answer may be lost
        try:
            queue = self._session.call(self._client.create_queue, name)
        except QueueNameConflict:
            found = self._called(name)
            if not found:
                del self._made[name]
                raise
            queue = found[0]  # nobody else has that name: an earlier try was not answered
        except PermanentError:
            del self._made[name]
            raise
        self._made[name] = queue.id
        return queue

    def _delete(self, name: str) -> str:
        """Delete a queue; return why it could not be, or an empty text."""
        queue_id = self._made[name]
        try:
            ids = [queue_id] if queue_id else [queue.id for queue in self._called(name)]
            for one in ids:
                self._session.call(self._client.delete_queue, one)
        except QueueNotFound:
            pass  # as it should be
        except CFQueuesError as error:
            return f"{name}: {in_words(error)}"
        return ""

    def _called(self, name: str) -> list[Queue]:
        return [queue for queue in self._session.queues() if queue.name == name]

    # One fact or two each

    def _headers(self) -> Fact:
        wanted = ("Ratelimit", "Ratelimit-Policy", "CF-Ray", "Date")
        seen = [name for name in wanted if name in self._client.latest_headers]
        said = [
            f"{name}: {self._client.latest_headers[name]}"
            for name in seen
            if name.startswith("Rate")
        ]
        return Fact(
            "headers", "which headers has an answer?", ", ".join(seen) or "none", "; ".join(said)
        )

    def _pull_consumer(self) -> Iterator[Fact]:
        consumer = {"type": "http_pull", "settings": {"max_retries": MAX_RETRIES}}
        self._post("/consumers", consumer)
        began, refusals = time.monotonic(), 0
        while True:
            try:
                self._pull(LONG_LEASE_MS)
                break
            except PullNotEnabled:
                refusals += 1
                if time.monotonic() - began > CONSUMER_SECONDS:
                    raise
            self._wait(0.25)
        seconds = time.monotonic() - began
        answer = f"after {seconds:.1f} s" if refusals else "at once"
        yield Fact(
            "pull_enable_delay",
            "when is a new pull consumer in force?",
            answer,
            f"{refusals} pulls were HTTP 405 before" if refusals else "the first pull was HTTP 200",
        )

    def _push_result(self) -> Iterator[Fact]:
        envelope = self._post("/messages", {"body": "settle", "content_type": "text"})
        result = envelope.get("result")
        answer = "metrics" if result else "null" if "result" in envelope else "absent"
        yield Fact("push_result", "what does a publish answer?", answer, _short(result))
        self._drain()

    def _string_as_json(self) -> Iterator[Fact]:
        refused = self._refusal("/messages", {"body": "settle", "content_type": "json"})
        yield Fact(
            "strict_json_body",
            "is a bare string refused as JSON, published alone?",
            "true" if refused else "false",
            _said(refused),
        )
        if not refused:
            self._drain()

    def _json_and_attempts(self) -> Iterator[Fact]:
        # So many, because where each comes back in one of two ways, few may happen to be alike.
        sent = [{"body": {"settle": place}, "content_type": "json"} for place in range(20)]
        self._post("/messages/batch", {"messages": sent})
        raws = self._collect(len(sent))
        kinds = {_encoding(raw.get("body")) for raw in raws}
        yield Fact(
            "json_pull_encoding",
            "how does a JSON body come back?",
            kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "unknown",
            _short(raws[0].get("body")) if raws else "none came",
        )
        attempts = sorted({str(raw.get("attempts")) for raw in raws})
        yield Fact(
            "first_attempt",
            "what is `attempts` at the first delivery?",
            ", ".join(attempts) or "unknown",
            f"of {len(raws)} messages",
        )
        result = self._ack(raws)
        yield Fact("ack_result", "what does an ack answer?", _ack_shape(result), _short(result))

    def _unknown_lease(self) -> Iterator[Fact]:
        body = {"acks": [{"lease_id": "no-such-lease"}]}
        refused = self._refusal("/messages/ack", body)
        yield Fact(
            "unknown_lease",
            "what becomes of an ack of a lease that never was?",
            "reject" if refused else "warn",
            _said(refused),
        )

    def _late_ack(self) -> Iterator[Fact]:
        question = "does an ack count after its lease has ended?"
        self._post("/messages", {"body": "late", "content_type": "text"})
        try:
            raws = self._collect(1, lease_ms=LEASE_MS)
        except CFQueuesError as error:
            yield Fact("late_ack", question, "unknown", in_words(error))
            yield Fact("min_visibility_ms", "is a lease of 1 s possible?", "no", in_words(error))
            self._drain()
            return
        yield Fact("min_visibility_ms", "is a lease of 1 s possible?", "yes", "")
        self._wait(LEASE_MS / 1000 + 1)
        result = self._ack(raws)
        again = self._collect(1, seconds=QUIET_SECONDS)
        answer = "unknown" if not raws else "warn" if again else "accept"
        came = "it came again" if again else "it did not come again"
        yield Fact("late_ack", question, answer, f"{came}; {_short(result)}")
        self._ack(again)

    def _deliveries(self) -> Iterator[Fact]:
        self._post("/messages", {"body": "deliveries", "content_type": "text"})
        count = 0
        while count <= 2 * MAX_RETRIES:
            raws = self._collect(1, seconds=QUIET_SECONDS if count else ARRIVAL_SECONDS)
            if not raws:
                break
            count += 1
            retries = [{"lease_id": raw["lease_id"], "delay_seconds": 0} for raw in raws]
            self._post("/messages/ack", {"retries": retries})
        answers = {MAX_RETRIES: "max_retries", MAX_RETRIES + 1: "one_more"}
        yield Fact(
            "deliveries",
            "how often is a message delivered before it is dead?",
            answers.get(count, "unknown"),
            f"{count} times with max_retries {MAX_RETRIES}",
        )

    def _paused_pull(self) -> Iterator[Fact]:
        question = "what is a pull from a paused queue?"
        self._session.call(self._client.pause_delivery, self._queue, paused=True)
        try:
            end, refused = time.monotonic() + PAUSE_SECONDS, None
            while refused is None and time.monotonic() < end:
                refused = self._refusal("/messages/pull", {"batch_size": 1})
                if refused is None:
                    self._wait(0.5)
        finally:
            self._session.call(self._client.pause_delivery, self._queue, paused=False)
        yield Fact("paused_pull", question, _numbers(refused), _said(refused))

    def _missing_queue(self) -> Iterator[Fact]:
        admin = self._attempt("GET", f"/{_NOBODY}")
        message = self._attempt(
            "POST", f"/{_NOBODY}/messages", {"body": "", "content_type": "text"}
        )
        codes = [error.code if error else None for error in (message, admin)]
        answer = "by_route" if codes[0] != codes[1] else str(codes[0])
        yield Fact(
            "missing_queue_code",
            "which code has a queue that does not exist?",
            answer,
            f"{_numbers(message)} where messages are, {_numbers(admin)} elsewhere",
        )

    def _bad_token(self) -> Iterator[Fact]:
        options = self._session.options
        stranger = Client(
            options.base_url,
            options.account_id,
            Secret(secrets.token_urlsafe(30)),
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            permits=self._session.gate,
        )
        try:
            stranger.list_queues(deadline=self._session.deadline())
            refused = None
        except CFQueuesError as error:
            refused = error
        finally:
            stranger.close()
        yield Fact("bad_token", "what is a token nobody knows?", _numbers(refused), _said(refused))

    def _empty_batch(self) -> Iterator[Fact]:
        refused = self._refusal("/messages/batch", {"messages": []})
        code = str(refused.code) if refused else "accepted"
        yield Fact("empty_batch_code", "what is a batch of no messages?", code, _said(refused))

    def _sizes(self) -> Iterator[Fact]:
        refused = self._refusal("/messages", {"body": "x" * 128_001, "content_type": "text"})
        yield Fact(
            "too_large_status",
            "what is a message over 128,000 bytes?",
            _numbers(refused, code=False),
            _said(refused),
        )
        nearly = self._refusal("/messages", {"body": "x" * 127_950, "content_type": "text"})
        yield Fact(
            "metadata_bytes",
            "does metadata count towards the 128,000 bytes?",
            "yes" if nearly else "no",
            f"a body of 127,950 bytes: {_said(nearly)}",
        )
        if not (refused and nearly):
            self._drain()

    def _lists(self) -> Iterator[Fact]:
        def names(wanted: str) -> list[str]:
            page = self._session.call(self._client.list_queues, name=wanted)
            return [queue.name for queue in page.queues]

        nobody, part = names(f"no-{self.name}"), names(self.name[:-1])
        answer = "ignored" if nobody else "prefix" if self.name in part else "exact"
        yield Fact(
            "list_name_filter",
            "what does ?name= do to a list of queues?",
            answer,
            f"{len(nobody)} for a name that no queue has, {len(part)} for a part of one",
        )
        envelope = self._session.call(self._client.request, "GET", "?page=1")
        info = envelope.get("result_info")
        size = info.get("per_page") if isinstance(info, Mapping) else None
        yield Fact("list_page_size", "how many queues has a page?", str(size), _short(info))

    def _names(self) -> Iterator[Fact]:
        refused: CFQueuesError | None = None
        try:
            self._create(self.name.upper())
        except PermanentError as error:
            refused = error
        yield Fact(
            "fold_names",
            "are upper and lower case of a name the same queue?",
            "true" if refused else "false",
            _said(refused),
        )

    def _rare_routes(self) -> Iterator[Fact]:
        for name, body in (("peek", {"batch_size": 1}), ("extend", {"extend": []})):
            refused = self._refusal(f"/messages/{name}", body)
            missing = refused is not None and refused.status in (404, 405)
            yield Fact(
                name, f"is there messages/{name}?", "false" if missing else "true", _said(refused)
            )

    def _counted(self) -> Iterator[Fact]:
        """Which requests the allowance counts; only where the API says what is left."""
        left = [self._left()]
        self._attempt("POST", self._path("/messages/pull"), {"batch_size": 1})
        left.append(self._left())
        self._post("/messages", {"body": "counted", "content_type": "text"})
        left.append(self._left())
        if None in left:
            yield Fact(
                "rate_limited_routes",
                "which requests does the allowance count?",
                "unknown",
                "the API does not say what is left",
            )
            return
        first, pulled, pushed = (value or 0 for value in left)
        # Asking what is left is one itself.
        answer = "all" if first - pulled > 1 else "all_but_pull" if pulled - pushed > 1 else "admin"
        yield Fact(
            "rate_limited_routes",
            "which requests does the allowance count?",
            answer,
            f"left: {first:,}, after a pull {pulled:,}, after a publish {pushed:,}",
        )

    # Below here: requests

    def _heed(self) -> None:
        if self._stop.wanted:
            raise Stopped

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _path(self, route: str) -> str:
        return f"/{self._queue.id}{route}"

    def _post(self, route: str, body: Any) -> dict[str, Any]:
        """A request that has to succeed."""
        return self._session.call(self._client.request, "POST", self._path(route), body)

    def _refusal(self, route: str, body: Any) -> CFQueuesError | None:
        return self._attempt("POST", self._path(route), body)

    def _attempt(self, method: str, path: str, body: Any = None) -> CFQueuesError | None:
        """What the API has against a request, which is made once; None: nothing.

        Raises:
            CFQueuesError: It was no answer of the API.
        """
        try:
            self._client.request(method, path, body, deadline=self._session.deadline())
        except CFQueuesError as error:
            if error.status is None or error.status >= 500:
                raise
            return error
        return None

    def _pull(self, lease_ms: int) -> list[dict[str, Any]]:
        body = {"batch_size": 100, "visibility_timeout_ms": lease_ms}
        result = self._post("/messages/pull", body).get("result")
        messages = result.get("messages") if isinstance(result, Mapping) else None
        return messages if isinstance(messages, list) else []

    def _collect(
        self, count: int, *, lease_ms: int = LONG_LEASE_MS, seconds: float = ARRIVAL_SECONDS
    ) -> list[dict[str, Any]]:
        """Pull until so many messages have come, or until *seconds* have passed."""
        end, raws = time.monotonic() + seconds, self._pull(lease_ms)
        while len(raws) < count and time.monotonic() < end:
            self._wait(0.25)
            raws += self._pull(lease_ms)
        return raws

    def _ack(self, raws: list[dict[str, Any]]) -> Any:
        acks = [{"lease_id": raw.get("lease_id")} for raw in raws]
        return self._post("/messages/ack", {"acks": acks}).get("result") if acks else None

    def _drain(self) -> None:
        """Remove what a question has left in the queue."""
        self._ack(self._collect(1))

    def _left(self) -> int | None:
        self._attempt("GET", self._path(""))
        heard = self._session.left()
        return heard[0] if heard else None


def _encoding(body: Any) -> str:
    if not isinstance(body, str):
        return "a JSON value"
    for name, read in _READ.items():
        try:
            value = json.loads(read(body))
        except ValueError:  # binascii.Error is one
            continue
        if isinstance(value, dict):
            return name
    return "unknown"


_READ: Final[dict[str, Callable[[str], str | bytes]]] = {
    "plain": str,
    "base64": lambda text: base64.b64decode(text, validate=True),
}


def _ack_shape(result: Any) -> str:
    if not isinstance(result, Mapping):
        return "unknown"
    if "ackCount" not in result:
        return "no_counts"
    warnings = result.get("warnings", {})
    if isinstance(warnings, list):
        return "warnings_list"
    return "warnings_null" if warnings is None else "counts"


def _numbers(error: CFQueuesError | None, *, code: bool = True) -> str:
    if error is None:
        return "accepted"
    return f"{error.status}/{error.code}" if code and error.code else str(error.status)


def _said(error: CFQueuesError | None) -> str:
    return "accepted" if error is None else f"HTTP {error.status}, code {error.code}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return console.clean(text if len(text) <= 120 else text[:119] + "…")
