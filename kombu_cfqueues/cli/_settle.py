"""Finds out how the API behaves for an account, where sources disagree: ``doctor --settle``.

Sources disagree about many details of the service.  A temporary queue, about 40 requests and a few
seconds show how it behaves.  The library accepts every behaviour; the author of another client, or
of a defect report, needs to know which one applies.
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
from ._checks import SETTLE_PREFIX, UNKNOWN_QUEUE_ID
from ._commands import in_one_line
from ._session import Session
from ._stop import Stop

ARRIVAL_SECONDS: Final = 10.0
"""Longest wait for a published message to arrive."""

REDELIVERY_SECONDS: Final = 2.0
"""Longest wait for a redelivery; a message that has not arrived by then is considered gone."""

PAUSE_EFFECT_SECONDS: Final = 30.0
"""Longest wait for a pause to take effect: the longest time that was observed."""

CONSUMER_EFFECT_SECONDS: Final = 60.0
"""Longest wait for a new pull consumer to take effect; some seconds were observed."""

SETTLE_POLL_SECONDS: Final = 0.25
"""Pause between two pulls that wait for a message or for a new consumer."""

PAUSED_POLL_SECONDS: Final = 0.5
"""Pause between two pulls that wait for a paused queue to refuse them."""

SHORT_LEASE_SECONDS: Final = 1.0
"""Lease that expires on purpose, so that an acknowledgement can be late."""

LONG_LEASE_SECONDS: Final = 60.0
"""Lease that does not expire before the message is acknowledged."""

SETTLE_RETRIES: Final = 2
"""Retries of the temporary queue's consumer: few, so that the last one comes soon."""


class Fact(NamedTuple):
    """How the API behaves in one detail.

    Attributes:
        name: Name of the emulator's knob for it, if it has one.
        question: The detail, as a question.
        answer: The position of the knob, or what was observed.
        evidence: The API's response.
    """

    name: str
    question: str
    answer: str
    evidence: str


class Stopped(Exception):
    """A signal asked the command to stop."""


class Probe:
    """Finds out the facts for one account.  Use an instance once.

    Args:
        session: The account.
        stop: Whether to stop.

    Attributes:
        name: Name of the temporary queue, which `clean` deletes.
    """

    def __init__(self, session: Session, stop: Stop) -> None:
        self.name = f"{SETTLE_PREFIX}{secrets.token_hex(4)}"
        self._session = session
        self._client = session.client
        self._stop = stop
        self._queue = Queue("", self.name, None)
        self._created: dict[str, str | None] = {}  # name -> id; None while unknown

    def facts(self) -> Iterator[Fact]:
        """Yield each fact as soon as it is known.

        Raises:
            Stopped: A signal asked the command to stop.
            CFQueuesError: A request failed on which the remaining facts depend.
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
            self._raise_if_stopped()
            yield from find()

    def clean(self) -> list[str]:
        """Delete the queues that were created.

        Returns:
            The names of queues that could not be deleted, each with the reason.
        """
        return [text for name in list(self._created) if (text := self._delete(name))]

    def _create(self, name: str) -> Queue:
        self._created[name] = None  # the response may be lost
        try:
            queue = self._session.call(self._client.create_queue, name)
        except QueueNameConflict:
            found = self._find(name)
            if not found:
                del self._created[name]
                raise
            queue = found[0]  # ours: the name is random, so an earlier try created it
        except PermanentError:
            del self._created[name]
            raise
        self._created[name] = queue.id
        return queue

    def _delete(self, name: str) -> str:
        """Delete a queue.  Return its name and the reason on failure, else an empty text."""
        queue_id = self._created[name]
        try:
            ids = [queue_id] if queue_id else [queue.id for queue in self._find(name)]
            for found_id in ids:
                self._session.call(self._client.delete_queue, found_id)
        except QueueNotFound:
            pass  # there is nothing to delete
        except CFQueuesError as error:
            return f"{name}: {in_one_line(error)}"
        return ""

    def _find(self, name: str) -> list[Queue]:
        return [queue for queue in self._session.queues() if queue.name == name]

    # Each method below finds out one or more facts

    def _headers(self) -> Fact:
        wanted = ("Ratelimit", "Ratelimit-Policy", "CF-Ray", "Date")
        seen = [name for name in wanted if name in self._client.latest_headers]
        reported = [
            f"{name}: {self._client.latest_headers[name]}"
            for name in seen
            if name.startswith("Rate")
        ]
        return Fact(
            "headers",
            "which headers does a response have?",
            ", ".join(seen) or "none",
            "; ".join(reported),
        )

    def _pull_consumer(self) -> Iterator[Fact]:
        consumer = {"type": "http_pull", "settings": {"max_retries": SETTLE_RETRIES}}
        self._post("/consumers", consumer)
        started, refusals = time.monotonic(), 0
        while True:
            try:
                self._pull(LONG_LEASE_SECONDS)
                break
            except PullNotEnabled:
                refusals += 1
                if time.monotonic() - started > CONSUMER_EFFECT_SECONDS:
                    raise
            self._wait(SETTLE_POLL_SECONDS)
        seconds = time.monotonic() - started
        answer = f"after {seconds:.1f} s" if refusals else "at once"
        yield Fact(
            "pull_enable_delay",
            "when does a new pull consumer take effect?",
            answer,
            f"{refusals} pulls before got HTTP 405" if refusals else "the first pull got HTTP 200",
        )

    def _push_result(self) -> Iterator[Fact]:
        envelope = self._post("/messages", {"body": "settle", "content_type": "text"})
        result = envelope.get("result")
        answer = "metrics" if result else "null" if "result" in envelope else "absent"
        yield Fact("push_result", "what does a publish return?", answer, _shortened(result))
        self._drain()

    def _string_as_json(self) -> Iterator[Fact]:
        refused = self._refusal("/messages", {"body": "settle", "content_type": "json"})
        yield Fact(
            "strict_json_body",
            "does a single publish refuse a bare string as JSON?",
            "true" if refused else "false",
            _as_evidence(refused),
        )
        if not refused:
            self._drain()

    def _json_and_attempts(self) -> Iterator[Fact]:
        # Many messages, because the API may encode each in one of two ways at random.
        sent = [{"body": {"settle": number}, "content_type": "json"} for number in range(20)]
        self._post("/messages/batch", {"messages": sent})
        raws = self._collect(len(sent))
        kinds = {_encoding(raw.get("body")) for raw in raws}
        yield Fact(
            "json_pull_encoding",
            "how is a JSON body encoded in a pull?",
            kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "unknown",
            _shortened(raws[0].get("body")) if raws else "no message arrived",
        )
        attempts = sorted({str(raw.get("attempts")) for raw in raws})
        yield Fact(
            "first_attempt",
            "what is `attempts` at the first delivery?",
            ", ".join(attempts) or "unknown",
            f"of {len(raws)} messages",
        )
        result = self._ack(raws)
        yield Fact("ack_result", "what does an ack return?", _ack_shape(result), _shortened(result))

    def _unknown_lease(self) -> Iterator[Fact]:
        body = {"acks": [{"lease_id": "no-such-lease"}]}
        refused = self._refusal("/messages/ack", body)
        yield Fact(
            "unknown_lease",
            "what happens to an ack of an unknown lease?",
            "reject" if refused else "warn",
            _as_evidence(refused),
        )

    def _late_ack(self) -> Iterator[Fact]:
        question = "does an ack count after its lease has expired?"
        self._post("/messages", {"body": "late", "content_type": "text"})
        try:
            raws = self._collect(1, lease_seconds=SHORT_LEASE_SECONDS)
        except CFQueuesError as error:
            yield Fact("late_ack", question, "unknown", in_one_line(error))
            yield Fact("min_visibility_ms", "is a lease of 1 s possible?", "no", in_one_line(error))
            self._drain()
            return
        yield Fact("min_visibility_ms", "is a lease of 1 s possible?", "yes", "")
        self._wait(SHORT_LEASE_SECONDS + 1)
        result = self._ack(raws)
        again = self._collect(1, seconds=REDELIVERY_SECONDS)
        answer = "unknown" if not raws else "warn" if again else "accept"
        seen = "it was redelivered" if again else "it was not redelivered"
        yield Fact("late_ack", question, answer, f"{seen}; {_shortened(result)}")
        self._ack(again)

    def _deliveries(self) -> Iterator[Fact]:
        self._post("/messages", {"body": "deliveries", "content_type": "text"})
        count = 0
        while count <= 2 * SETTLE_RETRIES:
            raws = self._collect(1, seconds=REDELIVERY_SECONDS if count else ARRIVAL_SECONDS)
            if not raws:
                break
            count += 1
            retries = [{"lease_id": raw["lease_id"], "delay_seconds": 0} for raw in raws]
            self._post("/messages/ack", {"retries": retries})
        answers = {SETTLE_RETRIES: "max_retries", SETTLE_RETRIES + 1: "one_more"}
        yield Fact(
            "deliveries",
            "how often is a message delivered before it is dead-lettered?",
            answers.get(count, "unknown"),
            f"{count} times with max_retries {SETTLE_RETRIES}",
        )

    def _paused_pull(self) -> Iterator[Fact]:
        question = "what does a pull from a paused queue return?"
        self._session.call(self._client.edit_queue, self._queue, {"delivery_paused": True})
        try:
            end, refused = time.monotonic() + PAUSE_EFFECT_SECONDS, None
            while refused is None and time.monotonic() < end:
                refused = self._refusal("/messages/pull", {"batch_size": 1})
                if refused is None:
                    self._wait(PAUSED_POLL_SECONDS)
        finally:
            self._session.call(self._client.edit_queue, self._queue, {"delivery_paused": False})
        yield Fact("paused_pull", question, _as_knob(refused), _as_evidence(refused))

    def _missing_queue(self) -> Iterator[Fact]:
        admin = self._attempt("GET", f"/{UNKNOWN_QUEUE_ID}")
        message = self._attempt(
            "POST", f"/{UNKNOWN_QUEUE_ID}/messages", {"body": "", "content_type": "text"}
        )
        codes = [error.code if error else None for error in (message, admin)]
        answer = "by_route" if codes[0] != codes[1] else str(codes[0])
        yield Fact(
            "missing_queue_code",
            "which code does a missing queue return?",
            answer,
            f"{_as_knob(message)} on message routes, {_as_knob(admin)} on others",
        )

    def _bad_token(self) -> Iterator[Fact]:
        options = self._session.options
        client = Client(
            options.base_url,
            options.account_id,
            Secret(secrets.token_urlsafe(30)),
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            permits=self._session.gate,
        )
        try:
            client.list_queues(deadline=self._session.deadline())
            refused = None
        except CFQueuesError as error:
            refused = error
        finally:
            client.close()
        yield Fact(
            "bad_token",
            "what does an unknown token return?",
            _as_knob(refused),
            _as_evidence(refused),
        )

    def _empty_batch(self) -> Iterator[Fact]:
        refused = self._refusal("/messages/batch", {"messages": []})
        code = str(refused.code) if refused else "accepted"
        yield Fact(
            "empty_batch_code",
            "what does a batch without messages return?",
            code,
            _as_evidence(refused),
        )

    def _sizes(self) -> Iterator[Fact]:
        refused = self._refusal("/messages", {"body": "x" * 128_001, "content_type": "text"})
        yield Fact(
            "too_large_status",
            "what does a message over 128,000 bytes return?",
            _as_knob(refused, code=False),
            _as_evidence(refused),
        )
        nearly = self._refusal("/messages", {"body": "x" * 127_950, "content_type": "text"})
        yield Fact(
            "metadata_bytes",
            "does metadata count towards the 128,000 bytes?",
            "yes" if nearly else "no",
            f"a body of 127,950 bytes: {_as_evidence(nearly)}",
        )
        if not (refused and nearly):
            self._drain()

    def _lists(self) -> Iterator[Fact]:
        def names(filter_by: str) -> list[str]:
            page = self._session.call(self._client.list_queues, name=filter_by)
            return [queue.name for queue in page.queues]

        unknown, part = names(f"no-{self.name}"), names(self.name[:-1])
        answer = "ignored" if unknown else "prefix" if self.name in part else "exact"
        yield Fact(
            "list_name_filter",
            "what does ?name= do to a list of queues?",
            answer,
            f"{len(unknown)} queues for an unknown name, {len(part)} for part of a name",
        )
        envelope = self._session.call(self._client.request, "GET", "?page=1")
        info = envelope.get("result_info")
        size = info.get("per_page") if isinstance(info, Mapping) else None
        yield Fact("list_page_size", "how many queues are on a page?", str(size), _shortened(info))

    def _names(self) -> Iterator[Fact]:
        refused: CFQueuesError | None = None
        try:
            self._create(self.name.upper())
        except PermanentError as error:
            refused = error
        yield Fact(
            "fold_names",
            "is a name in upper and lower case the same queue?",
            "true" if refused else "false",
            _as_evidence(refused),
        )

    def _rare_routes(self) -> Iterator[Fact]:
        for name, body in (("peek", {"batch_size": 1}), ("extend", {"extend": []})):
            refused = self._refusal(f"/messages/{name}", body)
            missing = refused is not None and refused.status in (404, 405)
            yield Fact(
                name,
                f"does messages/{name} exist?",
                "false" if missing else "true",
                _as_evidence(refused),
            )

    def _counted(self) -> Iterator[Fact]:
        """Which requests the rate limit counts; unknown if the API does not report what is left."""
        left = [self._requests_left()]
        self._attempt("POST", self._path("/messages/pull"), {"batch_size": 1})
        left.append(self._requests_left())
        self._post("/messages", {"body": "counted", "content_type": "text"})
        left.append(self._requests_left())
        if None in left:
            yield Fact(
                "rate_limited_routes",
                "which requests does the rate limit count?",
                "unknown",
                "the API does not report the requests left",
            )
            return
        first, pulled, pushed = (value or 0 for value in left)
        # Each measurement of what is left is a request itself, so it counts as one.
        answer = "all" if first - pulled > 1 else "all_but_pull" if pulled - pushed > 1 else "admin"
        yield Fact(
            "rate_limited_routes",
            "which requests does the rate limit count?",
            answer,
            f"requests left: {first:,}, after a pull {pulled:,}, after a publish {pushed:,}",
        )

    # Requests

    def _raise_if_stopped(self) -> None:
        if self._stop.requested:
            raise Stopped

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _path(self, route: str) -> str:
        return f"/{self._queue.id}{route}"

    def _post(self, route: str, body: Any) -> dict[str, Any]:
        """Make a request that must succeed, with retries; return the response's envelope."""
        return self._session.call(self._client.request, "POST", self._path(route), body)

    def _refusal(self, route: str, body: Any) -> CFQueuesError | None:
        return self._attempt("POST", self._path(route), body)

    def _attempt(self, method: str, path: str, body: Any = None) -> CFQueuesError | None:
        """Make one request without retries; return the API's refusal, or None if it succeeds.

        Raises:
            CFQueuesError: No response came, or the server failed (5xx).
        """
        try:
            self._client.request(method, path, body, deadline=self._session.deadline())
        except CFQueuesError as error:
            if error.status is None or error.status >= 500:
                raise
            return error
        return None

    def _pull(self, lease_seconds: float) -> list[dict[str, Any]]:
        body = {"batch_size": 100, "visibility_timeout_ms": int(1000 * lease_seconds)}
        result = self._post("/messages/pull", body).get("result")
        messages = result.get("messages") if isinstance(result, Mapping) else None
        return messages if isinstance(messages, list) else []

    def _collect(
        self,
        count: int,
        *,
        lease_seconds: float = LONG_LEASE_SECONDS,
        seconds: float = ARRIVAL_SECONDS,
    ) -> list[dict[str, Any]]:
        """Pull until *count* messages have arrived, or until *seconds* have passed."""
        end, raws = time.monotonic() + seconds, self._pull(lease_seconds)
        while len(raws) < count and time.monotonic() < end:
            self._wait(SETTLE_POLL_SECONDS)
            raws += self._pull(lease_seconds)
        return raws

    def _ack(self, raws: list[dict[str, Any]]) -> Any:
        acks = [{"lease_id": raw.get("lease_id")} for raw in raws]
        return self._post("/messages/ack", {"acks": acks}).get("result") if acks else None

    def _drain(self) -> None:
        """Remove the message that a check has left in the queue."""
        self._ack(self._collect(1))

    def _requests_left(self) -> int | None:
        self._attempt("GET", self._path(""))
        reported = self._session.requests_left()
        return reported[0] if reported else None


def _encoding(body: Any) -> str:
    """Return the name of the encoding of a pulled JSON object."""
    if not isinstance(body, str):
        return "a JSON value"
    for name, decode in _DECODERS.items():
        try:
            value = json.loads(decode(body))
        except ValueError:  # binascii.Error is a subclass
            continue
        if isinstance(value, dict):
            return name
    return "unknown"


_DECODERS: Final[dict[str, Callable[[str], str | bytes]]] = {
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


def _as_knob(error: CFQueuesError | None, *, code: bool = True) -> str:
    """Write a refusal as the emulator's knobs do: ``403/10000``."""
    if error is None:
        return "accepted"
    return f"{error.status}/{error.code}" if code and error.code else str(error.status)


def _as_evidence(error: CFQueuesError | None) -> str:
    return "accepted" if error is None else f"HTTP {error.status}, code {error.code}"


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return console.clean(text if len(text) <= 120 else text[:119] + "…")
